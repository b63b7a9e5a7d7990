# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""SSH into a test host goes over its network card, by a new TCP connection, and by no other way."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from support.hosts import Host, await_condition, cable
from support.ssh import Door, Ssh

pytestmark = pytest.mark.one_interpreter

ADDRESSES = ("192.0.2.10", "2001:db8:1::10")


@pytest.fixture
def lan(host: Host) -> t.Iterator[Host]:
    """Another host, at the far end of a cable to the first."""
    with Host(host.python_path) as other:
        cable(other, "port0", host, "eth0")
        for address in ("192.0.2.1/24", "2001:db8:1::1/64"):
            other.run("ip", "addr", "add", address, "dev", "port0", "nodad")
        for address in ("192.0.2.10/24", "2001:db8:1::10/64"):
            host.run("ip", "addr", "add", address, "dev", "eth0", "nodad")
        host.run("ip", "link", "set", "eth0", "up")
        yield other


@pytest.fixture
def ssh(host: Host) -> t.Iterator[Ssh]:
    with Ssh() as made:
        made.serve(host)
        yield made


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_login_arrives_at_the_nic_from_the_lan(host: Host, lan: Host, ssh: Ssh, address: str) -> None:
    peer = ssh.door(address, via=lan).run("printenv", "SSH_CONNECTION").stdout.split()
    assert peer[0] == address.replace("10", "1")
    assert peer[2:] == [address, "22"]


def test_a_closed_nic_keeps_new_logins_out(host: Host, lan: Host, ssh: Ssh) -> None:
    door = ssh.door(ADDRESSES[0], via=lan)
    assert door.open()
    host.run("ip", "link", "set", "eth0", "down")
    assert not door.open()


def test_ansible_comes_in_by_the_same_door_and_leaves_no_connection(host: Host, lan: Host) -> None:
    with Ssh() as ssh:
        ssh.serve(host)
        done = _ansible(ssh.door(ADDRESSES[0], via=lan), "printenv SSH_CONNECTION")
        assert "192.0.2.1 " in done.stdout, done
        # Without one, this could not show that it is ended.
        await_condition(lambda: bool(_connections(host)), f"a shared connection after {done.args}: {done.stderr}")
    await_condition(lambda: not _connections(host), "the end of the shared connection")


def _connections(host: Host) -> str:
    return host.out("ss", "-Htn", "state", "established")


def _ansible(door: Door, command_line: str) -> subprocess.CompletedProcess[str]:
    variables = {**door.variables, "ansible_python_interpreter": "/usr/bin/python3"}
    ansible = [str(pathlib.Path(sys.executable).with_name("ansible")), "all", "--inventory", "h1,"]
    task = ["-m", "ansible.builtin.command", "-a", command_line]
    return subprocess.run(
        [*ansible, *task, "--extra-vars", json.dumps(variables)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "true"},
    )
