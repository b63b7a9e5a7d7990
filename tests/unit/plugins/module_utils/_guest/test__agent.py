# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conversation with an agent, which may be sick, hostile, or not there."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._agent import Agent, AgentError, AgentSilent
from support.fake_agent import FakeAgent

PATIENCE = 20.0
IMPATIENCE = 0.3


@contextlib.contextmanager
def served(tmp_path: pathlib.Path, *manners: str, timeout: float = PATIENCE) -> t.Iterator[Agent]:
    path = tmp_path / "agent.sock"
    with FakeAgent(path, manners):
        yield Agent("vm1", timeout=timeout, path=str(path))


@pytest.mark.parametrize("manner", ["", "stale", "slices"])
def test_an_agent_is_understood_whatever_is_left_of_an_earlier_conversation(
    tmp_path: pathlib.Path, manner: str
) -> None:
    with served(tmp_path, manner) as line, line as agent:
        assert agent.version() == "7.2.22"
        assert agent.freeze_status() == "thawed"
        assert agent.freeze(timeout=PATIENCE) == 2
        assert agent.freeze_status() == "frozen"
        with pytest.raises(AgentError, match="in frozen state"):
            agent.interfaces()
        assert agent.thaw(timeout=PATIENCE) == 2
        assert agent.freeze_status() == "thawed"


def test_what_the_guest_tells_of_its_addresses_is_checked(tmp_path: pathlib.Path) -> None:
    with served(tmp_path) as line, line as agent:
        (interface,) = agent.interfaces()
    assert interface == _agent.Interface("enp0s2", "52:54:00:00:00:01", ("10.5.0.7/24", "fe80::1/64"))


def test_a_program_is_run_and_what_it_prints_comes_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "agent.sock")
    monkeypatch.setattr(_agent.Places, "agent_socket", property(lambda self: path))
    with FakeAgent(pathlib.Path(path)):
        script = ["sh", "-c", "cat; echo wrong >&2; exit 3"]
        outcome = _agent.run("vm1", script, stdin="grüße\n", timeout=PATIENCE, answer_timeout=PATIENCE)
        assert outcome == _agent.Outcome(3, None, "grüße\n", "wrong\n", False)
        killed = _agent.run("vm1", ["sh", "-c", "kill -9 $$"], stdin=None, timeout=PATIENCE, answer_timeout=PATIENCE)
        assert (killed.rc, killed.signal) == (None, 9)
        monkeypatch.setattr(_agent, "LONGEST_OUTPUT", 10)
        cut = _agent.run("vm1", ["seq", "100"], stdin=None, timeout=PATIENCE, answer_timeout=PATIENCE)
        assert (cut.stdout, cut.truncated) == ("1\n2\n3\n4\n5\n", True)
        with pytest.raises(AgentError, match="Failed to execute"):
            _agent.run("vm1", ["no-such-program"], stdin=None, timeout=PATIENCE, answer_timeout=PATIENCE)


def test_a_program_that_goes_on_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "agent.sock")
    monkeypatch.setattr(_agent.Places, "agent_socket", property(lambda self: path))
    with (
        FakeAgent(pathlib.Path(path), ["endless-exec"]),
        pytest.raises(SystemFailure, match="with the number 1000"),
    ):
        _agent.run("vm1", ["true"], stdin=None, timeout=IMPATIENCE, answer_timeout=PATIENCE)


@pytest.mark.parametrize("manner", ["silent", "chatter", "silent-guest-sync-delimited", "endless-guest-sync-delimited"])
def test_who_does_not_answer_to_the_question_is_silent(tmp_path: pathlib.Path, manner: str) -> None:
    with served(tmp_path, manner, timeout=IMPATIENCE) as line, pytest.raises(AgentSilent, match="has not answered for"):
        line.__enter__()


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("garbage-guest-info", "does not speak the agent's language"),
        ("silent-guest-info", "has not answered the command guest-info"),
        ("endless-guest-info", "answers with more than 1000000 bytes"),
    ],
)
def test_an_agent_that_goes_mad_in_the_middle_is_told_of(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, manner: str, said: str
) -> None:
    monkeypatch.setattr(_agent, "LONGEST_ANSWER", 1000000)
    patience = IMPATIENCE if manner.startswith("silent") else PATIENCE
    with served(tmp_path, manner) as line, line as agent, pytest.raises(SystemFailure, match=said):
        agent.execute("guest-info", timeout=patience)


def test_an_agent_that_cannot_freeze_says_so(tmp_path: pathlib.Path) -> None:
    with served(tmp_path, "cannot-freeze") as line, line as agent:
        assert agent.freeze_status() is None


def test_without_a_socket_there_is_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(AgentSilent, match="was started with guest_agent: true"):
        Agent("vm1", timeout=1, path=str(tmp_path / "none.sock")).__enter__()


def test_a_guest_that_ends_meanwhile_is_told_of(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "agent.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        agent = Agent("vm1", timeout=PATIENCE, path=str(path))
        agent._connect()
        listener.accept()[0].close()
        with pytest.raises(AgentSilent, match="guest vm1 ended"):
            agent._synchronise()
        agent.close()
