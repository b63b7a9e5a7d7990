# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The networks of a task as a resource of the one flow: read the host, plan, apply, say what is in force.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _foresight, _sysctl
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_files
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._rules_files import Entry, RulesFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import MissingDependency, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import (
    _conntrack,
    _iptables,
    _lasting,
    _nft,
    _nft_text,
    _options,
    _parts,
    _xtables,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey, owner_comment
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._options import Asked, Surroundings
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._parts import (
    File,
    Flows,
    Part,
    PartChange,
    Plan,
    Setting,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Hook
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import NOTHING, Place, Saved, World
from ansible_collections.labspan.vmnet.plugins.module_utils._items import is_single, items
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource


@dataclasses.dataclass(frozen=True)
class Firewall:
    """What concerns the task's networks on the host, and what the host has around them."""

    plans: t.Mapping[str, Plan]
    survey: Survey
    parts: t.Mapping[Part, t.Any]
    wanted: t.Mapping[Part, t.Any]
    order: tuple[Part, ...]
    settings: t.Mapping[str, t.Mapping[str, str]]
    """The kernel settings that each network needs, in their order."""
    lan_routes: t.Mapping[str, tuple[str, ...]]
    """The routes that the LAN needs to each network."""


class Forwarding(t.NamedTuple):
    """Settings and files as they are and as they are to be, the order of writing, and each network's settings."""

    have: dict[Part, t.Any]
    want: dict[Part, t.Any]
    order: tuple[Part, ...]
    settings: dict[str, dict[str, str]]


class Networks(Resource[Firewall]):
    """The rules, the accepts elsewhere and the forwarding of all networks that a task names."""

    plural = "networks"
    singular = "network"

    def __init__(self, entries: t.Sequence[Asked], *, single: bool = False) -> None:
        super().__init__(single=single)
        self._entries = entries
        self._plans: t.Mapping[str, Plan] = {}
        _options.check_together(entries)

    def read(self) -> Firewall:
        with Netlink() as netlink:
            links = netlink.links()
            host = Surroundings(links, netlink.addresses(), netlink.routes())
        self.warnings.clear()
        plans = {entry.name: self._plan_of(entry, host) for entry in self._entries if entry.present}
        chains = tuple(_nft.chains()) if _deps.find_program("nft") else None
        saved = self._read_iptables(chains)
        survey = Survey(chains or (), {world: table for (world, name), table in saved.items() if name == "filter"})
        have = self._read_rules(plans, saved)
        want = self._wanted_rules(plans, survey, have)
        forwarding = self._forwarding(plans, host)
        have.update(forwarding.have)
        want.update(forwarding.want)
        self._plans = plans
        routes = {name: _options.lan_routes(plan.network, host) for name, plan in plans.items()}
        return Firewall(plans, survey, have, want, forwarding.order, forwarding.settings, routes)

    def plan(self, have: Firewall, ahead: t.Mapping[str, t.Any]) -> list[PartChange]:
        self._check_owners(have)
        self._check_blockers(have)
        changes = _parts.changes(have.parts, have.wanted, have.order)
        if any(isinstance(change.part, Flows) for change in changes) and not _conntrack.available():
            self.warnings.append(
                "the program conntrack is missing: connections that began under other rules keep them until they end. "
                "Install the package conntrack (its name in Debian)."
            )
            changes = [change for change in changes if not isinstance(change.part, Flows)]
        self._check_programs(have, changes)
        return changes

    def predict(self, have: Firewall, changes: t.Sequence[Change]) -> Firewall:
        parts = dict(have.parts)
        for change in changes:
            part = t.cast(PartChange, change).part
            if part is not None and not isinstance(part, Flows):
                parts[part] = change.after
        return dataclasses.replace(have, parts=parts)

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: Firewall) -> None:
        for change in changes:
            part = t.cast(PartChange, change).part
            if isinstance(part, Setting):
                world.texts[f"{_sysctl.SETTINGS}/{part.key}"] = change.after
            elif isinstance(part, File):
                world.texts[part.path] = change.after

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in changes:
            part = t.cast(PartChange, change).part
            if isinstance(part, TableKey):
                _nft.load(_nft.replacement(part, change.after))
            elif isinstance(part, Place):
                self._write_place(part, change.after or NOTHING)
            elif isinstance(part, Setting) and change.after is not None:
                _sysctl.write(part.key, change.after)
            elif isinstance(part, File):
                _sysctl.write_text(part.path, change.after)
            elif isinstance(part, Flows):
                _conntrack.forget(part.direction, part.address)
            done.append(change)

    def render(self, state: Firewall) -> dict[str, dict[str, t.Any]]:
        rendered = {entry.name: _render(state, entry.name) for entry in self._entries}
        return {name: item for name, item in rendered.items() if item["backend"]}

    def facts(self, state: Firewall) -> dict[str, t.Any]:
        found = [
            sentence for plan in state.plans.values() for sentence in _parts.blockers(plan, state.survey, Hook.FORWARD)
        ]
        return {"forward_blockers": list(dict.fromkeys(found))}

    def _plan_of(self, entry: Asked, host: Surroundings) -> Plan:
        network = _options.resolve(entry, host, self.warnings.append)
        return Plan(network, _backend(entry.backend), entry.forward)

    def _read_iptables(
        self, chains: t.Optional[t.Sequence[_nft.BaseChain]]
    ) -> dict[tuple[World, str], t.Optional[Saved]]:
        saved: dict[tuple[World, str], t.Optional[Saved]] = {}
        for family in _iptables.FAMILIES:
            for world, tables in _iptables.in_use(family, chains).items():
                for table in sorted(tables):
                    saved[world, table] = _iptables.read(world, table) if _iptables.can_write(world) else None
        return saved

    def _read_rules(
        self, plans: t.Mapping[str, Plan], saved: t.Mapping[tuple[World, str], t.Optional[Saved]]
    ) -> dict[Part, t.Any]:
        have: dict[Part, t.Any] = {}
        if _deps.find_program("nft"):
            tables = _nft.live(_parts.table_key(entry.name) for entry in self._entries)
            have.update(tables.items())
        for entry in self._entries:
            for (world, table), content in saved.items():
                found = _parts.own(content, table, entry.name, plans.get(entry.name)) if content else NOTHING
                if found:
                    have[Place(world, table, entry.name)] = found
        return have

    def _wanted_rules(
        self, plans: t.Mapping[str, Plan], survey: Survey, have: t.Mapping[t.Any, t.Any]
    ) -> dict[Part, t.Any]:
        want: dict[Part, t.Any] = {}
        texts = {
            _parts.table_key(name): _nft_text.table(plan.network)
            for name, plan in plans.items()
            if plan.backend == "nft"
        }
        want.update(_nft.canonical(texts, have).items())
        for plan in plans.values():
            want.update(_parts.wanted_places(plan, survey).items())
        return want

    def _forwarding(self, plans: t.Mapping[str, Plan], host: Surroundings) -> Forwarding:
        record_text = _sysctl.read_text(_sysctl.RECORD)
        record = _sysctl.Record.parse(record_text)
        forwarded = [entry for entry in self._entries if entry.present and entry.forwarding]
        needs = {entry.name: _need(plans[entry.name], host) for entry in forwarded}
        needed = [key for need in needs.values() for key in _sysctl.keys_to_read(need)]
        values = _sysctl.read([*needed, *record.found, *_sysctl.WHOLE_HOST])
        wanted = {
            entry.name: _sysctl.wanted(needs[entry.name], values, record) if entry.name in needs else {}
            for entry in self._entries
        }
        writes, after = _sysctl.plan(values, record, wanted)
        targets = {key: value for settings in wanted.values() for key, value in settings.items()}
        present = {key: value for key, value in {**targets, **writes}.items() if values.get(key) is not None}
        have: dict[Part, t.Any] = {Setting(key): values[key] for key in present}
        want: dict[Part, t.Any] = {Setting(key): value for key, value in present.items()}
        have[File(_sysctl.RECORD)], want[File(_sysctl.RECORD)] = record_text, after.text()
        order: list[Part] = [Setting(key) for key in writes if key not in targets]
        order += [File(_sysctl.RECORD), *(Setting(key) for key in writes if key in targets)]
        for entry in self._entries:
            path = File(_sysctl.boot_file(entry.name))
            order.append(path)
            have[path] = _sysctl.read_text(path.path)
            keys = wanted[entry.name]
            early = _sysctl.early(keys) if entry.lasting else _sysctl.at_boot(keys, values)
            want[path] = _sysctl.boot_text(entry.name, early) if entry.persistent else None
        return Forwarding(have, want, tuple(order), wanted)

    def _write_place(self, place: Place, want: _xtables.Own) -> None:
        world, table, network = place
        exists = table in _iptables.registered(world.family) if world.flavour == "legacy" else True
        present = (_iptables.read(world, table) if exists else None) or Saved()
        plan = self._plans.get(network)
        have = _parts.own(present, table, network, plan)
        comment = owner_comment(network)
        if plan is not None and plan.backend == "iptc" and world.flavour == "legacy":
            from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _legacy

            _legacy.apply(world, table, have, want, comment)
        else:
            _iptables.restore(world, _xtables.script(table, have, want, present, comment))

    def _check_owners(self, state: Firewall) -> None:
        for entry in self._entries:
            _sysctl.check_owner(entry.name, state.parts.get(File(_sysctl.boot_file(entry.name))))
        for part, content in state.parts.items():
            stranger = _stranger(part, content)
            if stranger:
                network, where = stranger
                raise Refused(
                    f"name: {where} is there under the name of the network {network}, and no rule in it carries the "
                    f"comment {owner_comment(network)}: somebody else made it. Remove it, or choose another "
                    "name for the network."
                )

    def _check_blockers(self, state: Firewall) -> None:
        for plan in state.plans.values():
            found = _parts.blockers(plan, state.survey, Hook.FORWARD)
            if plan.forward and found:
                raise Refused(
                    f"forward: traffic of the network {plan.network.name} would not pass: {' '.join(found)} Nothing "
                    "was changed. Open it there, and then set forward: false (nat_forward or routed_forward: false "
                    "for the roles, forward: false of the network in an inventory): what others' rules come to is not "
                    "seen from here, so that without it this task fails all the same.",
                    forward_blockers=found,
                )
            if plan.network.host_services:
                self.warnings.extend(
                    f"host_services: {sentence}" for sentence in _parts.blockers(plan, state.survey, Hook.INPUT)
                )
        for world, saved in state.survey.filters.items():
            if saved is None and world.flavour == "legacy":
                self.warnings.append(
                    f"the filter table of {world} is in use and no program of this host reads it: whether it drops "
                    "traffic of the networks is not known. Install the package iptables (its name in Debian)."
                )
        self.warnings[:] = dict.fromkeys(self.warnings)

    def _check_programs(self, state: Firewall, changes: t.Sequence[PartChange]) -> None:
        for plan in state.plans.values():
            touched = any(
                isinstance(change.part, Place) and change.part.network == plan.network.name for change in changes
            )
            if not touched:
                continue
            if plan.backend == "iptc":
                from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _legacy

                _legacy.check()
            for change in changes:
                if isinstance(change.part, Place) and not _iptables.can_write(change.part.world):
                    raise MissingDependency(
                        f"the programs that save and restore rules of {change.part.world} are not on the managed host. "
                        "Install the package iptables (its name in Debian)."
                    )


def build(params: dict[str, t.Any]) -> list[Resource[t.Any]]:
    """The resources of the module nat_masquerade."""
    single = is_single(params, "networks")
    entries = [
        _options.asked(entry, "" if single else f"networks[{number}].")
        for number, entry in enumerate(items(params, "networks"))
    ]
    lasting = lasting_entries(entries)
    files = RulesFiles(lasting, files_of, _rules_files.is_of_networks)
    return _rules_files.around(Networks(entries, single=single), files, lasting)


def lasting_entries(entries: t.Iterable[Asked]) -> list[Entry]:
    """What is to be there after a reboot."""
    return [Entry(entry.name, entry.present, entry.lasting) for entry in entries]


def files_of(state: Firewall) -> dict[str, dict[str, str]]:
    return {name: _lasting.files(plan, state.parts, state.settings.get(name, {})) for name, plan in state.plans.items()}


def _backend(asked: str) -> str:
    if asked == "iptables_legacy":
        return "iptc"
    if asked == "nftables":
        _deps.program("nft", purpose="for backend: nftables")
        return "nft"
    if asked == "auto" and _deps.find_program("nft"):
        return "nft"
    return f"iptables:{_iptables.flavour_of_host()}"


def _stranger(part: Part, content: t.Any) -> t.Optional[tuple[str, str]]:
    """The network and the place, where a table or chains have the name of ours and are not."""
    if isinstance(part, TableKey):
        network = part.name[len("labspan_") :]
        return (network, f"the nftables table {part}") if _nft.is_strangers(content, network) else None
    if isinstance(part, Place) and content.chains:
        rules = [rule for _chain, listed in content.chains for rule in listed]
        if rules and owner_comment(part.network) not in _xtables.comments(rules):
            return part.network, f"the chain {content.chains[0][0]} in the {part.table} table of {part.world}"
    return None


def _need(plan: Plan, host: Surroundings) -> _sysctl.Need:
    network = plan.network
    return _sysctl.Need(
        network.bridge,
        network.uplink4,
        network.uplink6,
        version4=4 in network.families,
        version6=6 in network.families,
        advertised=host.advertised(),
    )


def _render(state: Firewall, name: str) -> dict[str, t.Any]:
    table = state.parts.get(_parts.table_key(name))
    places = {
        part: content
        for part, content in state.parts.items()
        if isinstance(part, Place) and part.network == name and content
    }
    found = {
        "backend": _backend_found(table, places),
        "table": table.splitlines() if table else [],
        "iptables": {f"{part.world} {part.table}": _lines(content) for part, content in places.items()},
    }
    if name not in state.plans:
        return found  # one that goes: what it was asked to be, its rules do not say
    network = state.plans[name].network
    return {
        **found,
        "bridge": network.bridge,
        "sources": list(network.sources),
        "out_interfaces": {"ipv4": network.uplink4, "ipv6": network.uplink6},
        "masquerade": network.masquerade,
        "lan_routes": list(state.lan_routes[name]),
        "host_access": network.host_access.value,
        "settings": {
            key: state.parts[Setting(key)] for key in state.settings.get(name, ()) if Setting(key) in state.parts
        },
    }


def _backend_found(table: t.Optional[str], places: t.Mapping[Place, _xtables.Own]) -> t.Optional[str]:
    if table:
        return "nftables"
    with_rules = [
        place for place, content in places.items() if any(chain.endswith("-FWD") for chain, _rules in content.chains)
    ]
    return f"iptables ({with_rules[0].world.flavour})" if with_rules else None


def _lines(content: _xtables.Own) -> list[str]:
    return [
        *(f"-A {jump.parent} -j {jump.chain}" for jump in content.jumps),
        *(f"-A {chain} {' '.join(_xtables.arguments(rule))}" for chain, rules in content.chains for rule in rules),
    ]
