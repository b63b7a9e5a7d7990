# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host as it will be: what a planner must know of the plans before its own, when one task is made of many.

A task of one kind looks at the host as it is. In a task of many kinds the bridge that the rules are for is not there
yet, and the address that it gets is still another one's. So while such a task plans, each resource tells this world
what it is going to change (C(Resource.foresee)), and what is read after it is read through this world: links, addresses
and routes, a few files, accounts, and which processes will have ended. The dumps of the kernel are kept as well, so
that one reading serves all.

There is no world while changes are applied, nor in a task of one kind; then every function here says what is.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import pwd
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import MAIN_TABLE, Address, Link, Route

_KERNEL = 2  # RTPROT_KERNEL
_ON_LINK = 253  # RT_SCOPE_LINK

Dump = t.TypeVar("Dump")


class World:
    """What was read so far, and what will be different."""

    def __init__(self) -> None:
        self._dumps: dict[str, t.Any] = {}
        self._links: dict[str, t.Optional[Link]] = {}
        self._addresses: dict[str, tuple[Address, ...]] = {}
        self.made: set[str] = set()
        """Interfaces that will be new."""
        self.texts: dict[str, t.Optional[str]] = {}
        """Files by their paths; None for one that goes."""
        self.accounts: dict[str, int] = {}
        """Accounts that will be new, and their numbers."""
        self.leaving: set[int] = set()
        """Processes that will have ended."""
        self.guests: dict[str, t.Any] = {}
        """Guests that were removed, as they will be then."""

    def dump(self, what: str, read: t.Callable[[], Dump]) -> Dump:
        """What C(read) gives, read once."""
        if what not in self._dumps:
            self._dumps[what] = read()
        return t.cast(Dump, self._dumps[what])

    def set_link(self, name: str, link: t.Optional[Link]) -> None:
        """An interface will be like this; with None it will be gone, and its addresses with it."""
        known = self._links[name] if name in self._links else self._dumps.get("links", {}).get(name)
        if link is None:
            self.made.discard(name)
            self._addresses[name] = ()
        elif known is None:
            self.made.add(name)
            self._addresses.setdefault(name, ())
        self._links[name] = link

    def set_addresses(self, name: str, addresses: t.Iterable[Address]) -> None:
        """An interface will have exactly these addresses."""
        self._addresses[name] = tuple(addresses)

    def is_gone(self, interface: str) -> bool:
        """Whether an interface will have been removed."""
        return interface in self._links and self._links[interface] is None

    def links(self, read: t.Callable[[], dict[str, Link]]) -> dict[str, Link]:
        """Every interface by name."""
        links = {**self.dump("links", read), **self._links}
        return {name: link for name, link in links.items() if link is not None}

    def addresses(self, read: t.Callable[[], list[Address]]) -> list[Address]:
        """Every address of every interface."""
        kept = [address for address in self.dump("addresses", read) if address.interface not in self._addresses]
        return [*kept, *(address for addresses in self._addresses.values() for address in addresses)]

    def routes(self, read: t.Callable[[], list[Route]]) -> list[Route]:
        """Every route, with those that follow from the addresses."""
        kept = [route for route in self.dump("routes", read) if not self._replaces(route)]
        return [
            *kept,
            *(_connected(address) for addresses in self._addresses.values() for address in addresses),
        ]

    def _replaces(self, route: Route) -> bool:
        interface = route.interface
        if interface is None or interface not in self._addresses:
            return False
        return self.is_gone(interface) or interface in self.made or route.protocol == _KERNEL


_current: t.Optional[World] = None


@contextlib.contextmanager
def planning() -> t.Iterator[World]:
    """Look at the host through a new world while the block runs."""
    global _current
    before, _current = _current, World()
    try:
        yield _current
    finally:
        _current = before


def world() -> t.Optional[World]:
    """The world that the host is looked at through; None if it is looked at as it is."""
    return _current


def leaving() -> t.Collection[int]:
    """The processes that will have ended."""
    return _current.leaving if _current is not None else ()


def text(path: str, read: t.Callable[[], t.Optional[str]]) -> t.Optional[str]:
    """What a file will hold."""
    if _current is not None and path in _current.texts:
        return _current.texts[path]
    return read()


def uid_of(account: str) -> int:
    """The number of an account that is or will be there; KeyError for one that will not."""
    if _current is not None and account in _current.accounts:
        return _current.accounts[account]
    return pwd.getpwnam(account).pw_uid


def name_of(uid: int) -> str:
    """The name of the account with this number; KeyError if there will be none."""
    if _current is not None:
        for name, number in _current.accounts.items():
            if number == uid:
                return name
    return pwd.getpwuid(uid).pw_name


def _connected(address: Address) -> Route:
    return Route(address.family, MAIN_TABLE, address.address.network, None, address.interface, 0, _KERNEL, _ON_LINK)
