# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What dnsmasq is told and what it tells: options checked against the bridge, configuration as text, leases read.

Pure: nothing here looks at the host.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._values import (
    Address,
    interface_name,
    mac_address,
    object_name,
)

#: dnsmasq silently raises shorter lease times to this.
SHORTEST_LEASE = 120

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_LEASE_TIME = re.compile(r"(\d+)([smhdw]?)\Z")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MOST_LEASES = 65536

IP = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Range = t.Tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]


@dataclasses.dataclass(frozen=True)
class Reservation:
    """A static lease: what the guest with this MAC address always gets."""

    mac: str
    address: t.Optional[ipaddress.IPv4Address]
    name: t.Optional[str]


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a task asks of one server, before the bridge is known."""

    name: str
    bridge: str
    present: bool
    ranges: t.Optional[tuple[Range, ...]]
    """None derives the range from the bridge's subnet; empty hands out static leases only."""
    lease_time: t.Optional[int]
    """Seconds; None for leases without end."""
    reservations: tuple[Reservation, ...]
    dns: bool
    dns_servers: t.Optional[tuple[IP, ...]]
    """None forwards to the resolvers of the host."""
    domain: t.Optional[str]
    gateway: t.Union[ipaddress.IPv4Address, bool]
    """True for the bridge's own address, False to announce none."""
    router_advertisements: bool
    ipv6_default_route: bool
    options: tuple[str, ...]
    log_dhcp: bool
    log_queries: bool
    persistent: str = "auto"
    service_manager: str = "auto"


@dataclasses.dataclass(frozen=True)
class Account:
    """Whom dnsmasq becomes once it listens."""

    user: str
    group: str


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where the files of one network's server are."""

    network: str
    state: str = "/var/lib/labspan/dhcp"
    runtime: str = "/run/labspan/dhcp"

    @property
    def configuration(self) -> str:
        return f"{self.state}/{self.network}.conf"

    @property
    def reservations(self) -> str:
        return f"{self.state}/{self.network}.static"

    @property
    def names(self) -> str:
        return f"{self.state}/{self.network}.names"

    @property
    def leases(self) -> str:
        return f"{self.state}/{self.network}.leases"

    @property
    def pid(self) -> str:
        return f"{self.runtime}/{self.network}.pid"

    @property
    def loaded(self) -> str:
        return f"{self.runtime}/{self.network}.loaded"

    @property
    def output(self) -> str:
        return f"{self.runtime}/{self.network}.log"


@dataclasses.dataclass(frozen=True)
class Files:
    """The three texts that dnsmasq reads: the first at its start only, the others also at SIGHUP."""

    configuration: str
    reservations: str
    names: str


@dataclasses.dataclass(frozen=True)
class Lease:
    """A lease that was handed out."""

    mac: str
    address: str
    name: t.Optional[str]
    expires: t.Optional[str]
    """ISO 8601 in UTC; None for a lease without end."""


def read_wish(where: str, options: t.Mapping[str, t.Any]) -> Wish:
    """The wish that the options of one server express; C(where) stands before option names in errors."""
    name = object_name(f"{where}name", options["name"])
    present = options["state"] == "present"
    wish = Wish(
        name=name,
        bridge=_bridge(where, options.get("bridge"), name) if present else "",
        present=present,
        ranges=None,
        lease_time=None,
        reservations=(),
        dns=True,
        dns_servers=None,
        domain=None,
        gateway=True,
        router_advertisements=False,
        ipv6_default_route=False,
        options=(),
        log_dhcp=False,
        log_queries=False,
    )
    if not present:
        return wish
    servers = options.get("dns_servers")
    domain = options.get("domain")
    return dataclasses.replace(
        wish,
        ranges=_ranges(where, options),
        lease_time=_lease_time(f"{where}lease_time", options.get("lease_time") or "12h"),
        reservations=_reservations(where, options.get("leases") or []),
        dns=options.get("dns") is not False,
        dns_servers=None if servers is None else tuple(_ip(f"{where}dns_servers", server) for server in servers),
        domain=_domain(f"{where}domain", domain) if domain else None,
        gateway=_gateway(f"{where}gateway", options.get("gateway")),
        router_advertisements=bool(options.get("router_advertisements")),
        ipv6_default_route=bool(options.get("ipv6_default_route")),
        options=tuple(_dhcp_option(f"{where}options", option) for option in options.get("options") or []),
        log_dhcp=bool(options.get("log_dhcp")),
        log_queries=bool(options.get("log_queries")),
        persistent=options.get("persistent") or "auto",
        service_manager=options.get("service_manager") or "auto",
    )


