# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Interfaces that were there before: how they were found, so that they can be put back instead of deleted.

A record is a file per interface. It holds only for the interface that was found: in the same boot and network
namespace, with the same index, or marked as the network's that adopted it (a tap may have been replaced since).

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._links import owner_of
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

DIRECTORY = "/var/lib/labspan/adopted"


@dataclasses.dataclass(frozen=True)
class Record:
    """How an interface was when a network adopted it."""

    name: str
    network: str
    index: int
    boot: str
    found: t.Mapping[str, t.Any]
    """Plain data, in the words of whoever adopted it."""


@dataclasses.dataclass(frozen=True)
class Adoption(Change):
    """A record is written or forgotten; states are C(Record) or None."""


def adopt(what: str, record: Record) -> Adoption:
    """Record how an interface was found."""
    return Adoption(
        what, f"Record how {what} was found, to put it back when the network {record.network} goes", None, record
    )


def forget(what: str, record: Record) -> Adoption:
    """Forget how an interface was found."""
    return Adoption(what, f"Forget how {what} was found", record, None)


def boot() -> str:
    """What tells this boot and this network namespace from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/net').st_ino}"
    except OSError as error:
        raise SystemFailure(f"/proc cannot be read ({error}). Mount it.") from error


def read(names: t.Iterable[str]) -> dict[str, Record]:
    """The records for these interfaces, whether they still hold or not."""
    try:
        recorded = set(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return {}
    return {name: _read(name) for name in names if f"{name}.json" in recorded and not _is_going(name)}


def holds(record: t.Optional[Record], index: int, alias: str, this_boot: str) -> bool:
    """Whether the record is about the interface that has this index and alias now."""
    return (
        record is not None and record.boot == this_boot and (record.index == index or owner_of(alias) == record.network)
    )


def apply(change: Adoption) -> None:
    """Write or remove a record; a reader never sees half of one."""
    record = change.after or change.before
    path = _path(record.name)
    if change.after is None:
        _whole_files.remove(path)
        return
    _whole_files.make_directories(DIRECTORY)
    _whole_files.replace(path, json.dumps(dataclasses.asdict(change.after), indent=2, sort_keys=True) + "\n")


def _is_going(name: str) -> bool:
    """Whether the record of an interface is forgotten before."""
    world = _foresight.world()
    return world is not None and world.texts.get(_path(name), "") is None


def foresee(world: _foresight.World, changes: t.Iterable[Change]) -> None:
    """Tell which records will be gone."""
    for change in changes:
        if isinstance(change, Adoption) and change.after is None:
            world.texts[_path(change.before.name)] = None


def _path(name: str) -> str:
    return os.path.join(DIRECTORY, f"{name}.json")


def _read(name: str) -> Record:
    path = _path(name)
    try:
        with open(path, encoding="utf-8") as file:
            return Record(**json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise SystemFailure(
            f"the record {path} of how {name} was found cannot be read ({error}). Repair it, or remove it to have the "
            "interface treated as nobody's."
        ) from error
