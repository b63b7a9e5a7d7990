# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Network cards that site.yml makes ports of bridges, and gives back; and a host that refuses, which stops nobody."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
from lab import hosts
from support.traces import differences, dump, dumps
from support.users import Played, User, inventory

#: The first one, so that it is a batch of its own.
WRONG = "astray"
OFFICE = {
    "name": "office",
    "scenario": "l2",
    "interface": hosts.UPLINK,
    "persistent": "false",
    "taps": [{"name": "desk"}],
}


@pytest.fixture
def lab() -> t.Iterator[hosts.Lab]:
    """Lab hosts on one LAN."""
    name = f"uplinks-{os.getpid()}"
    yield hosts.up(name, [WRONG, "near", "far", "plain"])
    hosts.down(name)


def play(user: User, lab: hosts.Lab, *options: str, **office: t.Any) -> Played:
    found: dict[str, t.Any] = {}
    for host in lab.hosts:
        network = {**OFFICE, **office, **({"interface": "nosuch0"} if host.name == WRONG else {})}
        if host.name == "plain":
            network = {"name": "lab", "scenario": "private", "taps": [{"name": "desk"}], **office}
        found[host.name] = {"vmnet_networks": [network]}
    user.write("hosts.json", inventory(lab, {}, found))
    return user.play("site", "-i", "hosts.json", *options, code=None)


def ports(host: hosts.Host, bridge: str) -> set[str]:
    shown = host.run("ip", "-j", "link", "show", "master", bridge, check=False).stdout
    return {link["ifname"] for link in json.loads(shown or "[]")}


def addresses(host: hosts.Host, name: str) -> set[str]:
    (link,) = json.loads(host.run("ip", "-j", "address", "show", name).stdout)
    return {address["local"] for address in link["addr_info"] if address["scope"] == "global"}


def test_cards_become_ports_and_go_back_and_one_that_is_not_there_stops_nobody(
    lab: hosts.Lab, tmp_path: pathlib.Path
) -> None:
    user = User(tmp_path)
    astray, near, far, plain = lab.hosts
    before = dumps(lab.hosts)
    had = {host.name: addresses(host, hosts.UPLINK) for host in (near, far)}

    moved = play(user, lab)
    assert moved.code != 0
    assert f"fatal: [{WRONG}]: FAILED! =>" in moved.output.rpartition("TASK [")[2], moved.output
    assert "this host has no nosuch0" in moved.output.rpartition("TASK [")[2], moved.output
    for host in (near, far):
        assert ports(host, "br0") == {hosts.UPLINK, "desk"}, moved.output
        assert (addresses(host, "br0"), addresses(host, hosts.UPLINK)) == (had[host.name], set())
    assert ports(plain, "lab0") == {"desk"}
    assert differences({WRONG: before[WRONG]}, {WRONG: dump(astray)}) == []

    others = "--limit", f"!{WRONG}"
    again = play(user, lab, *others)
    assert (again.code, again.changed) == (0, []), again.output

    back = play(user, lab, *others, state="absent")
    assert back.code == 0, back.output
    assert differences(before, dumps(lab.hosts)) == []
