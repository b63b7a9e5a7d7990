# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What rtnetlink says about links, addresses and routes, taken apart into dataclasses. Pure: bytes in, values out.

Only _netlink.py uses the functions. They read just the attributes that are compared: pyroute2 decodes a link in 150 to
250 microseconds, this in 15, and a lab host has a thousand of them.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._values import Address as InterfaceAddress
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Network
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import (
    HEADER,
    Attributes,
    each_attribute,
    parse_attributes,
)

AF_INET = socket.AF_INET
AF_INET6 = socket.AF_INET6

#: The routing table that a host uses unless rules say otherwise (linux/rtnetlink.h).
MAIN_TABLE = 254

_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
_FOREVER = 0xFFFFFFFF

LINK_HEADER = struct.Struct("=BxHiII")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_S32 = struct.Struct("=i")


@dataclasses.dataclass(frozen=True)
class BridgeInfo:
    """What a bridge is set to. Times are in hundredths of a second, as the kernel counts them."""

    forward_delay: int
    hello_time: int
    max_age: int
    ageing_time: int
    stp: int
    priority: int
    group_forward_mask: int
    multicast_snooping: t.Optional[bool]
    multicast_querier: t.Optional[bool]
    vlan_filtering: t.Optional[bool]
    vlan_default_pvid: t.Optional[int]
    """None where the kernel was built without bridge VLAN filtering."""
    bridge_id: str
    root_id: str


@dataclasses.dataclass(frozen=True)
class PortInfo:
    """What a port of a bridge is set to."""

    hairpin: bool
    bpdu_guard: bool
    learning: bool
    flooding: bool
    isolated: bool
    state: int


@dataclasses.dataclass(frozen=True)
class TunInfo:
    """What a tun or tap device was made with."""

    mode: str
    owner: t.Optional[int]
    group: t.Optional[int]
    packet_info: bool
    vnet_hdr: bool
    persistent: bool
    multi_queue: bool


@dataclasses.dataclass(frozen=True)
class Link:
    """A network interface."""

    index: int
    name: str
    kind: t.Optional[str]
    """C(bridge), C(tun), C(veth), ...; None for a physical interface and lo."""
    up: bool
    carrier: bool
    mtu: int
    mac: str
    alias: str
    master: t.Optional[str]
    group: int
    bridge: t.Optional[BridgeInfo] = None
    port: t.Optional[PortInfo] = None
    tun: t.Optional[TunInfo] = None


class Vlan(t.NamedTuple):
    """A VLAN on a port of a bridge, or on the bridge itself."""

    id: int
    pvid: bool
    untagged: bool


@dataclasses.dataclass(frozen=True)
class Address:
    """An address on an interface, with all that is needed to put it back as it was."""

    interface: str
    address: InterfaceAddress
    scope: int = 0
    flags: int = 0
    label: t.Optional[str] = None
    broadcast: t.Optional[str] = None
    peer: t.Optional[str] = None
    valid: int = _FOREVER
    preferred: int = _FOREVER

    @property
    def family(self) -> int:
        return AF_INET if self.address.version == 4 else AF_INET6


@dataclasses.dataclass(frozen=True)
class Route:
    """A unicast route; one with several next hops appears once for each."""

    family: int
    table: int
    destination: t.Optional[Network]
    """None for the default route."""
    gateway: t.Optional[str]
    interface: t.Optional[str]
    metric: int
    protocol: int
    scope: int


class Learnt(t.NamedTuple):
    """A MAC address that a bridge has learnt to be behind one of its ports."""

    port: str
    mac: str


class Neighbour(t.NamedTuple):
    """Who has an address on a link, as far as the kernel knows."""

    interface: str
    address: str
    mac: str


def parse_text(value: bytes) -> str:
    """A string of the kernel's."""
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _mac(value: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in value)


def _u8(attributes: Attributes, kind: int) -> t.Optional[int]:
    value = attributes.get(kind)
    return value[0] if value else None


def _flag(attributes: Attributes, kind: int) -> t.Optional[bool]:
    value = attributes.get(kind)
    return bool(value[0]) if value else None


def _u16(attributes: Attributes, kind: int) -> t.Optional[int]:
    value = attributes.get(kind)
    return _U16.unpack(value)[0] if value else None


def _u32(attributes: Attributes, kind: int) -> t.Optional[int]:
    value = attributes.get(kind)
    return _U32.unpack(value)[0] if value else None


# linux/if_link.h
_IFLA_ADDRESS = 1
IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_GROUP = 27
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_PORT_KIND = 4
_INFO_PORT_DATA = 5


