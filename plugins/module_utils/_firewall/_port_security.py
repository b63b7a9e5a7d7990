# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters of guests' ports as a resource of the one flow: one table of the bridge family for each network.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_files
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import persistence
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._rules_files import Entry, RulesFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import (
    _lasting,
    _nft,
    _port_security_options,
    _port_security_text,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._port_security_text import PortFilter
from ansible_collections.labspan.vmnet.plugins.module_utils._items import is_single, items
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

#: The listing of each network's table; a network without one is left out.
Tables = t.Mapping[str, str]

_CLASS = "/sys/class/net"
_PORTS = re.compile(r"^\tset ports \{\n(?:\t\t[^\n]*\n)*?\t\telements = \{([^}]*)\}", re.MULTILINE)
_NAME = re.compile(r'"([^"]+)"')


@dataclasses.dataclass(frozen=True)
class TableChange(Change):
    """A network's table replaced."""

    network: str = ""


class PortSecurity(Resource[Tables]):
    """The filters of all networks that a task names."""

    plural = "networks"
    singular = "network"

    def __init__(self, present: t.Sequence[PortFilter], absent: t.Sequence[str], *, single: bool = False) -> None:
        super().__init__(single=single)
        _port_security_options.check_together(present)
        self._present = {wanted.network: wanted for wanted in present}
        self._networks = (*absent, *self._present)
        self._want: t.Optional[Tables] = None

    def read(self) -> Tables:
        keys = {_port_security_text.key(network): network for network in self._networks}
        return {keys[key]: text for key, text in _nft.live(keys).items()}

    def plan(self, have: Tables, ahead: t.Mapping[str, t.Any]) -> list[TableChange]:
        for network, listing in have.items():
            if _nft.is_strangers(listing, network):
                raise Refused(
                    f"name: the nftables table {_port_security_text.key(network)} exists and nothing in it carries the "
                    f"comment {_nft.owner_comment(network)}: somebody else made it. Remove it, or choose another name "
                    "for the network."
                )
        for entry in self._present.values():
            self.warnings.extend(_unguarded(entry))
        if self._want is None:
            self._want = self._canonical()
        wanted = self._want
        return [
            _change(network, have.get(network), wanted.get(network))
            for network in self._networks
            if have.get(network) != wanted.get(network)
        ]

    def predict(self, have: Tables, changes: t.Sequence[Change]) -> Tables:
        after = dict(have)
        for change in changes:
            network = t.cast(TableChange, change).network
            after.pop(network, None)
            if change.after is not None:
                after[network] = change.after
        return after

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in changes:
            _nft.load(
                _nft.replacement(_port_security_text.key(t.cast(TableChange, change).network), change.after),
            )
            done.append(change)

    def render(self, state: Tables) -> dict[str, dict[str, t.Any]]:
        return {
            network: {"ports": _ports(state[network]), "table": state[network].splitlines()}
            for network in self._networks
            if network in state
        }

    def _canonical(self) -> Tables:
        keys = {_port_security_text.key(network): network for network in self._present}
        texts = {key: _port_security_text.table(self._present[network]) for key, network in keys.items()}
        try:
            return {keys[key]: text for key, text in _nft.canonical(texts, {}).items()}
        except SystemFailure as error:
            if any(wanted.drop_unlisted for wanted in self._present.values()) and "ibrname" in str(error):
                raise SystemFailure(
                    "unlisted: drop needs a kernel that tells nftables which bridge a frame came in by "
                    "(CONFIG_NFT_BRIDGE_META, the module nft_meta_bridge), and this one does not. Load the module, or "
                    "set unlisted: accept."
                ) from error
            raise


def build(params: dict[str, t.Any]) -> list[Resource[t.Any]]:
    """The resources of the module port_security."""
    single = is_single(params, "networks")
    places = ["" if single else f"networks[{number}]." for number in range(len(params.get("networks") or [None]))]
    security, lasting = make(list(zip(places, items(params, "networks"))), single=single)
    files = RulesFiles(lasting, _lasting.port_files, lambda name: name == _rules_files.PORTS)
    return _rules_files.around(security, files, lasting)


def make(
    entries: t.Sequence[tuple[str, dict[str, t.Any]]],
    *,
    single: bool = False,
    kind: type[PortSecurity] = PortSecurity,
) -> tuple[PortSecurity, list[Entry]]:
    """The resource of entries and where each stands, and what is to be there after a reboot."""
    identity = _values.host_identity()
    present, absent, lasting = [], [], []
    for where, entry in entries:
        wanted = _port_security_options.asked(entry, where, identity=identity)
        lasting.append(
            Entry(wanted.network, entry["state"] == "present", persistence(entry.get("persistent") or "auto"))
        )
        if entry["state"] == "present":
            present.append(wanted)
        else:
            absent.append(wanted.network)
    return kind(present, absent, single=single), lasting


def _unguarded(wanted: PortFilter) -> t.Iterator[str]:
    """With STP on the bridge takes BPDUs before any rule sees them, and only the kernel's own guard keeps them out."""
    if _setting(f"{_CLASS}/{wanted.bridge}/bridge/stp_state") in (None, "0"):
        return
    open_ports = [
        port.tap
        for port in wanted.ports
        if not port.allow_bpdu and _setting(f"{_CLASS}/{port.tap}/brport/bpdu_guard") == "0"
    ]
    if open_ports:
        yield (
            f"ports: the spanning tree runs on {wanted.bridge}, which takes BPDUs of {', '.join(open_ports)} before "
            "any rule sees them: such a guest can become the root of the tree. Switch STP off, or bpdu_guard of the "
            "module tap_device on."
        )


def _setting(path: str) -> t.Optional[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _change(network: str, before: t.Optional[str], after: t.Optional[str]) -> TableChange:
    verb = "Create" if before is None else "Replace" if after is not None else "Remove"
    sentence = f"{verb} the nftables table {_port_security_text.key(network)}"
    had, has = (set(_ports(text)) if text else set() for text in (before, after))
    told = [
        f"{word} {', '.join(sorted(names))}"
        for word, names in (("filters", has - had), ("no longer filters", had - has))
        if names
    ]
    if told:
        sentence += f", which {' and '.join(told)}"
    return TableChange(f"ports of the network {network}", sentence, before, after, network)


def _ports(listing: str) -> list[str]:
    """The ports that a listed table filters."""
    found = _PORTS.search(listing)
    return sorted(_NAME.findall(found.group(1))) if found else []
