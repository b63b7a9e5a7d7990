# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the ports of guests let in, in nft's language. Pure.

The number of rules does not depend on the number of ports: a thousand linear rules would cut the packet rate of the
whole bridge to a quarter, while one lookup in a set of a thousand costs nothing. So what differs from port to port
stands in sets that begin with the port's name.

All checks are for what is allowed, and read what they judge: a field that is not there, or that hides behind a
fragment, matches nothing and ends in a drop. IPv6's neighbour discovery is read as raw bytes, since the names of its
fields are younger than the nft that the collection supports.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey, owner_comment

Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")

# Raw payload of ICMPv6 (RFC 4861, section 4): offset and length in bits.
_ND_TARGET = "@th,64,128"
_ND_TARGET_PREFIX = "@th,64,64"
_RS_OPTION, _RS_OPTION_MAC = "@th,64,16", "@th,80,48"
_ND_OPTION, _ND_OPTION_MAC = "@th,192,16", "@th,208,48"
_ND_MESSAGES = "{ 133, 134, 135, 136, 137 }"

# IEEE 802.1Q, table 8-1: what bridges keep to themselves.
_BRIDGE_GROUP = "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00"


@dataclasses.dataclass(frozen=True)
class Port:
    """The port of a guest, and what may come in from it."""

    tap: str
    mac: str
    addresses: t.Optional[tuple[Network, ...]] = None
    """What it may send from; None when nobody knows."""
    allow_bpdu: bool = False
    allow_ra: bool = False
    allow_dhcp_server: bool = False
    ethertypes: tuple[int, ...] = ()
    """What it may send beside ARP, IPv4 and IPv6."""


@dataclasses.dataclass(frozen=True)
class PortFilter:
    """The ports of a network's guests."""

    network: str
    bridge: str
    ports: tuple[Port, ...]
    protected: tuple[Address, ...] = ()
    """Addresses that no port may have that does not list them."""
    drop_unlisted: bool = False


class _Set(t.NamedTuple):
    name: str
    kind: str
    elements: t.Sequence[str]
    interval: bool = False


def key(network: str) -> TableKey:
    """The table that filters what a network's guests send."""
    return TableKey("bridge", f"labspan_{network}")


def table(wanted: PortFilter) -> str:
    """The whole table of a network."""
    mark = f'comment "{owner_comment(wanted.network)}"'
    sets = "".join(_set_text(each, mark) for each in _sets(wanted))
    prefixes = {version: bool(_prefixes(wanted, version)) for version in (4, 6)}
    chains = {
        **_guest_chains(),
        **_arp_chains(prefixes[4]),
        **_ipv4_chains(prefixes[4]),
        **_ipv6_chains(prefixes[6]),
        **_service_chains(prefixes[6]),
        **_base_chains(wanted, mark),
    }
    # A chain must be there before a rule that goes to it; nft takes care of that within one table.
    return f"table {key(wanted.network)} {{\n{sets}{''.join(_chain(*chain) for chain in chains.items())}}}\n"


