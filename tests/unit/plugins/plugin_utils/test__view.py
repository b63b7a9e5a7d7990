# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Endpoint, Host, read_hosts
from hypothesis import given, settings
from support.lab_views import fleets, sample


def host(**result: t.Any) -> Host:
    return read_hosts({"lab": result})[0]


def endpoint(of: Host, name: str) -> Endpoint:
    return next(each for each in of.endpoints if each.name == name)


def test_hosts_stay_in_order() -> None:
    assert [each.name for each in read_hosts(sample())] == ["alder", "birch", "cedar", "dogwood"]


@pytest.mark.parametrize(
    ("result", "reachable", "problem"),
    [
        ({"unreachable": True, "msg": "No route to host"}, False, "No route to host"),
        ({"failed": True, "msg": "pyroute2 is missing"}, True, "pyroute2 is missing"),
        (None, True, "vmnet_info returned nothing, but NoneType"),
    ],
)
def test_a_host_that_was_not_read_has_its_problem(result: t.Any, reachable: bool, problem: str) -> None:
    found = read_hosts({"lab": result})[0]
    assert (found.reachable, found.problem, found.networks) == (reachable, problem, ())


def test_a_guest_with_several_nics_is_one() -> None:
    proxy = endpoint(read_hosts(sample())[0], "proxy")
    assert [nic.bridge for nic in proxy.nics] == ["br-office", "shop0"]
    assert [nic.addresses for nic in proxy.nics] == [("192.0.2.52",), ("10.97.0.10",)]
    assert proxy.nics[1].lease == "2026-11-21T18:42:40Z"


def test_a_port_of_no_guest_stands_for_itself() -> None:
    spare = endpoint(read_hosts(sample())[1], "spare0")
    assert (spare.is_guest, spare.state, spare.nics[0].bridge) == (False, "free", "build0")


def test_a_port_of_no_guest_has_the_name_of_who_is_behind_it() -> None:
    neighbour = {"mac": "52:54:00:00:00:01", "name": "stand-in", "addresses": ["10.0.0.5"]}
    ports = [{"name": "veth0", "kind": "other", "up": True, "carrier": True, "neighbours": [neighbour]}]
    found = host(bridges=[{"name": "br0", "ports": ports}]).endpoints
    assert [(each.name, each.state, each.nics[0].addresses) for each in found] == [("stand-in", "up", ("10.0.0.5",))]


def test_the_uplink_is_no_guest() -> None:
    found = host(bridges=[{"name": "br0", "ports": [{"name": "eth0", "kind": "uplink", "up": True}]}])
    assert found.endpoints == ()
    assert found.networks[0].uplinks == ("eth0",)


def test_addresses_stand_once_with_ipv4_first_and_without_link_local_ones_where_there_are_others() -> None:
    told = [{"address": "fe80::1"}, {"address": "fd00::1"}, {"address": "10.0.0.1"}, {"address": "10.0.0.1"}]
    some = host(guests=[{"name": "a", "nics": [{"addresses": told}]}, {"name": "b", "nics": [{"addresses": told[:1]}]}])
    assert endpoint(some, "a").nics[0].addresses == ("10.0.0.1", "fd00::1")
    assert endpoint(some, "b").nics[0].addresses == ("fe80::1",)


def test_a_bridge_of_others_is_named_after_whose_it_is() -> None:
    bridge = host(bridges=[{"name": "virbr0", "network": None, "by": "libvirt"}]).networks[0]
    assert (bridge.name, bridge.scenario, bridge.word) == ("virbr0", "other", "libvirt")


def test_rules_are_counted_by_network_and_world() -> None:
    found = read_hosts(sample())[0].rules
    assert [(each.network, each.world, each.number, each.packets) for each in found] == [
        ("shop", "nftables", 2, 19335),
        ("shop", "iptables-nft", 1, 19335),
    ]


def test_what_blocks_is_told_in_sentences() -> None:
    assert host(forward_blockers=[{"chain": "FORWARD", "text": "It drops."}, "So does that."]).warnings == (
        "It drops.",
        "So does that.",
    )


def test_a_list_is_refused_with_what_is_needed() -> None:
    with pytest.raises(ValueError, match="dictionary with what vmnet_info returned"):
        read_hosts([{}])


@settings(max_examples=40, deadline=None)
@given(fleets)
def test_anything_of_the_shape_is_read_and_fit_to_print(fleet: dict[str, t.Any]) -> None:
    for each in read_hosts(fleet):
        texts = [each.name, each.problem, *each.warnings, *(guest.name for guest in each.endpoints)]
        assert all(text.isprintable() or "\xa0" in text or " " in text for text in texts)
        assert all("\n" not in text and "\x1b" not in text for text in texts)
