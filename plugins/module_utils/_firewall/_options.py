# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what an administrator writes to a network that the firewall can be told about.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import persistence
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import (
    HostAccess,
    Network,
    PortForward,
    family_of,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import MAIN_TABLE, Address, Link, Route
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Network as Subnet

AUTO = "auto"

_PORT_FORWARD: Options = {
    "protocol": {"type": "str", "choices": ["tcp", "udp"]},
    "host_address": {"type": "str"},
    "host_port": {"type": "str", "required": True},
    "guest_address": {"type": "str", "required": True},
    "guest_port": {"type": "str"},
}

#: The argument spec of nat_masquerade.
OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "bridge": {"type": "str"},
    "sources": {"type": "list", "elements": "str"},
    "out_interface": {"type": "str"},
    "masquerade": {"type": "bool"},
    "exclude_destinations": {"type": "list", "elements": "str"},
    "to_ports": {"type": "str"},
    "random": {"type": "bool"},
    "forward": {"type": "bool"},
    "forwarding": {"type": "bool"},
    "persistent": {"type": "str", "choices": ["auto", "true", "false"]},
    "host_services": {"type": "bool"},
    "host_access": {"type": "str", "choices": ["full", "services", "none"]},
    "lan_access": {"type": "bool"},
    "port_forwards": {"type": "list", "elements": "dict", "options": _PORT_FORWARD},
    "backend": {"type": "str", "choices": ["auto", "nftables", "iptables", "iptables_legacy"]},
}

# Not in the argument spec: there the entries of a list could not take them from the top level.
_DEFAULTS: t.Mapping[str, t.Any] = {
    "sources": [],
    "out_interface": AUTO,
    "masquerade": True,
    "exclude_destinations": [],
    "random": False,
    "forward": True,
    "forwarding": True,
    "persistent": AUTO,
    "host_services": True,
    "host_access": "full",
    "port_forwards": [],
    "backend": AUTO,
}

_RTPROT_KERNEL = 2
_RTPROT_RA = 9  # linux/rtnetlink.h
_AF = {4: 2, 6: 10}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One entry of the task, each value checked and canonical; what depends on the host is still open."""

    name: str
    present: bool
    bridge: str
    sources: tuple[Subnet, ...]
    out_interface: str
    masquerade: bool
    exclude: tuple[str, ...]
    to_ports: t.Optional[str]
    random: bool
    forward: bool
    forwarding: bool
    persistent: bool
    """Whether the settings are there after a reboot."""
    lasting: t.Optional[bool]
    """Whether everything is, by files that a unit of ours reads; None leaves them as they are."""
    host_services: bool
    host_access: HostAccess
    lan_access: bool
    port_forwards: tuple[PortForward, ...]
    backend: str


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a host has of interfaces, addresses and routes."""

    links: t.Mapping[str, Link]
    addresses: t.Sequence[Address]
    routes: t.Sequence[Route]

    def default_interface(self, family: int) -> t.Optional[str]:
        """The interface of the default route with the lowest metric."""
        defaults = [route for route in self.default_routes() if route.family == _AF[family]]
        return min(defaults, key=lambda route: route.metric).interface if defaults else None

    def default_routes(self) -> list[Route]:
        """The default routes of the main table."""
        return [
            route
            for route in self.routes
            if route.table == MAIN_TABLE and route.destination is None and route.interface in self.links
        ]

    def advertised(self) -> tuple[str, ...]:
        """The interfaces that have an IPv6 default route from router advertisements."""
        routes = (route for route in self.default_routes() if route.family == _AF[6] and route.protocol == _RTPROT_RA)
        return tuple(dict.fromkeys(route.interface for route in routes if route.interface))

    def subnets(self, interface: str) -> tuple[Subnet, ...]:
        """The subnets of an interface's addresses, link-local ones aside."""
        found = (entry.address.network for entry in self.addresses if entry.interface == interface)
        return tuple(dict.fromkeys(subnet for subnet in found if not subnet.is_link_local))

    def address(self, interface: t.Optional[str], family: int) -> t.Optional[str]:
        """The first address of an interface that others on its link can use as a gateway, link-local ones aside."""
        for entry in self.addresses:
            if entry.interface == interface and entry.family == _AF[family] and not entry.address.is_link_local:
                return str(entry.address.ip)
        return None


def asked(params: t.Mapping[str, t.Any], where: str) -> Asked:
    """Check one entry; C(where) stands before the option names in errors, such as C(networks[0].)."""
    given = {**_DEFAULTS, **{option: value for option, value in params.items() if value is not None}}
    name = _values.object_name(f"{where}name", given["name"])
    out_interface = given["out_interface"]
    if out_interface != AUTO:
        _values.interface_name(f"{where}out_interface", out_interface)
    masquerade = given["masquerade"]
    return Asked(
        name=name,
        present=given["state"] == "present",
        bridge=_values.interface_name(f"{where}bridge", given.get("bridge") or name),
        sources=_subnets(f"{where}sources", given["sources"]),
        out_interface=out_interface,
        masquerade=masquerade,
        exclude=tuple(
            str(subnet) for subnet in _subnets(f"{where}exclude_destinations", given["exclude_destinations"])
        ),
        to_ports=_ports(f"{where}to_ports", given["to_ports"]) if "to_ports" in given else None,
        random=given["random"],
        forward=given["forward"],
        forwarding=given["forwarding"],
        persistent=given["persistent"] != "false",
        lasting=persistence(given["persistent"]),
        host_services=given["host_services"],
        host_access=HostAccess(given["host_access"]),
        lan_access=given.get("lan_access", not masquerade),
        port_forwards=port_forwards(f"{where}port_forwards", given["port_forwards"]),
        backend=given["backend"],
    )


