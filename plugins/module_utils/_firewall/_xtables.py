# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The language of iptables: our rules in it, what iptables-save prints, and the difference as a restore script. Pure.

Two rules are compared as sets of options, so that neither the order in which iptables-save prints them nor its quoting
can look like a difference.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import shlex
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Rule

OWN_PREFIX = "LABSPAN-"

Options = t.Tuple[t.Tuple[str, str], ...]
"""A rule as sorted pairs of option and value; C(!) before the option's name negates it."""


class World(t.NamedTuple):
    """One of the four places where rules of iptables live: the kernel keeps C(nft) and C(legacy) apart."""

    flavour: str
    family: int

    def __str__(self) -> str:
        return f"{'ip6tables' if self.family == 6 else 'iptables'}-{self.flavour}"


class Place(t.NamedTuple):
    """What a network owns in one table of one world."""

    world: World
    table: str
    network: str


@dataclasses.dataclass(frozen=True)
class Saved:
    """A table as it is: the chains with their rules, and the policies of the built-in ones."""

    policies: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: t.Mapping[str, tuple[Options, ...]] = dataclasses.field(default_factory=dict)


class Jump(t.NamedTuple):
    """The rule that leads from somebody else's chain into one of ours."""

    parent: str
    chain: str
    effective: bool = True
    """It is there once, and our packets reach it before everything that might drop them."""


@dataclasses.dataclass(frozen=True)
class Own:
    """All of a network in one table of one world; the empty one is falsy."""

    chains: tuple[tuple[str, tuple[Options, ...]], ...] = ()
    jumps: tuple[Jump, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chains or self.jumps)


NOTHING = Own()


def chain_name(network: str, suffix: str) -> str:
    """The name of a chain of ours: at most 28 characters, and readable where the network's name is short."""
    short = network if len(network) <= 15 else f"{network[:8]}.{hashlib.sha256(network.encode()).hexdigest()[:6]}"
    return f"{OWN_PREFIX}{short}-{suffix}"


def is_ours(chain: str, network: str) -> bool:
    """Whether the chain's name is one that this network uses."""
    return chain.rpartition("-")[0] == chain_name(network, "").rstrip("-")


