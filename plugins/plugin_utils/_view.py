# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tables and drawings show of lab hosts, made of what the module vmnet_info returned for each.

Guests stand here once, with all their NICs, since that is what a person looks for; a port with nobody known behind it
stands for whatever is plugged in there. All texts are fit to print.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import clean

Data = t.Mapping[str, t.Any]

SCENARIOS = ("private", "routed", "nat", "l2")
#: The scenario does not show, or the bridge is none of ours.
OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network card of a guest, or what is behind a port."""

    bridge: str
    port: str
    mac: str
    addresses: tuple[str, ...]
    """The ones to show first come first; link-local ones only where there are no others."""
    lease: str
    """ISO 8601 in UTC, or nothing."""
    up: t.Optional[bool]
    name: str = ""
    """What it calls itself, in its lease."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What hangs on networks: a guest, or a port of which no guest is known."""

    name: str
    is_guest: bool
    state: str
    nics: tuple[Nic, ...]
    pending: bool = False

    @property
    def runs(self) -> bool:
        """Whether something is there."""
        return self.state in ("running", "up")


@dataclasses.dataclass(frozen=True)
class Network:
    """A bridge, and the network that it is."""

    bridge: str
    name: str
    scenario: str
    subnets: tuple[str, ...]
    uplinks: tuple[str, ...]
    word: str
    """What to call it: its scenario, or whose bridge it is."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of a network in one world, in short."""

    network: str
    world: str
    number: int
    packets: int
    octets: int


@dataclasses.dataclass(frozen=True)
class Host:
    """A lab host; one that was not read has a problem instead of all else."""

    name: str
    problem: str
    reachable: bool
    system: str
    networks: tuple[Network, ...]
    endpoints: tuple[Endpoint, ...]
    rules: tuple[Rules, ...]
    warnings: tuple[str, ...]

    def on(self, network: Network) -> list[tuple[Endpoint, Nic]]:
        """What hangs on the network, a line for each NIC."""
        return [(each, nic) for each in self.endpoints for nic in each.nics if nic.bridge == network.bridge]

    @property
    def guests(self) -> list[Endpoint]:
        """The guests alone."""
        return [each for each in self.endpoints if each.is_guest]


def read_hosts(hosts: t.Any) -> list[Host]:
    """The hosts, in the order in which they were given."""
    if not isinstance(hosts, t.Mapping):
        raise ValueError(
            "needs a dictionary with what vmnet_info returned for each host, by the host's name; "
            f"this is {type(hosts).__name__}."
        )
    return [_host(clean(name), result) for name, result in hosts.items()]


def _host(name: str, result: t.Any) -> Host:
    if not isinstance(result, t.Mapping):
        return _silent(name, f"vmnet_info returned nothing, but {type(result).__name__}", reachable=True)
    if result.get("unreachable"):
        return _silent(name, _text(result, "msg") or "cannot be reached", reachable=False)
    if result.get("failed"):
        return _silent(name, _text(result, "msg") or "vmnet_info failed", reachable=True)
    bridges = _entries(result, "bridges")
    networks = _networks(result, bridges)
    return Host(
        name=name,
        problem="",
        reachable=True,
        system=_system(_mapping(result.get("host"))),
        networks=networks,
        endpoints=_endpoints(result, bridges, networks),
        rules=_rules(result),
        warnings=tuple(map(_sentence, _list(result.get("forward_blockers")))),
    )


def _silent(name: str, problem: str, *, reachable: bool) -> Host:
    return Host(name, problem, reachable, "", (), (), (), ())


def _system(host: Data) -> str:
    kernel, manager = _text(host, "kernel"), _text(host, "service_manager")
    told = "no service manager" if manager == "none" else manager
    return " · ".join(word for word in (kernel and f"Linux {kernel}", told) if word)


# Networks


def _networks(result: Data, bridges: t.Sequence[Data]) -> tuple[Network, ...]:
    by_bridge = {_text(bridge, "name"): bridge for bridge in bridges}
    made: dict[str, Network] = {}
    for network in _entries(result, "networks"):
        name = _text(network, "name")
        bridge = _text(network, "bridge")
        made.setdefault(bridge or name, _network(bridge or name, name, network, by_bridge.get(bridge, {})))
    for name, found in by_bridge.items():
        if name and name not in made:
            made[name] = _network(name, _text(found, "network") or name, {}, found)
    return tuple(made.values())


def _network(bridge: str, name: str, network: Data, found: Data) -> Network:
    scenario = _text(network, "scenario")
    known = scenario if scenario in SCENARIOS else OTHER
    uplinks = [clean(each) for each in _list(network.get("uplinks"))]
    uplinks += [_text(port, "name") for port in _entries(found, "ports") if port.get("kind") == "uplink"]
    addresses = _list(network.get("addresses")) or _list(found.get("addresses"))
    return Network(
        bridge=bridge,
        name=name or bridge,
        scenario=known,
        subnets=_subnets(addresses),
        uplinks=tuple(dict.fromkeys(filter(None, uplinks))),
        word=known if known != OTHER else _text(found, "by") or OTHER,
    )


