# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Messages of the kernel's, written out here by hand, and what is read from them."""

from __future__ import annotations

import ipaddress
import socket
import struct

from ansible_collections.labspan.vmnet.plugins.module_utils import _rtnetlink, _wire
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Vlan
from hypothesis import given
from hypothesis import strategies as st


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def link_message(*attributes: bytes, index: int = 5, flags: int = 0x1, family: int = 0) -> bytes:
    return message(16, struct.pack("=BxHiII", family, 1, index, flags, 0) + b"".join(attributes))


def read_link(raw: bytes, names: dict[int, str]) -> _rtnetlink.Link:
    index, flags, attributes = _rtnetlink.parse_link_header(raw)
    return _rtnetlink.parse_link(index, flags, attributes, names)


NAMES = {2: "br0", 5: "t0"}


def test_a_tap_on_a_bridge_is_read_whole() -> None:
    tun = b"".join(
        [attribute(1, struct.pack("=I", 1000)), attribute(3, b"\2"), attribute(6, b"\1"), attribute(7, b"\1")]
    )
    port = b"".join([attribute(8, b"\1"), attribute(9, b"\1"), attribute(33, b"\1"), attribute(1, b"\3")])
    info = attribute(1, b"tun\0") + attribute(2, tun) + attribute(4, b"bridge\0") + attribute(5, port)
    raw = link_message(
        attribute(3, b"t0\0"),
        attribute(1, bytes.fromhex("020000000001")),
        attribute(4, struct.pack("=I", 1400)),
        attribute(10, struct.pack("=I", 2)),
        attribute(20, b"labspan.vmnet:lab\0"),
        # The nested flag is set by newer kernels and says nothing.
        attribute(18 | 0x8000, info),
        flags=0x10001,
    )
    link = read_link(raw, NAMES)
    assert (link.name, link.kind, link.up, link.carrier, link.mtu) == ("t0", "tun", True, True, 1400)
    assert (link.mac, link.alias, link.master) == ("02:00:00:00:00:01", "labspan.vmnet:lab", "br0")
    assert link.tun == _rtnetlink.TunInfo("tap", 1000, None, False, False, True, True)
    assert link.port == _rtnetlink.PortInfo(False, False, True, True, True, 3)


def test_a_bridge_of_a_kernel_without_vlans_says_so() -> None:
    settings = attribute(1, struct.pack("=I", 1500)) + attribute(6, struct.pack("=H", 0x8000)) + attribute(7, b"\0")
    info = attribute(1, b"bridge\0") + attribute(2, settings)
    link = read_link(link_message(attribute(3, b"br0\0"), attribute(18, info), index=2), NAMES)
    assert link.bridge is not None
    assert (link.bridge.forward_delay, link.bridge.priority) == (1500, 0x8000)
    assert (link.bridge.vlan_filtering, link.bridge.vlan_default_pvid) == (False, None)


def test_a_physical_interface_has_no_kind() -> None:
    link = read_link(link_message(attribute(3, b"t0\0"), flags=0), NAMES)
    assert (link.kind, link.up, link.master, link.bridge, link.port, link.tun) == (None, False, None, None, None, None)


def test_vlans_are_read_one_by_one_and_in_ranges() -> None:
    def vlan(flags: int, number: int) -> bytes:
        return attribute(2, struct.pack("=HH", flags, number))

    specification = vlan(0x2 | 0x4, 1) + vlan(0x8, 10) + vlan(0x10, 12) + vlan(0x8 | 0x4, 20) + vlan(0x10 | 0x4, 21)
    found = _rtnetlink.parse_vlans(link_message(attribute(3, b"t0\0"), attribute(26, specification), family=7))
    assert found == {
        Vlan(1, True, True),
        *(Vlan(number, False, False) for number in (10, 11, 12)),
        *(Vlan(number, False, True) for number in (20, 21)),
    }
    assert _rtnetlink.parse_vlans(link_message(attribute(3, b"t0\0"), family=7)) == frozenset()


def test_an_address_keeps_all_that_it_takes_to_put_it_back() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 0x80, 0, 5)
    attributes = [
        attribute(1, bytes([10, 0, 0, 1])),
        attribute(2, bytes([10, 0, 0, 1])),
        attribute(3, b"t0:label\0"),
        attribute(4, bytes([10, 0, 0, 255])),
        attribute(6, struct.pack("=IIII", 100, 200, 0, 0)),
        attribute(8, struct.pack("=I", 0x280)),
    ]
    (address,) = _rtnetlink.parse_addresses(message(20, body + b"".join(attributes)), NAMES)
    assert address == _rtnetlink.Address(
        interface="t0",
        address=ipaddress.ip_interface("10.0.0.1/24"),
        flags=0x280,
        label="t0:label",
        broadcast="10.0.0.255",
        valid=200,
        preferred=100,
    )


