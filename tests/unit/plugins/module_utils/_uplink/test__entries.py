# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Messages of the kernel's, written out by hand, and what is sent back of them."""

from __future__ import annotations

import ipaddress
import struct
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _wire
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _entries, _words
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import (
    FOREVER,
    Interface,
    Lifetimes,
    Timed,
    parse_address,
    parse_neighbour,
    parse_route,
    parse_rule,
)
from hypothesis import given
from hypothesis import strategies as st

CARD, BRIDGE = Interface(5, "eth0"), Interface(9, "br0")
NAMES = {5: "eth0", 9: "br0", 7: "wlan0"}
INET, INET6 = 2, 10


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def address(
    text: str = "192.0.2.10",
    *,
    prefix: int = 24,
    index: int = 5,
    flags: int = 0x80,
    label: str = "eth0",
    lives: tuple[int, int] = (FOREVER, FOREVER),
) -> Timed:
    local = packed(text)
    family = INET if len(local) == 4 else INET6
    pairs = [(1, local)]
    pairs += [(2, local), (3, label.encode() + b"\0")] if family == INET else []
    pairs += [(8, u32(flags)), (6, struct.pack("=IIII", *lives, 77, 88))]
    return parse_address(struct.pack("=BBBBI", family, prefix, flags & 0xFF, 0, index) + _wire.pack_attributes(pairs))


def route(
    to: str = "",
    *,
    via: str = "",
    index: int = 5,
    metric: int = 0,
    table: int = 254,
    protocol: int = 3,
    kind: int = 1,
    flags: int = 0,
    more: t.Sequence[tuple[int, bytes]] = (),
) -> _entries.Route:
    network = ipaddress.ip_network(to) if to else None
    example = network.network_address if network else ipaddress.ip_address(via)
    header = (
        INET if example.version == 4 else INET6,
        network.prefixlen if network else 0,
        0,
        0,
        table,
        protocol,
        0,
        kind,
    )
    pairs = [(15, u32(table))]
    pairs += [(1, network.network_address.packed)] if network else []
    pairs += [(6, u32(metric))] if metric else []
    pairs += [(5, packed(via))] if via else []
    pairs += [(4, u32(index))] if index else []
    return parse_route(struct.pack("=BBBBBBBBI", *header, flags) + _wire.pack_attributes([*pairs, *more]))


def rule(*, iif: str = "", oif: str = "", priority: int = 100, table: int = 100, flags: int = 0) -> _entries.Rule:
    pairs = [(15, u32(table)), (6, u32(priority))]
    pairs += [(3, iif.encode() + b"\0")] if iif else []
    pairs += [(17, oif.encode() + b"\0")] if oif else []
    return parse_rule(struct.pack("=BBBBBBBBI", INET, 0, 0, 0, table, 0, 0, 1, flags) + _wire.pack_attributes(pairs))


def neighbour(text: str, *, state: int = 0x80, flags: int = 0, index: int = 5) -> t.Optional[_entries.Neighbour]:
    pairs = [(1, packed(text)), (2, bytes(6)), (3, bytes(16)), (4, u32(3))]
    return parse_neighbour(struct.pack("=BxxxiHBB", INET, index, state, flags, 1) + _wire.pack_attributes(pairs))


def test_an_address_moves_with_its_label_and_its_lifetimes() -> None:
    moved = address(label="eth0:web", lives=(300, 600)).address.moved(CARD, BRIDGE)
    assert moved.index == 9
    assert moved.attributes[3] == b"br0:web\0"
    assert address(lives=(300, 600)).lifetimes == Lifetimes(300, 600)
    assert address(label="eth01").address.moved(CARD, BRIDGE).attributes[3] == b"eth01\0"


def test_what_the_kernel_finds_out_itself_is_no_part_of_an_address() -> None:
    assert address(flags=0x80).address == address(flags=0x80 | 0x20 | 0x40 | 0x01).address
    assert address(flags=0x80).address != address(flags=0x280).address
    assert not address(flags=0x280).address.has_prefix_route


@given(st.integers(1, 10**6), st.floats(0, 10**7))
def test_a_lifetime_never_grows_and_never_ends_a_living_address(seconds: int, passed: float) -> None:
    left = Lifetimes(seconds, seconds).after(passed)
    assert 0 <= left.preferred <= seconds
    assert 1 <= left.valid <= seconds
    assert Lifetimes().after(passed) == Lifetimes()


def test_a_route_moves_with_all_that_nobody_here_knows() -> None:
    unknown = [(99, b"what is this"), (8, _wire.pack_attributes([(2, u32(1400))]))]
    there = route("203.0.113.0/24", via="192.0.2.1", metric=50, flags=0x11, more=unknown)
    moved = there.moved(CARD, BRIDGE)
    assert moved.indices == {9}
    assert [pair for pair in moved.pairs if pair[0] != 4] == [pair for pair in there.pairs if pair[0] != 4]
    assert there.header[8] == 0, "dead and without carrier is found out, not told"
    assert there.moved(BRIDGE, CARD) is there
    assert moved.moved(BRIDGE, CARD) == there


