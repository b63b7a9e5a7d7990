# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests as they go to the kernel, read back from their bytes: what pyroute2 of any version makes of them."""

from __future__ import annotations

import ipaddress
import os
import struct
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _links, _netlink, _rtnetlink, _wire
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Netlink, Refusal, Request, Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

NEWLINK, DELLINK, SETLINK = 16, 17, 19
CREATE, EXCL, REPLACE = 0x400, 0x200, 0x100


def encoded(request: Request) -> tuple[tuple[int, ...], bytes]:
    raw = _wire._encode(_wire.Message(request.kind, request.flags, _netlink._encode(request.message)), 7)
    (only,) = _wire.split_messages(raw)
    return only


def attributes(request: Request, size: int = _rtnetlink.LINK_HEADER.size) -> dict[int, bytes]:
    return _wire.parse_attributes(encoded(request)[1], _wire.HEADER.size + size)


def nested(found: dict[int, bytes], *path: int) -> dict[int, bytes]:
    for kind in path:
        found = _wire.parse_attributes(found[kind])
    return found


def test_a_bridge_is_created_and_never_taken_over() -> None:
    (_length, kind, flags, sequence, _port), _raw = encoded(_netlink.create_bridge("br0", "02:00:00:00:00:01"))
    assert (kind, sequence) == (NEWLINK, 7)
    assert flags & (CREATE | EXCL) == CREATE | EXCL
    found = attributes(_netlink.create_bridge("br0", "02:00:00:00:00:01"))
    assert (found[1], found[3]) == (bytes.fromhex("020000000001"), b"br0\0")
    assert nested(found, 18)[1] == b"bridge\0"


def test_only_what_is_given_is_set() -> None:
    request = _netlink.set_link("t0", mtu=9000, master=0)
    assert attributes(request) == {3: b"t0\0", 4: struct.pack("=I", 9000), 10: struct.pack("=I", 0)}
    _family, _type, index, flags, change = _rtnetlink.LINK_HEADER.unpack_from(encoded(request)[1], 16)
    assert (index, flags, change) == (0, 0, 0)


@pytest.mark.parametrize("up", [True, False])
def test_up_and_down_touch_no_other_flag(up: bool) -> None:
    raw = encoded(_netlink.set_link("t0", up=up, mac="02:00:00:00:00:01", alias="a note", group=9))[1]
    _family, _type, _index, flags, change = _rtnetlink.LINK_HEADER.unpack_from(raw, 16)
    assert (flags, change) == (int(up), 1)
    found = _wire.parse_attributes(raw, 32)
    assert (found[1], found[20], found[27]) == (bytes.fromhex("020000000001"), b"a note\0", struct.pack("=I", 9))


def test_settings_of_bridges_and_ports_have_the_kernels_numbers_and_widths() -> None:
    bridge = nested(attributes(_netlink.set_bridge("br0", dict.fromkeys(_netlink.BRIDGE_ATTRIBUTES, 1))), 18, 2)
    widths = {1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 2, 7: 1, 9: 2, 23: 1, 25: 1, 39: 2}
    assert {kind: len(value) for kind, value in bridge.items()} == widths
    port = nested(attributes(_netlink.set_port("t0", dict.fromkeys(_netlink.PORT_ATTRIBUTES, True))), 18)
    assert port[4] == b"bridge\0"
    assert nested(port, 5) == dict.fromkeys((4, 5, 8, 9, 33), b"\1")


def test_a_group_is_deleted_by_its_number_alone() -> None:
    header, _raw = encoded(_netlink.delete_group(77))
    assert header[1] == DELLINK
    assert attributes(_netlink.delete_group(77)) == {27: struct.pack("=I", 77)}


def test_an_address_is_written_as_it_was_read() -> None:
    address = _netlink.Address(
        interface="br0",
        address=ipaddress.ip_interface("10.0.0.1/24"),
        flags=0x280,
        label="br0:1",
        broadcast="10.0.0.255",
        valid=200,
        preferred=100,
    )
    header, raw = encoded(_netlink.add_address(address, 3))
    assert header[2] & (CREATE | REPLACE) == CREATE | REPLACE
    (back,) = _rtnetlink.parse_addresses(raw, {3: "br0"})
    # What the kernel alone decides (here: that the address is permanent) is not sent.
    assert back == _netlink.Address(**{**vars(address), "flags": 0x200})


