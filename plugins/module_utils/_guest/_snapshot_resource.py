# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshots of guests that a task asks for, as a resource of the runner.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import (
    InvalidInput,
    LabspanError,
    Refused,
    SystemFailure,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _agent,
    _agent_resource,
    _images,
    _snapshots,
    _store,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places, defined_guests
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._snapshots import Disk, Snapshot
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

_AGENT_TIMEOUT = 10.0
_LONGEST_CHAIN = 32
_IN_CHECK_MODE = "In check mode this is only a warning, because an earlier task may change it."


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a task asks for one guest."""

    guest: str
    snapshot: str
    state: str
    memory: t.Optional[bool]
    quiesce: bool
    timeout: float

    @property
    def before(self) -> str:
        """The snapshot that keeps how the disks were while the guest goes back."""
        return f"before-revert-to-{self.snapshot}"


@dataclasses.dataclass(frozen=True)
class Guest:
    """A guest with its disks."""

    running: bool
    disks: tuple[Disk, ...] = ()
    left_out: tuple[str, ...] = ()
    """What the guest writes to beside its disks, and no snapshot holds; as sentences."""
    known: bool = True

    def having(self, name: str) -> tuple[Disk, ...]:
        return tuple(disk for disk in self.disks if disk.find(name))

    def memory(self, name: str) -> int:
        return sum((disk.find(name) or Snapshot(name)).memory for disk in self.disks)


State = t.Mapping[str, Guest]


@dataclasses.dataclass(frozen=True)
class SnapshotChange(Change):
    """A step about one snapshot of one guest."""

    wish: Wish
    disks: tuple[Disk, ...]


@dataclasses.dataclass(frozen=True)
class Take(SnapshotChange):
    """A snapshot is taken; C(memory) tells whether with the guest's memory."""

    memory: bool

    def inverse(self) -> Change:
        return Remove(self.subject, f"Undo: {self.sentence}", True, False, self.wish, self.disks)


@dataclasses.dataclass(frozen=True)
class Remove(SnapshotChange):
    """A snapshot goes."""

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Revert(SnapshotChange):
    """The guest is again as it was."""

    @property
    def reversible(self) -> bool:
        return False