def test_of_several_next_hops_only_those_on_the_card_move() -> None:
    hops = b""
    for index, gateway in ((5, "192.0.2.1"), (7, "198.51.100.1")):
        attributes = _wire.pack_attributes([(5, packed(gateway))])
        hops += struct.pack("=HBBi", 8 + len(attributes), 0x10, 2, index) + attributes
    there = route("203.0.113.0/24", index=0, more=[(9, hops)])
    assert there.indices == {5, 7}
    moved = there.moved(CARD, BRIDGE)
    assert moved.gateways == ((9, packed("192.0.2.1")), (7, packed("198.51.100.1")))
    assert moved.moved(BRIDGE, CARD) == there


def test_when_a_route_ends_is_no_part_of_what_it_is() -> None:
    ends = [struct.pack("=IIiI", 1, 2, seconds * 100, 0) + bytes(16) for seconds in (300, 200)]
    first, second = (route("2001:db8:5::/64", via="fe80::1", more=[(12, info)]) for info in ends)
    assert first.identity == second.identity != route("2001:db8:5::/64", via="fe80::1").identity
    assert first.attributes[23] == u32(300)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (route("192.0.2.0/24", protocol=2), True),
        (route("192.0.2.0/24", protocol=4), False),
        (route("198.51.100.0/24", protocol=2), False),
        (route("192.0.2.0/24", protocol=2, index=7), False),
        (route("192.0.2.10/32", protocol=2, kind=2, table=255), True),
        (route("192.0.2.10/32", protocol=3, kind=2, table=255), False),
    ],
)
def test_the_kernels_own_routes_are_known(made: _entries.Route, expected: bool) -> None:
    assert made.is_made_for([address().address]) is expected


def test_without_the_prefix_route_flag_a_route_is_not_the_kernels() -> None:
    assert not route("192.0.2.0/24", protocol=2).is_made_for([address(flags=0x280).address])


def test_what_cannot_be_made_again_is_named() -> None:
    assert route("10.0.0.0/8", via="192.0.2.1").cannot_be_rebuilt is None
    assert route("10.0.0.0/8", more=[(30, u32(7))]).cannot_be_rebuilt == "a nexthop object"
    assert route("10.0.0.0/8", more=[(21, b"\1\0"), (22, b"x")]).cannot_be_rebuilt == "an encapsulation"


def test_what_stands_in_for_an_advertised_default_is_one_step_behind_and_no_other_thing() -> None:
    advertised = route(via="fe80::1", metric=1024, protocol=9)
    assert advertised.is_advertised_default
    behind = advertised.stand_in()
    assert (behind.metric, behind.gateways, behind.protocol) == (1025, advertised.gateways, 9)
    assert not route(via="fe80::1", metric=1024, protocol=4).is_advertised_default
    assert not route("2001:db8:5::/64", via="fe80::1", protocol=9).is_advertised_default


def test_of_an_advertised_default_the_gateway_is_kept_and_not_the_nexthop_object_of_a_manager() -> None:
    """As systemd-networkd 257 makes it; it makes its objects again."""
    made = route(via="fe80::1", metric=1024, protocol=9, more=[(30, u32(7))])
    assert made == route(via="fe80::1", metric=1024, protocol=9)
    assert made.cannot_be_rebuilt is None


def test_a_rule_moves_by_name() -> None:
    assert rule(iif="eth0").moved(CARD, BRIDGE) == rule(iif="br0")
    assert rule(iif="eth0", oif="eth0").moved(CARD, BRIDGE) == rule(iif="br0", oif="br0")
    other = rule(iif="eth01")
    assert other.moved(CARD, BRIDGE) is other
    assert rule(iif="eth0", flags=0x8) == rule(iif="eth0"), "detached is found out"


def test_neighbours_that_were_written_down_last_and_others_are_asked_again() -> None:
    permanent, known, proxied = (
        neighbour("192.0.2.77"),
        neighbour("192.0.2.78", state=0x02),
        neighbour("192.0.2.79", state=0, flags=0x8),
    )
    assert permanent is not None
    assert permanent.is_lasting
    assert known is not None
    assert (known.header[2], known.is_lasting) == (0x04, False)
    assert proxied is not None
    assert proxied.is_lasting
    assert neighbour("192.0.2.80", state=0x20) is None
    assert permanent.moved(CARD, BRIDGE).indices == {9}


def test_the_words_are_those_of_ip() -> None:
    assert _words.address(address()) == "192.0.2.10/24"
    assert _words.address(address(lives=(1, 2))) == "192.0.2.10/24 dynamic"
    assert _words.route(route(via="192.0.2.1", metric=100), NAMES) == "default via 192.0.2.1 dev eth0 metric 100"
    assert _words.route(route("10.0.0.0/8", kind=6, index=0, table=9), NAMES) == "blackhole 10.0.0.0/8 table 9"
    assert _words.rule(rule(iif="eth0")) == "100: iif eth0 lookup 100"
    lasting = neighbour("192.0.2.77")
    assert lasting is not None
    assert _words.neighbour(lasting) == "192.0.2.77 lladdr 00:00:00:00:00:00"
    assert [
        _words.any_entry(one, NAMES) for one in (address().address, route(via="192.0.2.1"), rule(iif="eth0"), lasting)
    ] == [
        "the address 192.0.2.10/24 dev eth0",
        "the route default via 192.0.2.1 dev eth0",
        "the rule 100: iif eth0 lookup 100",
        "the neighbour 192.0.2.77 lladdr 00:00:00:00:00:00",
    ]
