# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that start when the host boots, on taps that are not there then: they are told of, and nothing is done.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _links
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files, _interfaces, _sections
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import Directories, NetworkFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Remark

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import GuestState


class TapsAtBoot(Remark):
    """Stands behind the guests and all files of a task."""

    plural: t.ClassVar[str] = "taps_at_boot"

    def plan(self, have: None, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        guests: t.Mapping[str, GuestState] = ahead["guests"]
        taps = {name: _taps(guest) for name, guest in guests.items() if guest.unit.enabled}
        if any(taps.values()):
            files = ahead.get(NetworkFiles.plural)
            self.warnings += warnings(taps, lasting(_on_disk() if files is None else files.directories), _is_ours)
        return []


def warnings(
    taps: t.Mapping[str, t.Sequence[str]], there: t.Container[str], ours: t.Callable[[str], bool]
) -> list[str]:
    """A sentence about the guests, given their taps, some of which are not C(there) after a boot."""
    missing = {name: [tap for tap in some if tap not in there and ours(tap)] for name, some in taps.items()}
    told = [f"{name} ({', '.join(some)})" for name, some in missing.items() if some]
    if not told:
        return []
    return [
        f"when the host boots, the units of these guests will fail, because their taps do not last (persistent: "
        f"false): {', '.join(told)}. Make their networks persistent, or give the guests autostart: false."
    ]


def lasting(directories: Directories) -> set[str]:
    """The taps that the files of networks make at boot."""
    return {
        tap
        for files in directories.values()
        for tap in _sections.names(_sections.parse(files.get(_interfaces.LINKS)), "tap")
    }


def _taps(guest: GuestState) -> list[str]:
    nics = guest.definition.spec.nics if guest.definition is not None else ()
    return [nic.tap for nic in nics if nic.tap is not None]


def _on_disk() -> Directories:
    return {network: _files.files_of(network) for network in _files.networks()}


def _is_ours(tap: str) -> bool:
    """Also one that is not there yet, which this task makes. Others' are brought back by others."""
    alias = _links.read_alias(tap)
    return alias is None or _links.owner_of(alias) is not None
