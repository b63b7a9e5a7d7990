# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Network cards that site.yml makes ports of bridges, and gives back; and a host that refuses, which stops nobody."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from lab import hosts
from lab.processes import wait_until
from support.traces import differences, dump

ROOT = pathlib.Path(__file__).resolve().parents[3]

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
    made = hosts.up(name, [WRONG, "near", "far", "plain"])
    tentative = "ip", "-6", "address", "show", "tentative"
    for host in made.hosts:
        wait_until(lambda host=host: not host.run(*tentative).stdout, 10, "the end of duplicate address detection")
    yield made
    hosts.down(name)


def play(lab: hosts.Lab, path: pathlib.Path, *options: str, **office: t.Any) -> subprocess.CompletedProcess[str]:
    found: dict[str, dict[str, t.Any]] = {}
    for host in lab.hosts:
        network = {**OFFICE, **office, **({"interface": "nosuch0"} if host.name == WRONG else {})}
        if host.name == "plain":
            network = {"name": "lab", "scenario": "private", "taps": [{"name": "desk"}], **office}
        found[host.name] = {"ansible_netns_pid_file": str(host.pid_file), "vmnet_networks": [network]}
    connection = {"ansible_connection": "labspan.vmnet.netns", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory = path / "inventory.json"
    inventory.write_text(json.dumps({"lab_hosts": {"hosts": found, "vars": connection}}))
    program = str(pathlib.Path(sys.executable).with_name("ansible-playbook"))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
        "ANSIBLE_HOME": str(path / "ansible"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_NOCOLOR": "true",
    }
    return subprocess.run(
        [program, "-i", str(inventory), *options, str(ROOT / "playbooks" / "site.yml")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def ports(host: hosts.Host, bridge: str) -> set[str]:
    shown = host.run("ip", "-j", "link", "show", "master", bridge, check=False).stdout
    return {link["ifname"] for link in json.loads(shown or "[]")}


def addresses(host: hosts.Host, name: str) -> set[str]:
    (link,) = json.loads(host.run("ip", "-j", "address", "show", name).stdout)
    return {address["local"] for address in link["addr_info"] if address["scope"] == "global"}


def test_cards_become_ports_and_go_back_and_one_that_is_not_there_stops_nobody(
    lab: hosts.Lab, tmp_path: pathlib.Path
) -> None:
    astray, near, far, plain = lab.hosts
    before = {host.name: dump(host) for host in lab.hosts}
    had = {host.name: addresses(host, hosts.UPLINK) for host in (near, far)}

    moved = play(lab, tmp_path)
    assert moved.returncode != 0
    assert f"fatal: [{WRONG}]: FAILED! =>" in moved.stdout.rpartition("TASK [")[2], moved.stdout
    assert "this host has no nosuch0" in moved.stdout.rpartition("TASK [")[2], moved.stdout
    for host in (near, far):
        assert ports(host, "br0") == {hosts.UPLINK, "desk"}, moved.stdout
        assert (addresses(host, "br0"), addresses(host, hosts.UPLINK)) == (had[host.name], set())
    assert ports(plain, "lab0") == {"desk"}
    assert differences({WRONG: before[WRONG]}, {WRONG: dump(astray)}) == []

    others = "--limit", f"!{WRONG}"
    again = play(lab, tmp_path, *others)
    assert (again.returncode, again.stdout.count("changed: [")) == (0, 0), again.stdout

    back = play(lab, tmp_path, *others, state="absent")
    assert back.returncode == 0, back.stdout
    assert differences(before, {host.name: dump(host) for host in lab.hosts}) == []
