# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From one state of layer 3 to another in one batch of messages, in the order in which nothing is missing in between.

Pure, and of the standard library alone: the dead-man carries this file. The way there, the way back, and the rest of a
move that was interrupted are the same function, since it looks at nothing but the two states.

An address is on both interfaces before it leaves the first: the kernel drops routes and connections of an address only
when the host has it nowhere any more (net/ipv4/fib_frontend.c, fib_del_ifaddr).

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import (
    AF_INET6,
    RTPROT_KERNEL,
    RTPROT_RA,
    Address,
    Entry,
    Interface,
    Neighbour,
    Route,
    Rule,
    Timed,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import Message

_RTPROT_DHCP = 16


@dataclasses.dataclass(frozen=True)
class Layer3:
    """Everything that routing knows of some interfaces, each table in the kernel's order."""

    addresses: tuple[Timed, ...] = ()
    """Of these interfaces."""
    routes: tuple[Route, ...] = ()
    """Of the whole host, without those that are the kernel's own business (the table local, multicast)."""
    rules: tuple[Rule, ...] = ()
    """Of the whole host."""
    neighbours: tuple[Neighbour, ...] = ()
    """Of these interfaces."""

    def with_addresses(self, new: t.Sequence[Timed]) -> Layer3:
        """The same with more addresses, in the kernel's order."""
        return dataclasses.replace(self, addresses=_listed(self.addresses, new))

    def moved(self, source: Interface, target: Interface) -> Layer3:
        """The same with everything of C(source) on C(target), behind what was there."""
        there = [timed for timed in self.addresses if timed.address.index != source.index]
        coming = [timed for timed in self.addresses if timed.address.index == source.index]
        moving = [Timed(timed.address.moved(source, target), timed.lifetimes) for timed in coming]
        known = {_place(timed.address) for timed in there}
        new = [timed for timed in moving if _place(timed.address) not in known]
        return Layer3(
            addresses=_listed(there, new),
            routes=_unique(route.moved(source, target) for route in self.routes),
            rules=tuple(rule.moved(source, target) for rule in self.rules),
            neighbours=_unique(neighbour.moved(source, target) for neighbour in self.neighbours),
        )


def _listed(there: t.Sequence[Timed], new: t.Sequence[Timed]) -> tuple[Timed, ...]:
    """In the kernel's order: IPv4 first, a new address last; IPv6 by scope, a new address first."""
    v4 = [timed for timed in (*there, *new) if timed.address.family != AF_INET6]
    v6 = [timed for timed in (*new, *there) if timed.address.family == AF_INET6]
    return (*v4, *sorted(v6, key=lambda timed: timed.address.is_link_local))


def _place(address: Address) -> tuple[int, bytes, int, bytes]:
    """What the kernel lets an interface have once."""
    return address.index, address.local, address.header[1], address.network


AnyEntry = t.TypeVar("AnyEntry", bound=Entry)


def _unique(entries: t.Iterable[AnyEntry]) -> tuple[AnyEntry, ...]:
    return tuple({entry.identity: entry for entry in entries}.values())


def batch(
    have: Layer3,
    want: Layer3,
    links: t.Sequence[Message],
    *,
    trust_kernel: bool = True,
    keep_order: bool = True,
    links_last: bool = False,
) -> list[Message]:
    """The messages that make C(want) of C(have); C(links) (the interface becomes a port) go in between.

    C(links_last) is for a card that leaves its bridge, on which nothing is heard any more from then on.

    C(trust_kernel) leaves to the kernel the routes that it makes by itself for an address. Without, they are seen to,
    too: for a second look, when the kernel has done what it does. C(keep_order) makes addresses anew that are there and
    stand in another place of the kernel's list.
    """
    out_of_order, new_addresses, old_addresses = _address_changes(have, want, keep_order=keep_order)
    new_neighbours, old_neighbours = _neighbour_changes(have, want)
    new_rules, old_rules = _rule_changes(have, want)
    return [
        *(timed.address.deletion() for timed in out_of_order),
        *(timed.addition() for timed in new_addresses),
        *(neighbour.addition() for neighbour in new_neighbours),
        *(() if links_last else links),
        *_route_changes(have, want, trust_kernel=trust_kernel),
        *(rule.addition() for rule in new_rules),
        *(rule.deletion() for rule in old_rules),
        *(timed.address.deletion() for timed in reversed(old_addresses)),
        *(neighbour.deletion() for neighbour in old_neighbours),
        *(links if links_last else ()),
    ]


def lacks(have: Layer3, want: Layer3) -> list[Entry]:
    """What of C(want) is not there; what came in addition is nobody's loss."""
    missing: list[Entry] = []
    heard = {_router(route) for route in have.routes if route.is_advertised_default}
    missing += [route for route in want.routes if route.is_advertised_default and _router(route) not in heard]
    pairs: tuple[tuple[t.Iterable[Entry], t.Iterable[Entry]], ...] = (
        ([timed.address for timed in have.addresses], [timed.address for timed in want.addresses]),
        (have.routes, [route for route in want.routes if not route.is_advertised_default]),
        (have.rules, want.rules),
        (_lasting(have), _lasting(want)),
    )
    for present, wanted in pairs:
        there = {entry.identity for entry in present}
        missing += [entry for entry in wanted if entry.identity not in there]
    return missing


Numbered = t.TypeVar("Numbered")


def _common(first: t.Sequence[Numbered], second: t.Sequence[Numbered]) -> int:
    """How many they have in common at their beginnings."""
    count = 0
    for one, other in zip(first, second):
        if one != other:
            break
        count += 1
    return count


def _address_changes(have: Layer3, want: Layer3, *, keep_order: bool) -> tuple[list[Timed], list[Timed], list[Timed]]:
    """Those to take away first because they come back in another place, those to add, those to take away in the end."""
    out_of_order: list[Timed] = []
    new: list[Timed] = []
    old: list[Timed] = []
    keys = {(timed.address.index, timed.address.family) for timed in (*have.addresses, *want.addresses)}
    for key in sorted(keys):
        had, wanted = _inserted(have, key), _inserted(want, key)
        if not keep_order:
            known = {timed.address for timed in had}
            there = {timed.address for timed in wanted}
            had, wanted = (
                [timed for timed in had if timed.address not in there],
                [timed for timed in wanted if timed.address not in known],
            )
        same = _common([timed.address for timed in had], [timed.address for timed in wanted])
        places = {_place(timed.address) for timed in wanted[same:]}
        if keep_order:  # else it is brought to what it must be where it is, without an instant of not being there
            out_of_order += [timed for timed in reversed(had[same:]) if _place(timed.address) in places]
        old += [timed for timed in had[same:] if _place(timed.address) not in places]
        new += wanted[same:]
    return out_of_order, new, old


def _inserted(state: Layer3, key: tuple[int, int]) -> list[Timed]:
    """The addresses of one interface and family in the order in which they must be made to be listed as they are."""
    found = [timed for timed in state.addresses if (timed.address.index, timed.address.family) == key]
    return found[::-1] if key[1] == AF_INET6 else found


def _lasting(state: Layer3) -> list[Neighbour]:
    return [neighbour for neighbour in state.neighbours if neighbour.is_lasting]


def _neighbour_changes(have: Layer3, want: Layer3) -> tuple[list[Neighbour], list[Neighbour]]:
    there = {neighbour.identity for neighbour in have.neighbours}
    wanted = {neighbour.identity for neighbour in want.neighbours}
    new = [neighbour for neighbour in want.neighbours if neighbour.identity not in there]
    return new, [neighbour for neighbour in _lasting(have) if neighbour.identity not in wanted]


def _rule_changes(have: Layer3, want: Layer3) -> tuple[list[Rule], list[Rule]]:
    """A rule goes behind the others of its priority, so all from the first that differs on are made anew."""

    def groups(rules: t.Iterable[Rule]) -> dict[tuple[int, int], list[Rule]]:
        found: dict[tuple[int, int], list[Rule]] = {}
        for rule in rules:
            found.setdefault((rule.family, rule.priority), []).append(rule)
        return found

    had, wanted = groups(have.rules), groups(want.rules)
    new: list[Rule] = []
    old: list[Rule] = []
    for key in sorted({*had, *wanted}):
        before, after = had.get(key, []), wanted.get(key, [])
        same = _common(before, after)
        new += after[same:]
        old += before[same:]
    return new, old


def _route_changes(have: Layer3, want: Layer3, *, trust_kernel: bool) -> list[Message]:
    """Group by group, those on the link before those behind a gateway, which the kernel looks for on the link."""
    made_for = [timed.address for timed in (*have.addresses, *want.addresses)] if trust_kernel else []
    groups: dict[t.Any, tuple[list[Route], list[Route]]] = {}
    for which, state in enumerate((have, want)):
        for route in state.routes:
            if not route.is_advertised_default and not (trust_kernel and route.is_made_for(made_for)):
                groups.setdefault(route.group, ([], []))[which].append(route)
    differing = [
        (had, wanted)
        for had, wanted in groups.values()
        if [route.identity for route in had] != [route.identity for route in wanted]
    ]
    differing.sort(key=lambda group: bool((group[1] or group[0])[0].gateways))
    gone = [group for group in differing if not group[1]]
    changes = [_group_changes(*group) for group in (*(group for group in differing if group[1]), *gone[::-1])]
    return list(itertools.chain(*changes, _advertised_changes(have, want)))


def _router(route: Route) -> tuple[int, tuple[tuple[int, bytes], ...]]:
    """Which router on which interface an advertised default route is about."""
    return route.table, route.gateways


def _advertised_changes(have: Layer3, want: Layer3) -> t.Iterator[Message]:
    """What routers advertise is the kernel's to write down; until it does, something stands in for it."""
    there: dict[t.Any, dict[int, Route]] = {}
    for route in have.routes:
        if route.is_advertised_default:
            there.setdefault(_router(route), {})[route.metric] = route
    wanted: dict[t.Any, Route] = {}
    for route in want.routes:
        if route.is_advertised_default:
            known = wanted.setdefault(_router(route), route)
            wanted[_router(route)] = min(known, route, key=lambda each: each.metric)
    for router, route in wanted.items():
        found = there.get(router, {})
        behind = found.get(route.metric + 1)
        if route.metric in found and behind is not None:
            yield behind.deletion()
        elif route.metric not in found and behind is None:
            yield route.stand_in().appendix()
    for router, routes in there.items():
        if router not in wanted:
            yield from (route.deletion() for route in routes.values())


def stands_in(have: Layer3, want: Layer3) -> bool:
    """Whether something stands in for a route that the kernel has not heard of again yet."""
    there = {(_router(route), route.metric) for route in have.routes if route.is_advertised_default}
    return any((_router(route), route.metric) not in there for route in want.routes if route.is_advertised_default)


def _group_changes(had: t.Sequence[Route], wanted: t.Sequence[Route]) -> t.Iterator[Message]:
    """The kernel replaces the first of a group only, and refuses a replacement that stands further down already."""
    if not wanted:
        yield from (route.deletion() for route in had)
        return
    if not had:
        yield from (route.appendix() for route in wanted)
        return
    yield from (route.deletion() for route in had[1:])
    if had[0].identity != wanted[0].identity:
        yield wanted[0].replacement()
    yield from (route.appendix() for route in wanted[1:])


def is_passing(route: Route) -> bool:
    """Whether the kernel, router advertisements or a lease make and unmake the route, rather than people."""
    return route.protocol in (RTPROT_KERNEL, RTPROT_RA, _RTPROT_DHCP)
