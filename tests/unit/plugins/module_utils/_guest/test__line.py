# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab host's half of the connection to a guest: the way that is taken, and what comes back by it."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent, _line, _places
from support.fake_agent import FakeAgent
from support.fake_console import SHELL, FakeConsole


@pytest.fixture
def runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where the guest vm1 has its sockets."""
    monkeypatch.setattr(_places, "RUNTIME_ROOT", str(tmp_path / "run"))
    monkeypatch.setattr(_places, "STATE_ROOT", str(tmp_path / "state"))
    directory = tmp_path / "run" / "vm1"
    directory.mkdir(parents=True)
    return directory


def request(command: str = "true", **changes: t.Any) -> _line.Request:
    given: dict[str, t.Any] = {"guest": "vm1", "transport": "auto", "timeout": 20.0, "command_timeout": 20.0}
    return _line.Request(**{**given, "user": None, "password": None, "command": command, **changes})


def test_the_agent_gives_status_and_both_outputs_exactly(runtime: pathlib.Path) -> None:
    with FakeAgent(runtime / "agent.sock"):
        told = _line.converse(request("cat; printf 'e\\0' >&2; exit 3"), b"\0\r\n\xff")
        assert told == (3, b"\0\r\n\xff", b"e\0", "agent")
        assert _line.converse(request("kill -9 $$"), None).rc == 137
        home = _line.converse(request("pwd; echo $HOME; cat"), None).stdout.split()
        assert home[0] == home[1]


@pytest.mark.parametrize("listens", [True, False, None])
def test_the_agent_is_taken_where_one_listens(
    runtime: pathlib.Path, monkeypatch: pytest.MonkeyPatch, listens: t.Optional[bool]
) -> None:
    monkeypatch.setattr(_agent, "is_listening", lambda _guest, timeout: listens)
    with FakeAgent(runtime / "agent.sock"), FakeConsole(runtime / "console.sock", "sh", "-c", SHELL):
        wanted = "console" if listens is False else "agent"
        assert _line.converse(request(), None).transport == wanted
        assert _line.converse(request(transport="console"), None).transport == "console"
        assert _line.converse(request(transport="agent"), None).transport == "agent"


def test_a_long_command_leaves_the_agent_to_others(runtime: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_line, "HOLD", 0.0)
    monkeypatch.setattr(_line, "_LONGEST_PAUSE", 0.01)
    with FakeAgent(runtime / "agent.sock") as agent:
        assert _line.converse(request("echo x"), None).stdout == b"x\n"
    assert agent.asked.count("guest-sync-delimited") > 2
    assert agent.asked.count("guest-exec") == 1


def test_what_cannot_be_is_a_sentence(runtime: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidInput, match="vmnet_guest"):
        _line.converse(request(guest="../vm1"), None)
    with pytest.raises(_line.NoLine, match="is not defined on this lab host"):
        _line.converse(request(), None)
    (tmp_path / "state" / "vm1").mkdir(parents=True)
    (tmp_path / "state" / "vm1" / "guest.json").touch()
    with pytest.raises(_line.NoLine, match="does not run"):
        _line.converse(request(), None)
    with FakeAgent(runtime / "agent.sock", ["endless-exec"]):
        with pytest.raises(_line.NoLine, match="no serial console"):
            _line.converse(request(transport="console"), None)
        with pytest.raises(SystemFailure, match="It goes on there, with the number 1000"):
            _line.converse(request(command_timeout=0.2), None)
    os.unlink(runtime / "agent.sock")
    with FakeAgent(runtime / "agent.sock", ["forbidden-guest-exec"]):
        os.rename(runtime / "agent.sock", runtime / "console.sock")
        with pytest.raises(_line.NoLine, match="no line to an agent"):
            _line.converse(request(transport="agent"), None)
        os.rename(runtime / "console.sock", runtime / "agent.sock")
        with pytest.raises(SystemFailure, match="Allow guest-exec"):
            _line.converse(request(), None)


def test_a_request_shows_neither_password_nor_command() -> None:
    shown = repr(request("command-secret", password="password-secret"))
    assert "secret" not in shown
