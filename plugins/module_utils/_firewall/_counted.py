# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of the networks with their counters, places and handles, in nftables and both worlds of iptables.

One call of nft lists everything but the contents of sets. A call of iptables-save follows for each world that has
tables. Nothing is asked that is not loaded, because the kernel would load it for the asking.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _iptables, _port_security_text, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import BaseChain, TableKey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import OWN_PREFIX, Saved, World

NFTABLES = "nftables"

_OWN_TABLE = "labspan_"
_COMMENT = re.compile(r'"?labspan\.vmnet:([^"\s]+)"?')
_HANDLE = re.compile(r" # handle (\d+)$")
_COUNTER = re.compile(r"\bcounter packets (\d+) bytes (\d+) ?")
_BASE = re.compile(r"type \S+ hook (\S+) .*?(?:policy (\w+);)?$")
_SAVED_COUNTER = re.compile(r"\[(\d+):(\d+)\] (?=-A )")
_CHAIN_OF_OURS = re.compile(rf"-[jg] {OWN_PREFIX}")

_IP = {4: "ip", 6: "ip6"}
_TABLES_OF_XTABLES = frozenset(["raw", "mangle", "nat", "filter", "security"])
_MODULES = "/lib/modules"


class Rule(t.NamedTuple):
    """One rule, where it is."""

    world: str
    family: str
    table: str
    chain: str
    position: int
    """From 1 on, as iptables counts."""
    handle: t.Optional[int]
    packets: t.Optional[int]
    bytes: t.Optional[int]
    text: str
    """Without its counters."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """What nft lists of everybody."""

    chains: tuple[BaseChain, ...] = ()
    rules: tuple[Rule, ...] = ()
    """Those of the networks."""
    handles: t.Mapping[tuple[str, str, str, int], int] = dataclasses.field(default_factory=dict)
    """Family, table, chain and position -> handle, for the tables of iptables-nft."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of all networks, and what of others can drop."""

    of: t.Mapping[str, tuple[Rule, ...]]
    """By network."""
    survey: Survey
    guarded: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Network -> the taps whose guests are held to their addresses."""


def read(warn: t.Callable[[str], None]) -> t.Optional[Rules]:
    """All there is; None when nothing could be seen. C(warn) gets a sentence for each world that cannot be read."""
    in_kernel = nftables_is_loaded()
    has_nft = _deps.find_program("nft") is not None
    listing = _listing(warn) if in_kernel and has_nft else Listing()
    saved: dict[World, t.Optional[str]] = {}
    for family in _iptables.FAMILIES:
        if _iptables.registered(family):
            saved[World("legacy", family)] = None
        unknown = in_kernel and not has_nft
        if unknown or (listing is not None and _has_xtables(listing, family)):
            saved[World("nft", family)] = None
    saved = {world: _saved(world, warn) for world in saved}
    if listing is None and not any(saved.values()):
        return None
    listing = listing or Listing()
    found = [*listing.rules]
    filters: dict[World, t.Optional[Saved]] = {}
    for world, text in saved.items():
        if text is not None:
            found += parse_saved(world, text, listing.handles)
        if text is None or "*filter\n" in text:
            filters[world] = None if text is None else _xtables.parse(_table_of(text, "filter"))
    of = by_network(found)
    return Rules(of, Survey(listing.chains, filters), {network: _guarded(network) for network in _guarding(of)})


def nftables_is_loaded() -> bool:
    """Whether the kernel has nftables now; asking a kernel that has it as a module would have it loaded."""
    if os.path.isdir("/sys/module/nf_tables") or not os.path.exists("/proc/modules"):
        return True
    builtin = f"{_MODULES}/{os.uname().release}/modules.builtin"
    try:
        with open(builtin, encoding="utf-8", errors="replace") as file:
            return "/nf_tables.ko" in file.read()
    except OSError:  # a container, where the kernel's own list of names is the last resort
        return _is_symbol(" nf_tables_newrule")


def _is_symbol(name: str) -> bool:
    try:
        with open("/proc/kallsyms", encoding="ascii", errors="replace") as file:
            return any(name in line for line in file)
    except OSError:
        return False


def _listing(warn: t.Callable[[str], None]) -> t.Optional[Listing]:
    nft = _deps.program("nft", purpose="to list rules")
    result = _commands.run([nft, "-a", "-t", "list", "ruleset"])
    if result.returncode == 0:
        return parse_listing(result.stdout)
    said = " ".join(result.stderr.split())
    if "not supported" in said:  # a kernel without nftables
        return Listing()
    warn(f"rules: nft does not list the rules of this host ({said or f'exit status {result.returncode}'}).")
    return None


def _guarding(of: t.Mapping[str, t.Sequence[Rule]]) -> list[str]:
    keys = {network: _port_security_text.key(network) for network in of}
    return [name for name, key in keys.items() if any((rule.family, rule.table) == key for rule in of[name])]


def _guarded(network: str) -> tuple[str, ...]:
    """The listing leaves out what sets hold, since others' may be large; this one is our own."""
    key = _port_security_text.key(network)
    nft = _deps.program("nft", purpose="to list rules")
    result = _commands.run([nft, "list", "set", key.family, key.name, "ports"])
    elements = result.stdout.partition("elements = {")[2].partition("}")[0]
    return tuple(sorted(re.findall(r'"([^"]+)"', elements)))


