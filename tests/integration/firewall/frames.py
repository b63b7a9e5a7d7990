# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ethernet frames made by hand, the forbidden ones included."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
RS, RA, NS, NA, REDIRECT = 133, 134, 135, 136, 137
_FRAGMENT_HEADER, _DESTINATION_OPTIONS = 44, 60


def ethernet(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    """A frame; C(kind) is its EtherType, or its length."""
    return _mac(destination) + _mac(source) + struct.pack("!H", kind) + payload


def tagged(frame: bytes, vlan: int = 5) -> bytes:
    """The frame with a VLAN tag."""
    return frame[:12] + struct.pack("!HH", VLAN, vlan) + frame[12:]


def bpdu(source: str, priority: int = 0) -> bytes:
    """A configuration message of the spanning tree (IEEE 802.1D, 9.3.1) of a bridge that wants to be the root."""
    bridge = struct.pack("!H", priority) + _mac(source)
    message = bytes([0, 0, 0, 0, 0]) + bridge + bytes(4) + bridge + struct.pack("!HHHHH", 0x8001, 0, 20 * 256, 512, 0)
    return ethernet(source, "01:80:c2:00:00:00", len(message) + 3, b"\x42\x42\x03" + message)


def arp(
    source: str,
    address: str,
    target: str,
    *,
    operation: int = 1,
    claimed: str = "",
    destination: str = BROADCAST,
    target_mac: str = "00:00:00:00:00:00",
) -> bytes:
    """ARP of C(source) for C(address); C(claimed) is what it says to be its MAC address."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + _mac(claimed or source) + _ip(address)
    return ethernet(source, destination, ARP, body + _mac(target_mac) + _ip(target))


def ipv4(
    source: str, address: str, destination: str, protocol: int, payload: bytes, *, mac: str = BROADCAST, offset: int = 0
) -> bytes:
    """A packet; C(offset) makes it a later fragment."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, offset, 64, protocol, 0)
    head += _ip(address) + _ip(destination)
    return ethernet(source, mac, IPV4, head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload)


def ipv6(
    source: str, address: str, destination: str, protocol: int, payload: bytes, *, mac: str = "", hops: int = 255
) -> bytes:
    """A packet, to the multicast MAC address of its destination unless another one is given."""
    to = mac or ":".join(f"{byte:02x}" for byte in b"\x33\x33" + _ip(destination)[-4:])
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
    return ethernet(source, to, IPV6, head + _ip(address) + _ip(destination) + payload)


def udp(source: int, destination: int) -> bytes:
    """A datagram without checksum."""
    return struct.pack("!HHHH", source, destination, 12, 0) + b"test"


def icmpv6(source: str, address: str, destination: str, kind: int, body: bytes, *, mac: str = "") -> bytes:
    """A message with its checksum right."""
    message = struct.pack("!BBH", kind, 0, 0) + body
    pseudo = _ip(address) + _ip(destination) + struct.pack("!II", len(message), ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    return ipv6(source, address, destination, ICMPV6, message, mac=mac)


def advertisement(source: str, address: str, target: str, *, claimed: str = "", mac: str = "") -> bytes:
    """A neighbour advertisement that overrides what is known, to all nodes or to the one with this MAC address."""
    body = struct.pack("!I", 0x20000000) + _ip(target) + b"\x02\x01" + _mac(claimed or source)
    return icmpv6(source, address, ALL_NODES, NA, body, mac=mac)


def solicitation(source: str, address: str, target: str, *, claimed: str = "") -> bytes:
    """A neighbour solicitation; from C(::) it is duplicate address detection."""
    option = b"" if address == "::" else b"\x01\x01" + _mac(claimed or source)
    group = str(ipaddress.IPv6Address(_ip("ff02::1:ff00:0")[:13] + _ip(target)[13:]))
    return icmpv6(source, address, group, NS, bytes(4) + _ip(target) + option)


def router_solicitation(source: str, address: str, *, claimed: str = "") -> bytes:
    """A guest that looks for a router."""
    return icmpv6(source, address, "ff02::2", RS, bytes(4) + b"\x01\x01" + _mac(claimed or source))


def router_advertisement(source: str, address: str, prefix: str = "2001:db8:bad::") -> bytes:
    """A router that has a prefix for everybody (RFC 4861, sections 4.2 and 4.6.2)."""
    information = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + _ip(prefix)
    return icmpv6(source, address, ALL_NODES, RA, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + information)


def redirect(source: str, address: str) -> bytes:
    """A router that sends a destination elsewhere."""
    return icmpv6(source, address, ALL_NODES, REDIRECT, bytes(4) + _ip(address) + _ip("2001:db8::99"))


def fragmented(frame: bytes) -> list[bytes]:
    """An IPv6 packet in two fragments, where the first ends before the header of what it carries."""
    head, payload = frame[14:54], frame[54:]
    options = struct.pack("!BB", head[6], 0) + b"\x01\x04" + bytes(4)
    pieces = [(_DESTINATION_OPTIONS, 1, options), (_DESTINATION_OPTIONS, 8, payload)]
    return [_with_fragment_header(frame[:14] + head, *piece) for piece in pieces]


def first_fragment(frame: bytes) -> bytes:
    """An IPv6 packet with a fragment header that is not needed."""
    return _with_fragment_header(frame[:54], frame[20], 0, frame[54:])


def behind_options(frame: bytes) -> bytes:
    """An IPv6 packet with a header of options before what it carries."""
    options = struct.pack("!BB", frame[20], 0) + b"\x01\x04" + bytes(4)
    return _replaced(frame[:54], _DESTINATION_OPTIONS, options + frame[54:])


def _with_fragment_header(head: bytes, following: int, offset: int, payload: bytes) -> bytes:
    return _replaced(head, _FRAGMENT_HEADER, struct.pack("!BBHI", following, 0, offset, 7) + payload)


def _replaced(head: bytes, following: int, payload: bytes) -> bytes:
    return head[:18] + struct.pack("!HB", len(payload), following) + head[21:] + payload


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