class Snapshots(Resource[State]):
    """One snapshot of each guest that a task names."""

    plural: t.ClassVar[str] = "guests"
    singular: t.ClassVar[str] = "guest"

    def __init__(self, wishes: t.Sequence[Wish], *, single: bool = False, check_mode: bool = False) -> None:
        super().__init__(single=single)
        self._wishes = wishes
        self._check_mode = check_mode
        self._reverted: set[str] = set()

    def read(self) -> State:
        processes = _store.Processes()
        return {wish.guest: self._read(wish, processes) for wish in self._wishes}

    def plan(self, have: State, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes: list[Change] = []
        for wish in self._wishes:
            guest = have[wish.guest]
            if not guest.known:
                continue
            if wish.state == "present":
                changes += self._plan_presence(wish, guest)
            elif wish.state == "absent":
                changes += _plan_absence(wish, guest)
            elif wish.guest not in self._reverted:
                changes.append(self._plan_revert(wish, guest))
        return changes

    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        state = dict(have)
        for change in t.cast("t.Sequence[SnapshotChange]", changes):
            guest, name = state[change.wish.guest], change.wish.snapshot
            touched = {disk.path for disk in change.disks}
            disks = []
            for disk in guest.disks:
                kept = tuple(one for one in disk.snapshots if one.name != name)
                if disk.path in touched and isinstance(change, Take):
                    disks.append(dataclasses.replace(disk, snapshots=(*kept, Snapshot(name))))
                elif disk.path in touched and isinstance(change, Remove):
                    disks.append(dataclasses.replace(disk, snapshots=kept))
                else:
                    disks.append(disk)
            state[change.wish.guest] = dataclasses.replace(guest, disks=tuple(disks))
        return state

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in t.cast("t.Sequence[SnapshotChange]", changes):
            self._apply(change)
            done.append(change)

    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        return {wish.guest: _render(state[wish.guest]) for wish in self._wishes}

    def _read(self, wish: Wish, processes: _store.Processes) -> Guest:
        try:
            return _look(wish, processes)
        except LabspanError as error:
            if not self._check_mode:
                raise
            self.warnings.append(f"{error} {_IN_CHECK_MODE}")
            return Guest(running=False, known=False)

    def _plan_presence(self, wish: Wish, guest: Guest) -> list[Change]:
        having = guest.having(wish.snapshot)
        if having and len(having) == len(guest.disks):
            return []
        _refuse_incapable(wish, guest)
        if having:
            raise Refused(
                f"the snapshot {wish.snapshot} of guest {wish.guest} is on {_name(having)} and not on its other disks: "
                "it was taken elsewhere, or broken off. Remove it with state: absent, or choose another name."
            )
        memory = guest.running if wish.memory is None else wish.memory
        if memory and not guest.running:
            raise Refused(f"guest {wish.guest} does not run, so there is no memory to keep. Leave memory out.")
        if wish.quiesce and not guest.running:
            wish = dataclasses.replace(wish, quiesce=False)  # nobody writes
        if wish.quiesce and memory:
            raise InvalidInput(
                "quiesce", True, "goes with memory: false only. With its memory, a guest would come back frozen."
            )
        if wish.quiesce:
            _agent_resource.check_line(wish.guest, _store.Processes())
        self._warn_left_out(wish, guest)
        how = " with its memory" if memory else ""
        sentence = f"Take the snapshot {wish.snapshot} of guest {wish.guest}{how}"
        return [Take(_subject(wish), sentence, False, True, wish, guest.disks, memory)]

    def _plan_revert(self, wish: Wish, guest: Guest) -> Change:
        having = guest.having(wish.snapshot)
        if not having:
            names = dict.fromkeys(one.name for disk in guest.disks for one in disk.snapshots)
            there = f"It has {', '.join(names)}" if names else "It has none"
            raise Refused(f"guest {wish.guest} has no snapshot {wish.snapshot}. {there}.")
        _refuse_incapable(wish, guest)
        if len(having) < len(guest.disks):
            others = [disk for disk in guest.disks if disk not in having]
            raise Refused(
                f"the snapshot {wish.snapshot} of guest {wish.guest} is on {_name(having)} and not on {_name(others)}; "
                "to go back with some of the disks would tear them apart. Nothing was done."
            )
        if guest.having(wish.before):
            raise Refused(
                f"guest {wish.guest} has the snapshot {wish.before}, left by an earlier revert that failed or was "
                "broken off: it holds how the disks were before that. Go back to it with state: reverted, or "
                "remove it with state: absent."
            )
        memory = guest.memory(wish.snapshot)
        if guest.running and not memory:
            raise Refused(
                f"the snapshot {wish.snapshot} of guest {wish.guest} holds no memory, and a running guest would not "
                "know what happened to its disks. Stop the guest first (state: stopped)."
            )
        _refuse_bases(wish, guest)
        if memory and not guest.running:
            self.warnings.append(
                f"guest {wish.guest} does not run, so only its disks go back to the snapshot {wish.snapshot}, not its "
                "memory: it will find them as after a power cut. To have the memory, too, start it before."
            )
        self._warn_left_out(wish, guest)
        snapshot = t.cast(Snapshot, having[0].find(wish.snapshot))
        lost = "what it has in memory and wrote to" if guest.running else "what was written to"
        sentence = (
            f"Revert guest {wish.guest} to the snapshot {wish.snapshot} of {snapshot.created}, throwing away {lost} "
            f"{_name(guest.disks)} since then"
        )
        return Revert(_subject(wish), sentence, None, wish.snapshot, wish, guest.disks)

    def _warn_left_out(self, wish: Wish, guest: Guest) -> None:
        self.warnings += [f"{sentence} of guest {wish.guest} is in no snapshot." for sentence in guest.left_out]

    def _apply(self, change: SnapshotChange) -> None:
        wish = change.wish
        definition = _store.read_definition(wish.guest)
        if definition is None:
            raise Refused(f"guest {wish.guest} is not defined on this host any more.")
        if change.disks[0].node is None:
            account = _process.find_account(definition.spec.user)
            stopped = _snapshots.Stopped(wish.guest, account)
            if isinstance(change, Take):
                stopped.take(wish.snapshot, change.disks)
            elif isinstance(change, Remove):
                stopped.remove(wish.snapshot, change.disks)
            else:
                stopped.revert(wish.snapshot, change.disks, wish.before)
                self._reverted.add(wish.guest)
            return
        with _snapshots.Running(wish.guest, Places(wish.guest).qmp_socket, timeout=wish.timeout) as running:
            if isinstance(change, Take):
                with _quiet(wish) if wish.quiesce else contextlib.nullcontext():
                    running.take(wish.snapshot, change.disks, memory=change.memory)
            elif isinstance(change, Remove):
                running.remove(wish.snapshot, change.disks)
            else:
                running.revert(wish.snapshot, change.disks, wish.before)
                self._reverted.add(wish.guest)


def build(items: t.Sequence[t.Mapping[str, t.Any]], *, single: bool, check_mode: bool) -> t.Sequence[Resource[t.Any]]:
    """The resource that a task's items ask for."""
    return [Snapshots([_wish(options) for options in items], single=single, check_mode=check_mode)]


def _wish(options: t.Mapping[str, t.Any]) -> Wish:
    if not options.get("snapshot"):
        raise InvalidInput("snapshot", options.get("snapshot"), f"of guest {options['name']} needs a name.")
    snapshot = _values.object_name("snapshot", options["snapshot"])
    if snapshot.isdigit():
        raise InvalidInput("snapshot", snapshot, "is a number, which QEMU takes for a snapshot's id. Add a letter.")
    if options["timeout"] <= 0:
        raise InvalidInput("timeout", options["timeout"], "leaves no time; give seconds, more than 0.")
    if options["state"] != "present":
        for option in ("memory", "quiesce"):
            if options.get(option):
                raise InvalidInput(option, options[option], "tells how to take a snapshot, with state: present.")
    return Wish(
        guest=_values.object_name("name", options["name"]),
        snapshot=snapshot,
        state=options["state"],
        memory=options.get("memory"),
        quiesce=bool(options.get("quiesce")),
        timeout=options["timeout"],
    )


def _look(wish: Wish, processes: _store.Processes) -> Guest:
    definition = _store.read_definition(wish.guest)
    if definition is None:
        raise Refused(f"guest {wish.guest} is not defined on this host.")
    places = Places(wish.guest)
    if processes.find(wish.guest) is None:
        return Guest(False, tuple(_disks_at_rest(definition.spec)), tuple(_left_out(definition.spec)))
    with _snapshots.Running(wish.guest, places.qmp_socket, timeout=_AGENT_TIMEOUT) as running:
        found = running.disks()
    disks = tuple(disk for disk in found if disk.path != places.variables)
    return Guest(True, disks, tuple(_left_out(definition.spec)))


def _disks_at_rest(spec: GuestSpec) -> t.Iterator[Disk]:
    for disk in spec.disks:
        if disk.read_only or disk.is_cdrom:
            continue
        if _images.is_open(disk.path):
            raise Refused(
                f"the disk {disk.path} of guest {spec.name}, which does not run, is open in "
                f"{_images.holder(disk.path)}. End that first."
            )
        image = _images.chain(disk.path, _images.bounds(disk, spec.name))[0]
        yield Disk(disk.path, image.format, None, _snapshots.read_table(disk.path))


def _left_out(spec: GuestSpec) -> t.Iterator[str]:
    if os.path.exists(Places(spec.name).variables):
        yield "the UEFI variable store"
    if os.path.isdir(Places(spec.name).tpm_state):
        yield "the state of the TPM"


def _refuse_incapable(wish: Wish, guest: Guest) -> None:
    if not guest.disks:
        raise Refused(f"guest {wish.guest} has no disk that it can write to, so there is nothing to keep.")
    others = [disk for disk in guest.disks if disk.format != "qcow2"]
    if others:
        raise Refused(
            f"guest {wish.guest} writes to {', '.join(f'{disk.path} ({disk.format})' for disk in others)}. Only qcow2 "
            "images hold snapshots, and one of some of the disks would be none of the guest."
        )


def _refuse_bases(wish: Wish, guest: Guest) -> None:
    """A disk on which another guest's disk is built must not change below it."""
    files: dict[tuple[int, int], str] = {}
    for disk in guest.disks:
        with contextlib.suppress(OSError):
            found = os.stat(disk.path)
            files[found.st_dev, found.st_ino] = disk.path
    for name in defined_guests():
        definition = _store.read_definition(name)
        for other in definition.spec.disks if definition is not None and name != wish.guest else ():
            needed = [files[image.identity] for image in _below(other.path) if image.identity in files]
            if needed:
                raise Refused(
                    f"the disk {other.path} of guest {name} is built on {needed[0]}, which would change below it. "
                    f"Nothing was done to guest {wish.guest}."
                )


def _below(path: str) -> t.Iterator[_images.Image]:
    """The images that a disk is built on, wherever they are, as far as they can be read."""
    with contextlib.suppress(LabspanError, OSError):
        image = _images.inspect(path)
        for _step in range(_LONGEST_CHAIN):
            if image is None or image.external or image.backing is None:
                return
            image = _images.inspect(image.backing)
            if image is not None:
                yield image


def _plan_absence(wish: Wish, guest: Guest) -> list[Change]:
    having = guest.having(wish.snapshot)
    if not having:
        return []
    sentence = f"Remove the snapshot {wish.snapshot} of guest {wish.guest}"
    return [Remove(_subject(wish), sentence, True, False, wish, having)]


@contextlib.contextmanager
def _quiet(wish: Wish) -> t.Iterator[None]:
    """The guest's file systems stand still meanwhile, unless somebody had them stand still before."""
    with _agent.Agent(wish.guest, timeout=_AGENT_TIMEOUT) as agent:
        frozen = agent.freeze_status()
    if frozen is None:
        raise Refused(f"quiesce: the agent of guest {wish.guest} cannot freeze file systems.")
    if frozen == _agent.FROZEN:
        yield
        return
    _agent_resource.freeze(wish.guest, wish.timeout)
    try:
        yield
    finally:
        if not _agent_resource.let_go(wish.guest, wish.timeout):
            raise SystemFailure(_agent_resource.may_be_frozen(wish.guest))


def _subject(wish: Wish) -> str:
    return f"snapshot {wish.snapshot} of guest {wish.guest}"


def _name(disks: t.Iterable[Disk]) -> str:
    return " and ".join(disk.path for disk in disks)


def _render(guest: Guest) -> dict[str, t.Any]:
    names = dict.fromkeys(one.name for disk in guest.disks for one in disk.snapshots)
    return {
        "running": guest.running,
        "snapshots": [
            {
                "name": name,
                "created": next(one.created for disk in guest.disks for one in [disk.find(name)] if one),
                "memory": guest.memory(name),
                "disks": [disk.path for disk in guest.having(name)],
                "complete": len(guest.having(name)) == len(guest.disks),
            }
            for name in names
        ],
    }
