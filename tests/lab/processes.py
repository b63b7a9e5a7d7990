# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes known by number and start time, so that no stranger with a recycled number is ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
import typing as t
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of this machine, now or in the past."""

    pid: int
    started: int
    """In clock ticks since the machine's boot, as field 22 of /proc/PID/stat."""

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now."""
        return cls(pid, _start_time(pid))

    @property
    def alive(self) -> bool:
        """Whether any of its threads still runs; a zombie does not."""
        try:
            return _start_time(self.pid) == self.started
        except ProcessLookupError:
            return False

    def children(self) -> list[Process]:
        """Its children; none when it is gone."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
            return [Process.of(int(pid)) for pid in listed] if self.alive else []
        except (FileNotFoundError, ProcessLookupError):
            return []

    def kill(self) -> None:
        """End it at once, if it is still the same process."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # The descriptor keeps the number from being given to another process between the look and the signal.
                if self.alive:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def systemd_of(nspawn: Process) -> t.Optional[Process]:
    """Process 1 of a container, once it has become systemd; nspawn has other children on the way to it."""
    for child in nspawn.children():
        try:
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue
        numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if status.startswith("Name:\tsystemd\n") and len(numbers) > 1 and numbers[-1] == "1":
            return child
    return None


def _start_time(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    # The command's name is in parentheses and may hold anything.
    fields = stat.rpartition(")")[2].split()
    if fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1):
        raise ProcessLookupError(pid)
    return int(fields[19])


def wait_until(condition: t.Callable[[], bool], timeout: float, what: str) -> None:
    """Wait for a condition; the limit is there for what will never happen."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} seconds for {what}")
        time.sleep(0.01)
