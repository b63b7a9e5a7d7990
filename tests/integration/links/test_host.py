# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tests' own tools can see what they are there to see."""

from __future__ import annotations

import pytest
from support.hosts import Host

pytestmark = pytest.mark.one_interpreter


def test_a_host_is_not_the_machine_and_starts_empty(host: Host) -> None:
    assert [link["ifname"] for link in host.json("ip", "-j", "link", "show")] == ["lo"]
    assert host.dump()["files"] == []


def test_monitors_are_silent_when_nothing_happens(host: Host) -> None:
    with host.monitored() as heard:
        host.json("ip", "-j", "addr", "show")
        host.json("nft", "-j", "list", "ruleset")
    assert heard == []


@pytest.mark.parametrize(
    "command",
    [
        ("ip", "link", "add", "br0", "type", "bridge"),
        ("ip", "link", "set", "lo", "mtu", "9000"),
        ("ip", "addr", "add", "192.0.2.1/24", "dev", "lo"),
        ("nft", "add", "table", "inet", "foreign"),
    ],
)
def test_monitors_and_dumps_see_a_change(host: Host, command: tuple[str, ...]) -> None:
    before = host.dump()
    with host.monitored() as heard:
        host.run(*command)
    assert heard
    assert host.dump() != before
