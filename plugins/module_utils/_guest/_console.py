# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run one command in a guest, through the shell on its serial console.

The console is a unix socket of QEMU. Any guest will do that has a shell there, or a login prompt that leads to one,
with sh, stty, base64, sha256sum, gzip, head and tail.

A serial line echoes what is typed, wraps it, and carries whatever else the guest has to say at the same moment. So the
command travels while the terminal is told to leave all as it is; what it prints is kept in files in the guest, and is
fetched from there with checksums, again if something came in between. Each byte costs QEMU and the guest some work, so
what is long is compressed.

This file is a program, too, and uses nothing but the standard library: the role tiny_guest hands it out.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import dataclasses
import fcntl
import gzip
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
#: What travels at once: well below what the terminal's driver keeps for a slow reader (64 KiB).
PIECE = 32_000
#: Below that, to compress it costs more than it saves.
SHORT = 2_000
#: What is fetched at once: here somebody reads, and noise in it costs another attempt.
FETCHED = 240_000
#: Seconds after which the shell is asked again: it may just be starting, or the answer was garbled.
ASK_AGAIN = 1.0
#: Seconds after which the guest no longer waits for the rest of a piece, because we are gone.
FORGOTTEN = 3.0
#: Seconds that the guest may take with a piece before it is sent, or fetched, again.
PIECE_PATIENCE = 20.0
#: Seconds without a word after which what stands there is taken for a prompt.
CALM = 0.1
#: Seconds after which a shell that we logged in to ends by itself.
IDLE = 600
#: The beginning of the directories in the guest that hold a command, and what it prints.
PLACE = "/tmp/.labspan-"
INTERRUPT = b"\x03"
KILL_LINE = b"\x15"

_LOGIN = re.compile(rb"(?i)\b(login|user ?name|anmeldung): ?$")
_PASSWORD = re.compile(rb"(?i)\b(password|passwort|mot de passe)[^\n]{0,40}: ?$")
_REFUSED = re.compile(rb"(?i)(login incorrect|authentication failure|permission denied)")
_SHELL = re.compile(rb"[#$%>] ?$")
#: What a shell says to the terminal about colours, titles and modes.
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[=>])")


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


@dataclasses.dataclass(frozen=True)
class Login:
    """Who answers a login prompt, should there be one."""

    user: t.Optional[str] = None
    password: t.Optional[str] = dataclasses.field(default=None, repr=False)


