# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of a running guest without a restart, and what has to wait for one. Pure.

NICs and disks that the list gains are plugged in, those that it loses are pulled out. One that stays and shall be
different (the same disk on another bus, the same address on another tap) waits for a restart: nobody who changes a word
in a list expects the disk that the guest runs from to be pulled out.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _slots
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._change import GuestChange
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._slots import Live, Part
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import SYSTEMD, Disk, GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, GuestState, Want

#: What the guest sees of a NIC and of a disk; the rest tells how the host makes them.
NIC_HARDWARE = ("mac", "model", "tap", "queues", "vhost")
DISK_HARDWARE = ("path", "format", "bus", "read_only", "media")

# What makes one of the list the same as one of the guest, though it may be different.
_IDENTITY = {"NIC": ("mac", "tap"), "disk": ("path",)}  # an empty drive has none
_HARDWARE = {"NIC": NIC_HARDWARE, "disk": DISK_HARDWARE}
# What a service does not see of the host, or not as it is.
_HIDDEN = ("/dev/", "/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
_PREFIX = {"NIC": "nic", "disk": "disk"}


@dataclasses.dataclass(frozen=True)
class Device:
    """A NIC or a disk of a running guest."""

    what: t.Union[Nic, Disk]
    part: Part

    @property
    def kind(self) -> str:
        return "disk" if isinstance(self.what, Disk) else "NIC"

    def __str__(self) -> str:
        return f"{self.kind} {call(self.what)}"


@dataclasses.dataclass(frozen=True)
class Plug(GuestChange):
    """A NIC or a disk is plugged into a running guest; C(after) is the Device."""

    patience: float

    def inverse(self) -> Change:
        return Unplug(self.subject, f"Undo: {self.sentence}", self.after, None, self.guest, self.patience)


@dataclasses.dataclass(frozen=True)
class Unplug(GuestChange):
    """A running guest gives a NIC or a disk back within some seconds; C(before) is the Device."""

    patience: float

    def inverse(self) -> Change:
        return Plug(self.subject, f"Undo: {self.sentence}", None, self.before, self.guest, self.patience)


@dataclasses.dataclass(frozen=True)
class SetLink(GuestChange):
    """The cable of a NIC is plugged or pulled; states are booleans."""

    device: str


@dataclasses.dataclass(frozen=True)
class SetMedium(GuestChange):
    """A CD is put into a drive in place of what is in it, within some seconds; states are the drive's Disk."""

    device: str
    patience: float


@dataclasses.dataclass(frozen=True)
class SetMemory(GuestChange):
    """A running guest gives memory back within some seconds, or gets it again; states are MiB."""

    patience: float


class Outcome(t.NamedTuple):
    """What the lists of a task come to for a running guest."""

    leave: list[Device]
    come: list[Device]
    links: list[tuple[int, Device, bool]]
    media: list[tuple[Device, Disk]]
    memory: t.Optional[tuple[int, int]]
    attached: t.Optional[Definition]
    """The definition when what leaves is gone and what comes is there; None when nothing does."""
    recorded: Definition
    """The definition when all is done."""
    pending: list[str]


def call(what: t.Union[Disk, Nic]) -> str:
    """One of the list, in words."""
    return what.path or "an empty CD drive" if isinstance(what, Disk) else f"{what.mac} on {what.place}"


def devices(definition: Definition) -> list[Device]:
    """The NICs and disks of a guest that runs as the definition says."""
    nics, disks = (definition.live.nics, definition.live.disks) if definition.live else _slots.parts(definition.spec)
    paired: list[tuple[t.Union[Nic, Disk], Part]] = [
        *zip(definition.spec.nics, nics),
        *zip(definition.spec.disks, disks),
    ]
    return [Device(what, part) for what, part in paired]


def outcome(have: GuestState, want: Want, *, reachable: bool) -> Outcome:
    """Compare a running guest with the wanted one. C(reachable) tells whether QEMU listens at all."""
    definition = t.cast("Definition", have.definition)
    spec = definition.spec
    now = definition.live or _slots.begin(spec, definition.argv, t.cast(t.Any, have.process))
    nics = _match("NIC", map(Device, spec.nics, now.nics), want.spec.nics)
    disks = _match("disk", map(Device, spec.disks, now.disks), want.spec.disks)
    for match in (nics, disks):
        match.let_go(spec, reachable)
    room = _Room(definition, now, have.attached or (), nics, disks)
    for match in (nics, disks):
        match.take(room, reachable)
        if have.attached is not None:
            match.lost(have.attached, room)
    links = _links(nics, want.spec) if reachable else []
    media = _media(disks, want.spec) if reachable else []
    if not reachable:
        disks.pending += [_no_medium(device, after) for device, after in _media(disks, want.spec)]
    memory = _memory(spec, now, want.spec) if reachable else None
    pending = [*_memory_pending(spec, now, want.spec, memory), *disks.pending, *nics.pending]
    attached = _redefined(definition, now, nics, disks) if nics.changed or disks.changed else None
    recorded = attached or definition
    if links:
        plugged = {
            device.part.id: dataclasses.replace(t.cast(Nic, device.what), link=up) for _index, device, up in links
        }
        after = tuple(plugged.get(device.part.id, t.cast(Nic, device.what)) for device in nics.result)
        recorded = dataclasses.replace(recorded, spec=dataclasses.replace(recorded.spec, nics=after))
    if media:
        filled = {device.part.id: disk for device, disk in media}
        drives = tuple(filled.get(device.part.id, t.cast(Disk, device.what)) for device in disks.result)
        recorded = _described(recorded, dataclasses.replace(recorded.spec, disks=drives), recorded.live or now)
    if memory is not None:
        recorded = _described(recorded, dataclasses.replace(recorded.spec, memory=memory[1]), recorded.live or now)
    return Outcome(
        leave=[*disks.leave, *nics.leave],
        come=[*disks.again, *disks.come, *nics.again, *nics.come],
        links=links,
        media=media,
        memory=memory,
        attached=attached,
        recorded=recorded,
        pending=pending,
    )


class _Match:
    """The guest's NICs or disks, sorted by what becomes of them."""

    def __init__(self, kind: str, have: t.Sequence[Device], wanted: t.Sequence[t.Any]) -> None:
        self.kind = kind
        self.leave: list[Device] = []
        self.come: list[Device] = []
        #: Those that the guest gave back by itself, and that are wanted.
        self.again: list[Device] = []
        self.pending: list[str] = []
        asked, had = keys(kind, wanted), keys(kind, [device.what for device in have])
        self._asked = asked
        self.result = list(have)
        #: Those that stay, with what is wanted of them.
        self.stay = [(device, wanted[asked.index(key)]) for device, key in zip(have, had) if key in asked]
        self._others = [device for device, key in zip(have, had) if key not in asked]
        self._new: list[tuple[int, t.Any]] = []
        for index, (what, key) in enumerate(zip(wanted, asked)):
            if key in had:
                continue
            rivals = [device for device in self._others if _is_same(kind, device.what, what)]
            if rivals:
                self._others = [device for device in self._others if device not in rivals]
                self.pending += _differences(kind, index, rivals[0].what, what)
            elif not any(_is_same(kind, device.what, what) for device in have):
                self._new.append((index, what))
            else:  # its rival had another rival already
                self.pending.append(f"{kind} {index} ({call(what)}) is not attached")
        if [key for key in had if key in asked] != [key for key in asked if key in had]:
            self.pending.append(f"the {kind}s are attached in another order than wanted")

    @property
    def changed(self) -> bool:
        return bool(self.leave or self.come)

    def let_go(self, spec: GuestSpec, reachable: bool) -> None:
        """Decide which of those that nobody wants any more can be pulled out."""
        for device in self._others:
            reason = _sticks(device, spec) if reachable else ""
            if reason is None:
                self.leave.append(device)
                self.result.remove(device)
            else:
                self.pending.append(
                    f"{self.kind} {_index_of(device)} ({call(device.what)}) is attached and not wanted{reason}"
                )

    def take(self, room: _Room, reachable: bool) -> None:
        """Find places for the new ones."""
        for index, what in self._new:
            found = room.find(self.kind, what) if reachable else ""
            if isinstance(found, str):
                self.pending.append(f"{self.kind} {index} ({call(what)}) is not attached{found}")
                continue
            device = Device(what, found)
            self.come.append(device)
            self.result.insert(self._position(index), device)

    def _position(self, index: int) -> int:
        """Where a new one belongs: behind the one before it in the list, or before the one behind it."""
        there = keys(self.kind, [device.what for device in self.result])
        for key in reversed(self._asked[:index]):
            if key in there:
                return there.index(key) + 1
        return next((there.index(key) for key in self._asked[index + 1 :] if key in there), len(there))

    def lost(self, attached: t.Collection[str], room: _Room) -> None:
        """Find those that are recorded, and that the guest has not got."""
        self.again = [
            device
            for device in self.result
            if device not in self.come
            and device not in self._others
            and device.part.id not in attached
            and room.takes(device)
        ]


class _Room:
    """Where a running guest can still take something."""

    def __init__(self, definition: Definition, now: Live, attached: t.Collection[str], *matches: _Match) -> None:
        self._spec = definition.spec
        self._confined = definition.manager == SYSTEMD
        self._words = now.argv
        stay = [device.part for match in matches for device in match.result]
        leave = [device.part for match in matches for device in match.leave]
        self._all_ports = _slots.ports_of(now.argv)
        self._ports = [port for port in self._all_ports if port not in {part.port for part in stay}]
        self._ids = {part.id for part in [*stay, *leave]} | set(attached)
        self._units = {part.unit for part in [*stay, *leave]}
        self._scsi = any(word.startswith("virtio-scsi-pci") and "id=scsi" in word.split(",") for word in now.argv)

    def find(self, kind: str, what: t.Union[Nic, Disk]) -> t.Union[Part, str]:
        """A place, or the reason why there is none."""
        bus = what.bus if isinstance(what, Disk) else "pci"
        if bus in ("ide", "sata"):
            return f": disks on {bus} are not plugged in while a guest runs"
        if isinstance(what, Disk) and self._confined and self._out_of_reach(what):
            return ": the unit of the running guest lets it open only what it was started with there"
        if bus == "scsi":
            if not self._scsi:
                return ": the running guest has no SCSI controller"
            unit = next(number for number in itertools.count() if number not in self._units)
            self._units.add(unit)
            return Part(self._identity(kind), None, unit)
        if _slots.hot_bus(self._spec.machine):
            return Part(self._identity(kind))
        if not _slots.has_ports(self._spec.machine):
            return f": the machine {self._spec.machine} takes no device while it runs"
        if not self._ports:
            return f": all {len(self._all_ports)} PCI Express ports of the running guest are taken"
        return Part(self._identity(kind), self._ports.pop(0))

    def _out_of_reach(self, disk: Disk) -> bool:
        """Whether a service's view of the file system is fixed without this file in it."""
        if any(word.endswith(f"file.filename={disk.path}") for word in self._words):
            return False
        inside = os.path.dirname(disk.path) == Places(self._spec.name).state
        return not inside and (not disk.read_only or disk.path.startswith(_HIDDEN))

    def takes(self, device: Device) -> bool:
        """Whether a device that has a place can be plugged in there again."""
        return device.part.port is not None or device.part.unit is not None or _sticks(device, self._spec) is None

    def _identity(self, kind: str) -> str:
        prefix = _PREFIX[kind]
        found = next(f"{prefix}{number}" for number in itertools.count() if f"{prefix}{number}" not in self._ids)
        self._ids.add(found)
        return found


def _match(kind: str, have: t.Iterable[Device], wanted: t.Sequence[t.Any]) -> _Match:
    return _Match(kind, list(have), wanted)


def keys(kind: str, whats: t.Sequence[t.Any]) -> list[tuple[t.Any, ...]]:
    """What tells the NICs or the disks of a guest apart. A CD drive is one whatever is in it."""
    hardware = operator.attrgetter(*_HARDWARE[kind])
    drives: dict[str, int] = {}
    found: list[tuple[t.Any, ...]] = []
    for what in whats:
        if isinstance(what, Disk) and what.is_cdrom:
            number = drives[what.bus] = drives.get(what.bus, 0) + 1
            found.append((what.media, what.bus, number))
        else:
            found.append(hardware(what))
    return found


def _links(nics: _Match, wanted: GuestSpec) -> list[tuple[int, Device, bool]]:
    asked = {nic.mac: nic.link for nic in wanted.nics}
    found = []
    for index, device in enumerate(nics.result):
        nic = t.cast(Nic, device.what)
        if device not in nics.come and asked.get(nic.mac, nic.link) != nic.link:
            found.append((index, device, asked[nic.mac]))
    return found


def _media(disks: _Match, wanted: GuestSpec) -> list[tuple[Device, Disk]]:
    """The CD drives that something else is to be in."""
    return [
        (device, disk)
        for device, disk in disks.stay
        if isinstance(device.what, Disk)
        and device.what.is_cdrom
        and (device.what.path, device.what.format) != (disk.path, disk.format)
    ]


def _no_medium(device: Device, after: Disk) -> str:
    before = t.cast(Disk, device.what)
    return f"{device.kind} {device.part.number}: path is {show(before.path or None)}, wanted {show(after.path or None)}"


def _is_same(kind: str, one: t.Any, other: t.Any) -> bool:
    return any(
        getattr(one, attribute) and getattr(one, attribute) == getattr(other, attribute)
        for attribute in _IDENTITY[kind]
    )


def _differences(kind: str, index: int, before: t.Any, after: t.Any) -> t.Iterator[str]:
    for attribute in _HARDWARE[kind]:
        was, shall = getattr(before, attribute), getattr(after, attribute)
        if was != shall:
            yield f"{kind} {index}: {attribute} is {show(was)}, wanted {show(shall)}"


def show(value: t.Any) -> str:
    """A value in a sentence."""
    if isinstance(value, tuple):
        return repr(list(value))
    return "not set" if value is None else str(value)


def _index_of(device: Device) -> int:
    return device.part.number


def _sticks(device: Device, spec: GuestSpec) -> t.Optional[str]:
    """Why the device cannot be pulled out while the guest runs; None when it can."""
    if isinstance(device.what, Disk) and device.what.bus in ("ide", "sata"):
        return f": disks on {device.what.bus} are not pulled out while a guest runs"
    if device.part.port is not None or device.part.unit is not None or _slots.hot_bus(spec.machine):
        return None
    if _slots.has_ports(spec.machine):
        return ": it is on the root bus, which gives nothing back while a guest runs"
    return f": the machine {spec.machine} gives no device back while it runs"


def _memory(spec: GuestSpec, now: Live, wanted: GuestSpec) -> t.Optional[tuple[int, int]]:
    if not (spec.balloon and wanted.balloon) or wanted.memory == spec.memory or wanted.memory > now.memory:
        return None
    return spec.memory, wanted.memory


def _memory_pending(
    spec: GuestSpec, now: Live, wanted: GuestSpec, live: t.Optional[tuple[int, int]]
) -> t.Iterator[str]:
    if wanted.memory == spec.memory or live is not None:
        return
    grows = f": it was started with {now.memory}" if spec.balloon and wanted.memory > now.memory else ""
    yield f"memory is {spec.memory}, wanted {wanted.memory}{grows}"


def _redefined(definition: Definition, now: Live, nics: _Match, disks: _Match) -> Definition:
    spec = dataclasses.replace(
        definition.spec,
        nics=tuple(t.cast(Nic, device.what) for device in nics.result),
        disks=tuple(t.cast(Disk, device.what) for device in disks.result),
    )
    live = dataclasses.replace(
        now,
        nics=tuple(device.part for device in nics.result),
        disks=tuple(device.part for device in disks.result),
    )
    return _described(definition, spec, live)


def _described(definition: Definition, spec: GuestSpec, live: Live) -> Definition:
    """The definition of the next start, with what the running process is beside it."""
    argv = _argv.command_line(
        spec, program=live.argv[0], accelerator=definition.accelerator, manager=definition.manager
    )
    return dataclasses.replace(definition, spec=spec, argv=tuple(argv), live=live)
