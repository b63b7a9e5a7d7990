# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of a move of the uplink while it is not certain: how it was before, how far it got, who may still act.

A transaction is a directory in /run, which a reboot empties: what was not confirmed was never made to outlive one. Its
phase changes under a lock, and only from phases that allow it, so that of a confirmation and a rollback that come at
the same time exactly one wins. Of the standard library alone: the dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _steps
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import (
    Snapshot,
    now,
    snapshot_from_json,
    snapshot_to_json,
)

DIRECTORY = "/run/labspan/uplink"

PREPARED = "prepared"
MOVING = "moving"
MOVED = "moved"
CONFIRMED = "confirmed"
ROLLING_BACK = "rolling back"
ROLLED_BACK = "rolled back"
STUCK = "stuck"
"""The way back failed; the journal stays, and the next run tries again."""

#: Phases after which nothing more happens.
OVER = (CONFIRMED, ROLLED_BACK)


@dataclasses.dataclass(frozen=True)
class Phase:
    """How far a transaction got."""

    name: str
    since: float
    """Seconds since boot."""
    reason: str = ""
    """Why it goes back, as a sentence."""


@dataclasses.dataclass(frozen=True)
class Journal:
    """All that is needed to put the host back as it was."""

    bridge: str
    interface: str
    back: bool
    """Whether the move is the way back, from the bridge to the card."""
    created: bool
    """Whether the transaction makes the bridge."""
    before: Snapshot
    mover: Process
    """Whose death means that the move is over."""
    confirm_timeout: float
    """Seconds from the phase C(moved) on."""
    move_timeout: float
    """Seconds until the phase C(moved) must be reached."""
    gateways: t.Mapping[str, t.Optional[str]] = dataclasses.field(default_factory=dict)
    """Those that answered before, each with the host's address to ask it from."""
    connection: t.Optional[str] = None
    """The controller's connection that asked for the move."""
    undo_before: tuple[_steps.Action, ...] = ()
    """What takes back the steps before the burst, in the order in which it must be done."""
    undo_after: tuple[_steps.Action, ...] = ()
    """Likewise for those after the burst."""


class Transaction:
    """The directory of one transaction."""

    def __init__(self, identity: str, directory: str = DIRECTORY) -> None:
        self.identity = identity
        self.path = os.path.join(directory, identity)

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.path, name)

    def begin(self, journal: Journal) -> None:
        """Make the directory, with the journal, in the phase C(prepared)."""
        _whole_files.make_directories(os.path.dirname(self.path))
        _whole_files.make_directory(self.path, 0o700)
        self.write(journal)
        self._write("phase", dataclasses.asdict(Phase(PREPARED, now())))
        _whole_files.sync(os.path.dirname(self.path))

    def write(self, journal: Journal) -> None:
        """Put a newer journal in the place of the old one."""
        stored = {field.name: getattr(journal, field.name) for field in dataclasses.fields(journal)}
        stored["before"] = snapshot_to_json(journal.before)
        stored["mover"] = dataclasses.asdict(journal.mover)
        for undo in ("undo_before", "undo_after"):
            stored[undo] = [_steps.to_json(action) for action in stored[undo]]
        self._write("journal", stored)

    def read(self) -> Journal:
        """The journal as it was written last."""
        with open(self.file("journal"), encoding="utf-8") as file:
            stored = json.load(file)
        stored["before"] = snapshot_from_json(stored["before"])
        stored["mover"] = Process(**stored["mover"])
        for undo in ("undo_before", "undo_after"):
            stored[undo] = tuple(_steps.from_json(action) for action in stored[undo])
        return Journal(**stored)

    def phase(self) -> t.Optional[Phase]:
        """How far it got; None when there is no such transaction."""
        try:
            with open(self.file("phase"), encoding="utf-8") as file:
                return Phase(**json.load(file))
        except FileNotFoundError:
            return None

    def advance(
        self, allowed: t.Container[str], to: str, reason: str = "", *, before: t.Optional[float] = None
    ) -> bool:
        """Go on to another phase if the present one allows it and it is not later than C(before); whether it did."""
        with self._locked():
            phase = self.phase()
            if phase is None or phase.name not in allowed or (before is not None and now() > before):
                return False
            self._write("phase", dataclasses.asdict(Phase(to, now(), reason or phase.reason)))
            return True

    def forget(self) -> None:
        """Leave nothing of a transaction that is over but how it ended."""
        for name in os.listdir(self.path):
            if name not in ("phase", "lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.file(name))

    @contextlib.contextmanager
    def _locked(self) -> t.Iterator[None]:
        descriptor = os.open(self.file("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, name: str, content: t.Any) -> None:
        _whole_files.replace(self.file(name), json.dumps(content), mode=0o600)


def transactions(directory: str = DIRECTORY) -> list[Transaction]:
    """Every transaction since the host was booted."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    return [Transaction(name, directory) for name in names]


def unfinished(directory: str = DIRECTORY) -> list[Transaction]:
    """Those that are neither confirmed nor rolled back."""
    found = []
    for transaction in transactions(directory):
        phase = transaction.phase()
        if phase is not None and phase.name not in OVER:
            found.append(transaction)
    return found


def sweep(directory: str = DIRECTORY) -> None:
    """Remove what is left of transactions that are over, and of one that died before its journal was whole."""
    for transaction in transactions(directory):
        phase = transaction.phase()
        if phase is None or phase.name in OVER:
            shutil.rmtree(transaction.path, ignore_errors=True)


def known(identity: str) -> Transaction:
    """The transaction of this identity; raises when this boot of the host knows none."""
    transaction = Transaction(identity)
    if transaction.phase() is None:
        raise SystemFailure(
            f"this host knows no move of its uplink by the name {identity}: it was rebooted since, which undoes a move "
            "that was not confirmed, or another move began after it was over."
        )
    return transaction