def _bridge(where: str, bridge: t.Optional[str], network: str) -> str:
    try:
        return interface_name(f"{where}bridge", bridge or network)
    except InvalidInput as error:
        if bridge:
            raise
        raise InvalidInput(
            f"{where}bridge", None, f"is not given, and the network's name {network!r} cannot be a bridge's. Name it."
        ) from error


def _ip(option: str, value: str) -> IP:
    try:
        return ipaddress.ip_address(value.strip())
    except ValueError:
        raise InvalidInput(
            option, value, "is not an IP address; write it without a prefix length, as in 192.168.6.10."
        ) from None


def _ipv4(option: str, value: str) -> ipaddress.IPv4Address:
    address = _ip(option, value)
    if not isinstance(address, ipaddress.IPv4Address):
        raise InvalidInput(
            option, value, "is an IPv6 address; guests configure IPv6 themselves with router_advertisements: true."
        )
    return address


def _ranges(where: str, options: t.Mapping[str, t.Any]) -> t.Optional[tuple[Range, ...]]:
    one, many = options.get("range"), options.get("ranges")
    if one is not None and many is not None:
        raise InvalidInput(f"{where}range", one, "is given beside ranges. Give one of the two.")
    if many is not None:
        ranges = tuple(_range(f"{where}ranges[{index}]", entry) for index, entry in enumerate(many))
    elif one is not None:
        ranges = (_range(f"{where}range", one),)
    else:
        return None
    for earlier, later in zip(sorted(ranges), sorted(ranges)[1:]):
        if later[0] <= earlier[1]:
            raise InvalidInput(f"{where}ranges", str(later[0]), f"is also in the range {earlier[0]} to {earlier[1]}.")
    return ranges


def _range(option: str, entry: t.Mapping[str, str]) -> Range:
    start, end = _ipv4(f"{option}.start", entry["start"]), _ipv4(f"{option}.end", entry["end"])
    if end < start:
        raise InvalidInput(f"{option}.end", str(end), f"comes before the start of the range, {start}.")
    return start, end


def _lease_time(option: str, value: str) -> t.Optional[int]:
    text = value.strip().lower()
    if text == "infinite":
        return None
    found = _LEASE_TIME.match(text)
    if not found:
        raise InvalidInput(
            option, value, "is not a time; write seconds, a number with m, h, d or w as in 12h, or infinite."
        )
    seconds = int(found[1]) * _SECONDS[found[2]]
    if not SHORTEST_LEASE <= seconds < 2**32 - 1:
        raise InvalidInput(option, value, f"is outside of {SHORTEST_LEASE} seconds (dnsmasq's least) to 136 years.")
    return seconds


