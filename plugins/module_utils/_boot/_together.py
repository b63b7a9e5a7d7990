# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of networks to which many kinds contribute in one task: written once, after everything else.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import (
    BootState,
    Directories,
    NetworkFiles,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change


class FilesTogether(NetworkFiles):
    """What the parts say one after the other, each given what those before it have said."""

    def __init__(self, parts: t.Sequence[NetworkFiles]) -> None:
        super().__init__(lambda: [network for part in parts for network in part.networks()])
        self._parts = parts

    def contribute(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> Directories:
        found: dict[str, t.Mapping[str, str]] = {}
        for part in self._parts:
            found.update(part.contribute({**directories, **found}, ahead))
        return found

    def surroundings(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Optional[str]]:
        texts: dict[str, t.Optional[str]] = {}
        for part in self._parts:
            texts.update(part.surroundings(directories, ahead))
        return texts

    def services(self, directories: Directories) -> t.Mapping[str, bool]:
        wanted: dict[str, bool] = {}
        for part in self._parts:
            wanted.update(part.services(directories))
        return wanted

    def paths(self) -> t.Collection[str]:
        return [path for part in self._parts for path in part.paths()]

    def plan(self, have: BootState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        told = ahead["keep_off"].texts if "keep_off" in ahead else {}  # it wrote before us
        return super().plan(dataclasses.replace(have, others={**have.others, **told}), ahead)