def parse_link_header(message: bytes) -> tuple[int, int, Attributes]:
    """A link message's index, flags and attributes."""
    _family, _type, index, flags, _change = LINK_HEADER.unpack_from(message, HEADER.size)
    return index, flags, parse_attributes(message, HEADER.size + LINK_HEADER.size)


def parse_link(index: int, flags: int, attributes: Attributes, names: t.Mapping[int, str]) -> Link:
    """The interface in a link message; C(names) tells its master's."""
    info = parse_attributes(attributes[_IFLA_LINKINFO]) if _IFLA_LINKINFO in attributes else {}
    kind = parse_text(info[_INFO_KIND]) if _INFO_KIND in info else None
    settings = parse_attributes(info[_INFO_DATA]) if _INFO_DATA in info else {}
    is_port = info.get(_INFO_PORT_KIND, b"").startswith(b"bridge") and _INFO_PORT_DATA in info
    return Link(
        index=index,
        name=names[index],
        kind=kind,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        mtu=_u32(attributes, _IFLA_MTU) or 0,
        mac=_mac(attributes.get(_IFLA_ADDRESS, b"")),
        alias=parse_text(attributes.get(_IFLA_IFALIAS, b"")),
        master=names.get(_u32(attributes, _IFLA_MASTER) or 0),
        group=_u32(attributes, _IFLA_GROUP) or 0,
        bridge=_bridge_info(settings) if kind == "bridge" else None,
        port=_port_info(parse_attributes(info[_INFO_PORT_DATA])) if is_port else None,
        tun=_tun_info(settings) if kind == "tun" else None,
    )


def _bridge_identity(value: bytes) -> str:
    return f"{value[0]:02x}{value[1]:02x}.{value[2:8].hex()}"


def _bridge_info(settings: Attributes) -> BridgeInfo:
    return BridgeInfo(
        forward_delay=_u32(settings, 1) or 0,
        hello_time=_u32(settings, 2) or 0,
        max_age=_u32(settings, 3) or 0,
        ageing_time=_u32(settings, 4) or 0,
        stp=_u32(settings, 5) or 0,
        priority=_u16(settings, 6) or 0,
        group_forward_mask=_u16(settings, 9) or 0,
        multicast_snooping=_flag(settings, 23),
        multicast_querier=_flag(settings, 25),
        vlan_filtering=_flag(settings, 7),
        vlan_default_pvid=_u16(settings, 39),
        bridge_id=_bridge_identity(settings.get(11, bytes(8))),
        root_id=_bridge_identity(settings.get(10, bytes(8))),
    )


def _port_info(settings: Attributes) -> PortInfo:
    return PortInfo(
        hairpin=bool(_u8(settings, 4)),
        bpdu_guard=bool(_u8(settings, 5)),
        learning=bool(_u8(settings, 8)),
        flooding=bool(_u8(settings, 9)),
        isolated=bool(_u8(settings, 33)),
        state=_u8(settings, 1) or 0,
    )


def _tun_info(settings: Attributes) -> TunInfo:
    return TunInfo(
        mode="tap" if _u8(settings, 3) == 2 else "tun",
        owner=_u32(settings, 1),
        group=_u32(settings, 2),
        packet_info=bool(_u8(settings, 4)),
        vnet_hdr=bool(_u8(settings, 5)),
        persistent=bool(_u8(settings, 6)),
        multi_queue=bool(_u8(settings, 7)),
    )


_IFLA_AF_SPEC = 26
_IFLA_BRIDGE_VLAN_INFO = 2
_VLAN_PVID = 0x2
_VLAN_UNTAGGED = 0x4
_VLAN_RANGE_BEGIN = 0x8
_VLAN_RANGE_END = 0x10


def parse_vlans(message: bytes) -> frozenset[Vlan]:
    """The VLANs in a link message of the bridge family."""
    specification = parse_attributes(message, HEADER.size + LINK_HEADER.size).get(_IFLA_AF_SPEC, b"")
    found: set[Vlan] = set()
    begin = 0
    for kind, value in each_attribute(specification):
        if kind != _IFLA_BRIDGE_VLAN_INFO:
            continue
        flags, number = struct.unpack_from("=HH", value)
        if flags & _VLAN_RANGE_BEGIN:
            begin = number
            continue
        first = begin if flags & _VLAN_RANGE_END else number
        found.update(
            Vlan(each, bool(flags & _VLAN_PVID), bool(flags & _VLAN_UNTAGGED)) for each in range(first, number + 1)
        )
    return frozenset(found)


# linux/if_addr.h
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_LABEL = 3
_IFA_BROADCAST = 4
_IFA_CACHEINFO = 6
_IFA_FLAGS = 8


