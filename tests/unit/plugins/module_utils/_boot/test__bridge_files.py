# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What closes the host off after a reboot, in the files of a network with more than one bridge."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._bridge_files import CLOSED, BridgeFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._interfaces import Item
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import Bridge
from ansible_collections.labspan.vmnet.plugins.module_utils._bridges import Bridges, BridgesState

ISLAND = "island"
OLD, NEW = ("old0", "new0")
OPEN: t.Tuple[str, ...] = ()


def tables(bridge: str) -> tuple[str, ...]:
    return tuple(
        f'table {family} labspan_island_closed {{\n\t\tiifname "{bridge}" counter drop\n}}\n'
        for family in ("inet", "arp")
    )


def closing_file(*entries: tuple[str, t.Optional[tuple[str, ...]]], lasting: t.Collection[str] = (OLD, NEW)) -> str:
    """The file after a task with these bridges, each with what closes it or None for one that goes; it was OLD's."""
    options = [
        {"name": name, "network": ISLAND, "state": "present" if closed is not None else "absent"}
        for name, closed in entries
    ]
    items = [Item(name, ISLAND, closed is not None, name in lasting) for name, closed in entries]
    there = {name: Bridge(name, closed=closed) for name, closed in entries if closed is not None}
    state = BridgesState(tuple(name for name, _closed in entries), there, {}, (), (), {})
    bridges = Bridges(options)
    had = {ISLAND: {CLOSED: "".join(tables(OLD))}}
    files = BridgeFiles(bridges, lambda: items).contribute(had, {bridges.plural: state})
    return files[ISLAND].get(CLOSED, "")


@pytest.mark.parametrize("closed", [None, OPEN])
def test_the_file_goes_with_its_own_bridge(closed: t.Optional[tuple[str, ...]]) -> None:
    assert closing_file((OLD, closed)) == ""
    assert closing_file((OLD, tables(OLD)), lasting=[]) == ""


@pytest.mark.parametrize("closed", [None, OPEN])
def test_the_file_stays_when_another_bridge_of_the_network_goes_or_is_open(
    closed: t.Optional[tuple[str, ...]],
) -> None:
    assert closing_file((NEW, closed)) == "".join(tables(OLD))


@pytest.mark.parametrize("closed", [None, OPEN])
@pytest.mark.parametrize("order", [1, -1])
def test_the_file_becomes_that_of_the_bridge_that_is_closed_instead(
    closed: t.Optional[tuple[str, ...]], order: int
) -> None:
    text = closing_file(*[(OLD, closed), (NEW, tables(NEW))][::order])
    assert f'iifname "{NEW}"' in text
    assert f'iifname "{OLD}"' not in text