def parse(text: str) -> Saved:
    """One table as iptables-save prints it."""
    policies: dict[str, str] = {}
    rules: dict[str, list[Options]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            policies[chain] = policy
            rules.setdefault(chain, [])
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault(words[1], []).append(options(words[2:]))
    return Saved(policies, {chain: tuple(found) for chain, found in rules.items()})


def options(words: t.Sequence[str]) -> Options:
    """A rule's words as options; C(-m) says nothing that the match's own options do not."""
    found: list[tuple[str, str]] = []
    negated = False
    for word in words:
        if word == "!":
            negated = True
        elif word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            found.append((f"!{word}" if negated else word, ""))
            negated = False
        elif found:
            option, value = found[-1]
            found[-1] = option, f"{value} {word}".strip()
    return tuple(sorted(pair for pair in found if pair[0] != "-m"))


def value(rule: Options, option: str) -> t.Optional[str]:
    """The value of one option of a rule."""
    return next((text for name, text in rule if name == option), None)


def comments(rules: t.Iterable[Options]) -> set[str]:
    """The comments that the rules carry."""
    return {text for rule in rules for name, text in rule if name == "--comment"}


def words(rule: Rule, family: int, comment: str) -> t.Iterator[list[str]]:
    """A rule as iptables takes it: once for each combination of the addresses and types that mean "any of them"."""
    if rule.family not in (None, family):
        return
    for source, destination, icmp_type in itertools.product(
        rule.saddr or (None,), rule.daddr or (None,), rule.icmp_types or (None,)
    ):
        yield [
            *(["-s", source] if source else []),
            *(["-d", destination] if destination else []),
            *(["-i", rule.iif] if rule.iif else []),
            *(["-o", rule.oif] if rule.oif else []),
            *_protocol(rule, icmp_type),
            *(["-m", "addrtype", "--dst-type", "LOCAL"] if rule.local else []),
            *(["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"] if rule.established else []),
            *(["-m", "conntrack", "--ctstate", "DNAT"] if rule.translated else []),
            *["-m", "comment", "--comment", comment],
            *_target(rule),
        ]


def _protocol(rule: Rule, icmp_type: t.Optional[int]) -> list[str]:
    if rule.protocol is None:
        return []
    if icmp_type is not None:
        version6 = rule.protocol == "icmpv6"
        name = "ipv6-icmp" if version6 else "icmp"
        match, option = ("icmp6", "--icmpv6-type") if version6 else ("icmp", "--icmp-type")
        return ["-p", name, "-m", match, option, str(icmp_type)]
    port = ["-m", rule.protocol, "--dport", rule.dport.replace("-", ":")] if rule.dport else []
    return ["-p", rule.protocol, *port]


def _target(rule: Rule) -> list[str]:
    if rule.verdict == "dnat":
        return ["-j", "DNAT", "--to-destination", rule.to or ""]
    if rule.verdict == "masquerade":
        ports = ["--to-ports", rule.to] if rule.to else []
        return ["-j", "MASQUERADE", *ports, *(["--random"] if rule.random else [])]
    return ["-j", rule.verdict.upper()]


def wanted_chain(rules: t.Iterable[Rule], family: int, comment: str) -> tuple[Options, ...]:
    """The rules of one of our chains, in the form in which they are compared."""
    return tuple(options(line) for rule in rules for line in words(rule, family, comment))


def arguments(rule: Options) -> list[str]:
    """A compared rule as words that iptables takes; the inverse of C(options)."""
    matches = {"--dport": value(rule, "-p"), "--icmp-type": "icmp", "--icmpv6-type": "icmp6", "--dst-type": "addrtype"}
    matches.update({"--ctstate": "conntrack", "--comment": "comment"})
    ahead = ["-p", "-s", "-d", "-i", "-o"]
    targets = ["-j", "-g", "--to-destination", "--to-ports", "--random"]
    given = dict(rule)
    line: list[str] = [word for option in ahead if option in given for word in (option, given[option])]
    for option, text in rule:
        if option in ahead or option in targets:
            continue
        match = matches.get(option)
        line += (["-m", match] if match else []) + [option, text]
    for option in targets:
        if option in given:
            line += [option, given[option]] if given[option] else [option]
    return line


def jump_rule(chain: str, comment: str) -> Options:
    """The rule that leads into a chain of ours."""
    return options(["-m", "comment", "--comment", comment, "-j", chain])


def own(saved: Saved, network: str, effective: t.Callable[[str, int], bool]) -> Own:
    """What of a table belongs to a network; C(effective) judges a jump by its chain and position."""
    chains = tuple(sorted((chain, rules) for chain, rules in saved.rules.items() if is_ours(chain, network)))
    jumps: dict[tuple[str, str], list[int]] = {}
    for parent, rules in saved.rules.items():
        for position, rule in enumerate(rules):
            target = value(rule, "-j") or value(rule, "-g") or ""
            if is_ours(target, network) and not is_ours(parent, network):
                jumps.setdefault((parent, target), []).append(position)
    return Own(
        chains,
        tuple(
            Jump(parent, chain, len(positions) == 1 and effective(parent, positions[0]))
            for (parent, chain), positions in sorted(jumps.items())
        ),
    )


def script(table: str, have: Own, want: Own, present: Saved, comment: str) -> str:
    """What makes C(want) of C(have), for iptables-restore with C(--noflush): one transaction."""
    lines = [f"*{table}"]
    had = dict(have.chains)
    kept = dict(want.chains)
    renewed = [chain for chain, rules in want.chains if had.get(chain) != rules]
    # Naming a chain empties it, so only those that change are named.
    lines += [f":{chain} - [0:0]" for chain in renewed]
    for parent, rules in present.rules.items():
        for rule in rules:
            target = value(rule, "-j") or value(rule, "-g") or ""
            if Jump(parent, target, False) in have.jumps or (
                Jump(parent, target) in have.jumps and Jump(parent, target) not in want.jumps
            ):
                lines.append(f"-D {parent} {_line(rule)}")
    for jump in want.jumps:
        if jump not in have.jumps:
            lines.append(f"-I {jump.parent} 1 {_line(jump_rule(jump.chain, comment))}")
    lines += [f"-A {chain} {_line(rule)}" for chain in renewed for rule in kept[chain]]
    gone = [chain for chain in had if chain not in kept]
    lines += [f"-F {chain}" for chain in gone] + [f"-X {chain}" for chain in gone]
    return "\n".join([*lines, "COMMIT", ""])


def _line(rule: Options) -> str:
    return " ".join(word if word.replace("-", "").isalnum() else f'"{word}"' for word in arguments(rule))
