# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Networks as data: what belongs to each, and which scenario that makes. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _dnsmasq
from ansible_collections.labspan.vmnet.plugins.module_utils._info import _bridges
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Files, Seen, Server
from ansible_collections.labspan.vmnet.plugins.module_utils._info._who import Who, reservations

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._blocking import Traffic
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._counted import Rule

Data = t.Dict[str, t.Any]

PRIVATE = "private"
ROUTED = "routed"
NAT = "nat"
L2 = "l2"

_CLOSED = "_closed"
# Guests that come back through a port forward are masqueraded in a routed network, too.
_TRANSLATED = re.compile(r"ct status dnat|--ctstate DNAT")
_MASQUERADES = re.compile(r"\bmasquerade\b|-j MASQUERADE\b")
_LEAVES = re.compile(r'(?:\boifname "|-o )([^"\s]+)')
_RANGE = re.compile(r"^dhcp-range=([0-9.]+),([0-9.]+),", re.MULTILINE)
_DOMAIN = re.compile(r"^domain=(.*)$", re.MULTILINE)


def names(seen: Seen) -> list[str]:
    """Every network of which anything is there."""
    found = {seen.owner(name) for name in seen.links} | set(seen.servers) | set(seen.files)
    found |= set(seen.rules.of) if seen.rules is not None else set()
    found |= {guest.definition.spec.network for guest in seen.guests.values() if guest.definition is not None}
    return sorted(name for name in found if name)


def bridge_of(seen: Seen, network: str) -> t.Optional[str]:
    """The bridge of a network: its own, or the one that its taps or its DHCP server are on."""
    owned = [link for name, link in sorted(seen.links.items()) if seen.owner(name) == network]
    masters = sorted({link.master for link in owned if link.master is not None})
    server = seen.servers.get(network)
    served = [server.bridge] if server is not None and server.bridge in seen.links else []
    return next(
        (name for name in [*(one.name for one in owned if one.kind == "bridge"), *masters, *served] if name), None
    )


def rules_of(seen: Seen, network: str) -> t.Sequence[Rule]:
    """The rules of a network."""
    return seen.rules.of.get(network, ()) if seen.rules is not None else ()


def scenario(seen: Seen, network: str) -> t.Optional[str]:
    """The scenario that what is there of a network makes."""
    bridge = bridge_of(seen, network)
    if bridge is not None and any(_bridges.kind(seen, port) == _bridges.UPLINK for port in seen.ports(bridge)):
        return L2
    rules = rules_of(seen, network)
    if any(rule.table.endswith(_CLOSED) for rule in rules):
        return PRIVATE
    if any(_MASQUERADES.search(rule.text) and not _TRANSLATED.search(rule.text) for rule in rules):
        return NAT
    return ROUTED if any(_is_forwarding(rule) for rule in rules) else None


def uplinks(seen: Seen, network: str) -> list[str]:
    """The interfaces by which the guests of a network leave the host, or the LAN's port of their bridge."""
    bridge = bridge_of(seen, network)
    if bridge is not None:
        ports = [port for port in seen.ports(bridge) if _bridges.kind(seen, port) == _bridges.UPLINK]
        if ports:
            return ports
    found = (name for rule in rules_of(seen, network) for name in _LEAVES.findall(rule.text))
    return [name for name in dict.fromkeys(found) if name != bridge and not rules_are_closed(seen, network)]


def rules_are_closed(seen: Seen, network: str) -> bool:
    """Whether the host is closed off from a network."""
    return any(rule.table.endswith(_CLOSED) for rule in rules_of(seen, network))


def subnets(seen: Seen, bridge: str) -> tuple[str, ...]:
    """The subnets of a bridge's addresses."""
    return tuple(str(ipaddress.ip_interface(address).network) for address in seen.addresses_of(bridge))


def render(seen: Seen, who: Who) -> list[Data]:
    """All networks."""
    return [_network(seen, who, name) for name in names(seen)]


