# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The dead-man where systemd runs the host: whoever is killed or stopped, it goes back, and nothing of it stays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import typing as t

import pytest
from support.hosts import TIMEOUT, Host, await_condition
from support.lans import GATEWAY, GATEWAY6, Lan
from support.ssh import Door, Ssh
from support.system_host import PYTHON_PATH, SystemHost, needs_system_host
from support.uplinks import (
    await_phase,
    begin,
    confirm,
    difference,
    identity,
    move,
    options,
    phase,
    reaches,
    state,
)

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MAC = "52:54:00:00:00:19"
ADDRESS, ADDRESS6 = "10.77.0.5", "fd77::5"
# No manager's: what it does is not what is looked at here.
BY_HAND = f"""
set -e
sysctl -qw net.ipv6.conf.eth0.accept_ra=0
ip link set eth0 up
ip address add {ADDRESS}/24 dev eth0
ip address add {ADDRESS6}/64 dev eth0 nodad
ip route add default via {GATEWAY}
ip route add default via {GATEWAY6}
"""
# No processes outlive their session here, not even those of root, who is left out by default.
MERCILESS = "[Login]\nKillUserProcesses=yes\nKillExcludeUsers=nobody\n"

# The first half of a move that comes no further than to the end of its phase C(moving), and says so.
_STALLED = """
import importlib, runpy, signal, sys
from ansible.module_utils import basic
journal = importlib.import_module("ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal")
original = journal.Transaction.advance

def advance(self, allowed, to, *arguments, **options):
    if to == "moved":
        open(self.file("stalled"), "w").close()
        while True:
            signal.pause()
    return original(self, allowed, to, *arguments, **options)

if sys.argv[1] == "stalled":
    journal.Transaction.advance = advance
basic._ANSIBLE_ARGS = sys.argv[2].encode()
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_module("ansible_collections.labspan.vmnet.plugins.modules.bridge_uplink", run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A host, and the way in from its LAN."""

    host: SystemHost
    door: Door


@pytest.fixture(scope="module")
def guarded(python_path: pathlib.Path) -> t.Iterator[Guarded]:
    files = {"/etc/systemd/logind.conf.d/merciless.conf": MERCILESS}
    with contextlib.ExitStack() as stack:
        lan = Lan(stack.enter_context(Host(python_path)), MAC)
        ssh = stack.enter_context(Ssh())
        host = stack.enter_context(
            SystemHost(python_path, files={**files, **ssh.files()}, enable=["ssh"], wire=lan.wire)
        )
        host.run("sh", "-c", BY_HAND)
        await_condition(lambda: reaches(host, GATEWAY) and reaches(host, GATEWAY6), "the gateways")
        yield Guarded(host, ssh.door(ADDRESS, via=lan.host))


@pytest.fixture
def host(guarded: Guarded) -> t.Iterator[SystemHost]:
    """The host, which every test leaves as it was, with nothing of the guard but how it ended."""
    before = state(guarded.host)
    yield guarded.host
    assert difference(state(guarded.host), before) == []
    await_condition(lambda: units(guarded.host) == [], "the dead-man's unit to be gone")
    assert guarded.host.state() == "running", guarded.host.failures()
    assert leftovers(guarded.host) <= {"phase", "lock"}
    assert guarded.door.open()


def units(host: SystemHost) -> list[str]:
    """All of the guard's that systemd knows of."""
    listed = host.out("systemctl", "list-units", "--all", "--plain", "--no-legend", "labspan-uplink-*").splitlines()
    return [line.split()[0] for line in listed]


def leftovers(host: SystemHost) -> set[str]:
    """The names of the files of all moves."""
    return set(host.out("find", "/run/labspan/uplink", "-mindepth", "2", "-printf", "%f\n").split())


def unit(transaction: str) -> str:
    return f"labspan-uplink-{transaction}.service"


def dead_man(host: SystemHost, transaction: str) -> str:
    """The number of its process; 0 while there is none."""
    return host.out("systemctl", "show", "--value", "--property=MainPID", unit(transaction)).strip()


def mover(host: SystemHost, transaction: str) -> str:
    return str(json.loads(host.out("cat", f"/run/labspan/uplink/{transaction}/journal"))["mover"]["pid"])


def kill_dead_man(host: SystemHost, transaction: str) -> None:
    """Kill it, and see another in its place."""
    killed = dead_man(host, transaction)
    assert killed != "0"  # which would be the test's own process group
    host.run("kill", "-KILL", killed)
    await_condition(lambda: dead_man(host, transaction) not in ("0", killed), "another dead-man")


def reason(host: SystemHost, transaction: str) -> str:
    return str(json.loads(host.out("cat", f"/run/labspan/uplink/{transaction}/phase"))["reason"])


def module_argv(kind: str, transaction: str) -> list[str]:
    """The command line of the first half of a move; C(stalled) it stays in its phase C(moving)."""
    arguments = {"ANSIBLE_MODULE_ARGS": options(transaction=transaction, confirm_timeout=10)}
    return ["env", f"PYTHONPATH={PYTHON_PATH}", "/usr/bin/python3", "-c", _STALLED, kind, json.dumps(arguments)]


