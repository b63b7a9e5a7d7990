# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges and taps that last: what the modules that manage them add to their resources.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _adoption, _links, _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files, _managers, _sections
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import (
    BootState,
    Directories,
    NetworkFiles,
    persistence,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _record

LINKS = "links"
SETTINGS = "sysctl"
VLANS = "vlans"

_PREFACES = {
    LINKS: "The interfaces of the network {network}, in the words of ip -batch. What makes one comes first in its\n"
    "section, and is left out where it is there. Made by labspan.vmnet, which writes a section anew when it changes.",
    SETTINGS: "What the interfaces of the network {network} need before they are up. Made by labspan.vmnet.",
    VLANS: "The VLANs of the network {network}, in the words of bridge -batch. Made by labspan.vmnet.",
}


#: For the taps of guests: they last when their bridge does.
AS_BRIDGE = "as_bridge"


class Item(t.NamedTuple):
    """What a task says about the lasting of one interface."""

    name: str
    network: str
    present: bool
    persistent: t.Optional[bool]
    """None: as it is."""


class Wanted(t.Protocol):
    """A bridge or tap that a task names."""

    @property
    def name(self) -> str: ...

    @property
    def network(self) -> str: ...

    @property
    def present(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class KeepOffState:
    """What the managers of the host's network were told."""

    texts: t.Mapping[str, t.Optional[str]]
    foreign: t.Collection[str]
    """Of the names of the task, those of interfaces that are there and not ours."""
    lasting: t.Collection[Item]
    """What shall be there after a reboot."""


class KeepOff(Resource[KeepOffState]):
    """The managers of the host's network told to leave interfaces alone, before they are made."""

    plural: t.ClassVar[str] = "keep_off"
    singular: t.ClassVar[str] = "keep_off_one"

    def __init__(self, *sources: tuple[str, t.Callable[[], t.Sequence[Item]]]) -> None:
        """C(sources) are kinds of interfaces, C(bridge) or C(tap), each with what tells the items of the task."""
        super().__init__()
        self._sources = sources

    def read(self) -> KeepOffState:
        items = [(kind, each) for kind, items in self._sources for each in items()]
        networks = {each.network for _kind, each in items}
        edit = Edit({network: _files.files_of(network) for network in networks})
        lasting = [each for kind, each in items if each.present and edit.lasts(kind, each)]
        texts = {path: _files.read(path) for network in networks for path in _managers.paths(network)}
        told = {name for text in texts.values() for name in _managers.names_in(text)}
        return KeepOffState(texts, _foreign({each.name for each in lasting} - told), lasting)

    def plan(self, have: KeepOffState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes: list[Change] = []
        for network in sorted({each.network for each in have.lasting}):
            told = {name for path in _managers.paths(network) for name in _managers.names_in(have.texts.get(path))}
            coming = {each.name for each in have.lasting if each.network == network} - set(have.foreign)
            for path, text in _managers.files(network, sorted(told | coming)).items():
                if have.texts.get(path) != text:
                    changes.append(_files.write(path, have.texts.get(path), text))
        return changes

    def predict(self, have: KeepOffState, changes: t.Sequence[Change]) -> KeepOffState:
        written = {t.cast(_files.FileChange, change).path: change.after for change in changes}
        return dataclasses.replace(have, texts={**have.texts, **written})

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        _files.apply(changes, done)

    def render(self, state: KeepOffState) -> dict[str, dict[str, t.Any]]:
        return {
            path: {"interfaces": _managers.names_in(text)}
            for path, text in sorted(state.texts.items())
            if text is not None
        }


class InterfaceFiles(NetworkFiles):
    """The sections of bridges or taps in the files of their networks."""

    kind: t.ClassVar[str]

    def __init__(self, items: t.Callable[[], t.Sequence[Item]]) -> None:
        super().__init__(lambda: [each.network for each in items()])
        self._items = items

    def paths(self) -> t.Collection[str]:
        return [path for network in sorted(set(self._networks())) for path in _managers.paths(network)]

    def plan(self, have: BootState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        told = t.cast(KeepOffState, ahead["keep_off"]).texts  # it wrote before us
        return super().plan(dataclasses.replace(have, others={**have.others, **told}), ahead)

    def surroundings(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Optional[str]]:
        """Nobody has to keep off what lasts no longer."""
        texts: dict[str, t.Optional[str]] = {}
        told = t.cast(KeepOffState, ahead["keep_off"]).texts
        for network in sorted(set(self._networks())):
            sections = _sections.parse(directories.get(network, {}).get(LINKS))
            lasting = set(_sections.names(sections, "bridge", "tap"))
            named = {name for path in _managers.paths(network) for name in _managers.names_in(told.get(path))}
            if named - lasting:
                texts.update(_managers.files(network, sorted(named & lasting)))
        return texts


def lasting_items(kind: str, wanted: t.Sequence[Wanted], options: t.Sequence[Options]) -> list[Item]:
    """The items of a task. The bridge of a host's uplink is brought back by the host's own manager of networks."""
    items = []
    for want, given in zip(wanted, options):
        asked = given.get("persistent")
        if not want.present:
            persistent: t.Optional[bool] = False
        elif asked == AS_BRIDGE:
            persistent = _systemd.is_running() and _bridge_lasts(given["bridge"])
        else:
            persistent = persistence(asked)
            if kind == "bridge" and persistent and os.path.exists(_record.path_of(want.name)):
                persistent = False
        items.append(Item(want.name, want.network, want.present, persistent))
    return items


class Edit:
    """The files of networks while sections of them are exchanged."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._sections: dict[tuple[str, str], _sections.Sections] = {}
        self._changed: set[str] = set()

    def sections(self, network: str, file: str) -> _sections.Sections:
        """The sections of a file, to be changed in place."""
        key = (network, file)
        if key not in self._sections:
            self._sections[key] = _sections.parse(self._directories.get(network, {}).get(file))
        return self._sections[key]

    def lasts(self, kind: str, item: Item) -> bool:
        """Whether an interface is to have a section, as the task or what is there says."""
        if item.persistent is None:
            return f"{kind} {item.name}" in self.sections(item.network, LINKS)
        return item.persistent

    def drop(self, network: str, heading: str) -> None:
        """Take an interface out of all files of a network."""
        for file in _PREFACES:
            if self.sections(network, file).pop(heading, None) is not None:
                self._changed.add(network)

    def drop_elsewhere(self, network: str, heading: str) -> None:
        """Take an interface that is this network's out of the files of all others."""
        for other in self._directories:
            if other != network and heading in self.sections(other, LINKS):
                self.drop(other, heading)

    def result(self, networks: t.Iterable[str]) -> dict[str, dict[str, str]]:
        """The files of these networks, and of all whose sections were exchanged."""
        touched = sorted({*networks, *self._changed})
        found: dict[str, dict[str, str]] = {}
        for network in touched:
            files = dict(self._directories.get(network, {}))
            for file, preface in _PREFACES.items():
                if (network, file) in self._sections:
                    text = _sections.render(preface.format(network=network), self._sections[network, file])
                    files.pop(file, None)
                    files.update({} if text is None else {file: text})
            found[network] = files
        return found


def _bridge_lasts(bridge: str) -> bool:
    """Whether a bridge is there after the next boot: by our files, or by somebody else's."""
    heading = f"bridge {bridge}"
    if any(heading in _sections.parse(_files.files_of(network).get(LINKS)) for network in _files.networks()):
        return True
    if os.path.exists(_record.path_of(bridge)):
        return True
    alias = _links.read_alias(bridge)
    return alias is not None and _links.owner_of(alias) is None


def _foreign(names: t.Collection[str]) -> frozenset[str]:
    """Those of the interfaces that are there and were not made by us: whoever manages them goes on."""
    if not names:
        return frozenset()
    with Netlink() as netlink:
        links = netlink.links()
    adopted = _adoption.read(names)
    return frozenset(
        name for name in names if name in links and (name in adopted or _links.owner_of(links[name].alias) is None)
    )
