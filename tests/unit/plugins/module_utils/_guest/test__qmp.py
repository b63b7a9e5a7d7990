# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import struct
import threading
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _qmp

GREETING: dict[str, t.Any] = {"QMP": {"version": {}, "capabilities": []}}


class Qemu:
    """Answers one client with prepared messages: one list after connecting, one after each command."""

    def __init__(self, path: pathlib.Path, *answers: list[dict[str, t.Any]], pieces: int = 1 << 20) -> None:
        self.heard: list[dict[str, t.Any]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._answers = answers
        self._pieces = pieces
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Qemu:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        connection, _address = self._listener.accept()
        # One that is not spoken to may be left at once.
        with contextlib.suppress(BrokenPipeError), connection, connection.makefile("rb") as lines:
            for number, messages in enumerate(self._answers):
                if number:
                    self.heard.append(json.loads(lines.readline()))
                sent = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
                for start in range(0, len(sent), self._pieces):
                    connection.sendall(sent[start : start + self._pieces])


@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
def test_events_and_broken_packets_do_not_confuse_it(tmp_path: pathlib.Path, pieces: int) -> None:
    event = {"event": "RESUME", "timestamp": {}}
    status = {"return": {"status": "running", "running": True}}
    qemu = Qemu(tmp_path / "q", [event, GREETING], [{"return": {}}, event], [event, status], pieces=pieces)
    with qemu, _qmp.Qmp(str(tmp_path / "q"), timeout=10) as qmp:
        qmp.greet()
        assert qmp.status() == "running"
    assert [command["execute"] for command in qemu.heard] == ["qmp_capabilities", "query-status"]


def test_arguments_are_passed_and_refusals_are_errors(tmp_path: pathlib.Path) -> None:
    refusal = {"error": {"class": "GenericError", "desc": "Device 'nic7' not found"}}
    qemu = Qemu(tmp_path / "q", [GREETING], [{"return": {}}], [refusal])
    with qemu, _qmp.Qmp(str(tmp_path / "q"), timeout=10) as qmp:
        qmp.greet()
        with pytest.raises(_qmp.QmpError, match="refuses the command set_link: Device 'nic7' not found"):
            qmp.execute("set_link", name="nic7", up=False)
    assert qemu.heard[1]["arguments"] == {"name": "nic7", "up": False}


def test_an_end_in_the_middle_is_told_from_silence(tmp_path: pathlib.Path) -> None:
    with Qemu(tmp_path / "q", []), _qmp.Qmp(str(tmp_path / "q"), timeout=10) as qmp, pytest.raises(_qmp.QmpClosed):
        qmp.greet()
    listener = _qmp.listen(str(tmp_path / "silent"), -1, -1)
    with listener, _qmp.Qmp(str(tmp_path / "silent"), timeout=0.05) as qmp, pytest.raises(_qmp.QmpSilent):
        qmp.greet()


def test_a_full_queue_is_silence_and_not_an_end(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "q")
    with _qmp.listen(path, -1, -1):
        waiting: list[_qmp.Qmp] = []

        def ask_until_the_queue_is_full() -> None:
            for _number in range(200):
                waiting.append(_qmp.Qmp(path, timeout=0.05))

        with pytest.raises(_qmp.QmpSilent):
            ask_until_the_queue_is_full()
        for client in waiting:
            client.close()


def test_no_socket_is_an_end(tmp_path: pathlib.Path) -> None:
    with pytest.raises(_qmp.QmpClosed, match="does not answer"):
        _qmp.Qmp(str(tmp_path / "none"), timeout=1)


def test_something_else_is_not_taken_for_qemu(tmp_path: pathlib.Path) -> None:
    other = Qemu(tmp_path / "q", [t.cast("dict[str, t.Any]", ["hello"])])
    with other, _qmp.Qmp(str(tmp_path / "q"), timeout=10) as qmp:  # noqa: SIM117 pylint takes the one for a tuple
        with pytest.raises(SystemFailure, match="does not speak QMP"):
            qmp.greet()


def test_a_socket_is_for_its_account_only_and_replaces_a_stale_one(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    for _time in range(2):
        with _qmp.listen(str(path), -1, -1):
            assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SystemFailure, match="too long for a socket"):
        _qmp.listen("/tmp/" + "x" * 108, -1, -1)


def test_events_wait_until_they_are_asked_for(tmp_path: pathlib.Path) -> None:
    gone = {"event": "DEVICE_DELETED", "data": {"device": "nic0"}}
    qemu = Qemu(tmp_path / "q", [GREETING], [{"return": {}}], [gone, {"return": {}}, {"event": "RESUME"}])
    with qemu, _qmp.Qmp(str(tmp_path / "q"), timeout=10) as qmp:
        qmp.greet()
        qmp.execute("device_del", id="nic0")
        assert qmp.event(10) == gone
        assert qmp.event(10) == {"event": "RESUME"}


def test_no_event_is_waited_for_longer_than_said(tmp_path: pathlib.Path) -> None:
    with _qmp.listen(str(tmp_path / "q"), -1, -1), _qmp.Qmp(str(tmp_path / "q"), timeout=10) as qmp:
        assert qmp.event(0.05) is None


def test_a_file_is_handed_over_with_its_name(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "q")
    (tmp_path / "file").write_text("content", encoding="utf-8")
    heard: list[t.Any] = []

    def serve() -> None:
        connection, _address = listener.accept()
        with connection:
            request, rights, _flags, _peer = connection.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            (descriptor,) = struct.unpack("i", rights[0][2])
            with os.fdopen(descriptor, encoding="utf-8") as file:
                heard.extend([json.loads(request), file.read()])
            connection.sendall(b'{"return": {}}\r\n')

    with _qmp.listen(path, -1, -1) as listener, (tmp_path / "file").open("rb") as file:
        thread = threading.Thread(target=serve)
        thread.start()
        with _qmp.Qmp(path, timeout=10) as qmp:
            qmp.hand_over("net1-queue0", file.fileno())
        thread.join(10)
    assert heard == [{"execute": "getfd", "arguments": {"fdname": "net1-queue0"}}, "content"]


def test_a_socket_of_another_account_is_not_spoken_to(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q"
    with Qemu(path, [GREETING]), _qmp.Qmp(str(path), timeout=10):
        pass
    path.unlink()
    real = os.stat

    def stat(name: str) -> os.stat_result:
        fields = list(real(name))
        fields[4] += 1
        return os.stat_result(fields)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    monkeypatch.setattr(_qmp.os, "stat", stat)
    with pytest.raises(SystemFailure, match=r"runs as another account \(uid \d+\)"):
        _qmp.Qmp(str(path), timeout=10)
    listener.close()