@contextlib.contextmanager
def stalled(host: SystemHost) -> t.Iterator[str]:
    """A move in its phase C(moving), with the addresses on the bridge; its transaction."""
    name = identity()
    process = host.start(*module_argv("stalled", name), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        await_stalled(host, name)
        yield name
        # It does not go on by itself: somebody has killed it.
        process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()


def await_stalled(host: SystemHost, transaction: str) -> None:
    marker = f"/run/labspan/uplink/{transaction}/stalled"
    await_condition(lambda: host.run("test", "-e", marker, check=False).returncode == 0, "the move to stall")
    assert phase(host, transaction) == "moving"
    assert host.addresses("br0") == [f"{ADDRESS}/24", f"{ADDRESS6}/64"]


@contextlib.contextmanager
def session(guarded: Guarded, script: str, *words: str) -> t.Iterator[str]:
    """A login over SSH that runs a shell script and stays; the name of the session."""
    there = set(sessions(guarded.host))
    process = subprocess.Popen(
        guarded.door.argv("sh", "-c", f"setsid sleep 600 & {script}; sleep 600", "sh", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await_condition(lambda: len(set(sessions(guarded.host)) - there) == 1, "the session")
        (name,) = set(sessions(guarded.host)) - there
        yield name
        process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()


def sessions(host: SystemHost) -> list[str]:
    return [line.split()[0] for line in host.out("loginctl", "list-sessions", "--no-legend").splitlines()]


def sleepers(host: SystemHost) -> list[str]:
    """What the session has left in the background."""
    return host.run("pgrep", "-x", "sleep", check=False).stdout.split()


def test_it_outlives_the_session_that_began_the_move(guarded: Guarded, host: SystemHost) -> None:
    name = identity()
    with session(guarded, '"$@"', *module_argv("whole", name)) as login:
        await_phase(host, name, "moved")
        process = dead_man(host, name)
        assert f"/system.slice/{unit(name)}" in host.out("cat", f"/proc/{process}/cgroup")
        assert sleepers(host) != []
        host.run("loginctl", "terminate-session", login)
    # The twin: everything else that the session has started is gone with it.
    await_condition(lambda: sleepers(host) == [], "the session's processes to be gone")
    assert dead_man(host, name) == process
    assert phase(host, name) == "moved"
    await_phase(host, name, "rolled back")
    assert "was not confirmed over a new connection within 10 seconds" in reason(host, name)


@pytest.mark.parametrize("end", ["terminate-session", "sshd"])
def test_a_session_that_ends_in_the_middle_of_the_move_takes_it_back(
    guarded: Guarded, host: SystemHost, end: str
) -> None:
    name = identity()
    with session(guarded, '"$@"', *module_argv("stalled", name)) as login:
        await_stalled(host, name)
        if end == "sshd":
            leader = host.out("loginctl", "show-session", "--value", "--property=Leader", login).strip()
            host.run("kill", "-KILL", leader)
        else:
            host.run("loginctl", end, login)
    await_phase(host, name, "rolled back")
    assert reason(host, name) == "The process that moved the uplink died in the phase 'moving'."


def test_killed_it_is_there_again_and_goes_back_in_time(host: SystemHost) -> None:
    name = begin(host, confirm_timeout=15)["pending"]["transaction"]
    kill_dead_man(host, name)
    kill_dead_man(host, name)
    await_phase(host, name, "rolled back")
    assert "within 15 seconds" in reason(host, name)


def test_killed_it_does_not_keep_a_move_from_being_confirmed(host: SystemHost) -> None:
    result = begin(host)
    kill_dead_man(host, result["pending"]["transaction"])
    assert confirm(host, result)["phase"] == "confirmed"
    await_condition(lambda: units(host) == [], "the dead-man's unit to be gone")
    assert leftovers(host) == {"phase", "lock"}
    assert host.state() == "running"
    move(host, state="absent")


def test_killed_when_all_is_over_it_stays_away(host: SystemHost) -> None:
    """Nothing that it would need is there any more, and systemd does not try for ever."""
    result = begin(host)
    name = result["pending"]["transaction"]
    process = dead_man(host, name)
    host.run("kill", "-STOP", process)
    assert confirm(host, result)["phase"] == "confirmed"
    assert leftovers(host) == {"phase", "lock"}
    host.run("kill", "-KILL", process)
    await_condition(lambda: units(host) == [], "the dead-man's unit to be gone")
    assert phase(host, name) == "confirmed"
    move(host, state="absent")


def test_with_the_mover_killed_it_goes_back_at_once(host: SystemHost) -> None:
    with stalled(host) as name:
        host.run("kill", "-KILL", mover(host, name))
        await_phase(host, name, "rolled back")
    assert reason(host, name) == "The process that moved the uplink died in the phase 'moving'."


def test_with_both_killed_it_is_there_again_and_goes_back_at_once(host: SystemHost) -> None:
    with stalled(host) as name:
        watching = dead_man(host, name)
        assert watching != "0"
        host.run("kill", "-KILL", watching, mover(host, name))
        await_phase(host, name, "rolled back")
    assert reason(host, name) == "The process that moved the uplink died in the phase 'moving'."


def test_stopped_it_goes_back_before_it_ends(host: SystemHost) -> None:
    """Without a guard there is no move: whoever ends the one ends the other."""
    result = begin(host, confirm_timeout=90)
    name = result["pending"]["transaction"]
    host.run("systemctl", "stop", unit(name))
    assert phase(host, name) == "rolled back"
    assert "was told to end" in reason(host, name)
    answer = confirm(host, result)
    assert "rolled back" in answer["msg"]
    assert "was told to end" in answer["msg"]


def test_stopped_in_the_middle_of_the_move_it_ends_that_too(host: SystemHost) -> None:
    with stalled(host) as name:
        host.run("systemctl", "stop", unit(name))
        assert phase(host, name) == "rolled back"
    assert "was told to end" in reason(host, name)