def test_a_peer_is_told_from_the_address_itself() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0x80, 0, 5)
    raw = message(20, body + attribute(1, bytes([10, 0, 0, 2])) + attribute(2, bytes([10, 0, 0, 1])))
    (address,) = _rtnetlink.parse_addresses(raw, NAMES)
    assert (str(address.address), address.peer) == ("10.0.0.1/32", "10.0.0.2")


def test_addresses_of_interfaces_that_came_meanwhile_are_left_out() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 99) + attribute(1, bytes([10, 0, 0, 1]))
    assert list(_rtnetlink.parse_addresses(message(20, body), NAMES)) == []


def learnt_message(*attributes: bytes, state: int = 0x2, index: int = 5) -> bytes:
    return bytes(16) + struct.pack("=BxxxiHBB", 7, index, state, 0x2, 0) + b"".join(attributes)


def test_a_bridge_has_learnt_macs_behind_ports_and_its_own_are_not_among_them() -> None:
    mac, master = attribute(2, bytes.fromhex("5254000000ff")), attribute(9, struct.pack("=I", 2))
    (entry,) = _rtnetlink.parse_learnt(learnt_message(mac, master), NAMES)
    assert entry == (NAMES[5], "52:54:00:00:00:ff")
    for other in (
        learnt_message(mac, master, state=0x80),  # an interface's own
        learnt_message(mac),  # not of a bridge
        learnt_message(mac, master, index=77),  # a port that came after the names were read
        learnt_message(master),
    ):
        assert not list(_rtnetlink.parse_learnt(other, NAMES))


def route_message(*attributes: bytes, prefix: int = 0, table: int = 254, kind: int = 1, flags: int = 0) -> bytes:
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, table, 3, 0, kind, flags)
    return message(24, head + b"".join(attributes))


def test_routes_of_every_form_are_read() -> None:
    out, gateway = attribute(4, struct.pack("=I", 5)), attribute(5, bytes([10, 0, 0, 9]))
    (default,) = _rtnetlink.parse_routes(route_message(out, gateway, attribute(6, struct.pack("=I", 50))), NAMES)
    assert (default.destination, default.gateway, default.interface, default.metric) == (None, "10.0.0.9", "t0", 50)
    via = attribute(18, struct.pack("=H", socket.AF_INET6) + ipaddress.ip_address("fe80::1").packed)
    destination = attribute(1, bytes([10, 1, 0, 0]))
    (through,) = _rtnetlink.parse_routes(route_message(out, via, destination, prefix=16), NAMES)
    assert (str(through.destination), through.gateway) == ("10.1.0.0/16", "fe80::1")
    hop = struct.pack("=HBBi", 16, 0, 0, 5) + gateway
    other = struct.pack("=HBBi", 8, 0, 0, 2)
    both = _rtnetlink.parse_routes(route_message(attribute(9, hop + other)), NAMES)
    assert [(route.interface, route.gateway) for route in both] == [("t0", "10.0.0.9"), ("br0", None)]


def test_local_and_cloned_routes_are_none_that_anybody_set() -> None:
    out = attribute(4, struct.pack("=I", 5))
    assert list(_rtnetlink.parse_routes(route_message(out, kind=2), NAMES)) == []
    assert list(_rtnetlink.parse_routes(route_message(out, flags=0x200), NAMES)) == []


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_what_one_receive_brought_is_split_at_the_messages(bodies: list[bytes]) -> None:
    messages = [message(16, body, number) for number, body in enumerate(bodies)]
    received = b"".join(each + bytes(-len(each) % 4) for each in messages)
    split = list(_wire.split_messages(received))
    assert [each for _header, each in split] == messages
    assert [header[3] for header, _each in split] == list(range(len(bodies)))


@given(st.dictionaries(st.integers(1, 60), st.binary(max_size=9)))
def test_attributes_are_read_as_they_were_written(attributes: dict[int, bytes]) -> None:
    raw = b"".join(attribute(kind, value) for kind, value in attributes.items())
    assert _wire.parse_attributes(raw) == attributes


@given(st.binary(max_size=40))
def test_a_mutilated_message_ends_the_reading_and_not_the_program(raw: bytes) -> None:
    assert isinstance(_wire.parse_attributes(raw), dict)
