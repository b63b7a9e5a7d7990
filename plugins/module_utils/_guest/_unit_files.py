# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that all guests under systemd share, as resources of the runner: there while there is such a guest.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _units
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

Texts = t.Mapping[str, t.Optional[str]]


@dataclasses.dataclass(frozen=True)
class WriteShared(Change):
    """A shared file changes; states are its text or None."""

    path: str


class UnitFiles(Resource[Texts]):
    """The shared files, wanted before the first guest."""

    plural: t.ClassVar[str] = "unit_files"
    singular: t.ClassVar[str] = "unit_file"
    returned: t.ClassVar[bool] = False

    def read(self) -> Texts:
        return {path: _files.read(path) for path in _units.SHARED}

    def plan(self, have: Texts, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        return [
            WriteShared(path, f"Write {path}", have[path], text, path)
            for path, text in _units.SHARED.items()
            if have[path] != text
        ]

    def predict(self, have: Texts, changes: t.Sequence[Change]) -> Texts:
        return {**have, **{change.path: change.after for change in t.cast("t.Sequence[WriteShared]", changes)}}

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in t.cast("t.Sequence[WriteShared]", changes):
            _files.put(change.path, change.after)
            done.append(change)
        if changes:
            _systemd.daemon_reload()

    def render(self, state: Texts) -> dict[str, dict[str, t.Any]]:
        return {path: {"text": text} for path, text in state.items() if text is not None}


class FormerUnitFiles(UnitFiles):
    """The shared files, gone with the last guest."""

    plural: t.ClassVar[str] = "former_unit_files"
    singular: t.ClassVar[str] = "former_unit_file"

    def __init__(self, needed: t.Callable[[t.Any], bool]) -> None:
        """C(needed) tells from the guests ahead whether a guest under systemd remains."""
        super().__init__()
        self._needed = needed

    def plan(self, have: Texts, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        if self._needed(ahead.get("guests", {})):
            return []
        return [
            WriteShared(path, f"Remove {path}, which no guest needs any more", text, None, path)
            for path, text in have.items()
            if text is not None
        ]
