# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A conversation with the agent in a guest (qemu-ga): one line of JSON there, one back, over a port that QEMU carries.

Nobody on the line tells when a client comes or goes. What an earlier client was too impatient to hear is still
delivered to the next one, so every conversation begins with a number that only its own answer repeats. What the guest
says is a stranger's word: it is bounded, and checked before it is used.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import ipaddress
import json
import random
import socket
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _qmp
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places

FROZEN = "frozen"
THAWED = "thawed"

#: The agent keeps up to 16 MiB of each output, which grow by a third on the way (qga/commands.c).
LONGEST_ANSWER = 64 << 20
#: As much of each output as a task's result carries.
LONGEST_OUTPUT = 1 << 20

_DELIMITER = b"\xff"
_CHUNK = 1 << 16
_FILE_CHUNK = 1 << 20


class AgentSilent(SystemFailure):
    """Nobody answers: the agent does not run, hangs, or talks to another program."""


class AgentError(SystemFailure):
    """The agent refused a command; C(kind) is its class, such as C(CommandNotFound)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Interface:
    """A network interface as the guest itself sees it."""

    name: str
    mac: t.Optional[str]
    addresses: tuple[str, ...]
    """With prefix lengths."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program in the guest ended, and all that the agent kept of what it printed."""

    rc: t.Optional[int]
    """None when a signal ended it."""
    signal: t.Optional[int]
    stdout: bytes
    stderr: bytes
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program in the guest ended, and what it printed."""

    rc: t.Optional[int]
    """None when a signal ended it."""
    signal: t.Optional[int]
    stdout: str
    stderr: str
    truncated: bool


class Agent:
    """Use as a context manager; the conversation is open when the block begins."""

    def __init__(self, guest: str, *, timeout: float, path: t.Optional[str] = None) -> None:
        self._guest = guest
        self._timeout = timeout
        self._path = path or Places(guest).agent_socket
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Agent:
        try:
            self._connect()
            self._synchronise()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def execute(self, command: str, *, timeout: t.Optional[float] = None, **arguments: t.Any) -> t.Any:
        """What the agent returns for the command."""
        patience = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + patience
        self._send(_request(command, arguments), deadline)
        try:
            answer = _message(self._line(deadline))
        except _TimeOut:
            raise AgentSilent(
                f"the agent of guest {self._guest} has not answered the command {command} for {patience:g} seconds."
            ) from None
        if answer is None:
            raise SystemFailure(f"what answers in guest {self._guest} does not speak the agent's language.")
        if "error" in answer:
            error = answer["error"] if isinstance(answer["error"], dict) else {}
            kind, said = str(error.get("class", "")), str(error.get("desc", answer["error"]))
            raise AgentError(f"the agent of guest {self._guest} refuses the command {command}: {_plain(said)}", kind)
        return answer.get("return")

    def version(self) -> str:
        return _plain(str(_mapping(self.execute("guest-info")).get("version", "unknown")))

    def freeze_status(self) -> t.Optional[str]:
        """C(frozen) or C(thawed); None where the guest's file systems cannot be frozen."""
        try:
            return FROZEN if self.execute("guest-fsfreeze-status") == FROZEN else THAWED
        except AgentError:
            return None

    def freeze(self, *, timeout: float) -> int:
        """Let nothing be written to the guest's file systems any more; how many these are."""
        return _number(self.execute("guest-fsfreeze-freeze", timeout=timeout))

    def thaw(self, *, timeout: float) -> int:
        return _number(self.execute("guest-fsfreeze-thaw", timeout=timeout))

    def interfaces(self) -> list[Interface]:
        """The guest's interfaces but the loopback one."""
        answer = self.execute("guest-network-get-interfaces")
        found = [_interface(entry) for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []
        return [interface for interface in found if interface.name != "lo"]

    def start(self, argv: t.Sequence[str], stdin: t.Optional[bytes]) -> int:
        """Start a program in the guest; its number there."""
        arguments: dict[str, t.Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin).decode("ascii")
        return _number(_mapping(self.execute("guest-exec", **arguments)).get("pid"))

    def ended(self, pid: int) -> t.Optional[Ended]:
        """How the program ended; None while it runs. The agent tells it once."""
        answer = _mapping(self.execute("guest-exec-status", pid=pid))
        if not answer.get("exited"):
            return None
        return Ended(
            rc=_optional_number(answer.get("exitcode")),
            signal=_optional_number(answer.get("signal")),
            stdout=_decoded(answer.get("out-data")),
            stderr=_decoded(answer.get("err-data")),
            truncated=bool(answer.get("out-truncated") or answer.get("err-truncated")),
        )

    def read_file(self, path: str, limit: int = _FILE_CHUNK) -> t.Optional[bytes]:
        """The beginning of a file in the guest; None when it cannot be opened."""
        try:
            handle = self.execute("guest-file-open", path=path, mode="r")
        except AgentError:
            return None
        try:
            answer = _mapping(self.execute("guest-file-read", handle=handle, count=limit))
            return _decoded(answer.get("buf-b64"))
        finally:
            with contextlib.suppress(LabspanError):
                self.execute("guest-file-close", handle=handle)

    def _connect(self) -> None:
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(self._path)
            _qmp.check_peer(self._socket, self._path)
        except (BlockingIOError, socket.timeout):
            raise self._silent() from None
        except OSError as error:
            raise AgentSilent(
                f"the socket {self._path} to the agent of guest {self._guest} does not answer "
                f"({error.strerror or error}). The guest has one while it runs and was started with guest_agent: true."
            ) from error

    def _synchronise(self) -> None:
        """Make sure that the next answer is one to us (the agent repeats the number, after a byte that no JSON has)."""
        deadline = time.monotonic() + self._timeout
        token = random.SystemRandom().randrange(1, 1 << 31)
        try:
            # The agent, too, forgets with this byte what somebody broke off in the middle.
            self._send(_DELIMITER + _request("guest-sync-delimited", {"id": token}), deadline)
            while True:
                self._skip(deadline)
                answer = _message(self._line(deadline))
                if answer is not None and answer.get("return") == token:
                    return
        except _TimeOut:
            raise self._silent() from None

    def _silent(self) -> AgentSilent:
        return AgentSilent(
            f"the agent of guest {self._guest} has not answered for {self._timeout:g} seconds: it is not installed "
            "(the package qemu-guest-agent in Debian), does not run yet, or another program is connected to "
            f"{self._path} (QEMU talks to one at a time)."
        )

    def _gone(self) -> AgentSilent:
        return AgentSilent(f"guest {self._guest} ended, or closed the line to its agent.")

    def _send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            self._socket.sendall(data)
        except socket.timeout:
            raise self._silent() from None
        except OSError:
            raise self._gone() from None

    def _skip(self, deadline: float) -> None:
        """Drop everything up to the next delimiter."""
        while _DELIMITER not in self._received:
            self._received = b""
            self._receive(deadline)
        self._received = self._received.partition(_DELIMITER)[2]

    def _line(self, deadline: float) -> bytes:
        parts: list[bytes] = []
        length = 0
        while b"\n" not in self._received:
            parts.append(self._received)
            length += len(self._received)
            if length > LONGEST_ANSWER:
                raise SystemFailure(f"the agent of guest {self._guest} answers with more than {LONGEST_ANSWER} bytes.")
            self._received = b""
            self._receive(deadline)
        line, _newline, self._received = self._received.partition(b"\n")
        return b"".join([*parts, line])

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:  # a guest that never stops talking is not an answer
            raise _TimeOut
        self._socket.settimeout(left)
        try:
            received = self._socket.recv(_CHUNK)
        except socket.timeout:
            raise _TimeOut from None
        except OSError:
            raise self._gone() from None
        if not received:
            raise self._gone()
        self._received += received


class _TimeOut(Exception):
    pass


def is_listening(guest: str, *, timeout: float) -> t.Optional[bool]:
    """Whether a program in the guest has opened its end of the line; None when QEMU does not tell."""
    try:
        with _qmp.Qmp(Places(guest).qmp_socket, timeout=timeout) as qmp:
            qmp.greet()
            devices = qmp.execute("query-chardev")
    except SystemFailure:
        return None
    return next((bool(device.get("frontend-open")) for device in devices if device.get("label") == "agent"), False)


def run(guest: str, argv: t.Sequence[str], *, stdin: t.Optional[str], timeout: float, answer_timeout: float) -> Outcome:
    """Run a program in the guest to its end."""
    deadline = time.monotonic() + timeout
    pause = 0.02
    with Agent(guest, timeout=answer_timeout) as agent:
        pid = agent.start(argv, None if stdin is None else stdin.encode())
        while True:
            ended = agent.ended(pid)
            if ended is not None:
                return _outcome(ended)
            if time.monotonic() > deadline:
                raise SystemFailure(
                    f"{argv[0]} in guest {guest} has not ended within {timeout:g} seconds. It goes on there, with the "
                    f"number {pid}; the agent has no command to end it."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)


def _request(command: str, arguments: t.Mapping[str, t.Any]) -> bytes:
    request: dict[str, t.Any] = {"execute": command}
    if arguments:
        request["arguments"] = dict(arguments)
    return json.dumps(request).encode("ascii") + b"\n"


def _message(line: bytes) -> t.Optional[dict[str, t.Any]]:
    try:
        message = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _mapping(value: t.Any) -> dict[str, t.Any]:
    return value if isinstance(value, dict) else {}


def _optional_number(value: t.Any) -> t.Optional[int]:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: t.Any) -> int:
    number = _optional_number(value)
    if number is None:
        raise SystemFailure("the agent answers with something else than the number that it was asked for.")
    return number


