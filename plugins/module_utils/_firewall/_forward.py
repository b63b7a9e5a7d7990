# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who on this host drops what our networks forward, and where an accept would help. Pure.

An accept ends only the chain that it stands in, and a drop anywhere is final: an accept has to stand in front of the
drop, in the same world of rules, and in front of whatever leaves the chain before the accept is reached.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import BaseChain
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Hook, Network
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import OWN_PREFIX, Options, Saved, World
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import value as option_of

#: Docker's chain for the administrator's own rules; what it accepts, Docker does not look at.
DOCKER_USER = "DOCKER-USER"

_FIREWALLD = (
    "firewalld rejects {what}. Put {bridge} into a zone of its own, with a policy from it to the others that accepts "
    "(firewall-cmd --permanent --new-zone=... and --new-policy=...; docs/firewall.md has all of it)."
)
_MANAGERS = {"ufw": "ufw drops {what}. Allow it there: {commands}.", "firewalld": _FIREWALLD}
_UFW_CHAINS = ("ufw-before-forward", "ufw6-before-forward")
_FIREWALLD_CHAINS = ("FORWARD_IN_ZONES", "FWDI_public")
#: Family of nftables -> the IP versions whose packets it sees.
FAMILIES_OF_TABLES: t.Mapping[str, tuple[int, ...]] = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "bridge": (4, 6)}
_XTABLES_FAMILY = {"ip": 4, "ip6": 6}


@dataclasses.dataclass(frozen=True)
class Survey:
    """All that others have that could drop our packets."""

    chains: tuple[BaseChain, ...]
    filters: t.Mapping[World, t.Optional[Saved]]
    """The filter tables of iptables that exist; None for one that no program of the host can read and write."""


def parent(saved: Saved, hook: Hook, interfaces: t.Collection[str]) -> str:
    """The chain in which our jump has to stand: Docker's where all our packets reach that, else the built-in one."""
    for rule in saved.rules.get(hook.builtin, ()) if hook is Hook.FORWARD else ():
        if option_of(rule, "-j") == DOCKER_USER and {name for name, _value in rule} <= {"-j", "--comment"}:
            return DOCKER_USER
        if _keeps_from_the_next(saved, hook.builtin, rule, interfaces):
            break
    return hook.builtin


def drops(saved: Saved, hook: Hook, interfaces: t.Collection[str]) -> bool:
    """Whether packets that come from and go to C(interfaces) can meet a drop at this hook."""
    if saved.policies.get(hook.builtin) == "DROP":
        return True
    return any(may_drop(saved, rule, interfaces) for rule in saved.rules.get(hook.builtin, ()))


def may_drop(saved: Saved, rule: Options, interfaces: t.Collection[str], seen: frozenset[str] = frozenset()) -> bool:
    """Whether a rule, or a chain that it leads to, can drop such packets."""
    target = option_of(rule, "-j") or option_of(rule, "-g") or ""
    if target in seen or target.startswith(OWN_PREFIX) or not _can_match(rule, interfaces):
        return False
    if target in ("DROP", "REJECT"):
        return True
    return any(may_drop(saved, inner, interfaces, seen | {target}) for inner in saved.rules.get(target, ()))


def _can_match(rule: Options, interfaces: t.Collection[str]) -> bool:
    if option_of(rule, "--ctstate") == "INVALID" or option_of(rule, "--state") == "INVALID":
        return False
    return all(
        any(_same(pattern, interface) for interface in interfaces) for option, pattern in rule if option in ("-i", "-o")
    )


def _same(pattern: str, interface: str) -> bool:
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern


def in_front(saved: Saved, interfaces: t.Collection[str]) -> t.Callable[[str, int], bool]:
    """Judges whether our packets reach a jump at a position of a chain, before everything that may drop them."""

    def judge(chain: str, position: int) -> bool:
        if chain == DOCKER_USER and parent(saved, Hook.FORWARD, interfaces) != DOCKER_USER:
            return False
        return not any(_keeps_from_the_next(saved, chain, rule, interfaces) for rule in saved.rules[chain][:position])

    return judge


def _keeps_from_the_next(saved: Saved, chain: str, rule: Options, interfaces: t.Collection[str]) -> bool:
    """Whether such packets may not get past a rule of a chain, and are not accepted either."""
    if may_drop(saved, rule, interfaces):
        return True
    leaves = option_of(rule, "-j") == "RETURN" or option_of(rule, "-g") is not None
    # What leaves a built-in chain meets its policy.
    return leaves and saved.policies.get(chain) != "ACCEPT" and _can_match(rule, interfaces)


def manager(saved: t.Optional[Saved]) -> t.Optional[str]:
    """The firewall manager whose chains stand in a filter table."""
    if saved is None:
        return None
    if any(chain in saved.rules for chain in _UFW_CHAINS):
        return "ufw"
    return "firewalld" if any(chain in saved.rules for chain in _FIREWALLD_CHAINS) else None


def blockers(survey: Survey, network: Network, hook: Hook = Hook.FORWARD) -> list[str]:
    """What drops the network's packets and is not ours to open, a sentence each."""
    found = _manager_blockers(survey, network, hook)
    what = _what(network, hook)
    for chain in survey.chains:
        if not drops_natively(survey, chain, network, hook):
            continue
        found.append(
            f"the chain {chain.name} of the nftables table {chain.table} drops {what} (policy drop), and no rule in "
            f"another table can undo that. Accept what enters and leaves {network.bridge} in that chain."
        )
    return list(dict.fromkeys(found))


def _manager_blockers(survey: Survey, network: Network, hook: Hook) -> list[str]:
    names = {
        manager(saved)
        for world, saved in survey.filters.items()
        if saved and world.family in network.families and drops(saved, hook, interfaces_of(network))
    }
    if any(chain.table.name == "firewalld" for chain in survey.chains):
        names.add("firewalld")
    text = {"what": _what(network, hook), "bridge": network.bridge, "commands": "; ".join(_ufw(network, hook))}
    return [_MANAGERS[name].format(**text) for name in sorted(name for name in names if name)]


def _ufw(network: Network, hook: Hook) -> t.Iterator[str]:
    """What ufw is to be told, answers apart, which it lets pass by itself."""
    bridge = network.bridge
    if hook is Hook.FORWARD:
        for uplink in network.uplinks:
            yield f"ufw route allow in on {bridge} out on {uplink}"
            if network.lan_access or network.port_forwards:
                yield f"ufw route allow in on {uplink} out on {bridge}"
        if not network.uplinks:
            yield f"ufw route allow in on {bridge}"
    if network.host_services:
        yield f"ufw allow in on {bridge}"


def _what(network: Network, hook: Hook) -> str:
    if hook is Hook.FORWARD:
        return f"what the network {network.name} forwards"
    return f"what guests of the network {network.name} send to the host"


def drops_natively(survey: Survey, chain: BaseChain, network: Network, hook: Hook) -> bool:
    """Whether a base chain of nftables drops, by its policy, what the network sends past this hook."""
    table = chain.table
    families = FAMILIES_OF_TABLES.get(table.family, ())
    if chain.hook != hook.hook or chain.policy != "drop" or table.name == "firewalld":
        return False
    if not set(families) & set(network.families):
        return False
    family = _XTABLES_FAMILY.get(table.family)
    if family and table.name == "filter" and chain.name == hook.builtin:
        # iptables-nft keeps its rules here, and what it can read it can also write.
        return survey.filters.get(World("nft", family)) is None
    return True


def interfaces_of(network: Network) -> tuple[str, ...]:
    """The interfaces between which the network's packets pass."""
    return (network.bridge, *network.uplinks)