def _network(seen: Seen, who: Who, name: str) -> Data:
    bridge = bridge_of(seen, name)
    kind = scenario(seen, name)
    files = seen.files.get(name, Files())
    server = seen.servers.get(name)
    moved = bridge is not None and bridge in seen.moved
    return {
        "name": name,
        "scenario": kind,
        "bridge": bridge,
        "addresses": seen.addresses_of(bridge) if bridge is not None else [],
        "uplinks": uplinks(seen, name) if kind != PRIVATE else [],
        "backend": _backend(rules_of(seen, name)),
        "persistent": moved or bool(files.unit and files.paths),
        "unit": files.unit,
        "files": list(files.paths),
        "taps": [tap for tap, link in sorted(seen.links.items()) if _bridges.is_tap(link) and seen.owner(tap) == name],
        "guests": guests_of(seen, who, name),
        "ports_guarded": list(seen.rules.guarded.get(name, ())) if seen.rules is not None else [],
        "dhcp": _dhcp(server) if server is not None else None,
    }


def guests_of(seen: Seen, who: Who, network: str) -> list[str]:
    """The guests that have a NIC in a network."""
    return sorted({plug.guest for plug in who.plugs if of_bridge(seen, who.bridge(plug.nic), plug.nic.tap) == network})


def of_bridge(seen: Seen, bridge: t.Optional[str], tap: t.Optional[str]) -> t.Optional[str]:
    """The network of a NIC: its bridge's, or its tap's on a bridge of others."""
    found = seen.owner(bridge) if bridge is not None else None
    return found or (seen.owner(tap) if tap is not None else None)


def _is_forwarding(rule: Rule) -> bool:
    return rule.chain == "forward" if rule.world == "nftables" else rule.chain.endswith(("-FWD", "-ACC"))


def _backend(rules: t.Iterable[Rule]) -> t.Optional[str]:
    for rule in rules:
        native = rule.world == "nftables" and rule.family == "inet" and not rule.table.endswith(_CLOSED)
        if native or rule.chain.endswith("-FWD"):
            return rule.world
    return None


def _dhcp(server: Server) -> Data:
    domain = _DOMAIN.search(server.configuration)
    return {
        "running": server.process is not None,
        "pid": server.process.pid if server.process is not None else None,
        "unit": server.unit,
        "bridge": server.bridge,
        "ranges": [{"start": start, "end": end} for start, end in _RANGE.findall(server.configuration)],
        "domain": domain[1] if domain else None,
        "dns": _dnsmasq.serves_dns(server.configuration),
        "static_leases": [
            {"mac": mac, "address": address, "name": name} for mac, address, name in reservations(server.reservations)
        ],
        "configuration_file": server.configuration_file,
        "lease_file": server.lease_file,
    }


def leases(seen: Seen, who: Who) -> list[Data]:
    """The leases of all servers."""
    found = []
    for network, server in seen.servers.items():
        for lease in server.leases:
            plug = who.plug(lease.mac, server.bridge) or who.plug(lease.mac, None)
            found.append(
                {
                    "network": network,
                    "bridge": server.bridge,
                    "mac": lease.mac,
                    "address": lease.address,
                    "name": lease.name,
                    "expires": lease.expires,
                    "guest": plug.guest if plug is not None else None,
                }
            )
    return found


def rules(seen: Seen) -> list[Data]:
    """The rules of all networks."""
    by_network = seen.rules.of if seen.rules is not None else {}
    return [{"network": name, **rule._asdict()} for name, found in by_network.items() for rule in found]


def traffic(seen: Seen) -> t.Iterator[Traffic]:
    """What of each network has to pass the firewall."""
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._blocking import Traffic
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Network

    for name in names(seen):
        bridge = bridge_of(seen, name)
        kind = scenario(seen, name)
        if bridge is None or kind is None:
            continue
        leaving = kind in (NAT, ROUTED)
        sources = subnets(seen, bridge) if leaving else ()
        out = uplinks(seen, name) if leaving else []
        network = Network(name, bridge, sources, out[0] if out else None, out[1] if len(out) > 1 else None)
        families = network.families if leaving else tuple(seen.bridge_netfilter)
        if families:
            yield Traffic(network, families, leaving)