def eui64(mac: str) -> ipaddress.IPv6Address:
    """The link-local address that is made of a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(LINK_LOCAL.network_address.packed[:8] + identifier)


def _sets(wanted: PortFilter) -> t.Iterator[_Set]:
    ports = wanted.ports
    yield _Set("ports", "type ifname", [_name(port) for port in ports])
    yield _Set("macs", "type ifname . ether_addr", [f"{_name(port)} . {port.mac}" for port in ports])
    yield _Set(
        "option_macs",
        f"typeof iifname . {_ND_OPTION_MAC}",
        [f"{_name(port)} . 0x{port.mac.replace(':', '')}" for port in ports],
    )
    yield _Set("unknown", "type ifname", [_name(port) for port in ports if port.addresses is None])
    yield _Set("any_link_local", "type ifname", [_name(port) for port in ports if not _names_link_local(port)])
    for option in ("allow_bpdu", "allow_ra", "allow_dhcp_server"):
        yield _Set(option, "type ifname", [_name(port) for port in ports if getattr(port, option)])
    yield _Set(
        "allow_ethertypes",
        "type ifname . ether_type",
        [f"{_name(port)} . 0x{number:04x}" for port in ports for number in port.ethertypes],
    )
    for version in (4, 6):
        own = [(port, address) for port in ports for address in _hosts(port, version)]
        taken = sorted({address for _port, address in own} | _of_version(wanted.protected, version))
        yield _Set(
            f"addresses{version}",
            f"type ifname . ipv{version}_addr",
            [f"{_name(port)} . {address}" for port, address in own],
        )
        yield _Set(f"protected{version}", f"type ipv{version}_addr", [str(address) for address in taken])
        if version == 6:
            pairs = [f"{_name(port)} . {_hexadecimal(address)}" for port, address in own]
            yield _Set("targets", f"typeof iifname . {_ND_TARGET}", pairs)
            yield _Set("protected_targets", f"typeof {_ND_TARGET}", [_hexadecimal(address) for address in taken])
        wide = _prefixes(wanted, version)
        if wide:
            kind = f"type ifname . ipv{version}_addr"
            yield _Set(f"prefixes{version}", kind, [f"{_name(port)} . {prefix}" for port, prefix in wide], True)
        if wide and version == 6:
            ranges = [
                f"{_name(port)} . {_hexadecimal(prefix.network_address)}-{_hexadecimal(prefix.broadcast_address)}"
                for port, prefix in wide
            ]
            yield _Set("target_prefixes", f"typeof iifname . {_ND_TARGET}", ranges, True)


def _base_chains(wanted: PortFilter, mark: str) -> dict[str, list[str]]:
    unlisted = f'meta ibrname "{wanted.bridge}" meta iifkind "tun" drop {mark}'
    prerouting = ["type filter hook prerouting priority -300; policy accept;", f"iifname @ports goto guest {mark}"]
    # What the bridge does not forward goes to the host without prerouting (net/bridge/br_input.c), such as 802.1X. What
    # it keeps for itself, LLDP and with STP on BPDUs, passes no hook at all.
    local = ["type filter hook input priority -300; policy accept;"]
    local += [f"iifname @ports {_BRIDGE_GROUP} goto bridge_group {mark}"]
    if wanted.drop_unlisted:
        prerouting.append(unlisted)
        local.append(unlisted)
    return {"prerouting": prerouting, "input": local}


def _guest_chains() -> dict[str, list[str]]:
    return {
        "guest": [
            f"{_BRIDGE_GROUP} goto bridge_group",
            "iifname . ether saddr != @macs drop",
            "iifname . ether type @allow_ethertypes accept",
            "ether type vmap { arp : goto arp_frame, ip : goto ipv4_source, ip6 : goto ipv6_source }",
            "drop",
        ],
        "bridge_group": ["iifname @allow_bpdu iifname . ether saddr @macs accept", "drop"],
    }


def _arp_chains(prefixes: bool) -> dict[str, list[str]]:
    form = "arp htype 1 arp ptype ip arp hlen 6 arp plen 4"
    return {
        "arp_frame": [
            f"{form} arp operation {{ request, reply }} iifname . arp saddr ether @macs goto arp_sender",
            "drop",
        ],
        "arp_sender": [
            "arp saddr ip 0.0.0.0 goto arp_probe",
            *_allowed("arp saddr ip", 4, prefixes, "accept"),
            "drop",
        ],
        # Somebody who looks for his own address makes others believe that it is taken (RFC 5227).
        "arp_probe": [
            "arp operation != request drop",
            *_allowed("arp daddr ip", 4, prefixes, "accept"),
            "drop",
        ],
    }


def _ipv4_chains(prefixes: bool) -> dict[str, list[str]]:
    return {
        "ipv4_source": [
            "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
            *_allowed("ip saddr", 4, prefixes, "goto service"),
            "drop",
        ]
    }


def _ipv6_chains(prefixes: bool) -> dict[str, list[str]]:
    return {
        "ipv6_source": [
            "ip6 saddr :: goto ipv6_unspecified",
            *_allowed("ip6 saddr", 6, prefixes, "goto service"),
            f"iifname @any_link_local ip6 saddr {LINK_LOCAL} ip6 saddr != @protected6 goto service",
            "drop",
        ],
        "ipv6_unspecified": [
            "exthdr frag exists drop",
            "icmpv6 type nd-neighbor-solicit goto neighbour_target",
            "icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report } accept",
            "drop",
        ],
    }


def _service_chains(prefixes: bool) -> dict[str, list[str]]:
    foreign_option = "{ 0x101, 0x201 } iifname . %s != @option_macs drop"
    return {
        "service": [
            # What follows a first fragment goes nowhere without it.
            "ip frag-off & 0x1fff != 0 accept",
            "frag frag-off != 0 accept",
            "meta l4proto != { icmp, udp, ipv6-icmp } accept",
            "meta l4proto vmap { icmp : goto icmp_message, udp : goto udp_ports, ipv6-icmp : goto icmpv6_message }",
            "drop",
        ],
        # Clients look only at where an answer goes to; a server's own port is whatever it likes.
        "udp_ports": [
            "udp sport != { 67, 547 } udp dport != { 68, 546 } accept",
            "iifname @allow_dhcp_server accept",
            "drop",
        ],
        "icmp_message": [
            "icmp type != { redirect, router-advertisement } accept",
            "iifname @allow_ra accept",
            "drop",
        ],
        "icmpv6_message": [
            f"icmpv6 type {_ND_MESSAGES} goto neighbour_discovery",
            f"icmpv6 type != {_ND_MESSAGES} accept",
            "drop",
        ],
        "neighbour_discovery": [
            "exthdr frag exists drop",  # RFC 6980
            "icmpv6 type { nd-router-advert, nd-redirect } iifname @allow_ra accept",
            f"icmpv6 type nd-router-solicit {_RS_OPTION} {foreign_option % _RS_OPTION_MAC}",
            f"icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} {_ND_OPTION} {foreign_option % _ND_OPTION_MAC}",
            "icmpv6 type nd-neighbor-advert goto neighbour_target",
            "icmpv6 type { nd-router-solicit, nd-neighbor-solicit } accept",
            "drop",
        ],
        "neighbour_target": [
            f"iifname . {_ND_TARGET} @targets accept",
            *([f"iifname . {_ND_TARGET} @target_prefixes {_unprotected_target()} accept"] if prefixes else []),
            f"iifname @any_link_local {_ND_TARGET_PREFIX} 0xfe80000000000000 {_unprotected_target()} accept",
            f"iifname @unknown {_unprotected_target()} accept",
            "drop",
        ],
    }


def _allowed(field: str, version: int, prefixes: bool, verdict: str) -> t.Iterator[str]:
    """The rules that let a port's own addresses pass, those of nobody where the port's are not known included."""
    unprotected = f"{field} != @protected{version}"
    yield f"iifname . {field} @addresses{version} {verdict}"
    if prefixes:
        yield f"iifname . {field} @prefixes{version} {unprotected} {verdict}"
    yield f"iifname @unknown {unprotected} {verdict}"


def _unprotected_target() -> str:
    return f"{_ND_TARGET} != @protected_targets"


def _hosts(port: Port, version: int) -> list[Address]:
    """The single addresses of a port; with IPv6 the one that most systems give themselves."""
    listed = [network.network_address for network in port.addresses or () if network.num_addresses == 1]
    found = _of_version(listed, version)
    if version == 6 and not _names_link_local(port):
        found.add(eui64(port.mac))
    return sorted(found)


def _prefixes(wanted: PortFilter, version: int) -> list[tuple[Port, Network]]:
    return [
        (port, network)
        for port in wanted.ports
        for network in port.addresses or ()
        if network.version == version and network.num_addresses > 1
    ]


def _of_version(addresses: t.Iterable[Address], version: int) -> set[t.Any]:
    return {address for address in addresses if address.version == version}


def _names_link_local(port: Port) -> bool:
    return any(network.version == 6 and network.is_link_local for network in port.addresses or ())


def _name(port: Port) -> str:
    return f'"{port.tap}"'


def _hexadecimal(address: Address) -> str:
    return f"0x{int(address):032x}"


def _set_text(each: _Set, mark: str) -> str:
    lines = [each.kind]
    if each.interval:
        lines.append("flags interval")
    lines.append(mark)
    if each.elements:
        lines.append(f"elements = {{ {', '.join(each.elements)} }}")
    return f"\tset {each.name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _chain(name: str, lines: t.Sequence[str]) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"
