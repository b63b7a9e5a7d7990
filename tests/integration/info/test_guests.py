# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests as vmnet_info tells them: real QEMUs that boot nothing, some of which hang."""

from __future__ import annotations

import json
import signal
import subprocess
import typing as t

import pytest
from support.hosts import Host, Result, await_condition

pytestmark = pytest.mark.one_interpreter

RUNTIME = "/run/labspan/guests"


@pytest.fixture
def lab(host: Host) -> Host:
    """A network with a running, a paused, a stopped guest, and one that holds no tap."""
    host.converge("linux_bridge", {"name": "br0", "network": "lab", "addresses": ["10.5.0.1/24"]})
    host.converge("tap_device", {"name": "tap-a", "network": "lab", "bridge": "br0", "owner": "nobody"})
    defaults = {"user": "nobody", "memory": "32", "accelerator": "tcg", "shutdown_timeout": 0}
    guests = [
        {"name": "vm-a", "nics": [{"tap": "tap-a"}], "labels": {"role": "web"}},
        {"name": "vm-p", "state": "paused", "nics": [{"bridge": "br0"}], "network": "lab"},
        {"name": "vm-s", "state": "stopped", "nics": [{"bridge": "br0"}], "network": "lab"},
        {"name": "vm-u", "nics": [{"user": True}]},
    ]
    host.converge("qemu_guest", {**defaults, "guests": guests})
    return host


def info(host: Host, **params: t.Any) -> Result:
    return host.converge("vmnet_info", {"timeout": 30, **params})


def processes(host: Host) -> dict[str, int]:
    """Guest -> the number of its QEMU, by ps."""
    found = {}
    for line in host.out("ps", "-e", "-o", "pid=,args=").splitlines():
        words = line.split()
        if "-name" in words and "qemu-system" in words[1]:
            found[words[words.index("-name") + 1].removeprefix("guest=")] = int(words[0])
    return found


def qmp(host: Host, name: str, command: str) -> None:
    words = "".join(
        json.dumps({"execute": word, **more}) + "\n" for word, more in (("qmp_capabilities", {}), *_COMMANDS[command])
    )
    host.run("socat", "-t", "60", "-", f"UNIX-CONNECT:{RUNTIME}/{name}/qmp.sock", stdin=words)


_ANNOUNCE = {"arguments": {"initial": 50, "max": 50, "rounds": 1, "step": 10}}
_COMMANDS: dict[str, t.Any] = {"announce": [("announce-self", _ANNOUNCE)], "query": [("query-status", {})]}


def named(entries: t.Iterable[dict[str, t.Any]], name: str) -> dict[str, t.Any]:
    (found,) = (entry for entry in entries if entry["name"] == name)
    return found


def test_guests_are_told_with_their_ports_taps_and_addresses(lab: Host) -> None:
    found = info(lab)
    pids = processes(lab)
    assert {guest["name"]: (guest["state"], guest["pid"]) for guest in found["guests"]} == {
        "vm-a": ("running", pids["vm-a"]),
        "vm-p": ("paused", pids["vm-p"]),
        "vm-s": ("stopped", None),
        "vm-u": ("running", pids["vm-u"]),
    }
    assert "warnings" not in found
    first = named(found["guests"], "vm-a")
    assert (first["memory"], first["accelerator"], first["labels"]) == (32, "tcg", {"role": "web"})
    assert first["pending_restart"] == []
    assert lab.run("test", "-S", first["console_socket"], check=False).returncode == 0
    (nic,) = first["nics"]
    assert (nic["tap"], nic["bridge"], nic["network"]) == ("tap-a", "br0", "lab")
    held = {tap["name"]: [(one["pid"], one["guest"]) for one in tap["holders"]] for tap in found["taps"]}
    assert held["tap-a"] == [(pids["vm-a"], "vm-a")]
    assert sorted(guest for one in held.values() for _pid, guest in one) == ["vm-a", "vm-p"]
    assert named(found["networks"], "lab")["guests"] == ["vm-a", "vm-p", "vm-s"]

    # What a guest says is heard by the bridge, and a lease and a neighbour make its address known.
    qmp(lab, "vm-a", "announce")
    await_condition(lambda: nic["mac"] in lab.out("bridge", "fdb", "show", "dev", "tap-a"), "the bridge to hear vm-a")
    lab.run("ip", "neigh", "add", "10.5.0.7", "lladdr", nic["mac"], "dev", "br0")
    found = info(lab, gather=["bridges", "guests"])
    port = named(named(found["bridges"], "br0")["ports"], "tap-a")
    assert (port["kind"], port["guest"], port["nic"]) == ("tap", "vm-a", 0)
    (heard,) = port["neighbours"]
    assert (heard["mac"], heard["heard"], heard["guest"]) == (nic["mac"], True, "vm-a")
    assert heard["addresses"] == ["10.5.0.7"]
    assert named(found["guests"], "vm-a")["nics"][0]["addresses"] == [{"address": "10.5.0.7", "source": "neighbour"}]


def test_a_qemu_that_hangs_and_one_that_is_busy_are_named_and_the_rest_is_told(lab: Host) -> None:
    pids = processes(lab)
    lab.run("kill", f"-{signal.SIGSTOP.value}", str(pids["vm-a"]))
    path = f"{RUNTIME}/vm-u/qmp.sock"
    busy = lab.start("socat", "-", f"UNIX-CONNECT:{path}", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert busy.stdout is not None
    assert "QMP" in busy.stdout.readline()
    found = info(lab, gather=["guests", "taps"], timeout=5)
    assert {guest["name"]: guest["state"] for guest in found["guests"]} == {
        "vm-a": "unknown",
        "vm-p": "paused",
        "vm-s": "stopped",
        "vm-u": "unknown",
    }
    assert len(found["warnings"]) == 2
    assert all(sum(name in str(warning) for name in ("vm-a", "vm-u")) == 1 for warning in found["warnings"])
    lab.run("kill", f"-{signal.SIGCONT.value}", str(pids["vm-a"]))
    busy.communicate("")
    assert "warnings" not in info(lab, gather=["guests"])
    only = info(lab, gather=["guests"], guests=["vm-p", "missing"])["guests"]
    assert [guest["name"] for guest in only] == ["vm-p"]


def test_asking_changes_no_guest_and_starts_no_program_for_one(lab: Host) -> None:
    def picture() -> list[str]:
        files = lab.out("find", "/run/labspan", "/var/lib/labspan", "-printf", "%p %T@ %s %m\n").splitlines()
        return [*sorted(files), *lab.out("ps", "-e", "-o", "pid=,args=").splitlines()[:-1]]

    before = [line for line in picture() if "ps -e" not in line]
    traced = lab.strace("vmnet_info", {"gather": ["guests", "networks", "taps", "bridges"]}, "execve,sendto")
    assert [line for line in picture() if "ps -e" not in line] == before
    started = {
        line.split('"')[1].rpartition("/")[2]
        for line in traced.log.splitlines()
        if "execve(" in line and " = 0" in line
    }
    assert {program for program in started if not program.startswith("python")} == {"nft"}
    said = {
        word for word in ("qmp_capabilities", "query-status", "cont", "stop", "quit") if f'\\"{word}\\"' in traced.log
    }
    assert said == {"qmp_capabilities", "query-status"}
