# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What drops the packets of networks that are there, as it is now. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _forward, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import BaseChain
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Hook, Network
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Saved, World

_IP = {4: "ip", 6: "ip6"}

#: Chains and tables by which their makers are known.
_MAKERS = {
    "docker": ("DOCKER-USER", "DOCKER", "DOCKER-FORWARD", "docker-bridges"),
    "firewalld": ("firewalld", "FORWARD_IN_ZONES", "FWDI_public"),
    "libvirt": ("LIBVIRT_FWI", "LIBVIRT_FWX", "libvirt_network"),
    "ufw": ("ufw-before-forward", "ufw6-before-forward"),
}


class Blocker(t.NamedTuple):
    """Who drops what a network forwards, and where."""

    network: str
    world: str
    family: str
    table: str
    chain: str
    by: t.Optional[str]
    text: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """A network whose packets are to pass."""

    network: Network
    families: t.Collection[int]
    """The IP versions of these packets."""
    forwards: bool
    """Whether they are to leave the bridge. If not, they only pass from port to port of it."""

    @property
    def interfaces(self) -> tuple[str, ...]:
        return _forward.interfaces_of(self.network) if self.forwards else (self.network.bridge,)

    @property
    def what(self) -> str:
        name = self.network.name
        if self.forwards:
            return f"what the network {name} forwards"
        return f"what passes from guest to guest of the network {name}, which br_netfilter shows to it"


def makers(survey: Survey) -> list[str]:
    """Who else has rules on the host, as far as that shows."""
    names = {chain.name for chain in survey.chains} | {chain.table.name for chain in survey.chains}
    for saved in survey.filters.values():
        names |= set(saved.rules) if saved else set()
    return [maker for maker, known in _MAKERS.items() if names.intersection(known)]


def blockers(survey: Survey, traffic: Traffic) -> list[Blocker]:
    """Everything that drops the packets of one network."""
    network = traffic.network
    found = []
    for world, saved in survey.filters.items():
        if world.family in traffic.families and saved is not None and _drops(saved, traffic):
            found.append(_of_xtables(world, saved, traffic))
    for chain in survey.chains:
        if not set(_forward.FAMILIES_OF_TABLES.get(chain.table.family, ())) & set(traffic.families):
            continue
        if chain.table.name == "firewalld":
            if chain.hook == "forward":
                found.append(_of_firewalld(chain, traffic))
        elif _forward.drops_natively(survey, chain, network, Hook.FORWARD):
            found.append(_of_nftables(chain, traffic))
    return found


def _drops(saved: Saved, traffic: Traffic) -> bool:
    interfaces = traffic.interfaces
    if not _forward.drops(saved, Hook.FORWARD, interfaces):
        return False
    owned = _xtables.own(saved, traffic.network.name, _forward.in_front(saved, interfaces))
    return not any(jump.effective and jump.parent in ("FORWARD", _forward.DOCKER_USER) for jump in owned.jumps)


def _of_xtables(world: World, saved: Saved, traffic: Traffic) -> Blocker:
    network = traffic.network
    policy = saved.policies.get("FORWARD")
    how = f"policy {policy}" if policy == "DROP" else "a rule of it, or of a chain that it leads to"
    known = makers(Survey((), {world: saved}))
    parent = _forward.parent(saved, Hook.FORWARD, traffic.interfaces)
    remedy = f"Accept what enters and leaves {network.bridge} in the chain {parent} there"
    if traffic.forwards and _forward.manager(saved) is None:
        remedy = f"Run nat_masquerade with forward: true, or accept what enters and leaves {network.bridge} there"
    return Blocker(
        network.name,
        f"iptables-{world.flavour}",
        _IP[world.family],
        "filter",
        "FORWARD",
        known[0] if known else None,
        f"the chain FORWARD of {world} drops {traffic.what} ({how}), and no accept of the network stands in front of "
        f"that. {remedy}.",
    )


def _of_firewalld(chain: BaseChain, traffic: Traffic) -> Blocker:
    bridge = traffic.network.bridge
    return _of_chain(
        chain,
        traffic,
        "firewalld",
        f"firewalld rejects {traffic.what}, unless a zone or policy of it says otherwise. Put {bridge} into a zone of "
        "its own, with a policy from it to the others that accepts.",
    )


def _of_nftables(chain: BaseChain, traffic: Traffic) -> Blocker:
    known = makers(Survey((chain,), {}))
    return _of_chain(
        chain,
        traffic,
        known[0] if known else None,
        f"the chain {chain.name} of the nftables table {chain.table} drops {traffic.what} (policy drop), and no rule "
        f"in another table can undo that. Accept what enters and leaves {traffic.network.bridge} in that chain.",
    )


def _of_chain(chain: BaseChain, traffic: Traffic, manager: t.Optional[str], text: str) -> Blocker:
    table = chain.table
    return Blocker(traffic.network.name, "nftables", table.family, table.name, chain.name, manager, text)
