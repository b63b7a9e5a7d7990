# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that are asked all at once: some answer, some hang, some are not there any more."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import socket
import threading
import types
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _places
from ansible_collections.labspan.vmnet.plugins.module_utils._info import _asking
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Guest
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from support.fake_agent import FakeAgent

from .hosts import guest

PATIENCE = 20.0
IMPATIENCE = 0.3


@pytest.fixture(autouse=True)
def _runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_places, "RUNTIME_ROOT", str(tmp_path))


class Qemu:
    """Answers every command of every client, and notes it; C(mute) accepts nobody."""

    def __init__(
        self, directory: pathlib.Path, *, status: str = "running", agent: bool = False, mute: bool = False
    ) -> None:
        directory.mkdir()
        self.heard: list[str] = []
        self._answers = {
            "query-status": {"status": status},
            "query-chardev": [{"label": "agent", "frontend-open": agent}],
        }
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "qmp.sock"))
        self._listener.listen(4)
        if not mute:
            threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, *_exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self._listener.accept()
                with connection, connection.makefile("rw") as lines:
                    lines.write('{"QMP": {}}\n')
                    lines.flush()
                    for line in lines:
                        command = json.loads(line)["execute"]
                        self.heard.append(command)
                        lines.write(json.dumps({"return": self._answers.get(command, {})}) + "\n")
                        lines.flush()


def running(name: str, *, agent: bool = False) -> Guest:
    return dataclasses.replace(guest(name, guest_agent=agent), process=Process(1, 1))


def ask(*guests: Guest, agent: bool = False, timeout: float = PATIENCE) -> tuple[dict[str, Guest], list[str]]:
    warnings: list[str] = []
    told = _asking.ask({one.name: one for one in guests}, agent=agent, timeout=timeout, warn=warnings.append)
    return told, warnings


def test_qemu_is_asked_for_the_state_and_nothing_else(tmp_path: pathlib.Path) -> None:
    with Qemu(tmp_path / "vm1", status="paused") as qemu:
        told, warnings = ask(running("vm1", agent=True), guest("off"))
    assert (told["vm1"].run_state, told["off"].run_state, warnings) == ("paused", None, [])
    assert qemu.heard == ["qmp_capabilities", "query-status"]


def give_up_soon(monkeypatch: pytest.MonkeyPatch, function: str, *names: str) -> None:
    """Have no patience with those that never answer; those that do may be late."""
    ask_patiently = getattr(_asking, function)

    def ask_impatiently(name: str, *arguments: t.Any) -> t.Any:
        *others, timeout = arguments
        return ask_patiently(name, *others, IMPATIENCE if name in names else timeout)

    monkeypatch.setattr(_asking, function, ask_impatiently)


def test_those_that_hang_are_unknown_and_named_and_the_others_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_soon(monkeypatch, "_converse", "hung", "stuck")
    with Qemu(tmp_path / "good"), Qemu(tmp_path / "hung", mute=True), Qemu(tmp_path / "stuck", mute=True):
        told, warnings = ask(running("good"), running("hung"), running("stuck"), running("gone"))
    assert {name: one.run_state for name, one in told.items()} == {
        "good": "running",
        "hung": "unknown",
        "stuck": "unknown",
        "gone": "unknown",
    }
    assert [word for warning in warnings for word in ("hung", "stuck", "gone") if f"guest {word} is" in warning] == [
        "hung",
        "stuck",
        "gone",
    ]


def test_agents_tell_addresses_when_they_are_asked(tmp_path: pathlib.Path) -> None:
    with Qemu(tmp_path / "vm1", agent=True) as qemu, FakeAgent(tmp_path / "vm1" / "agent.sock") as agent:
        told, warnings = ask(running("vm1", agent=True))
        assert (told["vm1"].told, agent.asked) == ({}, [])
        told, warnings = ask(running("vm1", agent=True), agent=True)
    assert told["vm1"].told == {"52:54:00:00:00:01": ("10.5.0.7",)}
    assert warnings == []
    assert [word for word in agent.asked if "sync" not in word] == ["guest-network-get-interfaces"]
    assert "query-chardev" in qemu.heard


@pytest.mark.parametrize(
    ("manner", "said"), [("silent", "has not answered"), ("chatter", "agent"), ("", "no agent runs")]
)
def test_an_agent_that_does_not_answer_is_named_and_the_state_is_known(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, manner: str, said: str
) -> None:
    give_up_soon(monkeypatch, "_ask_agent", "vm1")
    with Qemu(tmp_path / "vm1", agent=bool(manner)), FakeAgent(tmp_path / "vm1" / "agent.sock", [manner]):
        told, warnings = ask(running("vm1", agent=True), agent=True)
    assert told["vm1"].run_state == "running"
    assert (told["vm1"].told, len(warnings)) == ({}, 1)
    assert said in warnings[0]


@pytest.mark.parametrize("silent", ["qemu", "agent"])
def test_those_that_are_not_waited_for_any_longer_are_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    asked, over = threading.Event(), threading.Event()

    def wait(*_arguments: object) -> None:
        asked.set()
        over.wait(PATIENCE)

    class Hurried(threading.Thread):
        """Is waited for until the silent one has been asked, as if the time were over then."""

        def join(self, _timeout: t.Optional[float] = None) -> None:
            assert asked.wait(PATIENCE)

    monkeypatch.setattr(_asking, "threading", types.SimpleNamespace(Thread=Hurried))
    monkeypatch.setattr(_asking, "_converse" if silent == "qemu" else "_ask_agent", wait)
    with Qemu(tmp_path / "vm1", agent=True):
        told, warnings = ask(running("vm1", agent=True), agent=True, timeout=PATIENCE)
    over.set()
    state, what, be = ("unknown", "the state of", "is") if silent == "qemu" else ("running", "the addresses in", "are")
    assert (told["vm1"].run_state, told["vm1"].told) == (state, {})
    assert warnings == [f"guests: {what} guest vm1 {be} not known: no answer within 20 seconds."]
