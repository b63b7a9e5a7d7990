# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is done beside netlink while the uplink moves: files, programs, processes; each step with its way back.

A step's way back is in the journal, on the disk, before the step is taken. The dead-man carries this file, so it uses
nothing but Python's standard library and _process.py.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

# What a program may take before it counts as failed, in seconds.
_PATIENCE = 30.0


@dataclasses.dataclass(frozen=True)
class WriteFile:
    """Have a file with this content and mode; C(content) None is no file. A reader sees the old file or the new one."""

    path: str
    content: t.Optional[str]
    mode: int = 0o644

    def perform(self) -> None:
        if self.content is None:
            _whole_files.remove(self.path)
        else:
            _whole_files.make_directories(os.path.dirname(self.path))
            _whole_files.replace(self.path, self.content.encode("utf-8", "surrogateescape"), mode=self.mode)


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """Run a program to its end; one that fails stops the move unless it C(may_fail)."""

    argv: tuple[str, ...]
    may_fail: bool = False

    def perform(self) -> None:
        try:
            done = subprocess.run(  # pylint: disable=ansible-bad-function
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            if not self.may_fail:
                raise SystemFailure(f"{' '.join(self.argv)} could not be run: {error}.") from error
            return
        if done.returncode and not self.may_fail:
            raise SystemFailure(f"{' '.join(self.argv)} ended with {done.returncode}: {done.stdout.strip()}.")


@dataclasses.dataclass(frozen=True)
class EndProgram:
    """End every process of this network namespace whose command line is exactly this one, and wait until it is gone.

    C(signal) TERM for a program that leaves what it configured as it is when asked to end, KILL for one that does not.
    What a daemon has started is let finish, such as a script that is about to change an address.
    """

    argv: tuple[str, ...]
    signal: str = "TERM"

    def perform(self) -> None:
        found = [process for process, argv in _process.here() if tuple(argv) == self.argv]
        for process in found:
            _process.send(process, signal.Signals[f"SIG{self.signal}"])
        for process in _process.wait_gone(found, 5.0):
            _process.send(process, signal.SIGKILL)
        _process.wait_gone(found, 5.0)
        # A daemon leads a session of its own; its number is not used again while one of them lives.
        scripts = [script for process in found for script in _process.of_session(process.pid)]
        for process in _process.wait_gone(scripts, 5.0):
            _process.send(process, signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class KeepDaemon:
    """Have a daemon run that serves an interface: started unless it runs, and looked for afterwards.

    C(argv) returns when the daemon is in the background. Any process of C(program) in this network namespace with the
    interface on its command line will do, whoever started it.
    """

    argv: tuple[str, ...]
    program: str
    interface: str

    def perform(self) -> None:
        if self._runs():
            return
        try:
            RunProgram(self.argv).perform()
        except SystemFailure as error:
            if not self._runs():
                raise SystemFailure(f"{self._absence()}: {error}") from error
        if not self._runs():
            raise SystemFailure(f"{self._absence()}: {' '.join(self.argv)} ended at once.")

    def _runs(self) -> bool:
        return any(
            os.path.basename(argv[0]) == self.program and self.interface in argv[1:]
            for _daemon, argv in _process.here()
        )

    def _absence(self) -> str:
        return f"{self.program} does not run for {self.interface} any more"


Action = t.Union[WriteFile, RunProgram, EndProgram, KeepDaemon]
_KINDS: dict[str, t.Any] = {kind.__name__: kind for kind in (WriteFile, RunProgram, EndProgram, KeepDaemon)}


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to do, in words a user reads, and what takes it back (in the order in which it is to be done)."""

    sentence: str
    action: Action
    undo: tuple[Action, ...] = ()


def to_json(action: Action) -> dict[str, t.Any]:
    """The action as plain data for the journal."""
    return {"do": type(action).__name__, **dataclasses.asdict(action)}


def from_json(stored: t.Mapping[str, t.Any]) -> Action:
    """The action that C(to_json) stored."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items() if key != "do"}
    return t.cast(Action, _KINDS[stored["do"]](**fields))


def keep(path: str) -> WriteFile:
    """The action that brings the file back as it is now, or away if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return WriteFile(path, file.read(), os.fstat(file.fileno()).st_mode & 0o7777)
    except FileNotFoundError:
        return WriteFile(path, None)
