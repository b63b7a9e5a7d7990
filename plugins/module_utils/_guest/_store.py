# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a guest, and its process: what is read before planning, and what is written of it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight, _process, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _argv,
    _blocks,
    _images,
    _limits,
    _qmp,
    _seed_iso,
    _slots,
    _spec,
    _tpm,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._disks import MadeDisk
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import UNKNOWN, Definition, GuestState
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

_VERSION = 1

#: How long QEMU may take to answer a question; longer than any answer, short enough to wait for in vain.
_ANSWER_TIMEOUT = 3.0

# Seconds that a killed QEMU gets to end the write that it is in.
LAST_WRITE = 10.0


def read_definition(name: str) -> t.Optional[Definition]:
    """The guest's definition; None when there is none, or none that can be read."""
    world = _foresight.world()
    if world is not None and name in world.guests:
        return t.cast("t.Optional[Definition]", world.guests[name].definition)
    return _read_definition(Places(name).definition)


def read_former(name: str) -> t.Optional[Definition]:
    """The definition of a guest whose removal has begun and not ended; None for any other."""
    return _read_definition(Places(name).former)


def _read_definition(path: str) -> t.Optional[Definition]:
    stored = _read_json(path)
    if not isinstance(stored, dict) or stored.get("version") != _VERSION:
        return None
    try:
        spec = _spec.from_data(stored["spec"])
        return Definition(
            spec,
            str(stored["accelerator"]),
            tuple(stored["argv"]),
            stored.get("manager", _spec.NONE),
            _slots.from_data(stored.get("live")),
        )
    except (TypeError, KeyError, ValueError):
        return None


def read_definition_of(name: str, process: t.Optional[Process]) -> t.Optional[Definition]:
    """The guest's definition, without what became of a process that is not this one."""
    definition = read_definition(name)
    if definition is None or definition.live is None or definition.live.process == process:
        return definition
    return dataclasses.replace(definition, live=None)


def write_definition(name: str, definition: t.Optional[Definition]) -> None:
    """Put the definition in its file, or take the file away."""
    places = Places(name)
    if definition is None:
        _unlink(places.definition)
        return
    make_state_directory(places)
    data = {
        "version": _VERSION,
        "spec": _spec.to_data(definition.spec),
        "accelerator": definition.accelerator,
        "argv": list(definition.argv),
        "manager": definition.manager,
        "live": dataclasses.asdict(definition.live) if definition.live is not None else None,
    }
    _write_json(places.definition, data)


def make_state_directory(places: Places) -> None:
    """Root's own, and others may pass through it to the disks that are theirs."""
    _whole_files.make_directories(places.state, 0o711)
    os.chmod(places.state, 0o711)


def read_made_disks(name: str) -> tuple[MadeDisk, ...]:
    """The disks that were made for the guest and are still there."""
    world = _foresight.world()
    if world is not None and name in world.guests:
        return t.cast("tuple[MadeDisk, ...]", world.guests[name].made)
    stored = _read_json(Places(name).made_disks)
    try:
        made = [MadeDisk(**entry) for entry in stored] if isinstance(stored, list) else []
    except TypeError:
        return ()
    return tuple(disk for disk in made if disk.is_there())


def record_made_disk(name: str, made: MadeDisk) -> None:
    """Remember a disk as made for the guest, in place of one that was made at this path before."""
    known = [disk for disk in read_made_disks(name) if disk.path != made.path]
    _write_json(Places(name).made_disks, [dataclasses.asdict(disk) for disk in [*known, made]])


def forget(name: str) -> None:
    """Remove what was written for the guest; its disks and the record of them stay.

    The definition is set aside until C(end_removal): it tells what else of the guest is to go.
    """
    places = Places(name)
    clear_runtime(places)
    if not read_made_disks(name):  # else it is still known whose they are when they are to go, too
        _unlink(places.made_disks)
    for path in _logs(places):
        _unlink(path)
    with contextlib.suppress(FileNotFoundError):
        os.replace(places.definition, places.former)
    _remove_if_empty(places.state)


def end_removal(name: str) -> None:
    """Remove what was set aside of a guest that was removed, and its directory if nothing is in it."""
    places = Places(name)
    _unlink(places.former)
    _remove_if_empty(places.state)


def _logs(places: Places) -> tuple[str, ...]:
    return places.console_log, f"{places.console_log}.1", places.output, places.tpm_output