def _subnets(addresses: t.Iterable[t.Any]) -> tuple[str, ...]:
    found = dict.fromkeys(_address_text(each) for each in addresses)
    return tuple(sorted((each for each in found if each and not _is_link_local(each)), key=_family))


# Guests, and whatever else hangs on the networks


def _endpoints(result: Data, bridges: t.Sequence[Data], networks: t.Sequence[Network]) -> tuple[Endpoint, ...]:
    ports = {
        _text(port, "name"): (_text(bridge, "name"), port) for bridge in bridges for port in _entries(bridge, "ports")
    }
    bridge_of = {network.name: network.bridge for network in reversed(networks)}
    guests = [_guest(guest, ports, bridge_of) for guest in _entries(result, "guests")]
    known = {nic.port for guest in guests for nic in guest.nics} - {""}
    others = [
        _port(bridge, port)
        for name, (bridge, port) in ports.items()
        if name and name not in known and port.get("kind") != "uplink"
    ]
    return (*guests, *others)


def _guest(guest: Data, ports: t.Mapping[str, tuple[str, Data]], bridge_of: t.Mapping[str, str]) -> Endpoint:
    nics = []
    for nic in _entries(guest, "nics"):
        tap = _text(nic, "tap")
        bridge, port = ports.get(tap, ("", {}))
        bridge = bridge or _text(nic, "bridge") or bridge_of.get(_text(nic, "network"), "")
        neighbours = _entries(port, "neighbours")
        own = [each for each in neighbours if _text(each, "mac").lower() == _text(nic, "mac").lower()]
        nics.append(_nic(bridge, tap, port, _text(nic, "mac"), nic, own or neighbours))
    return Endpoint(
        name=_text(guest, "name") or "?",
        is_guest=True,
        state=_text(guest, "state") or "unknown",
        nics=tuple(nics),
        pending=bool(guest.get("pending_restart")),
    )


def _port(bridge: str, port: Data) -> Endpoint:
    neighbours = _entries(port, "neighbours")
    mac = next((_text(each, "mac") for each in neighbours), "")
    nic = _nic(bridge, _text(port, "name"), port, mac, {}, neighbours)
    guest = _text(port, "guest")
    state = "down" if port.get("up") is False else "free" if port.get("carrier") is False else "up"
    return Endpoint(guest or nic.name or nic.port, bool(guest), state, (nic,))


def _nic(bridge: str, tap: str, port: Data, mac: str, nic: Data, neighbours: t.Sequence[Data]) -> Nic:
    addresses = [*_list(nic.get("addresses"))]
    for neighbour in neighbours:
        addresses += _list(neighbour.get("addresses"))
    found = dict.fromkeys(filter(None, map(_address_text, addresses)))
    up = port.get("up")
    return Nic(
        bridge=bridge,
        port=tap,
        mac=mac,
        addresses=tuple(sorted((each for each in found if not _is_link_local(each)), key=_family)) or tuple(found),
        lease=next(filter(None, map(_lease, (nic, *neighbours))), ""),
        up=up if isinstance(up, bool) else None,
        name=next(filter(None, (_text(each, "name") for each in neighbours)), ""),
    )


def _lease(entry: Data) -> str:
    lease = entry.get("lease")
    if isinstance(lease, t.Mapping):
        return _text(lease, "expires") or "unlimited"
    return clean(lease) if isinstance(lease, str) else ""


def _address_text(address: t.Any) -> str:
    return _text(address, "address") if isinstance(address, t.Mapping) else clean(address)


def _is_link_local(address: str) -> bool:
    try:
        return ipaddress.ip_interface(address).is_link_local
    except ValueError:
        return False


def _family(address: str) -> int:
    return 6 if ":" in address else 4


# Rules


def _rules(result: Data) -> tuple[Rules, ...]:
    found: dict[tuple[str, str], list[Data]] = {}
    for rule in _entries(result, "rules"):
        found.setdefault((_text(rule, "network"), _text(rule, "world")), []).append(rule)
    return tuple(
        Rules(
            network=network,
            world=world or "somewhere",
            number=len(rules),
            packets=sum(_number(rule, "packets") for rule in rules),
            octets=sum(_number(rule, "bytes") for rule in rules),
        )
        for (network, world), rules in found.items()
    )


def _sentence(entry: t.Any) -> str:
    if isinstance(entry, t.Mapping):
        return (
            _text(entry, "text")
            or _text(entry, "msg")
            or ", ".join(f"{clean(key)} {clean(entry[key])}" for key in entry)
        )
    return clean(entry)


# Data as it comes


def _text(entry: Data, key: str) -> str:
    value = entry.get(key)
    return "" if value is None or isinstance(value, (t.Mapping, list)) else clean(value)


def _number(entry: Data, key: str) -> int:
    value = entry.get(key)
    return value if isinstance(value, int) else 0


def _list(value: t.Any) -> list[t.Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _mapping(value: t.Any) -> Data:
    return value if isinstance(value, t.Mapping) else {}


def _entries(entry: Data, key: str) -> list[Data]:
    return [each for each in _list(entry.get(key)) if isinstance(each, t.Mapping)]
