# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Networks and taps of a host in one task: foretold, made, left alone, changed in place, and gone without a trace."""

from __future__ import annotations

import typing as t

import pytest
from support.hosts import Host

pytestmark = pytest.mark.one_interpreter

NAT = {"name": "lhnat", "scenario": "nat", "subnet": "10.61.0.0/24", "taps": [{"name": "lhn0"}, {"name": "lhn1"}]}
ROUTED = {"name": "lhrouted", "scenario": "routed", "subnet": "10.62.0.0/24", "subnet6": "fd00:62::/64"}
PRIVATE = {"name": "lhprivate", "scenario": "private", "taps": [{"name": "lhp0"}]}
NETWORKS = [NAT, ROUTED, PRIVATE]


def named(entries: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    return {entry["name"]: entry for entry in entries}


def seen(host: Host) -> list[str]:
    """What a person sees of the host's networks; what was made again has new numbers."""
    links = [
        f"{link['ifname']} {link.get('master')} {link['address']} {link.get('ifalias')} {'UP' in link['flags']}"
        for link in host.json("ip", "-d", "-j", "link", "show")
    ]
    addresses = [
        f"{name} {host.addresses(name)}" for name in sorted(link["ifname"] for link in host.json("ip", "-j", "link"))
    ]
    return [*sorted(links), *addresses, host.out("nft", "-s", "list", "ruleset")]


def test_networks_are_foretold_made_left_alone_and_removed(connected: Host) -> None:
    host = connected
    before = host.dump()
    foretold = host.converge("lab_host", {"networks": NETWORKS}, check=True)
    assert host.dump() == before, "check mode has written"

    made = host.converge("lab_host", {"networks": NETWORKS})
    assert made["actions"] == foretold["actions"]
    assert made["diff"]["after"]["bridges"] == foretold["diff"]["after"]["bridges"]
    assert made["diff"]["after"]["bridges"]["lhnat0"]["ports"] == ["lhn0", "lhn1"]
    assert host.addresses("lhnat0") == ["10.61.0.1/24"]
    assert host.addresses("lhrouted0") == ["10.62.0.1/24", "fd00:62::1/64"]
    assert (host.link("lhn1") or {})["master"] == "lhnat0"
    assert {f"labspan_{name}" for name in ("lhnat", "lhrouted", "lhprivate_closed")} <= set(
        host.out("nft", "list", "tables").split()
    )
    assert host.sysctl("net/ipv4/conf/lhnat0/forwarding") == "1"
    networks = named(made["networks"])
    assert networks["lhnat"]["taps"] == ["lhn0", "lhn1"]
    assert networks["lhrouted"]["lan_routes"] == ["10.62.0.0/24 via 192.0.2.2"]
    assert "Create tap lhp0 on bridge lhprivate0" in networks["lhprivate"]["actions"]
    assert not [action for action in networks["lhprivate"]["actions"] if "lhnat" in action]

    host.assert_rests("lab_host", {"networks": NETWORKS})
    gone = host.converge("lab_host", {"networks": NETWORKS, "state": "absent"})
    assert set(gone["diff"]["before"]["rules"]) == {"lhnat", "lhrouted"}
    assert gone["diff"]["before"]["rules"]["lhnat"]["table"][0] == "table inet labspan_lhnat {"
    assert host.dump() == before


def test_only_the_network_that_differs_is_told_to_have_changed(connected: Host) -> None:
    connected.converge("lab_host", {"networks": [NAT, PRIVATE]})
    more = {**PRIVATE, "taps": [*PRIVATE["taps"], {"name": "lhp1"}]}  # type: ignore[misc]
    networks = named(connected.converge("lab_host", {"networks": [NAT, more]})["networks"])
    assert networks["lhprivate"]["actions"] == ["Create tap lhp1 on bridge lhprivate0"]
    assert (networks["lhprivate"]["changed"], networks["lhnat"]["changed"]) == (True, False)


def test_a_network_may_have_all_that_another_one_had(connected: Host) -> None:
    host = connected
    host.converge("lab_host", {"networks": [NAT]})
    index = (host.link("lhn0") or {})["ifindex"]
    other = {**NAT, "name": "lhother", "bridge": "lhnat0"}
    renamed = {"networks": [{"name": "lhnat", "scenario": "nat", "state": "absent"}, other]}
    foretold = host.converge("lab_host", renamed, check=True)
    made = host.converge("lab_host", renamed)
    assert made["actions"] == foretold["actions"]
    assert made["diff"]["after"]["bridges"] == foretold["diff"]["after"]["bridges"]
    assert made["diff"]["after"]["bridges"]["lhnat0"]["ports"] == ["lhn0", "lhn1"]
    assert host.addresses("lhnat0") == ["10.61.0.1/24"]
    assert (host.link("lhn0") or {})["ifalias"] == "labspan.vmnet:lhother"
    assert (host.link("lhn0") or {})["ifindex"] == index, "a tap is handed over, because a guest may hold it"
    tables = host.out("nft", "list", "tables")
    assert "labspan_lhother" in tables
    assert "labspan_lhnat" not in tables
    host.assert_rests("lab_host", renamed)


def test_what_fails_at_the_end_leaves_the_host_as_it_was(connected: Host) -> None:
    host = connected
    host.converge("lab_host", {"networks": [PRIVATE]})
    before, shown = host.dump(), seen(host)
    # dnsmasq is there, takes the configuration, and does not start.
    host.run("sh", "-c", "mkdir /run/fake && printf '#!/bin/sh\\n[ \"$1\" = --test ]' >/run/fake/dnsmasq")
    host.run("chmod", "+x", "/run/fake/dnsmasq")
    environment = {"PATH": "/run/fake:/usr/sbin:/usr/bin:/sbin:/bin"}
    failed = host.module("lab_host", {"networks": [NAT]}, environment=environment)
    assert "did not start" in failed["msg"]
    assert failed["not_undone"] == []
    assert host.dump() == before

    gone = {**PRIVATE, "state": "absent"}
    failed = host.module("lab_host", {"networks": [NAT, gone]}, environment=environment)
    assert "Delete bridge lhprivate0" in failed["undone"]
    assert failed["not_undone"] == []
    assert seen(host) == shown


def test_a_private_network_that_changes_its_bridge_stays_closed(connected: Host) -> None:
    host = connected
    host.converge("lab_host", {"networks": [PRIVATE]})
    moved = {"networks": [{**PRIVATE, "bridge": "lhisland"}], "exclusive": True}
    foretold = host.converge("lab_host", moved, check=True)
    assert host.converge("lab_host", moved)["actions"] == foretold["actions"]
    assert host.link("lhprivate0") is None
    rules = host.out("nft", "list", "ruleset")
    assert 'iifname "lhisland"' in rules
    assert "lhprivate0" not in rules
    host.assert_rests("lab_host", moved)
