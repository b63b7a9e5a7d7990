# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run one command in a guest, through the shell on its serial console.

The console is a unix socket of QEMU. Any guest will do that has a root shell there, with sh, base64 and sha256sum.

A serial line echoes what is typed, wraps it, and carries whatever else the guest has to say at the same moment. So the
command travels as base64, what it prints is kept in files in the guest, and it is fetched from there with checksums,
again if something came in between.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import secrets
import shlex
import socket
import sys
import time
import typing as t
from pathlib import Path

TIMEOUT = 30.0
#: A line editor in raw mode takes about a thousand characters, and a terminal's own buffer four times that.
CHUNK = 400
#: Seconds of silence after which the shell is asked again: it may just be starting, or the answer was garbled.
ASK_AGAIN = 1.0
INTERRUPT = b"\x03"
KILL_LINE = b"\x15"


class ConsoleError(Exception):
    """A sentence for whoever wanted something of the guest."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How the command ended, and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The standard output as text."""
        return self.stdout.decode("utf-8", "replace")


class Console:
    """The shell on a guest's serial console; use as a context manager. One client at a time has it, others wait."""

    def __init__(self, path: t.Union[str, Path], timeout: float = TIMEOUT) -> None:
        self._path = Path(path)
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._heard = b""
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Console:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(self._path.parent, self._deadline))
            self._socket = stack.enter_context(_connected(self._path, self._deadline))
            self._synchronise()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    def run(self, command: str) -> Result:
        """Run a command line of the guest's shell; its standard input is empty."""
        files = f"/tmp/.labspan-{secrets.token_hex(6)}"
        encoded = base64.b64encode(f"{command}\n".encode()).decode()
        for start in range(0, len(encoded), CHUNK):
            self._ask(f"echo {encoded[start : start + CHUNK]} >>{files}.64")
        self._ask(f"base64 -d {files}.64 >{files}.sh")
        try:
            self._ask(f"sh {files}.sh </dev/null >{files}.out 2>{files}.err; echo $? >{files}.rc")
        except ConsoleError:
            self._interrupt()
            raise
        status = int(self._fetch(f"{files}.rc"))
        result = Result(status, self._fetch(f"{files}.out"), self._fetch(f"{files}.err"))
        self._ask(f"rm -f {files}.*")
        return result

    def _synchronise(self) -> None:
        """Wait for the shell: it answers when the guest has booted that far and no other program has the console."""
        self._send(KILL_LINE + b"\r")
        self._ask("true", backoff=1.0)

    def _ask(self, line: str, backoff: float = 2.0) -> None:
        """Type a line, and wait until it is done: for the nonce that is printed after it.

        The nonce is asked for again after some silence, because other output may have come between its letters. What is
        typed before the shell reads it waits in a buffer of 4 KiB: hence the longer and longer intervals.
        """
        nonce = secrets.token_hex(6)
        silence = ASK_AGAIN
        self._line(f"{line}; {_say(nonce)}")
        while True:
            try:
                self._await(re.compile(nonce.encode()), silence)
            except _Silence:
                self._line(_say(nonce))
                silence *= backoff
            else:
                return

    def _interrupt(self) -> None:
        """End what runs, so that whoever comes next finds a shell. QEMU drops what it has not read when we leave."""
        self._deadline = time.monotonic() + ASK_AGAIN
        with contextlib.suppress(_Silence, ConsoleError):
            self._send(INTERRUPT)
            self._await(re.compile(rb"\^C"), ASK_AGAIN)

    def _fetch(self, path: str) -> bytes:
        """A file of the guest, asked for again until its checksum is right."""
        while True:
            begin, end = secrets.token_hex(6), secrets.token_hex(6)
            self._line(f"{_say(begin)}; base64 {path}; sha256sum <{path}; {_say(end)}")
            with contextlib.suppress(_Silence, ValueError):
                found = self._await(re.compile(b"(?s)%b(.*?)%b" % (begin.encode(), end.encode())), 2 * ASK_AGAIN)
                *lines, checksum = found[1].split(b"\n")[:-1] or [b""]
                content = base64.b64decode(b"".join(lines).replace(b"\r", b""), validate=True)
                if checksum.split()[:1] == [hashlib.sha256(content).hexdigest().encode()]:
                    return content

    def _line(self, line: str) -> None:
        self._send(line.encode() + b"\r")

    def _send(self, content: bytes) -> None:
        self._socket.settimeout(max(0.1, self._deadline - time.monotonic()))
        try:
            self._socket.sendall(content)
        except OSError as error:
            raise ConsoleError(f"{self._path}: the guest's console was closed ({error}).") from None

    def _await(self, pattern: re.Pattern[bytes], silence: float) -> re.Match[bytes]:
        """Read until the pattern shows; what stands before its end is done with."""
        while True:
            found = pattern.search(self._heard)
            if found:
                self._heard = self._heard[found.end() :]
                return found
            self._hear(silence)

    def _hear(self, silence: float) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ConsoleError(
                f"{self._path}: the guest's shell did not answer within {self._timeout:g} seconds. The guest may still "
                "be booting, another client may hold the console, or a program runs in its foreground."
            )
        self._socket.settimeout(min(left, silence))
        try:
            heard = self._socket.recv(65536)
        except socket.timeout:
            raise _Silence from None
        except OSError as error:
            raise ConsoleError(f"{self._path}: the guest's console was closed ({error}).") from None
        if not heard:
            raise ConsoleError(f"{self._path}: the guest closed its console; does it still run?")
        self._heard += heard


class _Silence(Exception):
    """The guest has said nothing for as long as the caller wanted to wait."""


def run(path: t.Union[str, Path], command: str, *, timeout: float = TIMEOUT) -> Result:
    """Run one command line in the guest whose console is at this socket."""
    with Console(path, timeout) as console:
        return console.run(command)


def _say(nonce: str) -> str:
    """A command that prints the nonce, and whose echo does not hold it."""
    return f"printf '%s%s\\n' {nonce[:6]} {nonce[6:]}"


@contextlib.contextmanager
def _locked(directory: Path, deadline: float) -> t.Iterator[None]:
    """Keep other clients out; the lock is on the directory of the socket and leaves nothing behind."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConsoleError(f"{directory}: {error.strerror}.") from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConsoleError(f"{directory}: another client has had the console all the time.") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _connected(path: Path, deadline: float) -> t.Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            client.connect(str(path))
        except OSError as error:
            raise ConsoleError(f"{path}: no console to connect to ({error.strerror}); does the guest run?") from None
        yield client


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for everything (default: %(default)g)")
    parser.add_argument("socket", help="the unix socket of the serial console")
    parser.add_argument("command", nargs="+", help="command and arguments; one single argument is a shell command line")
    options = parser.parse_args()
    line = options.command[0] if len(options.command) == 1 else shlex.join(options.command)
    try:
        result = run(options.socket, line, timeout=options.timeout)
    except ConsoleError as error:
        print(f"guest_console: {error}", file=sys.stderr)
        return 255
    sys.stdout.buffer.write(result.stdout)
    sys.stderr.buffer.write(result.stderr)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
