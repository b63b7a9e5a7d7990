# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which addresses answer now, on the wire: ARP and neighbour discovery made by hand, past the kernel's neighbour table.

An old connection lives on, and a neighbour entry stays "reachable", for a minute after the path is dead. So each
gateway is asked afresh, and only its answer to this question counts. Questions leave through a packet socket on the
very interface: that works on a network card, on one that is a bridge's port (where the kernel's own IP would hear
nothing) and on the bridge.

The dead-man carries this file, so it uses nothing but Python's standard library.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import ipaddress
import select
import socket
import struct
import time
import typing as t

_ETHERTYPE_ALL = 0x0003
_ETHERTYPE_ARP = 0x0806
_ETHERTYPE_IPV6 = 0x86DD
_HEADER = 14

_BROADCAST = b"\xff" * 6
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ALL_ROUTERS = ipaddress.IPv6Address("ff02::2").packed
_SOLICITED_NODE = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13]

_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ARP_REQUEST = 1
_ARP_REPLY = 2
# Ethernet and IPv4, with the lengths of their addresses.
_ARP_KINDS = (1, 0x0800, 6, 4)

_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6 = 58
_ROUTER_SOLICITATION = 133
_SOLICITATION = 135
_ADVERTISEMENT = 136
_SOURCE_LINK_LAYER = 1
_SOLICITED_FLAG = 0x40
# Shows that no router passed the message on (RFC 4861, section 7.1).
_HOP_LIMIT = 255

_PACKET_OUTGOING = 4
_SO_ATTACH_FILTER = 26
_LONGEST = 2048

# Seconds between two questions to one that is silent.
_INTERVAL = 0.5
_TRIES = 4

# For the kernel: ARP replies and neighbour advertisements only. A packet socket that hears what comes in on a bridge's
# port has to be one for all protocols, and without this filter would be flooded (linux/filter.h; code, jt, jf, k).
_FILTER = (
    (0x28, 0, 0, 12),  # ldh the ethertype
    (0x15, 0, 2, _ETHERTYPE_ARP),
    (0x28, 0, 0, _HEADER + 6),  # ldh ARP's operation
    (0x15, 5, 6, _ARP_REPLY),
    (0x15, 0, 5, _ETHERTYPE_IPV6),
    (0x30, 0, 0, _HEADER + 6),  # ldb the next header
    (0x15, 0, 3, _ICMPV6),
    (0x30, 0, 0, _HEADER + 40),  # ldb ICMPv6's type
    (0x15, 0, 1, _ADVERTISEMENT),
    (0x06, 0, 0, _LONGEST),
    (0x06, 0, 0, 0),
)

_Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


@dataclasses.dataclass(frozen=True)
class Question:
    """Who has C(target)? asked by C(mac) with the address C(source); an unspecified source asks as nobody."""

    target: _Address
    source: _Address
    mac: bytes

    def frame(self) -> bytes:
        """The question as it goes out on the wire."""
        if isinstance(self.target, ipaddress.IPv4Address):
            return self._arp_request()
        return self._solicitation()

    def _arp_request(self) -> bytes:
        body = _ARP.pack(*_ARP_KINDS, _ARP_REQUEST, self.mac, self.source.packed, bytes(6), self.target.packed)
        return _BROADCAST + self.mac + struct.pack("!H", _ETHERTYPE_ARP) + body

    def _solicitation(self) -> bytes:
        destination = _SOLICITED_NODE + self.target.packed[13:]
        message = struct.pack("!BBHI16s", _SOLICITATION, 0, 0, 0, self.target.packed)
        if not self.source.is_unspecified:  # RFC 4861, section 4.3
            message += struct.pack("!BB6s", _SOURCE_LINK_LAYER, 1, self.mac)
        checksum = checksum_icmpv6(self.source.packed, destination, message)
        message = message[:2] + struct.pack("!H", checksum) + message[4:]
        header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, self.source.packed, destination)
        ethernet = b"\x33\x33" + destination[12:] + self.mac + struct.pack("!H", _ETHERTYPE_IPV6)
        return ethernet + header + message

    def is_answered_by(self, frame: bytes) -> bool:
        """Whether this frame is the answer. What the target says unasked shows nothing about the way towards it."""
        if isinstance(self.target, ipaddress.IPv4Address):
            return self._is_arp_reply(frame)
        return self._is_advertisement(frame)

    def _is_arp_reply(self, frame: bytes) -> bool:
        if len(frame) < _HEADER + _ARP.size or _ethertype(frame) != _ETHERTYPE_ARP:
            return False
        *kinds, operation, _sender, sender_address, receiver, receiver_address = _ARP.unpack_from(frame, _HEADER)
        return (*kinds, operation, sender_address, receiver, receiver_address) == (
            *_ARP_KINDS,
            _ARP_REPLY,
            self.target.packed,
            self.mac,
            self.source.packed,
        )

    def _is_advertisement(self, frame: bytes) -> bool:
        message = _HEADER + _IPV6.size
        if len(frame) < message + 24 or _ethertype(frame) != _ETHERTYPE_IPV6:
            return False
        first, _length, following, hops, _source, destination = _IPV6.unpack_from(frame, _HEADER)
        kind, code, _checksum, flags, target = struct.unpack_from("!BBHB3x16s", frame, message)
        if (first >> 28, following, hops, kind, code) != (6, _ICMPV6, _HOP_LIMIT, _ADVERTISEMENT, 0):
            return False
        if self.source.is_unspecified:
            return bool(target == self.target.packed and destination == _ALL_NODES)
        solicited = flags & _SOLICITED_FLAG
        return bool(target == self.target.packed and destination == self.source.packed and solicited)


