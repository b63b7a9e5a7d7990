# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of networks as files for the next boot.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import Directories, NetworkFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

RULES = "rules.nft"
PORTS = "ports.nft"
FORWARDING = "forwarding"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One network of a task."""

    network: str
    present: bool
    lasting: t.Optional[bool]
    """Whether it shall be there after a reboot; None leaves its files as they are."""


class RulesFiles(NetworkFiles):
    """The files that one module has among those of its networks."""

    def __init__(
        self,
        entries: t.Sequence[Entry],
        texts: t.Callable[[t.Any], t.Mapping[str, t.Mapping[str, str]]],
        owns: t.Callable[[str], bool],
        *,
        follows: str = "networks",
    ) -> None:
        """C(texts) makes the files of each network of the predicted state; C(owns) knows a file by its name.

        C(follows) is the plural of the resource whose state that is.
        """
        super().__init__(lambda: [entry.network for entry in entries])
        self._follows = follows
        self._entries = entries
        self._texts = texts
        self._owns = owns

    def contribute(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> Directories:
        texts = self._texts(ahead[self._follows]) if self._follows in ahead else {}
        found: dict[str, t.Mapping[str, str]] = {}
        for entry in self._entries:
            files = directories.get(entry.network, {})
            found[entry.network] = files
            if entry.lasting is not None:
                wanted = texts.get(entry.network, {}) if entry.present and entry.lasting else {}
                found[entry.network] = {**{name: files[name] for name in files if not self._owns(name)}, **wanted}
        return found


def around(rules: Resource[t.Any], files: RulesFiles, entries: t.Sequence[Entry]) -> list[Resource[t.Any]]:
    """Both in their order: what goes, goes from the files first, so that nobody loads it again."""
    if any(entry.present for entry in entries):
        return [rules, files]
    return [files, rules]


def is_of_networks(name: str) -> bool:
    """Whether a file holds what nat_masquerade has made."""
    return name in (RULES, FORWARDING) or (name.startswith(("rules.", "accept.")) and not name.endswith(".nft"))


def nft_text(network: str, what: str, tables: t.Mapping[t.Any, str]) -> str:
    """A file of nft that puts these listed tables in the place of what is there."""
    head = f"# {what} of the network {network}, for nft -f. Made by labspan.vmnet: what is changed here is lost.\n"
    return head + "".join(f"\ntable {key}\ndelete table {key}\n{listing}" for key, listing in tables.items())


def settings_text(network: str, settings: t.Mapping[str, str]) -> str:
    """The settings of the kernel for forwarding, in the order in which they are to be written."""
    head = (
        f"# Forwarding of the network {network}, in this order. Made by labspan.vmnet: what is changed here is lost.\n"
    )
    return head + "".join(f"{key} = {value}\n" for key, value in settings.items())
