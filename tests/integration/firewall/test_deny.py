# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nothing reaches a guest that nobody asked for, and no guest speaks with another's address; each with its twin."""

from __future__ import annotations

import pytest
from support.hosts import await_condition

from .conftest import (
    BRIDGE,
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    HOST4,
    HOST6,
    LAN4,
    LAN6,
    SUBNET4,
    SUBNET6,
    UPLINK,
    Lab,
)

pytestmark = pytest.mark.one_interpreter


def test_a_neighbour_with_a_route_reaches_no_guest_of_a_nat_network(lab: Lab, backend: str) -> None:
    lab.serve("guest")
    lab.serve("host")
    lab.route_to_guests()

    lab.host.converge("nat_masquerade", lab.nat(backend=backend, masquerade=False))
    assert lab.seen("lan", GUEST4) == LAN4
    assert lab.seen("lan", GUEST6) == LAN6
    assert lab.seen("lan", GATEWAY4) == LAN4

    lab.host.converge("nat_masquerade", lab.nat(backend=backend))
    assert lab.refused("lan", GUEST4)
    assert lab.refused("lan", GUEST6)
    assert lab.refused("lan", GATEWAY4)
    assert lab.seen("host", GUEST4) == GATEWAY4
    assert lab.seen("guest", GATEWAY4) == GUEST4
    assert lab.seen("lan", HOST4) == LAN4


def test_lan_access_is_a_choice_of_its_own(lab: Lab) -> None:
    lab.serve("guest")
    lab.serve("lan")
    lab.route_to_guests()
    lab.host.converge("nat_masquerade", lab.nat(lan_access=True))
    assert lab.seen("lan", GUEST4) == LAN4
    lab.host.converge("nat_masquerade", lab.nat(masquerade=False, lan_access=False))
    assert lab.refused("lan", GUEST4)
    assert lab.seen("guest", LAN4) == GUEST4


def test_guests_cannot_send_from_outside_their_subnets(lab: Lab, backend: str) -> None:
    foreign = {4: "10.99.0.5", 6: "fd99::5"}
    # Nothing may depend on the answer to a question that is asked with the foreign address.
    mac = (lab.host.link(BRIDGE) or {})["address"]
    lab.on("guest", "ip", "neigh", "replace", GATEWAY6, "lladdr", mac, "dev", "eth0", "nud", "permanent")
    lab.on("guest", "ip", "addr", "add", f"{foreign[4]}/32", "dev", "eth0")
    lab.on("guest", "ip", "addr", "add", f"{foreign[6]}/128", "dev", "eth0", "nodad")
    lab.host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", f"net.ipv4.conf.{BRIDGE}.rp_filter=0")
    lab.host.converge("nat_masquerade", lab.nat(backend=backend, masquerade=False))
    for towards in ("lan", "host"):
        lab.count(towards, *foreign.values())

    def send() -> None:
        for family, destinations in ((4, (LAN4, HOST4)), (6, (LAN6, HOST6))):
            for destination in destinations:
                lab.send("guest", foreign[family], destination)

    def arrived() -> list[int]:
        return [packets for towards in ("lan", "host") for packets in lab.counted(towards)]

    send()
    assert arrived() == [0, 0, 0, 0]
    # The twin: the same packets where the network has those sources.
    wider = [SUBNET4, SUBNET6, "10.99.0.0/24", "fd99::/64"]
    lab.host.converge("nat_masquerade", lab.nat(backend=backend, masquerade=False, sources=wider))
    send()
    await_condition(lambda: arrived() == [3, 3, 3, 3], "all packets")


def test_networks_of_one_host_do_not_reach_each_other(lab: Lab, current_backend: str) -> None:
    second = "lsfw1"
    lab.host.run("ip", "link", "add", second, "type", "bridge")
    lab.host.run("ip", "addr", "add", "10.78.0.1/24", "dev", second)
    lab.host.run("ip", "link", "set", second, "up")
    lab.host.run("ip", "link", "set", "lsother", "master", second)
    lab.on("other", "ip", "addr", "flush", "dev", "eth0", "scope", "global")
    lab.on("other", "ip", "addr", "add", "10.78.0.11/24", "dev", "eth0")
    lab.on("other", "ip", "route", "replace", "default", "via", "10.78.0.1")
    lab.serve("other")
    lab.serve("lan")
    networks = [{"name": "lab", "bridge": BRIDGE}, {"name": "second", "bridge": second}]
    task = {"out_interface": UPLINK, "backend": current_backend, "networks": networks}
    made = lab.host.converge("nat_masquerade", task)
    assert [network["name"] for network in made["networks"]] == ["lab", "second"]
    assert lab.seen("guest", LAN4) == HOST4
    assert lab.seen("other", LAN4) == HOST4
    assert lab.refused("guest", "10.78.0.11")
    assert lab.refused("guest", "10.78.0.1")
    assert not lab.host.converge("nat_masquerade", task)["changed"]
    lab.host.converge("nat_masquerade", {"networks": [{"name": name, "state": "absent"} for name in ("lab", "second")]})
    assert lab.refused("guest", "10.78.0.11")  # forwarding is off as before
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    assert lab.seen("guest", "10.78.0.11") == GUEST4


def test_host_access(lab: Lab, current_backend: str) -> None:
    lab.serve("host")
    lab.serve("host", 53)
    lab.serve("guest")
    access = {"full": (True, True), "services": (False, True), "none": (False, False)}
    for choice, (ssh, dns) in access.items():
        lab.host.converge("nat_masquerade", lab.nat(backend=current_backend, host_access=choice))
        assert lab.refused("guest", GATEWAY4, expected=not ssh) != ssh
        assert lab.refused("guest", GATEWAY4, 53, expected=not dns) != dns
        assert lab.seen("host", GUEST4) == GATEWAY4
        assert lab.seen("host", GUEST6) == "fd77::1"
