# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a network may and may not do, as rules that know no backend. Pure.

A rule has only positive matches, so that every backend can say it: what is allowed comes first, and what then still
enters or leaves the bridge is dropped. C(accept) lets a packet pass for good, C(return) only says that this network has
no objection: the host's own firewall decides.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import enum
import typing as t

ANY_HOST = ("0.0.0.0/32", "fe80::/10", "::/128")
"""Sources that a guest uses before it has an address, and on its own link."""

_ICMP_ECHO = (8,)
_ICMPV6_ECHO = (128,)
# Multicast listener and neighbour discovery (RFC 4443, RFC 3810): without them the host is no gateway.
_ICMPV6_LINK = (131, 132, 133, 135, 136, 143)


class Hook(enum.Enum):
    """Where a chain of ours looks at packets: nft's chain name, type and priority, and the iptables table and chain."""

    # The translations stand just before those of iptables, Docker and libvirt: the first one that translates decides.
    PREROUTING = ("prerouting", "nat", -105, "PRE")
    OUTPUT = ("output", "nat", -105, "OUT")
    POSTROUTING = ("postrouting", "nat", 95, "POST")
    FORWARD = ("forward", "filter", 0, "FWD")
    INPUT = ("input", "filter", 0, "IN")

    def __init__(self, hook: str, table: str, priority: int, suffix: str) -> None:
        self.hook = hook
        self.table = table
        self.priority = priority
        self.suffix = suffix

    @property
    def builtin(self) -> str:
        """The chain of iptables."""
        return self.hook.upper()


class HostAccess(enum.Enum):
    """What guests may begin towards the host."""

    FULL = "full"
    SERVICES = "services"
    NONE = "none"


