# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tests' own tools can see what they are there to see."""

from __future__ import annotations

import time

import pytest
from support.hosts import Host, await_condition

pytestmark = pytest.mark.one_interpreter


def test_a_host_is_not_the_machine_and_starts_empty(host: Host) -> None:
    assert [link["ifname"] for link in host.json("ip", "-j", "link", "show")] == ["lo"]
    assert host.dump()["files"] == []


def test_monitors_are_silent_when_nothing_happens(host: Host) -> None:
    with host.monitored() as heard:
        host.json("ip", "-j", "addr", "show")
        host.json("nft", "-j", "list", "ruleset")
    assert heard == []


_PORT = """
ip link add br0 type bridge forward_delay 800
ip link add port0 type veth peer name far
ip link set port0 master br0
ip link set dev br0 up; ip link set far up; ip link set port0 up
"""


def test_the_end_of_a_ports_delay_is_nothing_and_a_change_of_the_port_is_something(host: Host) -> None:
    def waits() -> bool:
        (port,) = host.json("ip", "-d", "-j", "link", "show", "port0")
        return bool(port["linkinfo"]["info_slave_data"]["forward_delay_timer"])

    def await_end() -> None:
        await_condition(lambda: not waits(), "the end of the delay")
        # Nothing tells when its timer, which may go off an eighth late (kernel/time/timer.c), has done so.
        time.sleep(1)

    host.run("sh", "-c", _PORT)
    with host.monitored() as heard:
        assert waits()
        await_end()
    assert heard == []
    host.run("ip", "link", "set", "port0", "down")
    host.run("ip", "link", "set", "port0", "up")
    with host.monitored() as heard:
        host.run("bridge", "link", "set", "dev", "port0", "isolated", "on")
        await_end()
    assert len([line for line in heard if "port0" in line]) == 1


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
