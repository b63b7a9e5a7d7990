# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed at every point, by kill -9: in each phase, and between every two messages. The host is what it was, whole.

The module that runs here is the collection's own; only the sending of messages is replaced, by one that sends them one
by one and counts, and so knows when to die.
"""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.uplinks import (
    MESSY,
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
    uplink_host,
)

pytestmark = pytest.mark.one_interpreter

# Dies at the given event: "send 7" is before the seventh message, "phase moving 0" before, "phase moving 1" after the
# change of the phase. A count of all messages is printed by a run that does not die.
_DYING = """
import json, os, signal, sys
from ansible.module_utils import basic
base = "ansible_collections.labspan.vmnet.plugins.module_utils."
import importlib
wire = importlib.import_module(base + "_wire")
journal = importlib.import_module(base + "_uplink._journal")
point = sys.argv[1].split()
count = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def send(self, messages):
    global count
    answers = []
    for message in messages:
        count += 1
        if point[0] == "send" and count == int(point[1]):
            die()
        answers += self._send_batch([message])
    if count:
        with open("/run/labspan/messages", "w") as file:
            file.write(str(count))
    return answers

def advance(self, allowed, to, reason="", *, before=None):
    if point[0] == "phase" and point[1] == to and point[2] == "0":
        die()
    done = original(self, allowed, to, reason, before=before)
    if point[0] == "phase" and point[1] == to and point[2] == "1":
        die()
    return done

wire.Wire.send = send
original = journal.Transaction.advance
journal.Transaction.advance = advance
basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
basic._ANSIBLE_PROFILE = "legacy"
import runpy
runpy.run_module("ansible_collections.labspan.vmnet.plugins.modules.bridge_uplink", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def host(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    with uplink_host(python_path, interpreter, MESSY) as made:
        yield made


def run_dying(host: Host, point: str, **more: t.Any) -> str:
    """Run the first half of a move that dies there; its transaction."""
    name = identity()
    arguments = options(transaction=name, accept_risk=True, **more)
    done = host.run(
        "env",
        f"PYTHONPATH={host.python_path}",
        host.interpreter,
        "-c",
        _DYING,
        point,
        stdin=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        check=False,
    )
    if point != "never":
        assert done.returncode in (-9, 137), (point, done.stdout, done.stderr)
    return name


def messages_of(host: Host, **more: t.Any) -> int:
    """How many messages the first half sends when nothing stops it."""
    name = run_dying(host, "never", **more)
    assert phase(host, name) == "moved"
    count = int(host.out("cat", "/run/labspan/messages"))
    end(host, name)
    return count


def end(host: Host, name: str) -> None:
    """Let the move go back at once, as its dead-man does when the time is over."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); "
    script += "from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _journal, _putback; "
    script += "_putback.put_back(_journal.Transaction(sys.argv[2]), 'The test says so.')"
    host.run(host.interpreter, "-c", script, str(host.python_path), name)
    await_phase(host, name, "rolled back")


def kill_deadman(host: Host, name: str) -> None:
    """End the dead-man of a move, as nobody should."""
    pid = host.out("cat", f"/run/labspan/uplink/{name}/armed").split()[0]
    host.run("kill", "-KILL", pid)


PHASES = [f"phase {name} {when}" for name in ("moving", "moved") for when in (0, 1)]


def sweep(host: Host, before: list[str], points: t.Iterable[str], **more: t.Any) -> None:
    for point in points:
        name = run_dying(host, point, **more)
        reached = phase(host, name)
        if reached == "moved":  # its work was done, so it waits for the confirmation
            end(host, name)
        elif reached:
            await_phase(host, name, "rolled back")
        assert (point, difference(state(host), before)) == (point, [])


def test_killed_in_every_phase_it_goes_back(host: Host) -> None:
    sweep(host, state(host), PHASES)


@pytest.mark.slow
def test_killed_between_every_two_messages_it_goes_back(host: Host) -> None:
    before = state(host)
    count = messages_of(host)
    assert count > 40
    sweep(host, before, [f"send {number}" for number in range(1, count + 1)])


def test_killed_between_some_messages_it_goes_back(host: Host) -> None:
    """A part of the sweep, for every day: the burst's beginning, middle and end."""
    before = state(host)
    count = messages_of(host)
    sweep(host, before, [f"send {number}" for number in range(1, count + 1, 9)])


@pytest.mark.slow
def test_killed_anywhere_on_the_way_back_it_goes_back_to_the_bridge(host: Host) -> None:
    move(host, accept_risk=True)
    before = state(host)
    count = messages_of(host, state="absent")
    sweep(host, before, [*PHASES, *(f"send {number}" for number in range(1, count + 1))], state="absent")


def test_without_its_dead_man_a_killed_move_stays_half_done(host: Host) -> None:
    """The twin: the comparison sees what the dead-man mends; and the next run mends it, too."""
    before = state(host)
    pending = begin(host, accept_risk=True)["pending"]["transaction"]
    kill_deadman(host, pending)
    assert len(set(state(host)) ^ set(before)) > 20
    refused = host.module("bridge_uplink", options(transaction=identity(), interface="nosuch0"))
    assert refused["failed"]
    await_phase(host, pending, "rolled back")
    assert state(host) == before
    result = move(host, accept_risk=True)
    assert result["changed"]
    assert reaches(host, "192.0.2.1")


def test_a_dead_man_that_was_killed_is_missed_by_the_next_run(host: Host) -> None:
    before = state(host)
    pending = begin(host, accept_risk=True)["pending"]["transaction"]
    kill_deadman(host, pending)
    result = begin(host, accept_risk=True)
    assert result["actions"][0] == f"Roll back the interrupted move {pending}"
    assert confirm(host, result, accept_risk=True)["phase"] == "confirmed"
    move(host, state="absent", accept_risk=True)
    assert state(host) == before


def test_of_a_confirmation_and_the_deadline_exactly_one_wins(host: Host) -> None:
    """The confirmation is sent again and again over the deadline; every answer agrees with what happened."""
    before = state(host)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _journal\n"
        "t = _journal.Transaction(sys.argv[2])\n"
        "try: since, limit = t.phase().since, t.read().confirm_timeout\n"
        "except FileNotFoundError: sys.exit('over')\n"
        "while _journal.now() < since + limit - 0.0005: pass\n"
        "print(t.advance(('moved',), 'confirmed', before=since + limit))\n"
    )
    asked_in_time = 0
    while asked_in_time < 2:
        pending = begin(host, accept_risk=True, confirm_timeout=5)["pending"]["transaction"]
        asked = host.run(host.interpreter, "-c", script, str(host.python_path), pending, check=False)
        assert asked.returncode == 0 or asked.stderr == "over\n", asked.stderr  # which is too late to ask
        answer = asked.stdout.strip() == "True"
        await_condition(lambda: phase(host, pending) in ("confirmed", "rolled back"), "an end")  # noqa: B023
        assert (phase(host, pending) == "confirmed") == answer
        asked_in_time += asked.returncode == 0
        if answer:
            move(host, state="absent", accept_risk=True, force=True)
        assert state(host) == before
