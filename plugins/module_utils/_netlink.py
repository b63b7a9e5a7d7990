# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only speaker of netlink: links, addresses and routes, read in whole dumps and written in batches.

Requests are built by pyroute2's message classes, and carry only the attributes that are used here. Replies are taken
apart here: pyroute2 decodes a link in 150 to 250 microseconds, this in 15, and a lab host has a thousand of them.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import socket
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Address as InterfaceAddress
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Network

AF_INET = socket.AF_INET
AF_INET6 = socket.AF_INET6

#: The routing table that a host uses unless rules say otherwise (linux/rtnetlink.h).
MAIN_TABLE = 254

_AF_NETLINK = 16
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP_INTR = 0x10
_NLM_F_DUMP = 0x300
_NLM_F_REPLACE = 0x100
_NLM_F_EXCL = 0x200
_NLM_F_CREATE = 0x400
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLA_TYPE_MASK = 0x3FFF
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_RTM_GETADDR = 22
_RTM_GETROUTE = 26
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_RTEXT_FILTER_SKIP_STATS = 0x8
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
_FOREVER = 0xFFFFFFFF
_RECEIVE_SIZE = 1 << 18

_HEADER = struct.Struct("=IHHII")
_LINK_HEADER = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_S32 = struct.Struct("=i")

Attributes = t.Dict[int, bytes]


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


class Netlink:
    """A conversation with the kernel's rtnetlink in this network namespace; the socket opens with the first request."""

    def __init__(self) -> None:
        self._socket: t.Optional[socket.socket] = None
        self._sequence = 0
        self._names: t.Optional[dict[int, str]] = None

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def links(self) -> dict[str, Link]:
        """Every interface by name."""
        found = [_raw_link(reply) for reply in self._dump("links", _RTM_GETLINK, _link_dump_request())]
        names = {index: _text(attributes[_IFLA_IFNAME]) for index, _flags, attributes in found}
        self._names = names
        links = (_link(index, flags, attributes, names) for index, flags, attributes in found)
        return {link.name: link for link in links}

    def addresses(self) -> list[Address]:
        """Every address of every interface, in the kernel's order."""
        names = self._known_names()
        replies = self._dump("addresses", _RTM_GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0))
        return [address for reply in replies for address in _addresses(reply, names)]

    def routes(self) -> list[Route]:
        """Every unicast route of every table."""
        names = self._known_names()
        replies = self._dump("routes", _RTM_GETROUTE, struct.pack("=BBBBBBBBI", *([0] * 9)))
        return [route for reply in replies for route in _routes(reply, names)]

    def default_interface(self, family: int) -> t.Optional[str]:
        """The interface of the main table's default route with the lowest metric (C(AF_INET), C(AF_INET6))."""
        defaults = [
            route
            for route in self.routes()
            if route.family == family and route.table == MAIN_TABLE and route.destination is None and route.interface
        ]
        return min(defaults, key=lambda route: route.metric).interface if defaults else None

    def _known_names(self) -> dict[int, str]:
        if self._names is None:
            self.links()
        return self._names or {}

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return self._socket

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """The replies to one dump request; asked again when the kernel says that the tables changed meanwhile."""
        connection = self._open()
        for _attempt in range(10):
            sequence = self._next_sequence()
            header = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0)
            connection.send(header + body)
            replies, interrupted = self._collect(what, connection, sequence)
            if not interrupted:
                return replies
        raise SystemFailure(f"the {what} of this host change faster than they can be read. Run the task again.")

    @staticmethod
    def _collect(what: str, connection: socket.socket, sequence: int) -> tuple[list[bytes], bool]:
        replies: list[bytes] = []
        interrupted = False
        while True:
            for header, message in _messages(connection.recv(_RECEIVE_SIZE)):
                _length, kind, flags, number, _port = header
                if number != sequence:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    code = -_S32.unpack_from(message, _HEADER.size)[0]
                    raise SystemFailure(f"the kernel does not list the {what} of this host: {os.strerror(code)}.")
                if kind == _NLMSG_DONE:
                    return replies, interrupted
                replies.append(message)


