# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module guest_agent against a stand-in that takes the place of QEMU's socket to the agent."""

from __future__ import annotations

import typing as t

import pytest

from .conftest import ACCOUNT, RUNTIME, STATE, Guests

one_interpreter = pytest.mark.one_interpreter


def ask(guests: Guests, name: t.Optional[str], **options: t.Any) -> dict[str, t.Any]:
    return guests.host.module("guest_agent", {**({"name": name} if name else {}), "timeout": 5, **options})


def test_the_line_is_there_when_asked_for_and_for_its_account_only(guests: Guests) -> None:
    result = guests.converge("ga-a", guest_agent=True)
    assert result["guest"]["agent_socket"] == f"{RUNTIME}/ga-a/agent.sock"
    assert guests.mode(f"{RUNTIME}/ga-a/agent.sock") == f"600 {ACCOUNT}"
    devices = guests.qmp("ga-a", "query-chardev")
    assert [device["frontend-open"] for device in devices if device["label"] == "agent"] == [False]
    assert not guests.converge("ga-a", guest_agent=True)["changed"]
    assert not guests.converge("ga-a")["changed"]
    guests.converge("ga-a", state="absent")
    assert not guests.exists(f"{RUNTIME}/ga-a")


@one_interpreter
def test_a_running_guest_without_the_line_needs_a_restart(guests: Guests) -> None:
    guests.converge("ga-b")
    assert guests.converge("ga-b")["guest"]["agent_socket"] is None
    assert "has no line to an agent" in ask(guests, "ga-b")["msg"]
    pending = guests.converge("ga-b", guest_agent=True)["guest"]["pending_restart"]
    assert pending == ["guest_agent is False, wanted True"]


@one_interpreter
def test_why_nobody_answers_is_a_sentence(guests: Guests) -> None:
    assert ask(guests, "ga-c")["msg"].startswith("guest ga-c is not defined on this host.")
    guests.converge("ga-c", guest_agent=True)
    silent = ask(guests, "ga-c", timeout=0.5)
    assert silent["msg"].startswith("the agent of guest ga-c has not answered for 0.5 seconds: it is not installed")
    guests.converge("ga-c", guest_agent=True, state="stopped")
    assert "guest ga-c does not run" in ask(guests, "ga-c")["msg"]
    foretold = guests.host.converge("guest_agent", {"name": "ga-c", "command": "freeze"}, check=True)
    assert foretold["changed"]
    assert "guest ga-c does not run" in str(foretold["warnings"])


def test_ping_addresses_freeze_and_thaw(guests: Guests) -> None:
    guests.converge("ga-d", guest_agent=True)
    with guests.agent("ga-d", "stale"):
        ping = ask(guests, "ga-d")
        assert (ping["changed"], ping["guest"]) == (False, {"name": "ga-d", "version": "7.2.22", "frozen": False})
        told = ask(guests, "ga-d", command="addresses")["guest"]["interfaces"]
        assert told == [
            {"name": "enp0s2", "mac": "52:54:00:00:00:01", "addresses": ["10.5.0.7/24", "fe80::1/64"]},
        ]
        for command, verb, frozen in (("freeze", "Freeze", True), ("thaw", "Thaw", False)):
            params = {"name": "ga-d", "command": command}
            foretold = guests.host.converge("guest_agent", params, check=True)
            assert ask(guests, "ga-d")["guest"]["frozen"] is not frozen
            done = ask(guests, "ga-d", command=command)
            assert done["actions"] == foretold["actions"] == [f"{verb} the file systems of guest ga-d"]
            assert done["guest"] == foretold["guest"]
            assert done["guest"]["frozen"] is frozen
            assert not ask(guests, "ga-d", command=command)["changed"]


@one_interpreter
def test_programs_run_in_all_guests_at_once_and_one_failure_loses_no_output(guests: Guests) -> None:
    guests.converge(None, guests=[{"name": "ga-e"}, {"name": "ga-f"}], guest_agent=True)
    with guests.agent("ga-e"), guests.agent("ga-f", "slices"):
        script = ["sh", "-c", 'read word; echo "heard $word"; test "$word" = good']
        entries = [{"name": "ga-e", "stdin": "good\n"}, {"name": "ga-f", "stdin": "bad\n"}]
        params = {"command": "exec", "argv": script, "guests": entries}
        foretold = guests.host.converge("guest_agent", params, check=True)
        assert foretold["actions"] == ["Run sh in guest ga-e", "Run sh in guest ga-f"]
        assert foretold["executed"] == []
        result = guests.host.module("guest_agent", params)
        assert result["failed"]
        assert result["msg"].startswith("sh in guest ga-f ended with exit status 1: heard bad.")
        assert [(run["name"], run["rc"], run["stdout"]) for run in result["executed"]] == [
            ("ga-e", 0, "heard good\n"),
            ("ga-f", 1, "heard bad\n"),
        ]
        single = ask(guests, "ga-e", command="exec", argv=["cat"], stdin="grüße")
        assert (single["changed"], single["rc"], single["stdout"], single["stderr"]) == (True, 0, "grüße", "")


@one_interpreter
def test_a_freeze_that_nobody_answers_for_is_taken_back(guests: Guests) -> None:
    guests.converge("ga-g", guest_agent=True)
    with guests.agent("ga-g", "silent-guest-fsfreeze-freeze"):
        failed = ask(guests, "ga-g", command="freeze", timeout=5)
        assert (
            "has not answered the command guest-fsfreeze-freeze for 5 seconds. Its file systems are thawed."
            in (failed["msg"])
        )
        assert ask(guests, "ga-g")["guest"]["frozen"] is False


@one_interpreter
def test_options_that_do_not_go_together_are_refused(guests: Guests) -> None:
    refuse = guests.host.refuse
    assert "argv" in refuse("guest_agent", {"name": "ga-h", "command": "exec"})
    assert "stdin" in refuse("guest_agent", {"name": "ga-h", "stdin": "x"})
    assert "timeout" in refuse("guest_agent", {"name": "ga-h", "timeout": 0})
    assert not guests.exists(f"{STATE}/ga-h")