def _reservations(where: str, entries: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[Reservation, ...]:
    found: list[Reservation] = []
    for index, entry in enumerate(entries):
        option = f"{where}leases[{index}]"
        address, name = entry.get("address"), entry.get("name")
        if not address and not name:
            raise InvalidInput(f"{option}.mac", entry["mac"], "has neither address nor name. Give at least one.")
        found.append(
            Reservation(
                mac_address(f"{option}.mac", entry["mac"]),
                _ipv4(f"{option}.address", address) if address else None,
                _host_name(f"{option}.name", name) if name else None,
            )
        )
    for key in ("mac", "address", "name"):
        seen: dict[t.Any, int] = {}
        for index, reservation in enumerate(found):
            value = getattr(reservation, key)
            if value is not None and value in seen:
                raise InvalidInput(
                    f"{where}leases[{index}].{key}", str(value), f"is also that of leases[{seen[value]}]. Give it once."
                )
            seen[value] = index
    return tuple(found)


def _host_name(option: str, value: str) -> str:
    name = value.strip().lower()
    if not _LABEL.match(name):
        raise InvalidInput(
            option,
            value,
            "is not a host name: up to 63 letters, digits and '-', without a dot. The domain is an option of its own.",
        )
    return name


def _domain(option: str, value: str) -> str:
    domain = value.strip().lower().rstrip(".")
    if len(domain) > 253 or not all(_LABEL.match(label) for label in domain.split(".")):
        raise InvalidInput(option, value, "is not a domain name; write it as in lab.example.")
    return domain


def _gateway(option: str, value: t.Optional[str]) -> t.Union[ipaddress.IPv4Address, bool]:
    if not value:
        return True
    return False if value.strip().lower() == "none" else _ipv4(option, value)


def _dhcp_option(option: str, value: str) -> str:
    text = value.strip()
    # Each becomes a line of the configuration: a line break would smuggle in a directive.
    if not text or not text.isprintable():
        raise InvalidInput(
            option, value, "is not a DHCP option; write it as dnsmasq does, such as option:ntp-server,192.168.6.10."
        )
    return text


def bridge_of(configuration: str) -> t.Optional[str]:
    """The bridge that a configuration is for."""
    found = re.search(r"^interface=(.*)$", configuration, re.MULTILINE)
    return found[1] if found else None


def serves_dns(configuration: str) -> bool:
    """Whether a configuration answers on port 53."""
    return bool(configuration) and not re.search(r"^port=0$", configuration, re.MULTILINE)


def settle(where: str, wish: Wish, addresses: t.Sequence[Address], account: Account) -> Files:
    """The texts for this wish on a bridge with these addresses; raises when they do not go together."""
    subnet = _subnet(where, wish, addresses)
    own = {address.ip for address in addresses}
    lines = [
        f"# DHCP server of network {wish.name} (labspan.vmnet). Changes made here are overwritten.",
        "keep-in-foreground",
        # Without a value dnsmasq writes none: the one with the start time is ours.
        "pid-file=",
        f"user={account.user}",
        f"group={account.group}",
        # Only these three together are silent towards other interfaces, also to packets for the bridge's address.
        f"interface={wish.bridge}",
        "except-interface=lo",
        "bind-dynamic",
        *_dns_lines(wish),
    ]
    if subnet is not None:
        lines += _dhcp_lines(where, wish, subnet, own)
    elif wish.reservations or wish.ranges:
        raise InvalidInput(
            f"{where}leases" if wish.reservations else f"{where}ranges",
            len(wish.reservations or wish.ranges or ()),
            f"entries cannot be served: bridge {wish.bridge} has no IPv4 address.",
        )
    if wish.router_advertisements:
        lines += _advertisement_lines(where, wish, addresses)
    lines += [f"dhcp-option={option}" for option in wish.options]
    lines += ["log-dhcp"] * wish.log_dhcp + ["log-queries"] * wish.log_queries
    reservations = "".join(
        ",".join(str(part) for part in (entry.mac, entry.address, entry.name) if part) + "\n"
        for entry in wish.reservations
    )
    names = "".join(f"{entry.address} {entry.name}\n" for entry in wish.reservations if entry.address and entry.name)
    return Files("\n".join(lines) + "\n", reservations, names)


def _subnet(where: str, wish: Wish, addresses: t.Sequence[Address]) -> t.Optional[ipaddress.IPv4Interface]:
    """The address of the bridge whose subnet is served: the one that the first range lies in, or the first."""
    candidates = [address for address in addresses if isinstance(address, ipaddress.IPv4Interface)]
    if not candidates:
        if wish.router_advertisements:
            return None
        raise Refused(
            f"{where}bridge: bridge {wish.bridge} has no IPv4 address, so that there is nothing to serve. Give it one "
            "(addresses of linux_bridge), or set router_advertisements: true for a network that has IPv6 only."
        )
    if wish.ranges:
        start = wish.ranges[0][0]
        for candidate in candidates:
            if start in candidate.network:
                return candidate
        raise InvalidInput(
            f"{where}range.start",
            str(start),
            f"is outside of the subnet of bridge {wish.bridge} "
            f"({', '.join(str(candidate.network) for candidate in candidates)}).",
        )
    return candidates[0]


def _dns_lines(wish: Wish) -> list[str]:
    lines = [f"domain={wish.domain}"] if wish.domain else []
    if not wish.dns:
        return ["port=0", "no-resolv", "no-hosts", *lines]
    lines += ["no-hosts", "domain-needed", "bogus-priv", f"addn-hosts={Paths(wish.name).names}"]
    if wish.domain:
        lines += ["expand-hosts", f"local=/{wish.domain}/"]
    if wish.dns_servers is not None:
        lines += ["no-resolv", *(f"server={server}" for server in wish.dns_servers)]
    return lines


def _dhcp_lines(where: str, wish: Wish, subnet: ipaddress.IPv4Interface, own: t.Collection[IP]) -> list[str]:
    network = subnet.network
    gateway = subnet.ip if wish.gateway is True else wish.gateway
    _check_inside(where, wish, subnet, own, gateway)
    duration = "infinite" if wish.lease_time is None else str(wish.lease_time)
    wanted = ((network[1], network[-2]),) if wish.ranges is None else wish.ranges
    # dnsmasq leaves out its own address and those of static leases, not a gateway that is somebody else's.
    ranges = cut_ranges(wanted, {*own, gateway} if isinstance(gateway, ipaddress.IPv4Address) else own)
    paths = Paths(wish.name)
    lines = [
        # Its ping before each offer costs 3 seconds, and the addresses of a lab are ours to give.
        "no-ping",
        "dhcp-authoritative",
        f"dhcp-leasefile={paths.leases}",
        f"dhcp-hostsfile={paths.reservations}",
        f"dhcp-lease-max={min(network.num_addresses, _MOST_LEASES)}",
        *(f"dhcp-range={start},{end},{network.netmask},{duration}" for start, end in ranges),
    ]
    if not ranges:
        lines.append(f"dhcp-range={network.network_address},static,{network.netmask},{duration}")
    lines.append(f"dhcp-option=option:router,{gateway}" if gateway else "dhcp-option=option:router")
    announced = [str(server) for server in wish.dns_servers or () if server.version == 4]
    if not wish.dns and announced:
        lines.append(f"dhcp-option=option:dns-server,{','.join(announced)}")
    return lines


def _check_inside(
    where: str,
    wish: Wish,
    subnet: ipaddress.IPv4Interface,
    own: t.Collection[IP],
    gateway: t.Union[ipaddress.IPv4Address, bool],
) -> None:
    network = subnet.network
    if network.prefixlen > 30:
        raise Refused(
            f"{where}bridge: bridge {wish.bridge} has the address {subnet}, whose subnet has no room for a guest. "
            "Give the bridge a prefix length of 30 or less."
        )
    unusable = {
        network.network_address: "the subnet's own",
        network.broadcast_address: "the subnet's broadcast address",
    }
    outside = f"is outside of the subnet of bridge {wish.bridge}, {network}."
    if isinstance(gateway, ipaddress.IPv4Address) and (gateway not in network or gateway in unusable):
        raise InvalidInput(f"{where}gateway", str(gateway), f"is no host address of the subnet {network}.")
    for start, end in wish.ranges or ():
        for key, address in (("start", start), ("end", end)):
            if address not in network:
                raise InvalidInput(f"{where}range.{key}", str(address), outside)
            if address in unusable:
                raise InvalidInput(f"{where}range.{key}", str(address), f"is {unusable[address]}. Leave it out.")
    for index, reservation in enumerate(wish.reservations):
        reserved, option = reservation.address, f"{where}leases[{index}].address"
        if reserved is None:
            continue
        if reserved not in network:
            raise InvalidInput(option, str(reserved), outside)
        if reserved in unusable:
            raise InvalidInput(option, str(reserved), f"is {unusable[reserved]}. Choose another one.")
        if reserved in own:
            raise InvalidInput(option, str(reserved), f"is bridge {wish.bridge}'s own address. Choose another one.")
        if reserved == gateway:
            raise InvalidInput(option, str(reserved), "is the gateway's address. Choose another one.")


def cut_ranges(ranges: t.Iterable[Range], taken: t.Collection[IP]) -> tuple[Range, ...]:
    """The ranges without the taken addresses, in as few ranges as that takes."""
    numbers = sorted(int(address) for address in taken if address.version == 4)
    found = []
    for start, end in ranges:
        first, last = int(start), int(end)
        for number in [*(number for number in numbers if first <= number <= last), last + 1]:
            if first < number:
                found.append((ipaddress.IPv4Address(first), ipaddress.IPv4Address(number - 1)))
            first = number + 1
    return tuple(found)


def _advertisement_lines(where: str, wish: Wish, addresses: t.Sequence[Address]) -> list[str]:
    prefixes = [address.network for address in addresses if address.version == 6 and not address.is_link_local]
    if not any(prefix.prefixlen == 64 for prefix in prefixes):
        raise InvalidInput(
            f"{where}router_advertisements",
            True,
            f"needs an IPv6 address with prefix length 64 on bridge {wish.bridge}, as guests take addresses "
            f"from a /64 only; found: {', '.join(map(str, prefixes)) or 'none'}.",
        )
    lines = [
        "enable-ra",
        f"dhcp-range=::,constructor:{wish.bridge},{'ra-names,slaac' if wish.dns else 'ra-only'},64",
        # A lifetime of 0 announces the prefix and no router.
        f"ra-param={wish.bridge},60,{1800 if wish.ipv6_default_route else 0}",
    ]
    announced = [f"[{server}]" for server in wish.dns_servers or () if server.version == 6]
    if not wish.dns and announced:
        lines.append(f"dhcp-option=option6:dns-server,{','.join(announced)}")
    return lines


def parse_leases(text: str) -> list[Lease]:
    """The IPv4 leases in a lease file, by address."""
    found = []
    for line in text.splitlines():
        words = line.split()
        # "duid ..." begins the DHCPv6 part, whose lines carry an IAID where these carry a MAC address.
        if len(words) < 4 or not words[0].isdigit() or words[1].count(":") != 5:
            continue
        expiry, mac, address, name = words[:4]
        found.append(
            Lease(
                mac=mac.lower(),
                address=address,
                name=None if name == "*" else name,
                expires=None if expiry == "0" else _iso(int(expiry)),
            )
        )
    return sorted(found, key=lambda lease: ipaddress.ip_address(lease.address))


def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