def clear_runtime(places: Places) -> None:
    """Remove what a process that is gone has left behind."""
    _tpm.end(places)
    for path in (places.qmp_socket, places.console_socket, places.agent_socket, places.vnc_socket, places.pid_file):
        _unlink(path)
    _remove_if_empty(places.display)
    _remove_if_empty(places.runtime)


class Processes:
    """The QEMU processes of this network namespace; all processes are gone through once, and only if needed."""

    def __init__(
        self,
        listed: t.Callable[[], t.Iterable[tuple[Process, list[str]]]] = _process.here,
        *,
        patience: float = LAST_WRITE,
    ) -> None:
        self._listed = listed
        self._deadline = time.monotonic() + patience
        self._all: t.Optional[list[tuple[Process, list[str]]]] = None

    def find(self, name: str) -> t.Optional[Process]:
        """The guest's process: the one of the pid file, else the one that has its name on the command line.

        One that was killed is waited for, and one that does not end is still the guest's: it holds the disks.
        """
        recorded = _process.read_pid_file(Places(name).pid_file)
        if recorded is not None and self._is_guest(recorded, name):
            return recorded
        if self._all is None:
            self._all = list(self._listed())
        return next((process for process, argv in self._all if _argv.is_guest(argv, name)), None)

    def _is_guest(self, recorded: Process, name: str) -> bool:
        argv = recorded.argv()
        # Without a command line it is about to start, or was killed and holds its disks until its last write is done.
        while not argv and recorded.alive:
            if time.monotonic() > self._deadline:
                return True
            _process.wait_gone([recorded], 0.05)
            argv = recorded.argv()
        return _argv.is_guest(argv, name)


def read_state(name: str, disk_paths: t.Iterable[str], processes: Processes) -> GuestState:
    """What is there of the guest. C(disk_paths) are those that the task names."""
    process = processes.find(name)
    definition = read_definition_of(name, process)
    defined = definition.spec.disks if definition else ()
    paths = {*disk_paths, *(path for disk in defined for path in _spec.files_of(disk))}
    images, faults = _look_at(paths)
    run_state, attached = (None, None) if process is None else _ask(name, process)
    return GuestState(
        definition=definition,
        process=process,
        run_state=run_state,
        as_defined=process is None or definition is None or is_as_defined(process, definition),
        attached=attached,
        images=images,
        faults=faults,
        made=read_made_disks(name),
        logs=any(map(os.path.exists, _logs(Places(name)))),
        variables=os.path.lexists(Places(name).variables),
        seed=_seed_iso.read(name),
        affinity=None if process is None else _limits.affinity_of(process),
        tpm_state=_tpm.has_state(Places(name)),
        troubles=_blocks.troubles(name) if run_state == _blocks.IO_ERROR else (),
    )


def _look_at(paths: t.Iterable[str]) -> tuple[dict[str, _images.Image], dict[str, str]]:
    """The images at these paths, and what is wrong with those that cannot be read: not every task needs them."""
    images: dict[str, _images.Image] = {}
    faults: dict[str, str] = {}
    for path in sorted(paths):
        try:
            image = _images.inspect(path)
        except LabspanError as error:
            faults[path] = str(error)
        else:
            images.update({path: image} if image is not None else {})
    return images, faults


def _ask(name: str, process: Process) -> tuple[t.Optional[str], t.Optional[frozenset[str]]]:
    """QEMU's own word for what the guest does, None when the process ended meanwhile; and the ids of its devices."""
    try:
        with _qmp.Qmp(Places(name).qmp_socket, timeout=_ANSWER_TIMEOUT) as qmp:
            qmp.greet()
            return qmp.status(), qmp.devices()
    except SystemFailure:
        return UNKNOWN if process.alive else None, None


def is_as_defined(process: Process, definition: Definition) -> bool:
    """Whether the process was started as the definition says."""
    return _started_as(process) == _words(definition)


def _words(definition: Definition) -> tuple[str, ...]:
    """By which the process of this definition was started."""
    return definition.live.argv if definition.live is not None else definition.argv


def _started_as(process: Process) -> tuple[str, ...]:
    return tuple(word for word in process.argv() if word != _argv.PAUSED)


def _read_json(path: str) -> t.Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _write_json(path: str, data: t.Any) -> None:
    try:
        _whole_files.replace(path, json.dumps(data, indent=1) + "\n", mode=0o600)
    except OSError as error:  # no space, as a rule
        raise SystemFailure(f"{path} cannot be written ({error.strerror}).") from error


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)