def _messages(received: bytes) -> t.Iterator[tuple[tuple[int, ...], bytes]]:
    offset = 0
    while offset < len(received):
        header = _HEADER.unpack_from(received, offset)
        yield header, received[offset : offset + header[0]]
        offset += (header[0] + 3) & ~3


def _attributes(message: bytes, offset: int = 0) -> Attributes:
    found: Attributes = {}
    end = len(message)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = message[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _text(value: bytes) -> str:
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
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_GROUP = 27
_IFLA_EXT_MASK = 29
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_PORT_KIND = 4
_INFO_PORT_DATA = 5


def _link_dump_request() -> bytes:
    mask = _ATTRIBUTE.pack(8, _IFLA_EXT_MASK) + _U32.pack(_RTEXT_FILTER_SKIP_STATS)
    return _LINK_HEADER.pack(0, 0, 0, 0, 0) + mask


def _raw_link(message: bytes) -> tuple[int, int, Attributes]:
    _family, _type, index, flags, _change = _LINK_HEADER.unpack_from(message, _HEADER.size)
    return index, flags, _attributes(message, _HEADER.size + _LINK_HEADER.size)


def _link(index: int, flags: int, attributes: Attributes, names: t.Mapping[int, str]) -> Link:
    info = _attributes(attributes[_IFLA_LINKINFO]) if _IFLA_LINKINFO in attributes else {}
    kind = _text(info[_INFO_KIND]) if _INFO_KIND in info else None
    settings = _attributes(info[_INFO_DATA]) if _INFO_DATA in info else {}
    is_port = info.get(_INFO_PORT_KIND, b"").startswith(b"bridge") and _INFO_PORT_DATA in info
    return Link(
        index=index,
        name=names[index],
        kind=kind,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        mtu=_u32(attributes, _IFLA_MTU) or 0,
        mac=_mac(attributes.get(_IFLA_ADDRESS, b"")),
        alias=_text(attributes.get(_IFLA_IFALIAS, b"")),
        master=names.get(_u32(attributes, _IFLA_MASTER) or 0),
        group=_u32(attributes, _IFLA_GROUP) or 0,
        bridge=_bridge_info(settings) if kind == "bridge" else None,
        port=_port_info(_attributes(info[_INFO_PORT_DATA])) if is_port else None,
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


# linux/if_addr.h
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_LABEL = 3
_IFA_BROADCAST = 4
_IFA_CACHEINFO = 6
_IFA_FLAGS = 8


def _addresses(message: bytes, names: t.Mapping[int, str]) -> t.Iterator[Address]:
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", message, _HEADER.size)
    if family not in (AF_INET, AF_INET6) or index not in names:
        return
    attributes = _attributes(message, _HEADER.size + 8)
    if _IFA_ADDRESS not in attributes:
        return
    local = attributes.get(_IFA_LOCAL, attributes[_IFA_ADDRESS])
    peer = attributes[_IFA_ADDRESS]
    preferred, valid = struct.unpack_from("=II", attributes.get(_IFA_CACHEINFO, b"\xff" * 8))
    broadcast = attributes.get(_IFA_BROADCAST)
    # A peer's prefix length is the interface's, and ip_interface needs one that is the address's own.
    yield Address(
        interface=names[index],
        address=ipaddress.ip_interface((local, prefix)),
        scope=scope,
        flags=_u32(attributes, _IFA_FLAGS) or flags,
        label=_text(attributes[_IFA_LABEL]) if _IFA_LABEL in attributes else None,
        broadcast=str(ipaddress.ip_address(broadcast)) if broadcast else None,
        peer=str(ipaddress.ip_address(peer)) if peer != local else None,
        valid=valid,
        preferred=preferred,
    )


# linux/rtnetlink.h
_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18


def _routes(message: bytes, names: t.Mapping[int, str]) -> t.Iterator[Route]:
    family, prefix, _source, _tos, table, protocol, scope, kind, flags = struct.unpack_from(
        "=BBBBBBBBI", message, _HEADER.size
    )
    if family not in (AF_INET, AF_INET6) or kind != _RTN_UNICAST or flags & _RTM_F_CLONED:
        return
    attributes = _attributes(message, _HEADER.size + 12)
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
        yield index, _gateway(_attributes(hops[offset + 8 : offset + length]))
        offset += (length + 3) & ~3
