# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Forwarding is on where networks need it and nowhere else; what was there before comes back with the last of them."""

from __future__ import annotations

import pytest
from support.hosts import await_condition

from .conftest import BRIDGE, HOST6, LAN6, UPLINK, Lab

pytestmark = pytest.mark.one_interpreter


# A router advertisement (RFC 4861, 4.2) with a lifetime of half an hour.
_ADVERTISE = """
import socket, struct
out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
out.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""


def settings(lab: Lab) -> list[str]:
    return [line for line in lab.dump()["sysctl"] if "forward" in line or "accept_ra:" in line]


def test_a_default_route_from_router_advertisements_survives(lab: Lab) -> None:
    lab.host.run("ip", "-6", "route", "del", "default")
    lab.on("lan", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")

    def advertised() -> bool:
        lab.on("lan", "python3", "-c", _ADVERTISE)
        return "proto ra" in lab.host.out("ip", "-6", "route", "show", "default")

    await_condition(advertised, "the default route from an advertisement")
    before = settings(lab)
    lab.serve("lan")
    lab.host.converge("nat_masquerade", lab.nat())
    assert "proto ra" in lab.host.out("ip", "-6", "route", "show", "default")
    assert lab.host.sysctl(f"net/ipv6/conf/{UPLINK}/accept_ra") == "2"
    assert lab.seen("guest", LAN6) == HOST6
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert settings(lab) == before
    assert "proto ra" in lab.host.out("ip", "-6", "route", "show", "default")
    # The twin: switched on without care, forwarding loses the route. The kernel purges once for each new router.
    lab.host.run("ip", "-6", "route", "del", "default")
    await_condition(advertised, "the default route from an advertisement")
    lab.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    assert "proto ra" not in lab.host.out("ip", "-6", "route", "show", "default")


def test_the_host_itself_becomes_no_router(lab: Lab) -> None:
    lab.host.converge("nat_masquerade", lab.nat())
    assert lab.host.sysctl("net/ipv4/ip_forward") == "0"
    assert lab.host.sysctl("net/ipv4/conf/lo/forwarding") == "0"
    file = lab.host.out("cat", "/etc/sysctl.d/60-labspan-lab.conf")
    assert f"-net/ipv4/conf/{BRIDGE}/forwarding = 1\n" in file
    lab.host.converge("nat_masquerade", lab.nat(persistent=False))
    assert lab.host.out("ls", "/etc/sysctl.d") == ""


def test_the_last_network_that_needs_a_setting_puts_it_back(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "lsfw1", "type", "bridge")
    before = settings(lab)
    uplink = f"net/ipv4/conf/{UPLINK}/forwarding"
    lab.host.converge("nat_masquerade", lab.nat())
    lab.host.converge(
        "nat_masquerade", {"name": "second", "bridge": "lsfw1", "sources": ["10.79.0.0/24"], "out_interface": UPLINK}
    )
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert lab.host.sysctl(uplink) == "1"
    assert lab.host.sysctl(f"net/ipv4/conf/{BRIDGE}/forwarding") == "0"
    lab.host.converge("nat_masquerade", {"name": "second", "state": "absent"})
    assert settings(lab) == before
    assert lab.host.dump()["files"] == []


def test_what_was_on_before_stays_on(lab: Lab) -> None:
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = settings(lab)
    lab.host.converge("nat_masquerade", lab.nat())
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert settings(lab) == before


def test_who_makes_the_whole_host_a_router_meanwhile_keeps_it(lab: Lab) -> None:
    lab.host.run("ip", "link", "add", "lsup1", "type", "bridge")
    lab.host.run("sysctl", "-qw", f"net.ipv6.conf.{UPLINK}.accept_ra=1", "net.ipv6.conf.lsup1.accept_ra=0")
    lab.host.converge("nat_masquerade", lab.nat())
    # As Docker, libvirt and k3s do when they start.
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    before = [line for line in settings(lab) if "force" not in line]
    lab.host.converge("nat_masquerade", lab.nat(out_interface="lsup1"))
    assert [line for line in settings(lab) if "force" not in line] == before
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert [line for line in settings(lab) if "force" not in line] == before
    assert lab.host.dump()["files"] == []


def test_a_setting_that_somebody_changed_back_is_set_again(lab: Lab) -> None:
    lab.host.converge("nat_masquerade", lab.nat())
    lab.host.run("sysctl", "-qw", f"net.ipv4.conf.{BRIDGE}.forwarding=0")
    again = lab.host.converge("nat_masquerade", lab.nat())
    assert again["actions"] == [f"Set net/ipv4/conf/{BRIDGE}/forwarding from 0 to 1"]
    lab.host.converge("nat_masquerade", lab.nat(forwarding=False))
    assert lab.host.sysctl(f"net/ipv4/conf/{BRIDGE}/forwarding") == "0"
