# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lab hosts keep what happens on them to themselves, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import typing as t

import pytest
from lab import hosts
from lab.processes import Process, wait_until

NAME = f"t{os.getpid()}"


def machine() -> dict[str, t.Any]:
    """The machine's own network as the system's programs show it."""
    commands = (
        ("ip", "-j", "link", "show"),
        ("ip", "-j", "addr", "show"),
        ("ip", "-j", "route", "show", "table", "all"),
        ("ip", "-j", "-6", "route", "show", "table", "all"),
        ("nft", "-j", "list", "ruleset"),
    )
    state = {" ".join(command): json.loads(_output(*command) or "[]") for command in commands}
    for link in state["ip -j addr show"]:
        for address in link["addr_info"]:
            address.pop("valid_life_time", None)
            address.pop("preferred_life_time", None)
    return state


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _networks() -> set[str]:
    return {name for name in os.listdir(hosts.NETNS) if name.startswith(f"labspan-{NAME}-")}


@pytest.fixture(scope="module")
def lab() -> t.Iterator[hosts.Lab]:
    yield hosts.up(NAME, ["h1", "h2"])
    hosts.down(NAME)


def test_the_machine_s_own_network_is_what_it_was() -> None:
    before = machine()
    other = hosts.up(f"{NAME}-x", ["h1"])
    try:
        other.member("h1").run("nft", "add", "table", "inet", "labspan_probe")
        other.member("h1").run("ip", "link", "add", "br0", "type", "bridge")
        assert machine() == before
    finally:
        assert hosts.down(f"{NAME}-x")
    assert machine() == before
    assert f"{NAME}-x" not in hosts.labs()


def test_hosts_reach_each_other_and_the_lan_sees_who_they_are(lab: hosts.Lab) -> None:
    first, second = lab.hosts
    for address in second.addresses:
        first.run("ping", "-c", "1", "-W", "5", address.partition("/")[0])
    for url, seen in (("http://192.0.2.1/", "192.0.2.11"), ("http://[2001:db8:1::1]/", "2001:db8:1::11")):
        script = f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=10).read().decode(), end='')"
        assert second.run("python3", "-c", script).stdout == f"lan sees {seen}\n"


@pytest.mark.parametrize("path", ["/etc/labspan-probe", "/var/lib/labspan-probe", "/run/labspan/probe"])
def test_what_a_host_writes_stays_with_it(lab: hosts.Lab, path: str) -> None:
    first, second = lab.hosts
    first.run("sh", "-c", f"echo mine > {path}")
    assert first.run("cat", path).stdout == "mine\n"
    assert second.run("cat", path, check=False).returncode != 0
    assert not pathlib.Path(path).exists()


def test_a_host_has_a_name_and_an_identity_and_processes_of_its_own(lab: hosts.Lab) -> None:
    first, second = lab.hosts
    assert first.run("hostname").stdout == "h1\n"
    assert first.run("cat", "/etc/machine-id").stdout != second.run("cat", "/etc/machine-id").stdout
    assert str(os.getpid()) not in first.run("sh", "-c", "ls /proc").stdout.split()
    assert "uplink0" in first.run("ls", "/sys/class/net").stdout.split()


def test_orphans_are_reaped(lab: hosts.Lab) -> None:
    host = lab.hosts[0]
    host.run("sh", "-c", "(sleep 0.05 & echo $!) > /run/orphan")
    orphan = host.run("cat", "/run/orphan").stdout.strip()
    wait_until(lambda: host.run("test", "-e", f"/proc/{orphan}", check=False).returncode != 0, 10, "the orphan's end")


def test_up_leaves_a_whole_lab_alone(lab: hosts.Lab) -> None:
    assert hosts.up(NAME, ["h1", "h2"]) == lab


def test_killing_process_1_ends_everything_and_up_brings_it_back(lab: hosts.Lab) -> None:
    host = lab.hosts[0]
    host.run("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $! > /run/daemon")
    init = t.cast("Process", host.init)
    daemons = init.children()
    assert daemons
    assert host.netns in _networks()
    assert "port0" in lab.lan.run("ls", "/sys/class/net").stdout.split()

    init.kill()
    wait_until(lambda: not host.supervisor.alive, 10, "the end of the host")
    assert not any(daemon.alive for daemon in daemons)
    assert host.netns not in _networks()
    wait_until(
        lambda: "port0" not in lab.lan.run("ls", "/sys/class/net").stdout.split(), 10, "the end of the host's network"
    )
    with pytest.raises(hosts.LabError, match="does not run"):
        host.argv("true")

    again = hosts.up(NAME, ["h1", "h2"])
    assert again.alive
    assert again.hosts[0].init != host.init
    assert not any(member.supervisor.alive for member in lab.members)


def test_down_ends_what_is_left_when_the_supervisor_was_killed() -> None:
    name = f"{NAME}-y"
    lab = hosts.up(name, ["h1"])
    host = lab.hosts[0]
    for child in host.supervisor.children():
        host.supervisor.kill()
        child.kill()
    wait_until(lambda: not t.cast("Process", host.init).alive, 10, "the end of the host")
    assert host.netns in os.listdir(hosts.NETNS)
    assert hosts.down(name)
    assert host.netns not in os.listdir(hosts.NETNS)
    assert not hosts.down(name)


def test_only_the_process_that_was_started_is_ended() -> None:
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        process = Process.of(sleeper.pid)
        dataclasses.replace(process, started=process.started - 1).kill()
        assert process.alive
        process.kill()
        assert sleeper.wait() == -9


def test_the_machine_s_own_network_is_never_entered(lab: hosts.Lab) -> None:
    impostor = dataclasses.replace(lab.hosts[0], init=Process.of(os.getpid()))
    with pytest.raises(hosts.LabError, match="machine's own network"):
        impostor.argv("true")


@pytest.mark.parametrize("names", [["lan"], ["a", "a"], ["A"], ["../x"], ["-x"], []])
def test_names_that_would_lead_astray_are_refused(names: list[str]) -> None:
    with pytest.raises(hosts.LabError):
        hosts.up(f"{NAME}-z", names)
    assert f"{NAME}-z" not in hosts.labs()


def test_ten_hosts_at_once() -> None:
    name = f"{NAME}-many"
    try:
        lab = hosts.up(name, [f"h{number}" for number in range(10)])
        assert lab.alive
        lab.hosts[9].run("ping", "-c", "1", "-W", "5", "192.0.2.10")
    finally:
        hosts.down(name)