def parse_addresses(message: bytes, names: t.Mapping[int, str]) -> t.Iterator[Address]:
    """The address in an address message, if it is of IP and of a known interface."""
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", message, HEADER.size)
    if family not in (AF_INET, AF_INET6) or index not in names:
        return
    attributes = parse_attributes(message, HEADER.size + 8)
    if _IFA_ADDRESS not in attributes:
        return
    local = attributes.get(_IFA_LOCAL, attributes[_IFA_ADDRESS])
    peer = attributes[_IFA_ADDRESS]
    preferred, valid = struct.unpack_from("=II", attributes.get(_IFA_CACHEINFO, b"\xff" * 8))
    broadcast = attributes.get(_IFA_BROADCAST)
    yield Address(
        interface=names[index],
        address=ipaddress.ip_interface((local, prefix)),
        scope=scope,
        flags=_u32(attributes, _IFA_FLAGS) or flags,
        label=parse_text(attributes[_IFA_LABEL]) if _IFA_LABEL in attributes else None,
        broadcast=str(ipaddress.ip_address(broadcast)) if broadcast else None,
        peer=str(ipaddress.ip_address(peer)) if peer != local else None,
        valid=valid,
        preferred=preferred,
    )


# linux/neighbour.h
_NEIGHBOUR_HEADER = struct.Struct("=BxxxiHBB")
_NDA_DST = 1
_NDA_LLADDR = 2
_NDA_MASTER = 9
_NUD_UNKNOWN = 0x01 | 0x20 | 0x40  # incomplete, failed, noarp
_NUD_PERMANENT = 0x80


def parse_neighbours(message: bytes, names: t.Mapping[int, str]) -> t.Iterator[Neighbour]:
    """The neighbour in a neighbour message, if it is one of IP whose MAC address is known."""
    family, index, state, _flags, _kind = _NEIGHBOUR_HEADER.unpack_from(message, HEADER.size)
    attributes = parse_attributes(message, HEADER.size + _NEIGHBOUR_HEADER.size)
    if family not in (AF_INET, AF_INET6) or index not in names or state & _NUD_UNKNOWN:
        return
    if len(attributes.get(_NDA_LLADDR, b"")) == 6 and _NDA_DST in attributes:
        address = str(ipaddress.ip_address(attributes[_NDA_DST]))
        yield Neighbour(names[index], address, _mac(attributes[_NDA_LLADDR]))


def parse_learnt(message: bytes, names: t.Mapping[int, str]) -> t.Iterator[Learnt]:
    """The entry of a bridge's forwarding database in a neighbour message, unless it is an interface's own address."""
    _family, index, state, _flags, _kind = _NEIGHBOUR_HEADER.unpack_from(message, HEADER.size)
    attributes = parse_attributes(message, HEADER.size + _NEIGHBOUR_HEADER.size)
    mac = attributes.get(_NDA_LLADDR, b"")
    if index in names and len(mac) == 6 and _NDA_MASTER in attributes and not state & _NUD_PERMANENT:
        yield Learnt(names[index], _mac(mac))


# linux/rtnetlink.h
_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18


def parse_routes(message: bytes, names: t.Mapping[int, str]) -> t.Iterator[Route]:
    """The unicast routes in a route message."""
    family, prefix, _source, _tos, table, protocol, scope, kind, flags = struct.unpack_from(
        "=BBBBBBBBI", message, HEADER.size
    )
    if family not in (AF_INET, AF_INET6) or kind != _RTN_UNICAST or flags & _RTM_F_CLONED:
        return
    attributes = parse_attributes(message, HEADER.size + 12)
    destination = attributes.get(_RTA_DST)
    for index, gateway in _next_hops(attributes):
        yield Route(
            family=family,
            table=_u32(attributes, _RTA_TABLE) or table,
            destination=ipaddress.ip_network((destination, prefix)) if destination else None,
            gateway=str(ipaddress.ip_address(gateway)) if gateway else None,
            interface=names.get(index),
            metric=_u32(attributes, _RTA_PRIORITY) or 0,
            protocol=protocol,
            scope=scope,
        )


def _gateway(attributes: Attributes) -> t.Optional[bytes]:
    via = attributes.get(_RTA_VIA)
    return via[2:] if via else attributes.get(_RTA_GATEWAY)


def _next_hops(attributes: Attributes) -> t.Iterator[tuple[int, t.Optional[bytes]]]:
    hops = attributes.get(_RTA_MULTIPATH)
    if hops is None:
        yield _u32(attributes, _RTA_OIF) or 0, _gateway(attributes)
        return
    offset = 0
    while offset + 8 <= len(hops):
        length, _flags, _weight, index = struct.unpack_from("=HBBi", hops, offset)
        yield index, _gateway(parse_attributes(hops[offset + 8 : offset + length]))
        offset += (length + 3) & ~3