def _plain(text: str) -> str:
    return "".join(filter(str.isprintable, text))[:500]


def _decoded(value: t.Any) -> bytes:
    try:
        return base64.b64decode(value or "")
    except (binascii.Error, TypeError, ValueError):
        return b""


def _outcome(ended: Ended) -> Outcome:
    stdout, stderr = (part[:LONGEST_OUTPUT].decode("utf-8", "replace") for part in (ended.stdout, ended.stderr))
    cut = ended.truncated or max(len(ended.stdout), len(ended.stderr)) > LONGEST_OUTPUT
    return Outcome(ended.rc, ended.signal, stdout, stderr, cut)


def _interface(entry: t.Mapping[str, t.Any]) -> Interface:
    mac = None
    with contextlib.suppress(LabspanError):
        mac = _values.mac_address("hardware-address", str(entry.get("hardware-address", "")))
    addresses = []
    listed = entry.get("ip-addresses")
    for address in filter(None, map(_mapping, listed if isinstance(listed, list) else [])):
        with contextlib.suppress(ValueError):
            text = str(address.get("ip-address", "")).partition("%")[0]
            addresses.append(str(ipaddress.ip_interface(f"{text}/{int(address.get('prefix', 0))}")))
    return Interface(_plain(str(entry.get("name", ""))), mac, tuple(addresses))
