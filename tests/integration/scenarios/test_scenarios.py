# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenarios as their users run them: up with real guests, again without a change, down without a trace."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
from lab import hosts
from support.tiny_guests import tiny_guest as guest
from support.traces import dump
from support.users import Played, User, inventory

SCENARIOS = {
    "private": {"private_guests": [guest("one", "labspan.address=10.1.0.1/24")], "private_taps": [{"name": "tap0"}]},
    "routed": {"routed_guests": [guest("one")], "routed_subnet6": "fd00:98::/64"},
    "nat": {"nat_guests": [guest("one"), guest("two")], "nat_subnet6": "fd00:97::/64"},
    "l2": {
        "l2_guests": [guest("one", "labspan.address=192.0.2.51/24")],
        "l2_interface": hosts.UPLINK,
        "l2_persistent": False,
    },
}


@pytest.fixture(scope="module")
def lab() -> t.Iterator[hosts.Lab]:
    """One lab host on its LAN."""
    name = f"scenarios-{os.getpid()}"
    yield hosts.up(name, ["labhost"], tiny_guest=True)
    hosts.down(name)


def actions(played: Played) -> list[str]:
    """What changed the host."""
    return [task["action"] for task in played.changed]


@pytest.mark.long
@pytest.mark.parametrize(
    "scenario",
    # Molecule brings up the others, too; there and back with a network card is in test_fleet_uplinks.py.
    [pytest.param(name, marks=() if name == "nat" else pytest.mark.slow) for name in SCENARIOS],
)
def test_up_is_idempotent_and_down_leaves_what_was_there(scenario: str, lab: hosts.Lab, tmp_path: pathlib.Path) -> None:
    host, variables, user = lab.hosts[0], SCENARIOS[scenario], User(tmp_path)
    user.write("hosts.json", inventory(lab, {**variables, "vmnet_scenarios": [scenario]}))
    before = dump(host)

    assert user.play(scenario, "-i", "hosts.json", "--check", "--diff").changed
    assert dump(host) == before, "check mode has written"

    assert user.play(scenario, "-i", "hosts.json").changed
    up = dump(host)
    assert up["links"] != before["links"]
    assert up["firewall"] != before["firewall"]
    assert "qemu-system" in up["programs"]

    again = user.play(scenario, "-i", "hosts.json")
    assert actions(again) == []
    assert 0 < len(again.reached) <= 8, again.output
    assert dump(host) == up, "a run that reports no change has changed something"

    assert "qemu_guest" in actions(user.play("teardown", "-i", "hosts.json"))
    assert dump(host) == before
    assert actions(user.play("teardown", "-i", "hosts.json")) == []
