# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything on a host that belongs to networks, in parts that change on their own, and the changes between two states.

Pure: what is there and what is wanted come in, an ordered list of changes goes out.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _forward, _nft_text, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey, owner_comment
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import (
    ANY_HOST,
    Chain,
    Hook,
    HostAccess,
    Network,
    Rule,
    accepts,
    chains,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import NOTHING, Own, Place, Saved, World
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

_TABLES = ("nat", "filter")
_SOURCE = re.compile(r"\bsaddr (?:\{ ([^}]*) \}|(\S+))")


class Setting(t.NamedTuple):
    """A kernel setting by its path under /proc/sys."""

    key: str


class File(t.NamedTuple):
    """A small file of ours."""

    path: str


class Flows(t.NamedTuple):
    """Connections that the kernel tracks, by an option of conntrack and an address."""

    direction: str
    address: str


Part = t.Union[TableKey, Place, Setting, File, Flows]
Parts = t.Mapping[Part, t.Any]


@dataclasses.dataclass(frozen=True)
class PartChange(Change):
    """The change of one part."""

    part: t.Optional[Part] = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A network that is to be there, and how."""

    network: Network
    backend: str
    """C(nft) for nftables, else the flavour of iptables: C(iptables:nft), C(iptables:legacy), C(iptc)."""
    forward: bool

    @property
    def flavour(self) -> t.Optional[str]:
        """The world of iptables that holds the rules."""
        return {"iptables:nft": "nft", "iptables:legacy": "legacy", "iptc": "legacy"}.get(self.backend)


def own(saved: Saved, table: str, network: str, planned: t.Optional[Plan]) -> Own:
    """What a table of iptables holds of a network."""
    if planned is None or table != "filter":
        return _xtables.own(saved, network, lambda _chain, _position: True)
    return _xtables.own(saved, network, _forward.in_front(saved, _forward.interfaces_of(planned.network)))


def wanted_places(plan: Plan, survey: Survey) -> dict[Place, Own]:
    """What a network wants in the worlds of iptables: its rules, or accepts where somebody drops."""
    wanted: dict[Place, Own] = {}
    own_chains = chains(plan.network)
    if plan.flavour:
        for family in (4, 6):
            for table in _TABLES:
                place = Place(World(plan.flavour, family), table, plan.network.name)
                saved = survey.filters.get(place.world) if table == "filter" else None
                wanted[place] = _rules_of(own_chains, place, saved or Saved())
    for world, saved in survey.filters.items():
        if saved is None or world.flavour == plan.flavour or _forward.manager(saved):
            continue
        wanted[Place(world, "filter", plan.network.name)] = _openings(plan, own_chains, world, saved)
    return {place: owned for place, owned in wanted.items() if owned}


def _rules_of(own_chains: t.Iterable[Chain], place: Place, saved: Saved) -> Own:
    family = place.world.family
    named = {chain.hook: chain.rules for chain in own_chains if chain.hook.table == place.table}
    return _own(
        place.network,
        family,
        {hook.suffix: (hook.builtin, rules) for hook, rules in named.items() if _concerns(rules, family)},
    )


def _concerns(rules: t.Iterable[Rule], family: int) -> bool:
    return any(rule.family in (None, family) for rule in rules)


def _openings(plan: Plan, own_chains: t.Iterable[Chain], world: World, saved: Saved) -> Own:
    """Accepts in a world that is not the rules' own, at the hooks where it drops."""
    network = plan.network
    rules = {chain.hook: accepts(chain) for chain in own_chains}
    needed: dict[str, tuple[str, tuple[Rule, ...]]] = {}
    interfaces = _forward.interfaces_of(network)
    if plan.forward and _forward.drops(saved, Hook.FORWARD, interfaces):
        needed["ACC"] = (_forward.parent(saved, Hook.FORWARD, interfaces), rules[Hook.FORWARD])
    if network.host_services and _forward.drops(saved, Hook.INPUT, (network.bridge,)):
        needed["SVC"] = (Hook.INPUT.builtin, rules[Hook.INPUT])
    return _own(network.name, world.family, needed)


def _own(network: str, family: int, named: t.Mapping[str, tuple[str, tuple[Rule, ...]]]) -> Own:
    comment = owner_comment(network)
    made = [
        (_xtables.chain_name(network, suffix), parent, _xtables.wanted_chain(rules, family, comment))
        for suffix, (parent, rules) in named.items()
    ]
    return Own(
        tuple(sorted((chain, rules) for chain, _parent, rules in made)),
        tuple(sorted(_xtables.Jump(parent, chain) for chain, parent, _rules in made)),
    )


def blockers(plan: Plan, survey: Survey, hook: Hook) -> list[str]:
    """What still drops the network's packets at a hook once all wanted parts are there."""
    others = {world: saved for world, saved in survey.filters.items() if world.flavour != plan.flavour}
    if plan.flavour == "nft":  # there our rules stand before the policy of iptables-nft's own chain
        own_tables = {TableKey("ip", "filter"), TableKey("ip6", "filter")}
        survey = dataclasses.replace(
            survey, chains=tuple(chain for chain in survey.chains if chain.table not in own_tables)
        )
    if hook is Hook.INPUT and plan.network.host_access is HostAccess.NONE:
        return []
    return _forward.blockers(dataclasses.replace(survey, filters=others), plan.network, hook)


def changes(have: Parts, want: Parts, order: t.Sequence[Part]) -> list[PartChange]:
    """The changes from one state to the other, then the flows that they strand.

    Settings and files come in the given order. New rules stand before forwarding is on, old ones go after it is off.
    """
    differing = [part for part in {**have, **want} if have.get(part) != want.get(part)]
    rules = [part for part in differing if isinstance(part, (TableKey, Place))]
    arriving = [part for part in rules if want.get(part)]
    leaving = [part for part in rules if not want.get(part)]
    settings = [part for part in order if part in differing]
    returning = [part for part in settings if part in order[: _first_file(order)]]
    rest = [part for part in settings if part not in returning]
    steps = [_change(part, have.get(part), want.get(part)) for part in (*returning, *arriving, *rest, *leaving)]
    return [*steps, *(_forgetting(flows) for flows in _stranded(rules, have, want))]


def _first_file(order: t.Sequence[Part]) -> int:
    return next((number for number, part in enumerate(order) if isinstance(part, File)), len(order))


def _change(part: Part, before: t.Any, after: t.Any) -> PartChange:
    subject, sentence = _describe(part, before, after)
    return PartChange(subject, sentence, before or None, after or None, part)


def _describe(part: Part, before: t.Any, after: t.Any) -> tuple[str, str]:
    if isinstance(part, Setting):
        return f"setting {part.key}", f"Set {part.key} from {before} to {after}"
    if isinstance(part, File):
        verb = "Remove" if after is None else "Rewrite" if before is not None else "Write"
        return f"file {part.path}", f"{verb} {part.path}"
    if isinstance(part, TableKey):
        verb = "Remove" if not after else "Replace" if before else "Create"
        return f"nftables table {part}", f"{verb} the nftables table {part}"
    network = part[2] if isinstance(part, Place) else ""
    where = f"the {part[1]} table of {part[0]}"
    opening = any(chain.endswith(("-ACC", "-SVC")) for chain, _rules in (after or before or NOTHING).chains)
    what = f"accepts for the network {network}" if opening else f"the rules of the network {network}"
    verb = "Remove" if not after else "Replace" if before else "Put"
    return (
        f"{what} in {where}",
        f"{verb} {what} {'in' if before and after else 'from' if not after else 'into'} {where}",
    )


def _forgetting(flows: Flows) -> PartChange:
    which = {"--orig-src": "from", "--orig-dst": "to", "--reply-src": "through port forwards to"}[flows.direction]
    subject = f"flows {which} {flows.address}"
    return PartChange(subject, f"Forget the {subject}, which began under other rules", None, None, flows)


def _stranded(rules: t.Iterable[Part], have: Parts, want: Parts) -> list[Flows]:
    subnets: dict[str, None] = {}
    guests: dict[str, None] = {}
    for part in rules:
        for state in (have, want):
            subnets.update(dict.fromkeys(subnets_in(state.get(part))))
            guests.update(dict.fromkeys(guests_in(state.get(part))))
    return [
        *(Flows(direction, subnet) for subnet in sorted(subnets) for direction in ("--orig-src", "--orig-dst")),
        *(Flows("--reply-src", guest) for guest in sorted(guests)),
    ]


def subnets_in(rules: t.Union[str, Own, None]) -> list[str]:
    """The guests' subnets that rules name: as the source of what enters."""
    if isinstance(rules, Own):
        named = [
            value for _chain, listed in rules.chains for rule in listed for option, value in rule if option == "-s"
        ]
    else:
        named = [word for several, one in _SOURCE.findall(rules or "") for word in (several or one).split(", ")]
    bare = {source.partition("/")[0] for source in ANY_HOST}
    return [subnet for subnet in dict.fromkeys(named) if subnet.partition("/")[0] not in bare]


_DNAT = re.compile(r"\bdnat ip6? to (?:\[([^\]]*)\]|([^:\s]+|\S+))")
_DESTINATION = re.compile(r"^(?:\[([^\]]*)\].*|([0-9.]+)(?::.*)?|(.*))$")


def guests_in(rules: t.Union[str, Own, None]) -> list[str]:
    """The guests that port forwards lead to."""
    if not isinstance(rules, Own):
        return [bracketed or plain for bracketed, plain in _DNAT.findall(rules or "")]
    targets = [
        value
        for _chain, listed in rules.chains
        for rule in listed
        for option, value in rule
        if option == "--to-destination"
    ]
    return [next(group for group in match.groups() if group) for match in map(_DESTINATION.match, targets) if match]


def table_key(network: str) -> TableKey:
    """The nftables table that a network owns."""
    return _nft_text.key(network)
