# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection knows of an uplink that it moved for good: card, bridge, and the files as they were before.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
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
        """With what these files are now; of one that was written before, its first state stays unless somebody put
        another file in its place."""
        known = {kept.before.path: kept.before for kept in self.files}
        paths = {file.path for file in written}
        kept = [old for old in self.files if old.before.path not in paths]
        for file in written:
            now = keep(file.path)
            before = now if file.path not in known or self.is_replaced(now) else known[file.path]
            kept.append(Kept(before, digest(file.content)))
        return dataclasses.replace(self, files=tuple(kept))

    def made_again(self, files: t.Sequence[WriteFile]) -> Record:
        """For an uplink that is made of these files after somebody undid the old one: without the files of the old one
        that have no part in it and are not as they were written."""
        paths = {file.path for file in files}
        kept = (
            old
            for old in self.files
            if old.before.path in paths
            or old.before.path.startswith(_LIVING)
            or digest(keep(old.before.path).content) == old.digest
        )
        return dataclasses.replace(self, files=tuple(kept))

    def is_replaced(self, now: WriteFile) -> bool:
        """Whether somebody put a file of their own, which knows of no bridge, in the place of what was written."""
        if not self.edited([now]) or self._before(now.path).content is None:
            return False
        return not re.search(rf"(?<![\w.-]){re.escape(self.bridge)}(?![\w-])", now.content or "")

    def superseded(self, then: Record) -> list[WriteFile]:
        """What is kept here of files that were there before, and is neither in that record nor in its place."""
        kept = {file.before.path: file.before.content for file in then.files}
        return [
            file.before
            for file in self.files
            if file.before.content not in (None, kept.get(file.before.path), keep(file.before.path).content)
        ]

    def _before(self, path: str) -> WriteFile:
        return next(kept.before for kept in self.files if kept.before.path == path)

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


def aside(bridge: str, what: str, file: WriteFile) -> WriteFile:
    """The file as a copy beside the record; one that is there already stays. C(what): such as C(edited)."""
    first = f"{DIRECTORY}/{bridge}-{what}{file.path.replace('/', '-')}"
    paths = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
    path = next(path for path in paths if keep(path).content in (None, file.content))
    return dataclasses.replace(file, path=path)


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
