# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests get out with the host's address in every backend; reruns write nothing, absent leaves nothing."""

from __future__ import annotations

import pytest
from support.hosts import await_condition

from .conftest import (
    BRIDGE,
    GUEST4,
    HOST4,
    HOST6,
    LAN4,
    LAN6,
    OTHER4,
    PORT,
    SUBNET4,
    UPLINK,
    Lab,
    legacy_interpreter,
    register,
)

pytestmark = pytest.mark.one_interpreter


def test_guests_leave_with_the_hosts_address_and_absent_leaves_nothing(lab: Lab, backend: str) -> None:
    lab.serve("lan")
    assert lab.refused("guest", LAN4)
    assert lab.refused("guest", LAN6)
    before = lab.dump()

    predicted = lab.host.converge("nat_masquerade", lab.nat(backend=backend), check=True)
    assert lab.dump() == before

    made = lab.host.converge("nat_masquerade", lab.nat(backend=backend))
    assert made["changed"]
    assert made["actions"] == predicted["actions"]
    assert made["network"] == predicted["network"]
    assert made["diff"] == predicted["diff"]
    assert made["network"]["backend"].split()[0] in backend
    assert lab.seen("guest", LAN4) == HOST4
    assert lab.seen("guest", LAN6) == HOST6

    for check in (True, False):
        state = lab.dump()
        with lab.host.monitored() as heard:
            assert not lab.host.converge("nat_masquerade", lab.nat(backend=backend), check=check)["changed"]
        assert heard == []
        assert lab.dump() == state

    predicted = lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"}, check=True)
    removed = lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert removed["actions"] == predicted["actions"] != []
    assert removed["diff"] == predicted["diff"]
    assert "masquerade" in str(removed["diff"]["before"]["networks"]["lab"]).lower()
    assert removed["diff"]["after"]["networks"] == {}
    assert removed["network"] is None
    assert lab.dump() == before
    assert lab.refused("guest", LAN4)
    assert not lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})["changed"]


def test_guests_see_each_other_as_they_are(lab: Lab, backend: str) -> None:
    """With br_netfilter, bridged packets pass the rules of IP as well."""
    assert lab.host.sysctl("net/bridge/bridge-nf-call-iptables") == "1"
    lab.serve("other")
    lab.host.converge("nat_masquerade", lab.nat(backend=backend))
    assert lab.seen("guest", OTHER4) == GUEST4


def test_a_change_of_backend_moves_the_rules(lab: Lab) -> None:
    lab.host.interpreter = legacy_interpreter()
    for backend in ("iptables", "iptables_legacy"):
        register(lab, backend)
    lab.serve("lan")
    before = lab.dump()
    for backend in ("iptables_legacy", "nftables", "iptables", "iptables_legacy"):
        made = lab.host.converge("nat_masquerade", lab.nat(backend=backend))
        assert made["changed"]
        assert made["network"]["backend"].split()[0] in backend
        assert lab.seen("guest", LAN4) == HOST4
        held = [name for name, text in lab.dump().items() if "LABSPAN-lab" in str(text) or "labspan_lab" in str(text)]
        legacy = ["ip6tables filter", "ip6tables nat", "iptables filter", "iptables nat"]
        assert sorted(held) == (legacy if backend == "iptables_legacy" else ["nft"])
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert lab.dump() == before


def test_to_ports_random_and_excluded_destinations(lab: Lab, backend: str) -> None:
    lab.serve("lan")
    lab.route_to_guests()
    options = {"to_ports": "20000-20999", "random": True, "backend": backend}
    lab.host.converge("nat_masquerade", lab.nat(**options))
    assert lab.seen("guest", LAN4) == HOST4
    lab.host.converge("nat_masquerade", lab.nat(**options, exclude_destinations=[f"{LAN4}/32"]))
    assert lab.seen("guest", LAN4) == GUEST4
    assert lab.seen("guest", LAN6) == HOST6
    assert not lab.host.converge("nat_masquerade", lab.nat(**options, exclude_destinations=[f"{LAN4}/32"]))["changed"]


