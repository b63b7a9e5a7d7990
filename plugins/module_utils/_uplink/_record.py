# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection knows of an uplink that it moved for good: card, bridge, and the files as they were before.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import WriteFile, keep

DIRECTORY = "/var/lib/labspan/uplink"

# Leases, which a DHCP client writes with each renewal.
_LIVING = "/var/lib/dhcp/"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A file of the host's that was written for the uplink."""

    before: WriteFile
    """As it was, or that it was not there."""
    digest: t.Optional[str]
    """SHA-256 of what was written; None for a file that was taken away."""

    def is_edited(self, content: t.Optional[str]) -> bool:
        """Whether a file with this content is neither the one that was written nor the one of before."""
        return content not in (None, self.before.content) and digest(content) != self.digest


@dataclasses.dataclass(frozen=True)
class Record:
    """What belongs to the uplink of one bridge."""

    bridge: str
    interface: str
    network: str
    created: bool
    """Whether the bridge is the collection's own, to be removed with the rest."""
    files: tuple[Kept, ...] = ()
    """In the order of writing."""

    def with_files(self, written: t.Sequence[WriteFile]) -> Record:
        """With what these files are now; of one that was written before, its first state stays."""
        known = {kept.before.path: kept.before for kept in self.files}
        paths = {file.path for file in written}
        kept = [old for old in self.files if old.before.path not in paths]
        kept += [Kept(known.get(file.path) or keep(file.path), digest(file.content)) for file in written]
        return dataclasses.replace(self, files=tuple(kept))

    def edited(self, files: t.Sequence[WriteFile]) -> list[WriteFile]:
        """Those of the files as they are now that somebody else wrote since: what is in them is nowhere else."""
        known = {kept.before.path: kept for kept in self.files if not kept.before.path.startswith(_LIVING)}
        return [now for now in files if now.path in known and known[now.path].is_edited(now.content)]

    def to_file(self) -> WriteFile:
        """The record as its file."""
        return WriteFile(path_of(self.bridge), json.dumps(dataclasses.asdict(self), indent=1) + "\n", 0o600)


def digest(content: t.Optional[str]) -> t.Optional[str]:
    """SHA-256 of a file's content."""
    return None if content is None else hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def path_for_edited(bridge: str, path: str) -> str:
    """Where a file goes that somebody else wrote, before that of before comes back in its place."""
    return f"{DIRECTORY}/{bridge}-edited{path.replace('/', '-')}"


def path_of(bridge: str) -> str:
    """Where the record of a bridge is."""
    return f"{DIRECTORY}/{bridge}.json"


def read(bridge: str) -> t.Optional[Record]:
    """The record of the bridge, or None."""
    path = path_of(bridge)
    try:
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)
        files = tuple(Kept(WriteFile(**kept["before"]), kept["digest"]) for kept in stored.pop("files"))
        return Record(**stored, files=files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SystemFailure(
            f"{path} cannot be read as what labspan.vmnet wrote there ({error}). It holds the files of this host as "
            "they were before its uplink was moved: repair it, or take it away if you no longer need them."
        ) from error
