# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that bring networks back at boot, as a resource of the runner: what every module that has a part adds.

A module says what the files of each network shall be (C(contribute)); here it is planned what follows: the unit of a
network that has files is there, enabled and active, and with the last file of the last network goes all the rest.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files, _rules_service, _script, _unit
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._files import FileChange, UnitChange
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

Files = t.Mapping[str, str]
"""The files of a network by their names: C(links), C(rules.nft)."""

Directories = t.Mapping[str, Files]
"""The files of each network."""

#: What all networks share.
SHARED: t.Mapping[str, str] = {
    _script.PATH: _script.SCRIPT,
    f"{_systemd.UNITS}/{_unit.NAME}": _unit.UNIT,
}

CHOICES = ("auto", "true", "false")


@dataclasses.dataclass(frozen=True)
class BootState:
    """What is there for the next boot, for all networks, since they share a part of it."""

    directories: Directories
    others: t.Mapping[str, t.Optional[str]]
    """Files beside the networks' directories by their paths."""
    active: t.Mapping[str, bool]
    """Which units are."""
    systemd: bool
    """Whether systemd runs this host."""


class NetworkFiles(Resource[BootState]):
    """The files of networks; a subclass says what shall be in them."""

    plural: t.ClassVar[str] = "boot_files"
    singular: t.ClassVar[str] = "boot_file"

    def __init__(self, networks: t.Callable[[], t.Collection[str]]) -> None:
        """C(networks) are those whose files the task may write."""
        super().__init__()
        self._networks = networks

    def networks(self) -> t.Collection[str]:
        """The networks whose files the task may write."""
        return self._networks()

    @abc.abstractmethod
    def contribute(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> Directories:
        """The files of every network of the task as they shall be, given those of all networks. Pure."""

    def surroundings(
        self,
        directories: Directories,  # pylint: disable=unused-argument
        ahead: t.Mapping[str, t.Any],  # pylint: disable=unused-argument
    ) -> t.Mapping[str, t.Optional[str]]:
        """More files by their paths, given those of all networks as they shall be; None for one that goes. Pure."""
        return {}

    def services(self, directories: Directories) -> t.Mapping[str, bool]:  # pylint: disable=unused-argument
        """More units, and whether they shall be active, given the files of all networks. Pure."""
        return {}

    def paths(self) -> t.Collection[str]:
        """The files that C(surroundings) may name."""
        return ()

    def read(self) -> BootState:
        directories = {network: _files.files_of(network) for network in _files.networks()}
        networks = sorted({*self._networks(), *directories})
        paths = [*SHARED, *(_symlink(network) for network in networks)] if networks else []
        units = [*(_unit.instance(network) for network in directories), *self._services(directories)]
        return BootState(
            directories,
            {path: _files.read(path) for path in (*paths, *_rules_service.FILES, *self.paths())},
            _files.active(units),
            _systemd.is_running(),
        )

    def plan(self, have: BootState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        wanted = self.contribute(have.directories, ahead)
        after = {**have.directories, **wanted}
        lasting = any(after.values())
        beside = {**_rules_service.surroundings(after), **self.surroundings(after, ahead)}
        services = self._services(after)
        changes: list[Change] = []
        if any(wanted.values()):  # another network's are not brought up to date by the way
            changes += _writes(have, SHARED)
        elif lasting:
            beside = {path: text for path, text in beside.items() if path not in _rules_service.FILES or text is None}
        changes += _writes(have, {path: text for path, text in beside.items() if text is not None})
        changes += _activities(have, services, active=False)
        for network in sorted(wanted):
            changes += _plan_network(network, have, wanted[network])
        changes += _activities(have, services, active=True)
        changes += _writes(have, {path: None for path, text in beside.items() if text is None})
        if not lasting:
            changes += _writes(have, dict.fromkeys(reversed(list(SHARED))))
        return changes

    def predict(self, have: BootState, changes: t.Sequence[Change]) -> BootState:
        directories = {network: dict(files) for network, files in have.directories.items()}
        others, active = dict(have.others), dict(have.active)
        for change in changes:
            if isinstance(change, UnitChange):
                active[change.unit] = change.after
            elif isinstance(change, FileChange):
                _file(change, directories, others)
        return dataclasses.replace(
            have,
            directories={network: files for network, files in directories.items() if files},
            others=others,
            active=active,
        )

    def _services(self, directories: Directories) -> dict[str, bool]:
        return {**_rules_service.services(directories), **self.services(directories)}

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        _files.apply(changes, done)

    def render(self, state: BootState) -> dict[str, dict[str, t.Any]]:
        networks = sorted(set(self._networks()) & set(state.directories))
        return {
            os.path.join(_files.NETWORKS, network, name): {"lines": text.splitlines()}
            for network in networks
            for name, text in sorted(state.directories[network].items())
        }


def persistence(option: t.Optional[str]) -> t.Optional[bool]:
    """What an option C(persistent) means on this host; None is "as it is"."""
    if option == "auto":
        return True if _systemd.is_running() else None
    if option == "true" and not _systemd.is_running():
        raise Refused(
            "persistent: systemd does not run this host, or not in this network namespace, and nothing else here would "
            "read the files at boot. Set persistent: false, or auto to have them written only where systemd runs."
        )
    return None if option is None else option == "true"


def _writes(have: BootState, texts: t.Mapping[str, t.Optional[str]]) -> list[Change]:
    return [
        _files.write(path, have.others.get(path), text) for path, text in texts.items() if have.others.get(path) != text
    ]


def _activities(have: BootState, services: t.Mapping[str, bool], *, active: bool) -> list[Change]:
    return [
        _files.activity(unit, active=active)
        for unit, wanted in services.items()
        if have.systemd and wanted == active and have.active.get(unit, False) != active
    ]


def _plan_network(network: str, have: BootState, files: Files) -> list[Change]:
    directory = os.path.join(_files.NETWORKS, network)
    before = have.directories.get(network, {})
    unit = _unit.instance(network)
    writes: list[Change] = [
        _files.write(os.path.join(directory, name), before.get(name), files.get(name))
        for name in sorted({*before, *files})
        if before.get(name) != files.get(name)
    ]
    enabled = _files.link_to(f"{_systemd.UNITS}/{_unit.NAME}")
    now = have.others.get(_symlink(network))
    if files:
        if now != enabled:
            writes.append(_files.write(_symlink(network), now, enabled))
        if have.systemd and not have.active.get(unit):
            writes.append(_files.activity(unit, active=True))
        return writes
    changes: list[Change] = [_files.activity(unit, active=False)] if have.active.get(unit) else []
    if now is not None:
        changes.append(_files.write(_symlink(network), now, None))
    return changes + writes


def _symlink(network: str) -> str:
    return f"{_files.WANTS}/{_unit.instance(network)}"


def _file(change: FileChange, directories: dict[str, dict[str, str]], others: dict[str, t.Optional[str]]) -> None:
    directory, name = os.path.split(change.path)
    parent, network = os.path.split(directory)
    if parent != _files.NETWORKS:
        others[change.path] = change.after
    elif change.after is None:
        directories.get(network, {}).pop(name, None)
    else:
        directories.setdefault(network, {})[name] = change.after
