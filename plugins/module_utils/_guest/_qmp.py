# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A conversation with one QEMU over its control socket (QMP), one command after the other.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

#: sizeof(sun_path) - 1 (linux/un.h).
_PATH_LENGTH = 107

_QUEUE = 32


class QmpError(SystemFailure):
    """QEMU refused a command; C(reason) is what it said."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class QmpClosed(SystemFailure):
    """QEMU went away in the middle of the conversation."""


class QmpSilent(SystemFailure):
    """QEMU does not answer: it hangs, or talks to another program, for it talks to one at a time."""


def listen(path: str, uid: int, gid: int) -> socket.socket:
    """A listening socket that only this account can connect to, in place of a stale one."""
    if len(os.fsencode(path)) > _PATH_LENGTH:
        raise SystemFailure(f"the path {path} is too long for a socket. Give the guest a shorter name.")
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    os.chown(path, uid, gid)
    # While a program is connected QEMU accepts nobody, and everybody who asks and gives up stays in the queue.
    listener.listen(_QUEUE)
    return listener


def check_peer(connection: socket.socket, path: str) -> None:
    """Raise unless whoever listens there is the owner of the directory.

    Under systemd that is the guest's account, which could have put another guest's socket in the place of its own. In
    a directory of root's nobody can, and there QEMU listens on what we made for it.
    """
    owner = os.stat(os.path.dirname(path)).st_uid
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if owner not in (0, uid):
        raise SystemFailure(f"what answers on {path} runs as another account (uid {uid}) than the guest's own.")


class Qmp:
    """Use as a context manager; say C(greet) first."""

    def __init__(self, path: str, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._received = b""
        self._events: list[dict[str, t.Any]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
            check_peer(self._socket, path)
        except (BlockingIOError, socket.timeout):  # nobody has been accepted for so long that the queue is full
            self._socket.close()
            raise self._silent() from None
        except OSError as error:
            self._socket.close()
            raise QmpClosed(f"QEMU's control socket {path} does not answer ({error.strerror or error}).") from error
        except SystemFailure:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def greet(self) -> None:
        """Wait for QEMU's greeting, and ask for no capability."""
        deadline = time.monotonic() + self._timeout
        while "QMP" not in self._message(deadline):
            pass
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: t.Any) -> t.Any:
        """What QEMU returns for the command; events on the way are kept for C(event)."""
        request: dict[str, t.Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + self._timeout
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpClosed(f"QEMU closed its control socket {self._path} ({error.strerror or error}).") from error
        return self._answer(command, deadline)

    def hand_over(self, name: str, descriptor: int) -> None:
        """Give QEMU an open file, which commands then call by this name. It may not begin with a digit."""
        request = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode() + b"\n"
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
        deadline = time.monotonic() + self._timeout
        try:
            sent = self._socket.sendmsg([request], [rights])
            if sent < len(request):
                self._socket.sendall(request[sent:])
        except OSError as error:
            raise QmpClosed(f"QEMU closed its control socket {self._path} ({error.strerror or error}).") from error
        self._answer("getfd", deadline)

    def event(self, timeout: float) -> t.Optional[dict[str, t.Any]]:
        """The next event that was not asked for yet; None when there is none within the seconds."""
        if self._events:
            return self._events.pop(0)
        try:
            return self._message(time.monotonic() + timeout)
        except QmpSilent:
            return None

    def _answer(self, command: str, deadline: float) -> t.Any:
        while True:
            message = self._message(deadline)
            if "error" in message:
                reason = str(message["error"].get("desc", message["error"]))
                raise QmpError(f"QEMU refuses the command {command}: {reason}", reason)
            if "return" in message:
                return message["return"]
            if "event" in message:
                self._events.append(message)

    def status(self) -> str:
        """The run state: C(running), C(paused), C(prelaunch), ..."""
        return str(self.execute("query-status")["status"])

    def devices(self) -> frozenset[str]:
        """The ids of all devices that were given one."""
        return frozenset(str(child["name"]) for child in self.execute("qom-list", path="/machine/peripheral"))

    def _silent(self) -> QmpSilent:
        return QmpSilent(
            f"QEMU has not answered on {self._path} for {self._timeout:g} seconds: it hangs, or another program is "
            "connected to its control socket (QEMU talks to one at a time)."
        )

    def _message(self, deadline: float) -> dict[str, t.Any]:
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._socket.recv(1 << 16)
            except socket.timeout:
                raise self._silent() from None
            except OSError as error:
                raise QmpClosed(f"QEMU closed its control socket {self._path} ({error.strerror or error}).") from error
            if not received:
                raise QmpClosed(f"QEMU closed its control socket {self._path}.")
            self._received += received
        line, _newline, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise SystemFailure(f"what answers on {self._path} does not speak QMP.")
        return message