def _has_xtables(listing: Listing, family: int) -> bool:
    """Whether tables are there in which iptables-nft keeps its rules."""
    return any(chain.table in {TableKey(_IP[family], name) for name in _TABLES_OF_XTABLES} for chain in listing.chains)


def _saved(world: World, warn: t.Callable[[str], None]) -> t.Optional[str]:
    """What iptables-save prints for a world that has tables; None where no program of the host prints it."""
    try:
        text = _iptables.save(world)
    except SystemFailure as error:
        warn(f"rules: {error}")
        return None
    if text is None and world.flavour == "legacy":
        warn(
            f"rules: tables of {world} are in use and no program of this host reads them. Install the package "
            "iptables (its name in Debian)."
        )
    return text


def by_network(rules: t.Iterable[Rule]) -> dict[str, tuple[Rule, ...]]:
    """The rules of each network. Pure.

    In a table or chain of ours some rules carry no comment; they are whose the others there are.
    """
    rules = list(rules)
    owners: dict[tuple[str, str, str], str] = {}
    for rule in rules:
        owner = owner_of(rule)
        if owner is not None:
            owners[_home(rule)] = owner
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        owner = owner_of(rule) or (owners.get(_home(rule)) if _is_in_own(rule) else None)
        if owner is not None:
            found.setdefault(owner, []).append(rule)
    return {network: tuple(found[network]) for network in sorted(found)}


def owner_of(rule: Rule) -> t.Optional[str]:
    """The network that a rule names as its owner."""
    found = _COMMENT.search(rule.text)
    return found[1] if found else None


def _home(rule: Rule) -> tuple[str, str, str]:
    return (f"{rule.world} {rule.family}", rule.table, "" if rule.world == NFTABLES else rule.chain)


def _is_in_own(rule: Rule) -> bool:
    return rule.table.startswith(_OWN_TABLE) if rule.world == NFTABLES else rule.chain.startswith(OWN_PREFIX)


def parse_listing(text: str) -> Listing:
    """What C(nft -a -t list ruleset) prints: all base chains and the rules of the networks. Pure."""
    chains: list[BaseChain] = []
    rules: list[Rule] = []
    handles: dict[tuple[str, str, str, int], int] = {}
    table, chain, position, of_xtables = TableKey("", ""), "", 0, False
    for line in text.splitlines():
        if line.startswith("table "):
            table = TableKey(*line.split()[1:3])
            of_xtables = table.family in _IP.values() and table.name in _TABLES_OF_XTABLES
        elif line.startswith("\t") and not line.startswith("\t\t"):
            words = line.split()
            chain, position = (words[1], 0) if words[0] == "chain" else ("", 0)
            if chain:
                chains.append(BaseChain(table, chain, "", ""))
        elif chain:
            handle = _HANDLE.search(line)
            base = None if handle else _BASE.match(line.strip())
            if base:
                chains[-1] = BaseChain(table, chain, base[1], base[2] or "")
            if not handle:
                continue
            position += 1
            if of_xtables:
                handles[table.family, table.name, chain, position] = int(handle[1])
            if table.name.startswith(_OWN_TABLE) or ("labspan.vmnet:" in line and not of_xtables):
                rules.append(_rule(table, chain, position, int(handle[1]), line[: handle.start()].strip()))
    return Listing(tuple(chains), tuple(rules), handles)


def _rule(table: TableKey, chain: str, position: int, handle: int, line: str) -> Rule:
    counter = _COUNTER.search(line)
    packets, amount = (int(counter[1]), int(counter[2])) if counter else (None, None)
    text = _COUNTER.sub("", line, count=1)
    return Rule(NFTABLES, table.family, table.name, chain, position, handle, packets, amount, text)


def parse_saved(world: World, text: str, handles: t.Mapping[tuple[str, str, str, int], int]) -> t.Iterator[Rule]:
    """The rules of the networks in what C(iptables-save -c) prints. Pure."""
    table = ""
    positions: dict[str, int] = {}
    family = _IP[world.family]
    for line in text.splitlines():
        if line.startswith("*"):
            table, positions = line[1:], {}
        counter = _SAVED_COUNTER.match(line)
        if counter is None:
            continue
        _append, chain, specification = line[counter.end() :].split(" ", 2)
        positions[chain] = position = positions.get(chain, 0) + 1
        if chain.startswith(OWN_PREFIX) or "labspan.vmnet:" in specification or _CHAIN_OF_OURS.search(specification):
            handle = handles.get((family, table, chain, position)) if world.flavour == "nft" else None
            counted = int(counter[1]), int(counter[2])
            yield Rule(f"iptables-{world.flavour}", family, table, chain, position, handle, *counted, specification)


def _table_of(text: str, table: str) -> str:
    """One table of what iptables-save prints, without the counters."""
    block = text.partition(f"*{table}\n")[2].partition("\nCOMMIT")[0]
    return _SAVED_COUNTER.sub("", block)
