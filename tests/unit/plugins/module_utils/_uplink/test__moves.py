# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From one state of layer 3 to another: the order of the messages, and a small kernel that carries them out."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _wire
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _entries
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import (
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    Route,
    parse_address,
    parse_route,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3, batch, lacks, stands_in
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import Message
from hypothesis import given
from hypothesis import strategies as st

from .test__entries import BRIDGE, CARD, address, neighbour, route, rule

RELEASE = Message(16, 0, b"release")


def lasting(text: str) -> _entries.Neighbour:
    found = neighbour(text)
    assert found is not None
    return found


HOST = Layer3(
    addresses=(address(), address("192.0.2.11", label="eth0:web"), address("2001:db8::2", prefix=64)),
    routes=(
        route("192.0.2.0/24", protocol=2),
        route(via="192.0.2.1"),
        route("10.0.0.0/8", protocol=4),
        route("172.16.0.0/12", index=7),
    ),
    rules=(rule(iif="eth0"), rule(iif="wlan0", priority=200)),
    neighbours=(lasting("192.0.2.77"),),
)


def kinds(messages: t.Sequence[Message]) -> list[int]:
    return [message.kind for message in messages]


def test_nothing_is_missing_in_between() -> None:
    """Addresses arrive first and leave last; the port and the routes change hands in between."""
    messages = batch(HOST, HOST.moved(CARD, BRIDGE), [RELEASE])
    first_gone = kinds(messages).index(RTM_DELADDR)
    release = messages.index(RELEASE)
    arrivals = [number for number, kind in enumerate(kinds(messages)) if kind == RTM_NEWADDR]
    routes = [number for number, kind in enumerate(kinds(messages)) if kind == RTM_NEWROUTE]
    assert max(arrivals) < release < min(routes) < max(routes) < first_gone
    assert RTM_DELROUTE not in kinds(messages), "routes are replaced, never away"


def test_what_is_on_other_interfaces_is_left_alone() -> None:
    touched = b"".join(message.body for message in batch(HOST, HOST.moved(CARD, BRIDGE), []))
    assert HOST.routes[3].body not in touched
    assert HOST.rules[1].body not in touched
    assert HOST.moved(CARD, BRIDGE).routes[3] == HOST.routes[3]


def test_on_the_link_comes_before_behind_a_gateway() -> None:
    messages = batch(HOST, HOST.moved(CARD, BRIDGE), [])
    made = [parse_route(message.body) for message in messages if message.kind == RTM_NEWROUTE]
    assert [bool(each.gateways) for each in made] == sorted(bool(each.gateways) for each in made)


def test_a_state_that_is_there_needs_no_message() -> None:
    moved = HOST.moved(CARD, BRIDGE)
    assert batch(moved, moved, []) == []
    assert batch(HOST, HOST, [], trust_kernel=False) == []
    assert lacks(moved, moved) == []
    assert len(lacks(HOST, moved)) == 3 + 3 + 1 + 1


def test_there_and_back_is_the_same() -> None:
    assert HOST.moved(CARD, BRIDGE).moved(BRIDGE, CARD) == HOST


def test_a_route_that_the_kernel_makes_is_left_to_it_at_first_and_looked_after_later() -> None:
    moved = HOST.moved(CARD, BRIDGE)
    there = dataclasses.replace(moved, routes=moved.routes[1:])
    assert batch(there, moved, []) == []
    assert kinds(batch(there, moved, [], trust_kernel=False)) == [RTM_NEWROUTE]


def test_a_router_that_was_heard_is_stood_in_for_until_it_is_heard_again() -> None:
    host = Layer3(routes=(route(via="fe80::1", metric=1024, protocol=9),))
    moved = host.moved(CARD, BRIDGE)
    new, old = batch(host, moved, [])
    assert (new.kind, parse_route(new.body).metric, old.kind) == (RTM_NEWROUTE, 1025, RTM_DELROUTE)
    waiting = Layer3(routes=(parse_route(new.body),))
    assert batch(waiting, moved, []) == []
    assert stands_in(waiting, moved)
    assert lacks(waiting, moved) == []
    heard = Layer3(routes=(*waiting.routes, *moved.routes))
    (gone,) = batch(heard, moved, [])
    assert (gone.kind, parse_route(gone.body).metric) == (RTM_DELROUTE, 1025)
    assert not stands_in(heard, moved)


def test_an_address_in_another_place_of_the_list_is_made_anew_only_where_the_order_counts() -> None:
    turned = dataclasses.replace(HOST, addresses=(HOST.addresses[1], HOST.addresses[0], HOST.addresses[2]))
    assert batch(turned, HOST, [], keep_order=False) == []
    assert kinds(batch(turned, HOST, [])) == [RTM_DELADDR, RTM_DELADDR, RTM_NEWADDR, RTM_NEWADDR]


class SmallKernel:
    """Routes in groups and addresses in lists, as net/ipv4/fib_trie.c and devinet.c keep them."""

    def __init__(self, state: Layer3) -> None:
        self.addresses = [timed.address for timed in state.addresses]
        self.routes = list(state.routes)

    def send(self, messages: t.Sequence[Message]) -> None:
        for message in messages:
            if message.kind == RTM_NEWADDR:
                new = parse_address(message.body).address
                if new not in self.addresses:
                    self.addresses.append(new)
            elif message.kind == RTM_DELADDR:
                index, local = message.body[4:8], parse_address(message.body).address.local
                self.addresses = [a for a in self.addresses if (a.body[4:8], a.local) != (index, local)]
            elif message.kind == RTM_DELROUTE:
                self.routes.remove(Route(message.body))
            elif message.kind == RTM_NEWROUTE:
                self._add(Route(message.body), message.flags)

    def _add(self, new: Route, flags: int) -> None:
        group = [number for number, old in enumerate(self.routes) if old.group == new.group]
        same = [number for number in group if self.routes[number] == new]
        if flags & _wire.NLM_F_REPLACE and group:
            if same:
                assert same[0] == group[0], "the kernel refuses to replace one by another that is there already"
                return
            self.routes[group[0]] = new
        elif not same:
            self.routes.insert(group[-1] + 1 if group else len(self.routes), new)


ROUTES = st.lists(
    st.builds(
        route,
        st.sampled_from(["10.0.0.0/8", "10.1.0.0/16"]),
        via=st.sampled_from(["", "192.0.2.1", "192.0.2.2"]),
        index=st.sampled_from([5, 9]),
        metric=st.sampled_from([0, 5]),
        protocol=st.sampled_from([3, 4]),
    ),
    unique=True,
    max_size=7,
)


@given(ROUTES, ROUTES)
def test_any_routes_become_any_others_in_their_order(have: list[Route], want: list[Route]) -> None:
    kernel = SmallKernel(Layer3(routes=tuple(have)))
    wanted = Layer3(routes=tuple(want))
    kernel.send(batch(Layer3(routes=tuple(have)), wanted, []))
    for group in {each.group for each in (*kernel.routes, *want)}:
        assert [r for r in kernel.routes if r.group == group] == [r for r in want if r.group == group]
    assert batch(Layer3(routes=tuple(kernel.routes)), wanted, []) == []


ADDRESSES = st.lists(
    st.builds(
        address,
        st.sampled_from(["192.0.2.10", "192.0.2.11", "198.51.100.7"]),
        index=st.sampled_from([5, 9]),
        label=st.sampled_from(["eth0", "eth0:a"]),
    ),
    unique_by=lambda timed: (timed.address.index, timed.address.local),
    max_size=5,
)


@given(ADDRESSES, ADDRESSES)
def test_any_addresses_become_any_others(have: list[t.Any], want: list[t.Any]) -> None:
    kernel = SmallKernel(Layer3(addresses=tuple(have)))
    kernel.send(batch(Layer3(addresses=tuple(have)), Layer3(addresses=tuple(want)), []))
    assert set(kernel.addresses) == {timed.address for timed in want}
    for index in (5, 9):
        listed = [each for each in kernel.addresses if each.index == index]
        assert listed == [timed.address for timed in want if timed.address.index == index]
