# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom site.yml still goes to when hosts are not there, and when something went wrong with a network card.

None of the hosts is there: which ones a task fails to reach tells whom it went to.
"""

from __future__ import annotations

import pathlib
import re
import typing as t

from support.users import User, entered

L2 = {"vmnet_networks": [{"name": "office", "scenario": "l2", "interface": "uplink0"}]}
PRIVATE = {"vmnet_networks": [{"name": "lab", "scenario": "private"}]}

UPLINK = "labspan.vmnet._common : See to the uplink"
LAB = "See to networks and guests"


def play(tmp_path: pathlib.Path, hosts: dict[str, t.Any], *options: str) -> list[tuple[str, list[str]]]:
    """The tasks that reach for hosts, in order, with the hosts that they failed to reach."""
    user = User(tmp_path)
    user.write("hosts.json", {"lab_hosts": {"vars": entered(tmp_path / "none.pid"), "hosts": hosts}})
    played = user.play("site", "-i", "hosts.json", *options, code=None)
    assert played.code != 0, played.output
    tasks = re.split(r"^TASK \[(.*?)\].*$", played.output, flags=re.MULTILINE)[1:]
    found = [
        (name, sorted(re.findall(r"^fatal: \[(.*?)\]", output, re.MULTILINE)))
        for name, output in zip(tasks[::2], tasks[1::2])
    ]
    return [(name, hosts) for name, hosts in found if name in (UPLINK, LAB)]


def test_hosts_that_are_not_there_stop_nobody(tmp_path: pathlib.Path) -> None:
    reached = play(tmp_path, {"a": PRIVATE, "b": L2, "c": L2})
    assert reached == [(LAB, ["a"]), (UPLINK, ["b"]), (UPLINK, ["c"]), (LAB, ["b", "c"])]


def test_a_network_card_with_which_something_went_wrong_ends_the_playbook(tmp_path: pathlib.Path) -> None:
    wrong = {**L2, "ansible_connection": "nosuch.nosuch.nosuch"}
    hosts = {"a": PRIVATE, "b": wrong, "c": L2, "d": L2}
    assert play(tmp_path, hosts, "-e", "vmnet_serial=2") == [(LAB, ["a"]), (UPLINK, ["c"])]
    # The same with a host that is only not there in its place.
    assert play(tmp_path, {**hosts, "b": L2}, "-e", "vmnet_serial=2") == [
        (LAB, ["a"]),
        (UPLINK, ["b", "c"]),
        (UPLINK, ["d"]),
        (LAB, ["b", "c", "d"]),
    ]