@dataclasses.dataclass(frozen=True)
class PortForward:
    """A port of the host that leads to a guest. Ports are C(80) or C(8000-8010)."""

    protocol: str
    host_address: t.Optional[str]
    host_port: str
    guest_address: str
    guest_port: str

    @property
    def family(self) -> int:
        return family_of(self.guest_address)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as the firewall sees it; everything that the options left open is decided."""

    name: str
    bridge: str
    sources: tuple[str, ...]
    """The guests' subnets; empty when nobody knows them."""
    uplink4: t.Optional[str]
    uplink6: t.Optional[str]
    masquerade: bool = True
    towards_bridge: bool = False
    """Note 000's form: what leaves for the guests is masqueraded, not what leaves for the world."""
    exclude: tuple[str, ...] = ()
    to_ports: t.Optional[str] = None
    random: bool = False
    lan_access: bool = False
    host_access: HostAccess = HostAccess.FULL
    host_services: bool = True
    port_forwards: tuple[PortForward, ...] = ()

    @property
    def families(self) -> tuple[int, ...]:
        """The IP versions that guests have a subnet in; both when nobody knows."""
        return tuple(family for family in (4, 6) if not self.sources or self.sources_of(family))

    def sources_of(self, family: int) -> tuple[str, ...]:
        return tuple(source for source in self.sources if family_of(source) == family)

    def uplink(self, family: int) -> t.Optional[str]:
        return self.uplink4 if family == 4 else self.uplink6

    @property
    def uplinks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in (self.uplink4, self.uplink6) if name))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule. Several addresses or ICMP types in one match mean any of them."""

    verdict: str
    """C(accept), C(drop), C(return), C(masquerade) or C(dnat)."""
    family: t.Optional[int] = None
    iif: t.Optional[str] = None
    oif: t.Optional[str] = None
    saddr: tuple[str, ...] = ()
    daddr: tuple[str, ...] = ()
    local: bool = False
    """The destination is an address of this host."""
    protocol: t.Optional[str] = None
    dport: t.Optional[str] = None
    icmp_types: tuple[int, ...] = ()
    established: bool = False
    translated: bool = False
    """The destination was translated: the packet came through a port forward."""
    to: t.Optional[str] = None
    """Where C(dnat) leads, or the ports that C(masquerade) uses."""
    random: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
    """Our rules at one hook."""

    hook: Hook
    rules: tuple[Rule, ...]


def family_of(address: str) -> int:
    """The IP version of an address or network."""
    return 6 if ":" in address else 4


def chains(network: Network) -> tuple[Chain, ...]:
    """All rules of a network, by hook."""
    made = (
        Chain(Hook.PREROUTING, tuple(_port_forwards(network))),
        Chain(Hook.OUTPUT, tuple(_port_forwards_of_host(network))),
        Chain(Hook.POSTROUTING, tuple(_translation(network))),
        Chain(Hook.FORWARD, tuple(_forward(network))),
        Chain(Hook.INPUT, tuple(_input(network))),
    )
    return tuple(chain for chain in made if chain.rules)


def accepts(chain: Chain) -> tuple[Rule, ...]:
    """What of a chain has to pass: the rules that are put where somebody else would drop."""
    return tuple(rule for rule in chain.rules if rule.verdict == "accept")


def _by_source(network: Network, **match: t.Any) -> t.Iterator[Rule]:
    """The rule for what guests send, once for each family they have; without known subnets once for all."""
    if not network.sources:
        yield Rule(iif=network.bridge, **match)
    for family in network.families if network.sources else ():
        yield Rule(iif=network.bridge, family=family, saddr=network.sources_of(family), **match)


def _forward(network: Network) -> t.Iterator[Rule]:
    bridge = network.bridge
    # With br_netfilter, frames from port to port pass here too.
    yield Rule("accept", iif=bridge, oif=bridge)
    yield Rule("accept", oif=bridge, established=True)
    yield from _by_source(network, verdict="accept", established=True)
    for family in network.families:
        uplink = network.uplink(family)
        sources = network.sources_of(family)
        if uplink is None:
            continue
        yield Rule("accept", family=family, iif=bridge, oif=uplink, saddr=sources)
        if network.lan_access:
            yield Rule("accept", family=family, iif=uplink, oif=bridge, daddr=sources)
    for forward in network.port_forwards:
        yield Rule("accept", oif=bridge, translated=True, **_to_guest(forward))
    yield Rule("drop", iif=bridge)
    yield Rule("drop", oif=bridge)


def _to_guest(forward: PortForward) -> dict[str, t.Any]:
    return {
        "family": forward.family,
        "daddr": (_single(forward.guest_address),),
        "protocol": forward.protocol,
        "dport": forward.guest_port,
    }


def _input(network: Network) -> t.Iterator[Rule]:
    bridge = network.bridge
    passes = "accept" if network.host_services else "return"
    for family in (4, 6):
        # Guests without a known subnet may use any source; else only their own, and those of hosts without address.
        sources = tuple(source for source in (*network.sources, *ANY_HOST) if family_of(source) == family)
        match: dict[str, t.Any] = {"family": family, "iif": bridge, "saddr": sources if network.sources else ()}
        yield from _services(match, passes, network.host_access)
        if network.host_access is HostAccess.FULL:
            yield Rule("return", **match)
        else:
            yield Rule("return", established=True, **match)
    yield Rule("drop", iif=bridge)
    if network.sources and not network.lan_access:
        # The host answers for all of its addresses on all interfaces, the gateway's included.
        yield Rule("return", iif="lo")
        for family in network.families:
            yield Rule("drop", family=family, daddr=network.sources_of(family))


def _services(match: dict[str, t.Any], verdict: str, access: HostAccess) -> t.Iterator[Rule]:
    version6 = match["family"] == 6
    icmp = "icmpv6" if version6 else "icmp"
    if version6:
        yield Rule(verdict, protocol=icmp, icmp_types=_ICMPV6_LINK, **match)
    if access is HostAccess.NONE:
        return
    yield Rule(verdict, protocol=icmp, icmp_types=_ICMPV6_ECHO if version6 else _ICMP_ECHO, **match)
    yield Rule(verdict, protocol="udp", dport="547" if version6 else "67", **match)
    yield Rule(verdict, protocol="udp", dport="53", **match)
    yield Rule(verdict, protocol="tcp", dport="53", **match)


def _port_forwards(network: Network) -> t.Iterator[Rule]:
    for forward in network.port_forwards:
        address = forward.host_address
        yield Rule(
            "dnat",
            family=forward.family,
            local=address is None,
            daddr=(_single(address),) if address else (),
            protocol=forward.protocol,
            dport=forward.host_port,
            to=_target(forward),
        )


def _port_forwards_of_host(network: Network) -> t.Iterator[Rule]:
    families = {forward.family for forward in network.port_forwards}
    # Port 80 of 127.0.0.1 stays the host's own; a guest could not answer to that address either.
    yield from (Rule("return", family=4, daddr=("127.0.0.0/8",)) for family in families if family == 4)
    yield from (Rule("return", family=6, daddr=("::1/128",)) for family in families if family == 6)
    yield from _port_forwards(network)


def _target(forward: PortForward) -> str:
    address = f"[{forward.guest_address}]" if forward.family == 6 else forward.guest_address
    # A range keeps its port numbers: the address alone is translated.
    return forward.guest_address if "-" in forward.guest_port else f"{address}:{forward.guest_port}"


def _translation(network: Network) -> t.Iterator[Rule]:
    bridge = network.bridge
    for forward in network.port_forwards:
        # A guest that comes back through a port forward: the answer must pass the host again.
        sources = network.sources_of(forward.family)
        if sources:
            yield Rule("masquerade", oif=bridge, saddr=sources, translated=True, **_to_guest(forward))
    if not network.masquerade:
        return
    if network.towards_bridge:
        for family in network.families if network.sources else ():
            yield Rule("return", family=family, oif=bridge, saddr=network.sources_of(family))
        yield from _masquerades(network, oif=bridge)
        return
    for family in network.families:
        uplink = network.uplink(family)
        if uplink is None:
            continue
        match: dict[str, t.Any] = {"family": family, "oif": uplink, "saddr": network.sources_of(family)}
        excluded = tuple(excluded for excluded in network.exclude if family_of(excluded) == family)
        if excluded:
            yield Rule("return", daddr=excluded, **match)
        yield from _masquerades(network, **match)


def _masquerades(network: Network, **match: t.Any) -> t.Iterator[Rule]:
    if network.to_ports:
        for protocol in ("tcp", "udp"):
            yield Rule("masquerade", protocol=protocol, to=network.to_ports, random=network.random, **match)
    yield Rule("masquerade", random=network.random, **match)


def _single(address: str) -> str:
    return f"{address}/{128 if family_of(address) == 6 else 32}"
