# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Questions to gateways are frames as the RFCs have them, and only an answer to the question is an answer."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _reach
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._reach import Question

MAC = bytes.fromhex("020000000001")
ROUTER = bytes.fromhex("0200000000fe")


def question(target: str, source: str) -> Question:
    return Question(ipaddress.ip_address(target), ipaddress.ip_address(source), MAC)


ARP = question("192.0.2.1", "192.0.2.10")
ND = question("fe80::1", "fe80::10")


def test_an_arp_request_is_a_broadcast_that_names_who_asks() -> None:
    assert ARP.frame().hex() == (
        "ffffffffffff" "020000000001" "0806" "0001" "0800" "06" "04" "0001"
        "020000000001" "c000020a" "000000000000" "c0000201"
    )  # fmt: skip


def test_a_solicitation_goes_to_the_targets_own_group_with_a_hop_limit_that_no_router_leaves() -> None:
    frame = question("2001:db8::12:3456", "fe80::10").frame()
    assert frame[:14].hex() == "3333ff12345602000000000186dd"
    assert frame[14:22].hex() == "6000000000203aff"
    assert ipaddress.ip_address(frame[22:38]) == ipaddress.ip_address("fe80::10")
    assert ipaddress.ip_address(frame[38:54]) == ipaddress.ip_address("ff02::1:ff12:3456")
    assert frame[54:56].hex() == "8700"
    assert ipaddress.ip_address(frame[62:78]) == ipaddress.ip_address("2001:db8::12:3456")
    assert frame[78:].hex() == "0101020000000001"


def test_a_solicitation_from_nobody_does_not_say_where_nobody_is() -> None:
    frame = question("fe80::1", "::").frame()
    assert frame[18:20].hex() == "0018"
    assert len(frame) == 78


@pytest.mark.parametrize("source", ["fe80::10", "::", "2001:db8::ffff:ffff:ffff"])
def test_the_checksum_makes_the_sum_over_everything_all_ones(source: str) -> None:
    frame = question("2001:db8::1", source).frame()
    pseudo = frame[22:54] + struct.pack("!II", len(frame) - 54, 58)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(frame) - 54) // 2}H", pseudo + frame[54:]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


def test_the_checksum_is_the_one_that_a_known_message_has() -> None:
    # An echo request of one odd byte, worked out by hand: 8000 + 0001 + 6100 + 1 + 1 + length 9 + 58.
    one = ipaddress.ip_address("::1").packed
    assert (
        _reach.checksum_icmpv6(one, one, bytes.fromhex("80000000000000") + b"\x01\x61")
        == ~(0x8000 + 0x0001 + 0x6100 + 1 + 1 + 9 + 58) & 0xFFFF
    )


def arp(
    *,
    operation: int = 2,
    sender: str = "192.0.2.1",
    receiver: bytes = MAC,
    to: str = "192.0.2.10",
    hardware: int = 1,
    ethertype: int = 0x0806,
) -> bytes:
    return (
        MAC
        + ROUTER
        + struct.pack("!HHHBBH", ethertype, hardware, 0x0800, 6, 4, operation)
        + ROUTER
        + ipaddress.ip_address(sender).packed
        + receiver
        + ipaddress.ip_address(to).packed
    )


def test_an_arp_reply_answers_with_or_without_padding() -> None:
    assert ARP.is_answered_by(arp())
    assert ARP.is_answered_by(arp() + bytes(18))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(arp(operation=1), id="a request"),
        pytest.param(arp(sender="192.0.2.2"), id="another host's"),
        pytest.param(arp(receiver=ROUTER), id="to another host"),
        pytest.param(arp(receiver=b"\xff" * 6, to="192.0.2.1"), id="gratuitous"),
        pytest.param(arp(hardware=6), id="not of Ethernet"),
        pytest.param(arp(ethertype=0x8035), id="reverse ARP"),
        pytest.param(arp()[:41], id="cut"),
        pytest.param(b"", id="empty"),
    ],
)
def test_no_other_arp_message_is_an_answer(frame: bytes) -> None:
    assert not ARP.is_answered_by(frame)


def advertisement(
    *,
    target: str = "fe80::1",
    to: str = "fe80::10",
    flags: int = 0xE0,
    hops: int = 255,
    kind: int = 136,
    version: int = 6,
    following: int = 58,
) -> bytes:
    message = struct.pack("!BBHB3x16s", kind, 0, 0, flags, ipaddress.ip_address(target).packed)
    message += b"\x02\x01" + ROUTER
    addresses = ipaddress.ip_address("fe80::1").packed + ipaddress.ip_address(to).packed
    return (
        MAC
        + ROUTER
        + b"\x86\xdd"
        + struct.pack("!IHBB", version << 28, len(message), following, hops)
        + addresses
        + message
    )


def test_a_solicited_advertisement_answers_with_or_without_its_option() -> None:
    assert ND.is_answered_by(advertisement())
    assert ND.is_answered_by(advertisement()[:-8])
    assert ND.is_answered_by(advertisement(flags=0x40))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(advertisement(target="fe80::2"), id="of another target"),
        pytest.param(advertisement(flags=0xA0), id="unsolicited"),
        pytest.param(advertisement(to="ff02::1", flags=0xA0), id="to all"),
        pytest.param(advertisement(to="fe80::11"), id="to another host"),
        pytest.param(advertisement(hops=254), id="from behind a router"),
        pytest.param(advertisement(kind=135), id="a solicitation"),
        pytest.param(advertisement(following=17), id="UDP"),
        pytest.param(advertisement(version=4), id="not IPv6"),
        pytest.param(advertisement()[:77], id="cut"),
        pytest.param(arp(), id="ARP"),
    ],
)
def test_no_other_advertisement_is_an_answer(frame: bytes) -> None:
    assert not ND.is_answered_by(frame)


def test_nobody_is_answered_by_an_advertisement_to_all() -> None:
    nobody = question("fe80::1", "::")
    assert nobody.is_answered_by(advertisement(to="ff02::1", flags=0xA0))
    assert not nobody.is_answered_by(advertisement())


def test_each_gateway_is_asked_from_the_address_that_is_nearest_to_it() -> None:
    addresses = ["192.0.2.10/24", "198.51.100.10/24", "198.51.100.11/24", "2001:db8::10/64", "fe80::10/64"]
    gateways = ["198.51.100.1", "203.0.113.1", "2001:db8::1", "2001:db8:1::1", "fe80::1", "fe80::2%eth0"]
    assert _reach.choose_sources(gateways, addresses) == {
        "198.51.100.1": "198.51.100.10",
        "203.0.113.1": "192.0.2.10",
        "2001:db8::1": "2001:db8::10",
        "2001:db8:1::1": "fe80::10",
        "fe80::1": "fe80::10",
        "fe80::2%eth0": "fe80::10",
    }


def test_a_gateway_of_a_family_that_the_interface_lacks_has_no_source() -> None:
    assert _reach.choose_sources(["192.0.2.1", "fe80::1"], ["192.0.2.10/24"]) == {"192.0.2.1": "192.0.2.10"}