def test_to_ports_hides_a_privileged_port(lab: Lab) -> None:
    """NFS and others trust a low source port, which a plain masquerade keeps."""
    lab.count("lan", HOST4, match="tcp sport 700-701")
    lab.serve("lan")
    connect = f"import socket; socket.create_connection(('{LAN4}', {PORT}), 10, ('{GUEST4}', 700)).recv(1)"
    lab.host.converge("nat_masquerade", lab.nat())
    lab.on("guest", "python3", "-c", connect)
    assert lab.counted("lan") > [0]
    before = lab.counted("lan")
    lab.host.converge("nat_masquerade", lab.nat(to_ports="1024-65535"))
    lab.on("guest", "python3", "-c", connect.replace(", 700)", ", 701)"))
    assert lab.counted("lan") == before


def test_auto_takes_the_default_route_and_the_bridges_subnets(lab: Lab) -> None:
    lab.serve("lan")
    made = lab.host.converge("nat_masquerade", {"name": "lab", "bridge": BRIDGE})
    assert made["network"]["out_interfaces"] == {"ipv4": UPLINK, "ipv6": UPLINK}
    assert made["network"]["sources"] == [SUBNET4, "fd77::/64"]
    assert lab.seen("guest", LAN4) == HOST4


def test_without_a_known_subnet_everybody_gets_out_with_a_warning(lab: Lab) -> None:
    lab.serve("lan")
    lab.host.run("ip", "addr", "flush", "dev", BRIDGE, "scope", "global")
    made = lab.host.converge("nat_masquerade", lab.nat())
    assert "names no subnet" in str(made["warnings"])
    lab.host.run("ip", "addr", "add", "10.77.0.1/24", "dev", BRIDGE)
    listed = lab.host.converge("nat_masquerade", lab.nat(sources=[SUBNET4]))
    assert "warnings" not in listed
    assert lab.seen("guest", LAN4) == HOST4


def test_the_bridge_as_out_interface_is_taken_literally_and_told_about(lab: Lab) -> None:
    lab.serve("guest")
    lab.serve("lan")
    lab.route_to_guests()
    made = lab.host.converge("nat_masquerade", lab.nat(out_interface=BRIDGE, lan_access=True))
    assert "out_interface: lsup0" in str(made["warnings"])
    assert lab.seen("lan", GUEST4) == "10.77.0.1"
    assert lab.refused("guest", "198.51.100.77")
    assert lab.seen("guest", LAN4) == GUEST4
    assert not lab.host.converge("nat_masquerade", lab.nat(out_interface=BRIDGE, lan_access=True))["changed"]


def test_a_flow_that_began_before_the_rules_is_translated_after_them(lab: Lab) -> None:
    """The kernel decides about translation once for each flow."""
    stream = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 5555))\n"
    send = f"{stream}[s.sendto(b'x', ('{LAN4}', 9)) for _ in range(3)]"
    lab.host.converge("nat_masquerade", lab.nat(masquerade=False))
    lab.count("lan", GUEST4)
    lab.on("guest", "python3", "-c", send)
    await_condition(lambda: lab.counted("lan") == [3], "all packets")
    lab.host.converge("nat_masquerade", lab.nat())
    lab.on("guest", "python3", "-c", send)
    assert lab.counted("lan") == [3]


def test_a_host_without_nftables_gets_iptables(lab: Lab) -> None:
    lab.serve("lan")
    lab.host.run("mount", "--bind", "/dev/null", "/usr/sbin/nft")
    assert lab.host.converge("nat_masquerade", lab.nat())["network"]["backend"] == "iptables (nft)"
    assert lab.seen("guest", LAN4) == HOST4
    assert not lab.host.converge("nat_masquerade", lab.nat())["changed"]
    assert lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})["changed"]
    assert "LABSPAN" not in lab.host.out("iptables-nft-save")
