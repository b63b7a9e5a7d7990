# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What two hosts cannot both have, and what any number of them may."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _fleet, _inventory
from hypothesis import given
from hypothesis import strategies as st

Options = t.Dict[str, t.Any]

MAC = "52:54:00:00:00:01"


def member(name: str, *networks: Options, guests: t.Sequence[Options] = (), **options: t.Any) -> _fleet.Member:
    return _fleet.Member(name, _inventory.read(list(networks), list(guests)), **options)


def routed(subnet: str, **options: t.Any) -> Options:
    return {"name": "far", "scenario": "routed", "subnet": subnet, **options}


def lan(*nics: Options, **options: t.Any) -> Options:
    guest = {"name": "web", "nics": list(nics)}
    return {"name": "lan", "scenario": "l2", "interface": "eth0", "guests": [guest], **options}


def test_a_subnet_is_routed_by_one_host() -> None:
    found = _fleet.conflicts(
        [
            member("one", routed("10.1.0.0/24")),
            member("two", {"name": "x", "scenario": "private"}, routed("10.1.0.0/16", subnet6="fd00::/64")),
            member("three", routed("10.2.0.0/24", subnet6="fd00:1::/64")),
        ]
    )
    remedy = "the others can have a route to one of them only. Give each host its own."
    assert found == {
        "one": [f"networks[0].subnet: '10.1.0.0/24' is also on host two (networks[1].subnet, 10.1.0.0/16); {remedy}"],
        "two": [f"networks[1].subnet: '10.1.0.0/16' is also on host one (networks[0].subnet, 10.1.0.0/24); {remedy}"],
    }


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (routed("10.1.0.0/24", scenario="nat"), routed("10.1.0.0/24", scenario="nat")),
        (routed("10.1.0.0/24", scenario="nat"), routed("10.1.0.0/24")),
        (routed("10.1.0.0/24", state="absent"), routed("10.1.0.0/24")),
        (routed("10.1.0.0/24"), routed("10.1.1.0/24")),
        (routed("10.1.0.0/24"), routed("fd00::/64")),
        (routed("x"), routed("x")),
        (lan({"mac": MAC}), lan({})),
        (lan({"mac": MAC}), lan({"mac": MAC}, state="absent")),
        (lan({"mac": MAC}), {"name": "a", "scenario": "nat", "guests": [{"name": "web", "nics": [{"mac": MAC}]}]}),
        (lan({"address": "192.0.2.1"}), lan({"address": "192.0.2.2"})),
        (lan({"address": "x"}), lan({"address": "x"})),
    ],
)
def test_what_any_number_of_hosts_may_have(one: Options, two: Options) -> None:
    assert _fleet.conflicts([member("one", one), member("two", two)]) == {}


@pytest.mark.parametrize(
    ("one", "two", "place", "value"),
    [
        (lan({"mac": MAC}), lan({}, {"mac": MAC.replace(":", "-")}), "networks[0].guests[0].nics[1].mac", MAC),
        (
            lan({"address": "192.0.2.1"}),
            lan({"address": "192.0.2.1"}),
            "networks[0].guests[0].nics[0].address",
            "192.0.2.1",
        ),
        (
            lan({"address": "192.0.2.1"}),
            lan(address_mode="static", addresses=["192.0.2.9/24", "192.0.2.1/24"]),
            "networks[0].addresses[1]",
            "192.0.2.1",
        ),
    ],
)
def test_what_is_in_one_lan_is_there_once(one: Options, two: Options, place: str, value: str) -> None:
    found = _fleet.conflicts([member("one", one), member("two", two)])
    assert set(found) == {"one", "two"}
    assert found["two"][0].startswith(f"{place}: '{value}' is also on host one (networks[0].guests[0]")
    assert _fleet.conflicts([member("one", one, lan="a"), member("two", two, lan="b")]) == {}
    assert _fleet.conflicts([member("one", one, lan={"lan": "a"}), member("two", two, lan={"lan": "b"})]) == {}
    assert _fleet.conflicts([member("one", one, lan={"lan": "a"}), member("two", two, lan="a")])


def test_a_host_that_is_not_to_be_compared_is_in_no_conflict() -> None:
    fleet = [member("one", routed("10.1.0.0/24"), checks=["macs"]), member("two", routed("10.1.0.0/24"))]
    assert _fleet.conflicts(fleet) == {}


def test_guests_of_one_host_are_for_its_own_validation() -> None:
    assert _fleet.conflicts([member("one", lan({"mac": MAC}, {"mac": MAC}))]) == {}


_subnets = st.builds(
    lambda number, length: ipaddress.ip_network((number << 24, length), strict=False),
    st.integers(0, 7),
    st.integers(4, 8),
)


@given(st.lists(st.lists(_subnets, max_size=3), max_size=5))
def test_a_host_is_in_a_conflict_exactly_if_its_subnet_overlaps_another_hosts(fleet: list[list[t.Any]]) -> None:
    members = [
        member(f"h{number}", *(routed(str(subnet), name=f"n{at}") for at, subnet in enumerate(subnets)))
        for number, subnets in enumerate(fleet)
    ]
    expected = {
        (f"h{number}", f"networks[{at}].subnet")
        for number, subnets in enumerate(fleet)
        for at, subnet in enumerate(subnets)
        for rival, others in enumerate(fleet)
        if rival != number and any(subnet.overlaps(other) for other in others)
    }
    found = _fleet.conflicts(members)
    assert {(host, text.split(":")[0]) for host, texts in found.items() for text in texts} == expected
    assert all(len(texts) == len(set(texts)) for texts in found.values())