def checksum_icmpv6(source: bytes, destination: bytes, message: bytes) -> int:
    """The checksum of an ICMPv6 message whose own field is zero (RFC 4443, section 2.3)."""
    data = source + destination + struct.pack("!II", len(message), _ICMPV6) + message + bytes(len(message) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def choose_sources(gateways: t.Iterable[str], addresses: t.Iterable[str]) -> dict[str, str]:
    """From which of an interface's addresses (with prefix lengths) each gateway is best asked.

    The one that shares a network with it, else a link-local one for IPv6, else the first of its family; a gateway for
    which the interface has none is left out, and is then asked as nobody.
    """
    own = [ipaddress.ip_interface(address.partition("%")[0]) for address in addresses]
    found = {}
    for gateway in gateways:
        target = _parse(gateway)
        candidates = [address for address in own if address.version == target.version]
        # sorted() keeps the order of the equal ones: the primary address comes before secondary ones.
        for best in sorted(candidates, key=lambda address: _distance(address, target))[:1]:
            found[gateway] = str(best.ip)
    return found


def solicit_routers(interface: str, source: str) -> None:
    """Ask the routers for an advertisement (RFC 4861, section 4.1), from a link-local address; the kernel hears it."""
    with contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as wire:
        wire.bind((interface, 0))
        mac = wire.getsockname()[4]
        sender = ipaddress.IPv6Address(source).packed
        message = struct.pack("!BBHIBB6s", _ROUTER_SOLICITATION, 0, 0, 0, _SOURCE_LINK_LAYER, 1, mac)
        checksum = checksum_icmpv6(sender, _ALL_ROUTERS, message)
        message = message[:2] + struct.pack("!H", checksum) + message[4:]
        header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, sender, _ALL_ROUTERS)
        ethernet = b"\x33\x33" + _ALL_ROUTERS[12:] + mac + struct.pack("!H", _ETHERTYPE_IPV6)
        wire.send(ethernet + header + message)


def answers(
    interface: str, gateways: t.Iterable[str], *, sources: t.Mapping[str, t.Optional[str]], timeout: float
) -> set[str]:
    """Those of the gateways that answer over this interface within C(timeout) seconds, all asked at once.

    C(sources) has the host's address for each gateway. One that it lacks is asked for as by a host that has no address
    yet. Over an interface that is not there or is down nobody answers. Returns as soon as all have answered.
    """
    return set(owners(interface, gateways, sources=sources, timeout=timeout))


def owners(
    interface: str, addresses: t.Iterable[str], *, sources: t.Mapping[str, t.Optional[str]], timeout: float
) -> dict[str, str]:
    """Like C(answers): address -> the MAC address of who answered for it."""
    with contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as wire:
        _attach_filter(wire)
        try:
            wire.bind((interface, _ETHERTYPE_ALL))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO, errno.ENETDOWN):
                return {}
            raise
        mac = wire.getsockname()[4]
        if len(mac) != 6:
            return {}
        return _ask(wire, {address: _question(address, sources.get(address), mac) for address in addresses}, timeout)


def _ask(wire: socket.socket, open_questions: dict[str, Question], timeout: float) -> dict[str, str]:
    """Ask again and again what is not answered yet."""
    found: dict[str, str] = {}
    wire.setblocking(False)
    poll = select.poll()
    poll.register(wire, select.POLLIN)
    interval = min(_INTERVAL, timeout / _TRIES)
    now = next_try = time.monotonic()
    deadline = now + timeout
    while open_questions and now < deadline:
        if now >= next_try:
            for question in open_questions.values():
                # An interface that is down may come up before the time is over.
                with contextlib.suppress(OSError):
                    wire.send(question.frame())
            next_try = now + interval
        poll.poll(max(min(next_try, deadline) - now, 0.001) * 1000)
        for frame in _received(wire):
            for gateway in [name for name, question in open_questions.items() if question.is_answered_by(frame)]:
                del open_questions[gateway]
                found[gateway] = ":".join(f"{byte:02x}" for byte in frame[6:12])
        now = time.monotonic()
    return found


def _received(wire: socket.socket) -> t.Iterator[bytes]:
    """The frames that came in since; what this host sent itself is none of them."""
    while True:
        try:
            frame, sender = wire.recvfrom(_LONGEST)
        except OSError:  # nothing more for now, or the interface went down
            return
        if sender[2] != _PACKET_OUTGOING:
            yield frame


def _question(gateway: str, source: t.Optional[str], mac: bytes) -> Question:
    target = _parse(gateway)
    return Question(target, _parse(source) if source else type(target)(0), mac)


def _parse(address: str) -> _Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _distance(address: t.Any, target: _Address) -> int:
    if target in address.network:
        return 0
    return 1 if address.version == 6 and address.ip.is_link_local else 2


def _ethertype(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


def _attach_filter(wire: socket.socket) -> None:
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(program)
    wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(buffer)))