def test_a_new_ipv6_address_waits_for_nothing() -> None:
    address = _netlink.new_address("br0", ipaddress.ip_interface("fd00::1/64"))
    (back,) = _rtnetlink.parse_addresses(encoded(_netlink.add_address(address, 3))[1], {3: "br0"})
    assert (str(back.address), back.flags) == ("fd00::1/64", 0x2)


VLANS = frozenset([Vlan(1, True, True), Vlan(20, False, False)])


@pytest.mark.parametrize("itself", [True, False])
def test_vlans_are_written_as_they_are_read(itself: bool) -> None:
    (request,) = _netlink.change_vlans(5, VLANS, present=True, on_bridge_itself=itself)
    header, raw = encoded(request)
    assert header[1] == SETLINK
    family, _type, index, _flags, _change = _rtnetlink.LINK_HEADER.unpack_from(raw, 16)
    assert (family, index) == (7, 5)
    assert _rtnetlink.parse_vlans(raw) == VLANS
    assert nested(attributes(request), 26).get(0) == (struct.pack("=H", 2) if itself else None)
    (request,) = _netlink.change_vlans(5, VLANS, present=False, on_bridge_itself=itself)
    assert encoded(request)[0][1] == DELLINK


def test_no_vlans_are_no_request() -> None:
    assert _netlink.change_vlans(5, [], present=True, on_bridge_itself=False) == []


def changed(before: t.Optional[frozenset[Vlan]], after: frozenset[Vlan]) -> list[tuple[int, set[int]]]:
    requests = _links.vlan_requests("lo", before, after)
    return [(request.kind, {vlan.id for vlan in _rtnetlink.parse_vlans(encoded(request)[1])}) for request in requests]


def test_only_vlans_that_differ_are_touched() -> None:
    assert changed(VLANS, VLANS) == []
    assert changed(VLANS, frozenset([Vlan(1, True, True), Vlan(30, False, True)])) == [(DELLINK, {20}), (SETLINK, {30})]
    assert changed(VLANS, frozenset([Vlan(1, False, True), Vlan(20, False, False)])) == [(SETLINK, {1})]


def test_a_fresh_port_loses_whatever_default_vlan_it_was_given() -> None:
    (_kind, gone), (_set, kept) = changed(None, frozenset([Vlan(20, True, True)]))
    assert gone == set(range(1, 4095)) - {20}
    assert kept == {20}


def test_a_refusal_is_told_in_the_kernels_words() -> None:
    words = b"Interface name is taken\0"
    tlv = struct.pack("=HH", 4 + len(words), 1) + words
    error = struct.pack("=IHHII", 36 + len(tlv), 2, 0x300, 7, 0) + struct.pack("=i", -17) + bytes(16) + tlv
    refusal = _wire._refusal(0x300, error)
    assert refusal == Refusal(17, "Interface name is taken")
    assert str(refusal) == f"{os.strerror(17)} (Interface name is taken)"
    acknowledged = struct.pack("=IHHII", 36, 2, 0x100, 7, 0) + struct.pack("=i", 0) + bytes(16)
    assert _wire._refusal(0x100, acknowledged) is None


class AnsweringNetlink(Netlink):
    """Answers each request with the next prepared refusal, or None."""

    def __init__(self, answers: list[t.Optional[Refusal]]) -> None:
        super().__init__()
        self.answers = answers

    def send(self, requests: t.Sequence[Request]) -> list[t.Optional[Refusal]]:
        return [self.answers.pop(0) for _request in requests]


def test_the_change_that_failed_is_named_and_the_others_count_as_done() -> None:
    changes = [Change(name, f"Change {name}", None, 1) for name in ("a", "b", "c")]
    request = _netlink.set_link("t0", mtu=1400)
    refusal = Refusal(54, "")
    done: list[Change] = []
    # Of b the first of two requests came into force: it is half done, and must be undone with the rest.
    netlink = AnsweringNetlink([None, None, refusal, None])
    work = [(changes[0], [request]), (changes[1], [request, request]), (changes[2], [request])]
    with pytest.raises(SystemFailure, match=r"Change b: the kernel refuses with EXFULL.*1023 ports"):
        _links.send(netlink, work, done)
    assert done == changes
    done = []
    with pytest.raises(SystemFailure, match="Change a"):
        _links.send(AnsweringNetlink([refusal, None]), [(changes[0], [request]), (changes[1], [request])], done)
    assert done == [changes[1]]


def test_the_library_is_imported_without_what_is_not_used() -> None:
    module = _deps.pyroute2_netlink()
    assert module.__name__ == "pyroute2.netlink"
    assert _deps.pyroute2().IPRoute is not None