class Console:
    """The shell on a guest's serial console; use as a context manager. One client at a time has it, others wait.

    C(timeout) is for everything, the wait for other clients included. With C(queue), which is for that wait alone, it
    is for each answer of the guest.
    """

    def __init__(
        self,
        path: t.Union[str, Path],
        timeout: float = TIMEOUT,
        *,
        login: t.Optional[Login] = None,
        queue: t.Optional[float] = None,
        check: t.Callable[[socket.socket, str], None] = lambda _socket, _path: None,
    ) -> None:
        self._path = Path(path)
        self._login = login or Login()
        self._queue = queue
        self._check = check
        self._allow(timeout)
        self._heard = b""
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Console:
        with contextlib.ExitStack() as stack:
            queued = self._deadline if self._queue is None else time.monotonic() + self._queue
            stack.enter_context(_locked(self._path.parent, queued))
            self._renew()
            self._socket = stack.enter_context(_connected(self._path, self._deadline))
            self._check(self._socket, str(self._path))
            self._synchronise()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.close()

    def run(self, command: str, stdin: t.Optional[bytes] = None, *, timeout: t.Optional[float] = None) -> Result:
        """Run a command line of the guest's shell; C(timeout) is for the command alone."""
        # Named anew in each line: these have to be short, and nothing may hang on what an earlier one left behind.
        place = f"p={PLACE}{secrets.token_hex(6)}"
        try:
            return self._run(place, f"{command}\n".encode(), stdin or b"", timeout)
        except ConsoleError:
            self._interrupt(place)
            raise

    def _run(self, place: str, script: bytes, stdin: bytes, timeout: t.Optional[float]) -> Result:
        patience = self._timeout
        decode = self._upload(place, script + stdin)
        split = f"head -c {len(script)} $p/b >$p/c; tail -c +{len(script) + 1} $p/b >$p/i; rm $p/b"
        if timeout is not None:
            self._allow(timeout)
        run = "sh $p/c <$p/i >$p/o 2>$p/e; echo $? >$p/s"
        pack = f"cat $p/o $p/e >$p/a; [ $(wc -c <$p/a) -lt {SHORT} ] || gzip -c $p/a >$p/z"
        self._ask(f"{place}; cat $p/p* {decode} >$p/b; rm $p/p*; {split}; {run}; {pack}")
        if timeout is not None:
            self._allow(patience)
        result = self._result(place)
        self._renew()
        self._ask(f"{place}; rm -rf $p")
        return result

    def _synchronise(self) -> None:
        """Wait for the shell, and log in for one where the guest asks who is there."""
        self._send(KILL_LINE + b"\r")
        named = proved = False
        quiet = 0
        patience = ASK_AGAIN
        while True:
            # In the last of the silences an unfinished piece of somebody who was cut off is given up.
            tail = self._settled(ASK_AGAIN if quiet < 2 else FORGOTTEN + ASK_AGAIN)
            quiet += 1
            if proved and (_REFUSED.search(tail) or _LOGIN.search(tail) or _PASSWORD.search(tail)):
                raise ConsoleError(f"the guest does not let {self._login.user!r} log in on its console.")
            if _LOGIN.search(tail):
                self._line(self._user())
                named = True
            elif _PASSWORD.search(tail):
                # The prompt may be left over from somebody else's attempt.
                self._line(self._password() if named else "")
                proved, quiet = named, 0
            elif _SHELL.search(tail) or quiet > 2:
                if self._answers(patience):
                    break
                quiet = 0
                patience += ASK_AGAIN
        if named:
            self._ask(f"HISTFILE=; TMOUT={IDLE}")
        if self._login.user is not None:
            self._check_user(self._login.user)

    def _settled(self, silence: float) -> bytes:
        """The last line of what the guest says until it is quiet, or has talked for long; a refusal whole."""
        enough = time.monotonic() + ASK_AGAIN
        with contextlib.suppress(_Silence):
            self._hear(silence)
            while time.monotonic() < enough:
                self._hear(CALM)
        text, self._heard = _ESCAPES.sub(b"", self._heard), b""
        return text if _REFUSED.search(text) else text.replace(b"\r", b"\n").rpartition(b"\n")[2]

    def _answers(self, patience: float) -> bool:
        """Whether a shell is there; a login prompt, which would take the question for a name, was looked for before."""
        nonce = secrets.token_hex(6)
        self._line(_say(nonce))
        try:
            self._await(nonce, patience)
        except _Silence:
            return False
        return True

    def _user(self) -> str:
        if self._login.user is None:
            raise ConsoleError("the guest's console asks for a login. Say who shall log in there, and the password.")
        return self._login.user

    def _password(self) -> str:
        if self._login.password is None:
            raise ConsoleError(f"the guest's console asks for the password of {self._login.user!r}. Give it.")
        return self._login.password

    def _check_user(self, wanted: str) -> None:
        found = self._query("id -un", rb"\A\s*(\S+)\s*\Z")[1].decode("utf-8", "replace")
        if found != wanted:
            raise ConsoleError(
                f"on the guest's console {found!r} is logged in, and not {wanted!r}. Log out there, or name that one."
            )

    def _ask(self, line: str) -> None:
        """Type a line, and wait until it is done: for the nonce that is printed after it.

        The nonce is asked for again after a while, because other output may have come between its letters. What is
        typed before the shell reads it waits in a buffer of 4 KiB: hence the longer and longer intervals.
        """
        nonce = secrets.token_hex(6)
        patience = ASK_AGAIN
        self._line(f"{line}; {_say(nonce)}")
        while True:
            try:
                self._await(nonce, patience)
            except _Silence:
                self._line(_say(nonce))
                patience *= 2
            else:
                return

    def _upload(self, place: str, content: bytes) -> str:
        """Files in the guest that are the content when put together in the order of their names, and decoded so."""
        packed = gzip.compress(content) if len(content) > SHORT else content
        decode = "| gzip -dc" if len(packed) < len(content) else ""
        if decode:
            content = packed
        for number, start in enumerate(range(0, len(content), PIECE)):
            piece = content[start : start + PIECE]
            before = place if number else f"{place}; (umask 077; mkdir $p)"
            while not self._send_piece(f"$p/p{number:06}", piece, before):
                pass
            self._renew()
        return decode

    def _send_piece(self, path: str, piece: bytes, before: str) -> bool:
        """Whether it has arrived. The guest stops to wait for it after some silence, so that it never hangs there."""
        ready, end = secrets.token_hex(6), secrets.token_hex(6)
        self._line(
            f"{before}; t=$(stty -g); stty raw -echo min 0 time {FORGOTTEN * 10:.0f}; {_say(ready)}; "
            f'head -c {len(piece)} >{path}; stty "$t"; sha256sum <{path}; {_say(end)}'
        )
        with contextlib.suppress(_Silence):
            # Where nobody waits for it any more, the piece would be typed into the shell.
            self._await(ready, FORGOTTEN - 1)
            self._send(piece)
            return hashlib.sha256(piece).hexdigest().encode() in self._await(end, PIECE_PATIENCE)
        with contextlib.suppress(_Silence):  # until the guest has given it up, too
            self._await(end, FORGOTTEN + ASK_AGAIN)
        self._ask("true")
        return False

    def _result(self, place: str) -> Result:
        sizes = "echo $(cat $p/s) $(wc -c <$p/o) $(wc -c <$f) $k"
        head = f"{place}; f=$p/z; k=1; [ -s $f ] || {{ f=$p/a; k=0; }}; {sizes}"
        found, content = self._read(0, head)
        numbers = [int(number) for number in found.split()]
        if len(numbers) != 4:
            raise ConsoleError(
                f"{self._path}: what the command said could not be kept in the guest. It has been run. Is there room "
                f"in {os.path.dirname(PLACE)}?"
            )
        status, printed, size, packed = numbers
        parts = [content]
        received = len(content)
        while received < size:
            parts.append(self._read(received, head)[1])
            received += len(parts[-1])
            self._renew()
        content = b"".join(parts)
        if packed:
            content = gzip.decompress(content)
        return Result(status, content[:printed], content[printed:])

    def _read(self, start: int, head: str) -> tuple[bytes, bytes]:
        """What C(head) prints, which is numbers, and a piece of the file $f; again until the checksum is right."""
        piece = f"tail -c +{start + 1} $f 2>/dev/null | head -c {FETCHED}"
        while True:
            found = self._query(f"{head}; {piece} | base64; {piece} | sha256sum", rb"(?s)\A\s*([\d ]+)\r?\n(.*)\Z")
            *lines, checksum = found[2].strip().split(b"\n")
            with contextlib.suppress(binascii.Error):
                content = base64.b64decode(b"".join(lines).replace(b"\r", b""), validate=True)
                if checksum.split()[:1] == [hashlib.sha256(content).hexdigest().encode()]:
                    return found[1], content

    def _query(self, line: str, pattern: bytes) -> re.Match[bytes]:
        """What a line prints that may be typed again, until it has the wanted form.

        The shell prints it when it has all of it, and without another program: so there is hardly time for the guest to
        say something else in between. A variable holds it, and not a file, because there may be no room for one.
        """
        patience, silence = PIECE_PATIENCE, 4 * ASK_AGAIN
        while True:
            begin, end = secrets.token_hex(6), secrets.token_hex(6)
            self._line(f'r=$({line}); {_say(begin)}; echo "$r"; {_say(end)}; r=')
            try:
                said = self._await(end, patience, silence)
            except _Silence:
                patience, silence = 2 * patience, 2 * silence
            else:
                found = re.search(pattern, said.partition(begin.encode())[2])
                if found:
                    return found

    def _interrupt(self, place: str) -> None:
        """End what runs, so that whoever comes next finds a shell. QEMU drops what it has not read when we leave."""
        self._allow(2 * ASK_AGAIN)
        with contextlib.suppress(_Silence, ConsoleError):
            self._send(INTERRUPT)
            self._await("^C", ASK_AGAIN)
            self._ask(f"{place}; rm -rf $p")

    def _allow(self, seconds: float) -> None:
        self._timeout = seconds
        self._deadline = time.monotonic() + seconds

    def _renew(self) -> None:
        """The guest has answered."""
        if self._queue is not None:
            self._allow(self._timeout)

    def _line(self, line: str) -> None:
        self._send(line.encode() + b"\r")

    def _send(self, content: bytes) -> None:
        self._socket.settimeout(max(0.1, self._deadline - time.monotonic()))
        try:
            self._socket.sendall(content)
        except OSError as error:
            raise ConsoleError(f"{self._path}: the guest's console was closed ({error}).") from None

    def _await(self, wanted: str, patience: float, silence: t.Optional[float] = None) -> bytes:
        """Read until it shows, and return what stands before it.

        The patience is from now on, whatever else the guest says, which may never be silent. What takes long to print
        has a long one, and the silence after which no more of it is expected.
        """
        until = time.monotonic() + patience
        while wanted.encode() not in self._heard:
            left = until - time.monotonic()
            if left <= 0:
                raise _Silence
            self._hear(left if silence is None else min(left, silence))
        before, _wanted, self._heard = self._heard.partition(wanted.encode())
        return before

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
    """The guest has said nothing, or not what was awaited, for as long as the caller wanted to wait."""


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
        sys.stderr.write(f"guest_console: {error}\n")
        return 255
    sys.stdout.buffer.write(result.stdout)
    sys.stderr.buffer.write(result.stderr)
    return result.status


if __name__ == "__main__":
    raise SystemExit(main())
