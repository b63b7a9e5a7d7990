# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest is like now, and the changes that lead to what is wanted. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _blocks, _cache, _live, _seed
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._change import GuestChange
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._disks import MadeDisk
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._images import Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._live import (
    Plug,
    SetLink,
    SetMedium,
    SetMemory,
    Unplug,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._slots import Live
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec, Nic, Wish, files_of
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"
BROKEN = "broken"
UNKNOWN = "unknown"

# Run states of QEMU (qapi/run-state.json) in which the guest's processors run, or cannot run any more.
_RUN_STATES = {"running": RUNNING, "suspended": RUNNING}
BROKEN_STATES = ("internal-error", "guest-panicked", "shutdown")

#: Attributes that are compared by themselves, or follow from others.
SEPARATE = ("disks", "nics", "accelerator", "network", "service_manager", "cloud_init", "uefi")

#: Attributes of a guest that concern those who run QEMU, not QEMU: they change while it runs.
SETTINGS = ("autostart", "shutdown_timeout", "limits", "labels")

#: Seconds that a guest gets to power off when its start is taken back.
_UNDO_PATIENCE = 5.0


@dataclasses.dataclass(frozen=True)
class Definition:
    """A guest as it was last started or is to be started."""

    spec: GuestSpec
    accelerator: str
    """The one that C(auto) came to; empty while it has never been needed."""
    argv: tuple[str, ...]
    manager: str = "none"
    """Who starts it: C(systemd) or C(none)."""
    live: t.Optional[Live] = None
    """Set while the process that runs is not what the words above would start, because it was changed since."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What systemd has of a guest."""

    drop_in: t.Optional[str] = None
    """The text of its drop-in; None when there is none."""
    enabled: bool = False
    """Whether it starts at boot."""
    tpm: t.Optional[str] = None
    """The text of the drop-in of its TPM's unit; None when there is none."""


@dataclasses.dataclass(frozen=True)
class GuestState:
    """What is there of one guest."""

    definition: t.Optional[Definition] = None
    process: t.Optional[Process] = None
    run_state: t.Optional[str] = None
    """QEMU's own word; None without a process, C(unknown) when QEMU does not answer."""
    as_defined: bool = True
    """Whether the process was started as the definition says."""
    images: t.Mapping[str, Image] = dataclasses.field(default_factory=dict)
    """The files at the paths of its disks."""
    faults: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What is wrong with those that are there and cannot be read."""
    made: tuple[MadeDisk, ...] = ()
    variables: bool = False
    """Whether it has a store of UEFI variables."""
    seed: t.Optional[_seed.SeedFile] = None
    logs: bool = False
    """Whether there are logs of it, as a start that failed leaves them."""
    unit: Unit = Unit()
    troubles: tuple[_blocks.Trouble, ...] = ()
    """Why QEMU paused it by itself."""
    coming_back: bool = False
    """No process was found, and systemd starts one, has started it since, or still ends the last one."""
    tpm_state: bool = False
    """Whether there is a directory with what its TPM keeps."""
    attached: t.Optional[frozenset[str]] = None
    """The ids of its devices; None when QEMU did not tell."""
    affinity: t.Optional[tuple[int, ...]] = None
    """The processors that its process may run on."""

    @property
    def activity(self) -> str:
        if self.process is None:
            return STOPPED
        if self.run_state is None or self.run_state == UNKNOWN:
            return UNKNOWN
        if self.run_state in BROKEN_STATES:
            return BROKEN
        return _RUN_STATES.get(self.run_state, PAUSED)

    @property
    def is_there(self) -> bool:
        return self.definition is not None or self.process is not None or self.unit != Unit()


@dataclasses.dataclass(frozen=True)
class Want:
    """What one guest shall be."""

    wish: Wish
    definition: Definition
    restart_of: t.Optional[Process] = None
    """The process that C(state=restarted) found: it must not be the one that runs in the end."""
    seed: t.Optional[_seed.SeedFile] = None
    unit_of: t.Callable[[Definition], Unit] = lambda _definition: Unit()
    """What systemd shall have of a guest that is defined so."""

    @property
    def spec(self) -> GuestSpec:
        return self.definition.spec


@dataclasses.dataclass(frozen=True)
class Stop(GuestChange):
    """The process ends; how the guest was asked to is in C(patience) and C(force)."""

    patience: float
    force: bool

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Define(GuestChange):
    """The guest's file changes; states are Definition or None."""


@dataclasses.dataclass(frozen=True)
class SetUnit(GuestChange):
    """What systemd has of the guest changes; states are Unit."""


@dataclasses.dataclass(frozen=True)
class FetchImage(GuestChange):
    """A base image is downloaded, for this guest and any other; C(after) is the Disk that is built on it."""

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class CreateDisk(GuestChange):
    """A disk is made; C(after) is the Disk."""

    def inverse(self) -> Change:
        disk = t.cast(Disk, self.after)
        return RemoveDisk(self.subject, f"Undo: {self.sentence}", disk.path, None, self.guest)


@dataclasses.dataclass(frozen=True)
class GrowDisk(GuestChange):
    """A disk becomes larger; states are Disk with their sizes."""

    running: bool = False
    """Under the guest."""

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class CreateVariables(GuestChange):
    """The guest gets its store of UEFI variables; C(after) is the Uefi that it is made for."""

    def inverse(self) -> Change:
        path = Places(self.guest).variables
        return RemoveDisk(self.subject, f"Undo: {self.sentence}", path, None, self.guest)


@dataclasses.dataclass(frozen=True)
class RemoveDisk(GuestChange):
    """A disk that was made for the guest goes; C(before) is its path."""

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class SetSeed(GuestChange):
    """The image with the cloud-init seed is made, replaced, handed over or removed; states are SeedFile or None."""


@dataclasses.dataclass(frozen=True)
class SetAffinity(GuestChange):
    """A running guest is put on other processors; states are their numbers."""


@dataclasses.dataclass(frozen=True)
class RemoveTpm(GuestChange):
    """What the guest's TPM keeps goes; C(before) is its directory."""

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Start(GuestChange):
    """The process begins; C(after) is C(running) or C(paused)."""

    definition: Definition

    def inverse(self) -> Change:
        return Stop(self.subject, f"Undo: {self.sentence}", self.after, STOPPED, self.guest, _UNDO_PATIENCE, False)


@dataclasses.dataclass(frozen=True)
class SetActivity(GuestChange):
    """A guest that has a process is paused or goes on."""


@dataclasses.dataclass(frozen=True)
class Wake(SetActivity):
    """A guest goes on before it is asked to give something back."""


@dataclasses.dataclass(frozen=True)
class Record(Define):
    """The guest's file changes after what it tells was done."""


@dataclasses.dataclass(frozen=True)
class Forget(GuestChange):
    """The guest's directories go; what is in them that is not ours stays. C(before) is the Definition or None."""

    @property
    def reversible(self) -> bool:
        return self.before is not None

    def inverse(self) -> Change:
        return Recall(self.subject, f"Undo: {self.sentence}", None, self.before, self.guest)


@dataclasses.dataclass(frozen=True)
class Recall(Define):
    """The guest's file is there again, and its removal is over."""


#: In which order the changes of several guests are carried out: what ends makes room for what begins.
PHASES: tuple[tuple[type, ...], ...] = (
    (FetchImage,),
    (Stop,),
    (Wake, Unplug),
    (Define, CreateDisk, CreateVariables, GrowDisk, RemoveDisk, SetSeed, RemoveTpm, Forget),
    (Plug,),
    (SetLink, SetMedium, SetMemory),
    (Record,),
    (SetUnit,),
    (SetActivity, SetAffinity),
    (Start,),
)


def phase(change: Change) -> int:
    """Sorting key for the changes of several guests."""
    return next(number for number, kinds in enumerate(PHASES) if type(change) in kinds)


def plan(have: GuestState, want: Want) -> list[GuestChange]:
    """The changes for one guest, in order."""
    changes = _plan_guest(have, want)
    start = [change for change in changes if isinstance(change, Start)]
    return [*(change for change in changes if change not in start), *_plan_unit(have, want, changes), *start]


def _plan_guest(have: GuestState, want: Want) -> list[GuestChange]:
    if want.wish.state == "absent":
        return _plan_absence(have, want.wish)
    if have.process is None and have.coming_back and want.wish.state == "stopped":
        return [_stop(have, want.wish), *_plan_rest(have, want)]
    if have.process is None:
        return _plan_rest(have, want)
    if want.wish.state == "stopped" or _is_to_restart(have, want):
        stopped = _ended(have)
        return [_stop(have, want.wish), *_plan_rest(stopped, want)]
    return _plan_life(have, want)


def _plan_unit(have: GuestState, want: Want, changes: t.Sequence[Change]) -> t.Iterator[GuestChange]:
    name, definition = want.wish.name, predict(have, changes).definition
    before, after = have.unit, Unit() if definition is None else want.unit_of(definition)
    if before == after:
        return
    sentences = []
    if before.drop_in != after.drop_in:
        verb = "Write" if before.drop_in is None else "Remove" if after.drop_in is None else "Change"
        sentences.append(f"{verb} the unit of guest {name}")
    if before.enabled != after.enabled:
        sentences.append(f"{'have' if after.enabled else 'no longer have'} it started when the host boots")
    sentence = ", and ".join(sentences)
    if before.drop_in == after.drop_in:
        sentence = f"{'Have' if after.enabled else 'No longer have'} guest {name} started when the host boots"
        if before.enabled == after.enabled:
            sentence = f"{'Remove' if after.tpm is None else 'Write'} the unit of the TPM of guest {name}"
    yield SetUnit(f"unit of guest {name}", sentence, before, after, name)


def _is_to_restart(have: GuestState, want: Want) -> bool:
    if want.wish.state == "restarted" and have.process == want.restart_of:
        return True
    return want.wish.restart == "if_needed" and (bool(pending_restart(have, want)) or have.activity == BROKEN)


def _ended(state: GuestState) -> GuestState:
    """Without its process, and without what was so for that process only."""
    definition = None if state.definition is None else dataclasses.replace(state.definition, live=None)
    gone = dataclasses.replace(state, definition=definition, process=None, run_state=None, attached=None)
    return dataclasses.replace(gone, as_defined=True, coming_back=False)


def _stop(have: GuestState, wish: Wish) -> Stop:
    name = wish.name
    defined = have.definition.spec if have.definition else GuestSpec(name)
    patience = defined.shutdown_timeout if wish.shutdown_timeout is None else wish.shutdown_timeout
    return Stop(f"guest {name}", f"Stop guest {name}", have.activity, STOPPED, name, patience, wish.force)


def _plan_absence(have: GuestState, wish: Wish) -> list[GuestChange]:
    name, changes = wish.name, t.cast("list[GuestChange]", [])
    if have.process is not None or have.coming_back:
        changes.append(_stop(have, wish))
    if wish.remove_disks:
        changes += [
            RemoveDisk(f"disk {made.path}", f"Remove the disk {made.path} of guest {name}", made.path, None, name)
            for made in have.made
        ]
    changes += _plan_seed(have, wish, None)
    if wish.remove_disks and have.tpm_state:
        directory = Places(name).tpm_state
        sentence = f"Remove what the TPM of guest {name} keeps in {directory}"
        changes.append(RemoveTpm(f"guest {name}", sentence, directory, None, name))
    if have.definition is not None or have.logs or changes:
        changes.append(Forget(f"guest {name}", f"Remove guest {name}", have.definition, None, name))
    return changes


def _plan_rest(have: GuestState, want: Want) -> list[GuestChange]:
    """From no process to the wanted state."""
    name, wish = want.wish.name, want.wish
    changes: list[GuestChange] = []
    defined = have.definition
    if defined != want.definition or (defined is not None and _moved(defined.spec, want.spec)):
        changes.append(Define(f"guest {name}", _define_sentence(have, want), defined, want.definition, name))
    changes += _plan_images(have, name, want.spec.disks)
    uefi = want.spec.uefi
    if uefi is not None and uefi.template is not None and not have.variables:
        sentence = f"Make the store of UEFI variables for guest {name} from {uefi.template}"
        changes.append(CreateVariables(f"guest {name}", sentence, None, uefi, name))
    changes += _plan_seed(have, wish, want.seed)
    if wish.wants_process:
        after = PAUSED if wish.state == "paused" else RUNNING
        how = ", paused" if after == PAUSED else ""
        changes.append(Start(f"guest {name}", f"Start guest {name}{how}", STOPPED, after, name, want.definition))
    return changes


def _plan_images(have: GuestState, name: str, disks: t.Iterable[Disk]) -> list[GuestChange]:
    """The files of disks that no process has open."""
    changes: list[GuestChange] = []
    for disk in disks:
        image = have.images.get(disk.path)
        if disk.is_cdrom or any(path in have.faults for path in files_of(disk)):
            continue
        if image is None:
            if disk.source is not None and disk.base_image not in have.images:
                sentence = f"Fetch the image {_cache.shown(disk.source)} into {disk.base_image}"
                changes.append(FetchImage(f"image {disk.base_image}", sentence, None, disk, name))
            base = f" on {disk.base_image}" if disk.base_image else ""
            sentence = f"Make the disk {disk.path}{base} for guest {name}"
            changes.append(CreateDisk(f"disk {disk.path}", sentence, None, disk, name))
        elif _is_to_grow(disk, image):
            before = dataclasses.replace(disk, size=image.size)
            sentence = f"Grow the disk {disk.path} of guest {name} from {image.size} to {disk.size} bytes"
            changes.append(GrowDisk(f"disk {disk.path}", sentence, before, disk, name))
    return changes


def _plan_seed(have: GuestState, wish: Wish, wanted: t.Optional[_seed.SeedFile]) -> t.Iterator[GuestChange]:
    if have.seed == wanted:
        return
    name = wish.name
    same = wanted is not None and have.seed is not None and wanted.digest == have.seed.digest
    if wanted is not None and not same and wish.cloud_init is None:
        if not wish.wants_process:
            return
        raise Refused(
            f"the image with the cloud-init seed of guest {name} is missing or was changed, and what it held is "
            "written nowhere else. Give cloud_init, or take the seed away with cloud_init: {delivery: none}."
        )
    sentence = f"{'Hand over' if same else 'Make'} the cloud-init seed of guest {name}"
    if wanted is None:
        sentence = f"Remove the cloud-init seed of guest {name}"
    yield SetSeed(f"cloud-init seed of guest {name}", sentence, have.seed, wanted, name)


def _is_to_grow(disk: Disk, image: Image) -> bool:
    return disk.size is not None and image.size is not None and image.size < disk.size


def _define_sentence(have: GuestState, want: Want) -> str:
    name = want.wish.name
    if have.definition is None:
        return f"Define guest {name}"
    details = differences(have.definition, want.spec)
    return f"Change the definition of guest {name}" + (f": {'; '.join(details)}" if details else "")


def _plan_life(have: GuestState, want: Want) -> list[GuestChange]:
    """Changes to a guest that goes on running."""
    name = want.wish.name
    subject = f"guest {name}"
    if have.activity == BROKEN:
        raise Refused(
            f"guest {name} has a process that cannot go on (QEMU says {have.run_state}). Start it anew with state: "
            "restarted, or allow it with restart: if_needed."
        )
    changes: list[GuestChange] = list(_plan_growth(have, want))
    if have.definition is not None and have.definition.spec.cloud_init == want.spec.cloud_init and want.wish.cloud_init:
        changes += _plan_seed(have, want.wish, want.seed)  # QEMU keeps the image that it has open
    changes += _plan_settings(predict(have, changes), want)
    changes += _plan_networks(predict(have, changes), want)
    changes += _plan_affinity(have, want)
    wanted = PAUSED if want.wish.state == "paused" else RUNNING
    then = predict(have, changes)
    out = _outcome(then, want)
    if out is not None and out.leave and have.activity == wanted == PAUSED:
        raise Refused(
            f"guest {name} is paused, and only a guest that runs can give back {' and '.join(map(str, out.leave))}. "
            "Let it run (state: running), or stop it."
        )
    if out is not None:
        changes += _plan_hardware(then, want.wish, out)
    if have.activity == UNKNOWN:
        if wanted == PAUSED:
            raise Refused(
                f"guest {name} cannot be paused: QEMU does not answer on its control socket. Disconnect whatever "
                "program is connected to it."
            )
    elif have.activity != wanted:
        verb = "Pause" if wanted == PAUSED else "Resume"
        why = f", which QEMU paused because {'; '.join(map(str, have.troubles))}" if have.troubles else ""
        if out is not None and out.leave and wanted == RUNNING:
            changes.insert(0, Wake(subject, f"{verb} guest {name}{why}", have.activity, wanted, name))
        else:
            changes.append(SetActivity(subject, f"{verb} guest {name}{why}", have.activity, wanted, name))
    return changes


def _outcome(have: GuestState, want: Want) -> t.Optional[_live.Outcome]:
    """What the running guest can become as it is; None when nobody knows what it is."""
    if have.process is None or have.definition is None or not have.as_defined:
        return None
    return _live.outcome(have, want, reachable=have.activity in (RUNNING, PAUSED))


def _plan_hardware(have: GuestState, wish: Wish, out: _live.Outcome) -> list[GuestChange]:
    """What comes is recorded before it is there, what leaves after it is gone: so a run that is cut off is taken up."""
    name, patience = wish.name, wish.live_timeout
    guest = f"guest {name}"
    changes: list[GuestChange] = [
        Unplug(f"{device} of {guest}", f"Unplug {device} from {guest}", device, None, name, patience)
        for device in out.leave
    ]
    definition = have.definition
    if out.attached is not None:
        changes.append(Define(guest, f"Record what is attached to {guest}", definition, out.attached, name))
        definition = out.attached
    changes += _plan_images(have, name, [device.what for device in out.come if isinstance(device.what, Disk)])
    changes += [
        Plug(f"{device} of {guest}", f"Plug {device} into {guest}", None, device, name, patience) for device in out.come
    ]
    for device, disk in out.media:
        found = t.cast(Disk, device.what)
        verb = f"Put {disk.path} into" if disk.path else f"Take {found.path} out of"
        sentence = f"{verb} CD drive {device.part.number} of {guest}"
        subject = f"CD drive {device.part.number} of {guest}"
        changes.append(SetMedium(subject, sentence, found, disk, name, device.part.id, patience))
    for index, device, up in out.links:
        sentence = f"Set the link of NIC {index} of {guest} {'up' if up else 'down'}"
        changes.append(SetLink(f"NIC {index} of {guest}", sentence, not up, up, name, device.part.id))
    if out.memory is not None:
        before, after = out.memory
        sentence = f"Set the memory of {guest} from {before} to {after} MiB by its balloon"
        changes.append(SetMemory(f"memory of {guest}", sentence, before, after, name, patience))
    if out.recorded != definition:
        changes.append(Record(guest, f"Record the settings of {guest}", definition, out.recorded, name))
    return changes


def _plan_growth(have: GuestState, want: Want) -> t.Iterator[GuestChange]:
    """Disks that grow under the guest, which is told and sees it at once if its driver listens."""
    name = want.wish.name
    grown = {}
    for disk in want.spec.disks:
        image = have.images.get(disk.path)
        if image is not None and _is_to_grow(disk, image) and _grows_running(have, disk):
            before = dataclasses.replace(disk, size=image.size)
            sentence = f"Grow the disk {disk.path} of guest {name} from {image.size} to {disk.size} bytes while it runs"
            grown[disk.path] = disk.size
            yield GrowDisk(f"disk {disk.path}", sentence, before, disk, name, running=True)
    if grown and have.definition is not None:
        spec = have.definition.spec
        disks = tuple(dataclasses.replace(disk, size=grown.get(disk.path, disk.size)) for disk in spec.disks)
        if disks == spec.disks:
            return
        definition = dataclasses.replace(have.definition, spec=dataclasses.replace(spec, disks=disks))
        sentence = f"Record the size of the disks of guest {name}"
        yield Define(f"guest {name}", sentence, have.definition, definition, name)


def _grows_running(have: GuestState, disk: Disk) -> bool:
    if have.definition is None or not have.as_defined or have.activity not in (RUNNING, PAUSED):
        return False
    return any(defined.path == disk.path and not defined.read_only for defined in have.definition.spec.disks)


def _plan_settings(have: GuestState, want: Want) -> t.Iterator[GuestChange]:
    if have.definition is None or not have.as_defined:
        return
    name, defined = want.wish.name, have.definition.spec
    wanted = {setting: getattr(want.spec, setting) for setting in SETTINGS}
    if any(getattr(defined, setting) != value for setting, value in wanted.items()):
        after = dataclasses.replace(have.definition, spec=dataclasses.replace(defined, **wanted))
        told = [
            f"{setting} is {_live.show(getattr(defined, setting))}, wanted {_live.show(value)}"
            for setting, value in wanted.items()
            if getattr(defined, setting) != value
        ]
        sentence = f"Change the definition of guest {name}: {'; '.join(told)}"
        yield Define(f"guest {name}", sentence, have.definition, after, name)


def _plan_networks(have: GuestState, want: Want) -> t.Iterator[GuestChange]:
    """Taps that have become ports of another bridge: the guest stays as it is, and follows that network at boot."""
    if have.definition is None or not have.as_defined:
        return
    name, spec = want.wish.name, have.definition.spec
    moved = _moved(spec, want.spec)
    if not moved:
        return
    nics = tuple(
        dataclasses.replace(nic, bridge=moved[index][0], network=moved[index][1]) if index in moved else nic
        for index, nic in enumerate(spec.nics)
    )
    told = "; ".join(
        f"the bridge of NIC {index} is {bridge}, the network {network}" for index, (bridge, network) in moved.items()
    )
    after = dataclasses.replace(have.definition, spec=dataclasses.replace(spec, nics=nics))
    yield Define(f"guest {name}", f"Change the definition of guest {name}: {told}", have.definition, after, name)


def _moved(spec: GuestSpec, wanted: GuestSpec) -> dict[int, tuple[t.Optional[str], t.Optional[str]]]:
    """The new bridge and network, by its index, of each NIC that stays and whose tap is made for it."""
    asked = {key: _place(nic, wanted) for key, nic in zip(_live.keys("NIC", wanted.nics), wanted.nics) if nic.bridge}
    keyed = enumerate(zip(_live.keys("NIC", spec.nics), spec.nics))
    return {
        index: asked[key]
        for index, (key, nic) in keyed
        if nic.bridge and key in asked and asked[key] != _place(nic, spec)
    }


def _place(nic: Nic, spec: GuestSpec) -> tuple[t.Optional[str], t.Optional[str]]:
    """The bridge of a NIC's tap, and whose network that is."""
    return nic.bridge, nic.network or spec.network or nic.bridge


def _plan_affinity(have: GuestState, want: Want) -> t.Iterator[GuestChange]:
    if have.definition is None or not have.as_defined or have.affinity is None:
        return
    name, wanted = want.wish.name, want.spec.limits.cpu_affinity
    freed = bool(have.definition.spec.limits.cpu_affinity) and not wanted
    if freed or (wanted and have.affinity != wanted):
        where = f"processor {', '.join(map(str, wanted))}" if wanted else "all processors"
        yield SetAffinity(f"guest {name}", f"Have guest {name} run on {where}", have.affinity, wanted, name)


def pending_restart(have: GuestState, want: Want) -> list[str]:
    """What differs between the running guest and the wanted one, and comes into force when it is restarted."""
    if have.process is None or want.wish.state == "absent":
        return []
    if have.definition is None:
        return ["how the running guest was started is not recorded"]
    out = _outcome(have, want)
    if out is None:
        return ["the running guest was started with another command line than the recorded one"]
    pending = [*_settings(have.definition, want.spec), *out.pending]
    attached = {disk.path for disk in have.definition.spec.disks}
    for disk in want.spec.disks:
        image = have.images.get(disk.path)
        if image is None or disk.path not in attached or _grows_running(have, disk):
            continue
        if _is_to_grow(disk, image):
            pending.append(f"disk {disk.path} has {image.size} bytes, wanted {disk.size}")
    return pending


def differences(defined: Definition, wanted: GuestSpec) -> list[str]:
    """What a restart would change, attribute by attribute; links are changed while the guest runs."""
    spec = defined.spec
    memory = [] if spec.memory == wanted.memory else [f"memory is {spec.memory}, wanted {wanted.memory}"]
    return [
        *memory,
        *_settings(defined, wanted),
        *_list_differences("disk", spec.disks, wanted.disks, _live.DISK_HARDWARE),
        *_list_differences("NIC", spec.nics, wanted.nics, _live.NIC_HARDWARE),
    ]


def _settings(defined: Definition, wanted: GuestSpec) -> list[str]:
    """The differences that cannot go away while the guest runs."""
    spec = defined.spec
    found = []
    for field in dataclasses.fields(wanted):
        if field.name in ("memory", *SEPARATE, *SETTINGS):
            continue
        before, after = getattr(spec, field.name), getattr(wanted, field.name)
        if before != after:
            found.append(f"{field.name} is {_live.show(before)}, wanted {_live.show(after)}")
    if wanted.accelerator not in ("auto", defined.accelerator) and defined.accelerator:
        found.append(f"accelerator is {defined.accelerator}, wanted {wanted.accelerator}")
    found += _seed.differences(spec.cloud_init, wanted.cloud_init)
    if wanted.service_manager not in ("auto", defined.manager):
        found.append(f"service_manager is {defined.manager}, wanted {wanted.service_manager}")
    return found


def _list_differences(
    what: str, before: t.Sequence[t.Any], after: t.Sequence[t.Any], attributes: t.Sequence[str]
) -> t.Iterator[str]:
    for index, (old, new) in enumerate(zip(before, after)):
        for attribute in attributes:
            was, shall = getattr(old, attribute), getattr(new, attribute)
            if was != shall:
                yield f"{what} {index}: {attribute} is {_live.show(was)}, wanted {_live.show(shall)}"
    for index in range(len(before), len(after)):
        yield f"{what} {index} ({_live.call(after[index])}) is not attached"
    for index in range(len(after), len(before)):
        yield f"{what} {index} ({_live.call(before[index])}) is attached and not wanted"


def once(changes: t.Iterable[GuestChange]) -> list[GuestChange]:
    """The changes of several guests, each image fetched once."""
    fetched: set[str] = set()
    kept = []
    for change in changes:
        if isinstance(change, FetchImage):
            if change.subject in fetched:
                continue
            fetched.add(change.subject)
        kept.append(change)
    return kept


def predict(have: GuestState, changes: t.Iterable[Change]) -> GuestState:
    """What is there after the changes."""
    state = have
    for change in changes:
        state = _after(state, change)
    return state


def _after(state: GuestState, change: Change) -> GuestState:
    if isinstance(change, Stop):
        return _ended(state)
    if isinstance(change, SetUnit):
        return dataclasses.replace(state, unit=change.after)
    if isinstance(change, Forget):
        return dataclasses.replace(state, definition=None, logs=False)
    if isinstance(change, Define):
        return dataclasses.replace(state, definition=change.after)
    if isinstance(change, CreateDisk):
        disk = t.cast(Disk, change.after)
        image = Image(disk.path, disk.format, disk.size, 0, 0, disk.base_image, disk.base_format)
        made = (*state.made, MadeDisk(disk.path, 0, 0))
        return dataclasses.replace(state, images={**state.images, disk.path: image}, made=made)
    if isinstance(change, CreateVariables):
        return dataclasses.replace(state, variables=True)
    if isinstance(change, GrowDisk):
        disk = t.cast(Disk, change.after)
        image = dataclasses.replace(state.images[disk.path], size=disk.size)
        return dataclasses.replace(state, images={**state.images, disk.path: image})
    if isinstance(change, RemoveDisk):
        images = {path: image for path, image in state.images.items() if path != change.before}
        made = tuple(made for made in state.made if made.path != change.before)
        variables = state.variables and change.before != Places(change.guest).variables
        return dataclasses.replace(state, images=images, made=made, variables=variables)
    if isinstance(change, SetAffinity):
        return dataclasses.replace(state, affinity=change.after or None)
    if isinstance(change, RemoveTpm):
        return dataclasses.replace(state, tpm_state=False)
    if isinstance(change, Start):
        return dataclasses.replace(
            state,
            process=Process(0, 0),
            run_state=change.after,
            definition=change.definition,
            coming_back=False,
        )
    if isinstance(change, SetSeed):
        return dataclasses.replace(state, seed=change.after)
    if isinstance(change, SetActivity):
        return dataclasses.replace(state, run_state=change.after)
    if isinstance(change, (Plug, Unplug)) and state.attached is not None:
        gone, come = ({change.before.part.id}, set()) if change.after is None else (set(), {change.after.part.id})
        return dataclasses.replace(state, attached=frozenset(state.attached - gone | come))
    return state