def _subnets(option: str, texts: t.Iterable[str]) -> tuple[Subnet, ...]:
    subnets = tuple(dict.fromkeys(_values.network(option, text) for text in texts))
    for position, subnet in enumerate(subnets):
        for other in subnets[position + 1 :]:
            if subnet.overlaps(other):
                raise InvalidInput(
                    option, str(other), f"overlaps {subnet}, which is listed too; list each address once."
                )
    return tuple(sorted(subnets, key=lambda subnet: (subnet.version, subnet)))


def _ports(option: str, text: str) -> str:
    first, dash, last = str(text).partition("-")
    numbers = [int(number) for number in (first, last) if number.isdigit()]
    if len(numbers) != (2 if dash else 1) or not all(0 < number < 65536 for number in numbers):
        raise InvalidInput(option, text, "is not a port or a range of ports, such as 8080 or 8000-8010.")
    if dash and numbers[0] >= numbers[1]:
        raise InvalidInput(option, text, "is not a range: the first port must be the lower one.")
    return "-".join(str(number) for number in numbers)


def port_forwards(option: str, entries: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[PortForward, ...]:
    """The forwards of a network, none of which takes another one's port."""
    forwards = tuple(port_forward(f"{option}[{number}]", entry) for number, entry in enumerate(entries))
    for position, forward in enumerate(forwards):
        for other in forwards[position + 1 :]:
            if same_port(forward, other):
                raise InvalidInput(
                    f"{option}[].host_port",
                    other.host_port,
                    f"({other.protocol}) is forwarded twice; give each port one guest.",
                )
    return forwards


def same_port(one: PortForward, other: PortForward) -> bool:
    """Whether both are for the same port of the host."""
    same = (one.family, one.protocol) == (other.family, other.protocol)
    hosts = {one.host_address, other.host_address}
    return same and (len(hosts) == 1 or None in hosts) and _overlap(one.host_port, other.host_port)


def port_forward(option: str, entry: t.Mapping[str, t.Any]) -> PortForward:
    """Check one forward."""
    guest = _address(f"{option}.guest_address", entry["guest_address"])
    host = entry.get("host_address")
    host = _address(f"{option}.host_address", host) if host else None
    if host and family_of(host) != family_of(guest):
        raise InvalidInput(f"{option}.host_address", host, f"is of another IP version than the guest's {guest}.")
    host_port = _ports(f"{option}.host_port", entry["host_port"])
    guest_port = _ports(f"{option}.guest_port", entry.get("guest_port") or host_port)
    if "-" in host_port + guest_port and host_port != guest_port:
        raise InvalidInput(
            f"{option}.guest_port", guest_port, f"differs from host_port {host_port}; a range keeps its port numbers."
        )
    return PortForward(entry.get("protocol") or "tcp", host, host_port, guest, guest_port)


def _address(option: str, text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError as error:
        raise InvalidInput(option, text, f"is not an IP address ({error}).") from None


def _overlap(one: str, other: str) -> bool:
    (first, last), (start, end) = (_bounds(ports) for ports in (one, other))
    return first <= end and start <= last


def _bounds(ports: str) -> tuple[int, int]:
    first, _dash, last = ports.partition("-")
    return int(first), int(last or first)


def check_together(entries: t.Sequence[Asked]) -> None:
    """Refuse entries that contradict each other."""
    present = [entry for entry in entries if entry.present]
    for position, entry in enumerate(present):
        for other in present[position + 1 :]:
            if entry.bridge == other.bridge:
                raise InvalidInput(
                    "bridge",
                    entry.bridge,
                    f"is the bridge of both {entry.name} and {other.name}; list all of its subnets in one network.",
                )
            for subnet in entry.sources:
                clash = next((source for source in other.sources if source.overlaps(subnet)), None)
                if clash is not None:
                    raise InvalidInput("sources", str(clash), f"of {other.name} overlaps {subnet} of {entry.name}.")
            for forward in entry.port_forwards:
                rival = next((rival for rival in other.port_forwards if same_port(forward, rival)), None)
                if rival is not None:
                    raise InvalidInput(
                        "port_forwards[].host_port",
                        rival.host_port,
                        f"({rival.protocol}) is forwarded by both {entry.name} and {other.name}; give each port one "
                        "guest.",
                    )


def resolve(entry: Asked, host: Surroundings, warn: t.Callable[[str], None]) -> Network:
    """The network with everything decided that the options leave to the host."""
    sources = _sources(entry, host, warn)
    uplink4, uplink6 = _uplinks(entry, host, sources)
    towards_bridge = entry.out_interface == entry.bridge
    if towards_bridge and entry.masquerade:
        form = (
            f"sources: [{sources[0] if sources else '192.168.1.0/24'}], out_interface: {uplink4 or uplink6 or 'auto'}"
        )
        warn(
            f"out_interface: {entry.bridge} is the bridge itself: what goes to the guests is masqueraded, not what "
            f"they send to the internet. To reach the internet, write {form}."
        )
    _check_routed(entry, sources, host)
    _check_guests(entry, sources)
    return Network(
        name=entry.name,
        bridge=entry.bridge,
        sources=tuple(str(source) for source in sources),
        uplink4=uplink4,
        uplink6=uplink6,
        masquerade=entry.masquerade,
        towards_bridge=towards_bridge,
        exclude=entry.exclude,
        to_ports=entry.to_ports,
        random=entry.random,
        lan_access=entry.lan_access,
        host_access=entry.host_access,
        host_services=entry.host_services,
        port_forwards=entry.port_forwards,
    )


def _sources(entry: Asked, host: Surroundings, warn: t.Callable[[str], None]) -> tuple[Subnet, ...]:
    bridge = host.links.get(entry.bridge)
    if bridge is None:
        warn(
            f"bridge: {entry.bridge} does not exist on this host yet. The rules match it by name; forwarding is "
            "switched on by the next run after it was made."
        )
    elif bridge.kind != "bridge":
        kind = f"a {bridge.kind}" if bridge.kind else "a network card"
        raise Refused(f"bridge: {entry.bridge} is no bridge but {kind}. Name the bridge that it is a port of.")
    if entry.sources:
        return entry.sources
    derived = tuple(sorted(host.subnets(entry.bridge), key=lambda subnet: (subnet.version, subnet)))
    if derived:
        return derived
    warn(
        f"sources: the network {entry.name} names no subnet and {entry.bridge} has no address: whatever leaves is "
        "treated as the guests', and senders are not checked. List the guests' subnets in sources."
    )
    return ()


def _uplinks(entry: Asked, host: Surroundings, sources: t.Sequence[Subnet]) -> tuple[t.Optional[str], t.Optional[str]]:
    if entry.out_interface not in (AUTO, entry.bridge):
        if entry.out_interface not in host.links:
            others = ", ".join(sorted(set(host.links) - {"lo", entry.bridge})) or "none"
            raise InvalidInput(
                "out_interface", entry.out_interface, f"does not exist on this host; other interfaces are: {others}."
            )
        return entry.out_interface, entry.out_interface
    defaults = {family: host.default_interface(family) for family in (4, 6)}
    if entry.out_interface == AUTO and not any(defaults.values()):
        raise InvalidInput(
            "out_interface", AUTO, "finds no default route on this host; name the interface that leads to the LAN."
        )
    if entry.out_interface == AUTO and entry.bridge in defaults.values():
        raise InvalidInput(
            "out_interface",
            AUTO,
            f"finds that this host's default route leads through {entry.bridge} itself; name another interface.",
        )
    # The other version's route may come later, by a router advertisement: then it most likely comes over the same NIC.
    return defaults[4] or defaults[6], defaults[6] or defaults[4]


def _check_routed(entry: Asked, sources: t.Sequence[Subnet], host: Surroundings) -> None:
    for route in host.routes:
        connected = route.protocol == _RTPROT_KERNEL and route.table == MAIN_TABLE and route.destination is not None
        if not connected or route.interface in (entry.bridge, None) or route.destination is None:
            continue
        if route.destination.is_link_local or route.destination.is_multicast:
            continue
        clash = next((source for source in sources if source.overlaps(route.destination)), None)
        if clash is not None:
            raise Refused(
                f"sources: {clash} of the network {entry.name} overlaps {route.destination}, which this host reaches "
                f"through {route.interface}. Choose a subnet that is used nowhere else."
            )


def _check_guests(entry: Asked, sources: t.Sequence[Subnet]) -> None:
    """What is forwarded to elsewhere gets no answer: guests send from their own subnets only."""
    for number, forward in enumerate(entry.port_forwards):
        guest = ipaddress.ip_address(forward.guest_address)
        if sources and not any(guest in source for source in sources):
            raise InvalidInput(
                f"port_forwards[{number}].guest_address",
                forward.guest_address,
                f"is in none of the subnets of the network {entry.name} ({', '.join(map(str, sources))}), so that "
                "nothing would answer. Correct the address, or list its subnet in sources.",
            )


def lan_routes(network: Network, host: Surroundings) -> tuple[str, ...]:
    """The routes that the LAN needs to reach guests that keep their addresses, as C(ip route add) takes them."""
    if network.masquerade:
        return ()
    gateways = {family: host.address(network.uplink(family), family) for family in network.families}
    return tuple(
        f"{source} via {gateways[family]}"
        for family in network.families
        for source in network.sources_of(family)
        if gateways[family]
    )
