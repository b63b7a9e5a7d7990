# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who has a MAC address: the guest by its definition, the name by its lease, the addresses by all who know some. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Seen

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import Lease
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Nic

LEASE = "lease"
AGENT = "agent"
NEIGHBOUR = "neighbour"
DECLARED = "declared"


class Plug(t.NamedTuple):
    """A NIC of a guest."""

    guest: str
    number: int
    nic: Nic


class Who:
    """The directory of a host."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.plugs: list[Plug] = [
            Plug(guest.name, number, nic)
            for guest in seen.guests.values()
            if guest.definition is not None
            for number, nic in enumerate(guest.definition.spec.nics)
        ]
        self._by_tap = {plug.nic.tap: plug for plug in self.plugs if plug.nic.tap is not None}
        self._by_mac = _grouped((plug.nic.mac, plug) for plug in self.plugs)
        self._neighbours = _grouped((one.mac, one) for one in seen.neighbours)
        self._told = _grouped(
            (mac, address)
            for guest in seen.guests.values()
            for mac, addresses in guest.told.items()
            for address in addresses
        )
        self._leases = _grouped(
            (lease.mac, (server, lease)) for server in seen.servers.values() for lease in server.leases
        )
        self._kept = _grouped(
            (mac, (server.bridge, address))
            for server in seen.servers.values()
            for mac, address, _name in reservations(server.reservations)
            if address
        )

    def at_tap(self, tap: str) -> t.Optional[Plug]:
        """The NIC that is plugged into a tap."""
        return self._by_tap.get(tap)

    def segment(self, nic: Nic) -> t.Optional[str]:
        """The bridge of a NIC's tap, or the tap if it is a port of none; None for the user-mode network."""
        if nic.tap is None:
            return None
        link = self._seen.links.get(nic.tap)
        return (link.master if link is not None else nic.bridge) or nic.tap

    def bridge(self, nic: Nic) -> t.Optional[str]:
        """The bridge of a NIC, if it is on one."""
        segment = self.segment(nic)
        return None if segment == nic.tap else segment

    def plug(self, mac: str, segment: t.Optional[str]) -> t.Optional[Plug]:
        """The NIC with this MAC address on a segment; on any where C(segment) is None."""
        plugs = self._by_mac.get(mac, ())
        return next((plug for plug in plugs if segment is None or self.segment(plug.nic) == segment), None)

    def lease(self, mac: str, segment: t.Optional[str]) -> t.Optional[Lease]:
        """The lease of a MAC address on a segment."""
        found = (lease for server, lease in self._leases.get(mac, ()) if server.bridge in (None, segment))
        return next(found, None)

    def addresses(self, mac: str, segment: t.Optional[str]) -> dict[str, str]:
        """Address -> who told it, the most certain first. Link-local addresses are left out."""
        leases = [lease.address for server, lease in self._leases.get(mac, ()) if server.bridge in (None, segment)]
        neighbours = [one.address for one in self._neighbours.get(mac, ()) if one.interface == segment]
        kept = [address for bridge, address in self._kept.get(mac, ()) if bridge in (None, segment)]
        found: dict[str, str] = {}
        for source, addresses in (
            (LEASE, leases if segment is not None else ()),
            (AGENT, self._told.get(mac, ())),
            (NEIGHBOUR, neighbours),
            (DECLARED, kept if segment is not None else ()),
        ):
            for address in _values.in_order(filter(_values.counts, addresses)):
                found.setdefault(address, source)
        return found


def reservations(text: str) -> list[tuple[str, t.Optional[str], t.Optional[str]]]:
    """The MAC address, the address and the name of each line of a server's static leases."""
    found = []
    for line in text.split():
        mac, *rest = line.split(",")
        address = next((word for word in rest if _values.counts(word)), None)
        found.append((mac, address, next((word for word in rest if word != address), None)))
    return found


Key = t.TypeVar("Key")
Value = t.TypeVar("Value")


def _grouped(pairs: t.Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    found: dict[Key, list[Value]] = collections.defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return dict(found)
