# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What hosts contradict each other in: what can be right on each of them, and not on all together. Pure.

Only what two hosts share can be disputed: the routes to their networks, and the LAN that their bridges are part of.
What is behind a host's address, or closed off, may be on any number of them.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _network_checks
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._inventory import Inventory, Network
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import L2, ROUTED

SUBNETS = "subnets"
MACS = "macs"
ADDRESSES = "addresses"
CHECKS = (SUBNETS, MACS, ADDRESSES)


@dataclasses.dataclass(frozen=True)
class Member:
    """A host of the fleet."""

    name: str
    inventory: Inventory
    lan: t.Union[str, t.Mapping[str, str]] = ""
    """Which LAN the bridges of its l2 networks are part of; by the network's name where they are not of the same."""
    checks: t.Collection[str] = CHECKS

    def lan_of(self, network: Network) -> str:
        return self.lan if isinstance(self.lan, str) else str(self.lan.get(network.name, ""))


@dataclasses.dataclass(frozen=True)
class _Claim:
    """Something that one host may have."""

    host: str
    where: str
    value: t.Any


def conflicts(members: t.Iterable[Member]) -> dict[str, list[str]]:
    """For each host that is in a conflict, a sentence for each of its places and each rival."""
    members = list(members)
    found: dict[str, list[str]] = {}
    for claims, remedy in (
        (_by_overlap(_subnets(members)), "the others can have a route to one of them only. Give each host its own"),
        (
            _by_value(_macs(members)),
            "they are in one LAN. Give each guest its own, or leave it out to have one derived",
        ),
        (_by_value(_addresses(members)), "they are in one LAN. Give each its own"),
    ):
        for mine, rival in claims:
            same = "" if mine.value == rival.value else f", {rival.value}"
            found.setdefault(mine.host, []).append(
                f"{mine.where}: {str(mine.value)!r} is also on host {rival.host} ({rival.where}{same}); {remedy}."
            )
    return found


def _by_value(claims: t.Iterable[tuple[t.Any, _Claim]]) -> t.Iterator[tuple[_Claim, _Claim]]:
    groups: dict[t.Any, list[_Claim]] = {}
    for key, claim in claims:
        groups.setdefault(key, []).append(claim)
    for group in groups.values():
        yield from _pairs(group)


def _pairs(group: t.Sequence[_Claim]) -> t.Iterator[tuple[_Claim, _Claim]]:
    """Each claim with the first one of another host."""
    for claim in group:
        rival = next((other for other in group if other.host != claim.host), None)
        if rival is not None:
            yield claim, rival


def _by_overlap(claims: t.Iterable[_Claim]) -> t.Iterator[tuple[_Claim, _Claim]]:
    """Networks overlap when one begins within the other; so in the order of their beginnings each is compared with
    those that have not ended."""
    ordered = sorted(
        claims, key=lambda claim: (claim.value.version, claim.value.network_address, claim.value.prefixlen)
    )
    open_ones: list[_Claim] = []
    told: set[_Claim] = set()
    for claim in ordered:
        subnet = claim.value
        open_ones = [other for other in open_ones if _reaches(other.value, subnet)]
        for other in open_ones:
            if other.host == claim.host:
                continue
            for mine, rival in ((other, claim), (claim, other)):
                if mine not in told:
                    told.add(mine)
                    yield mine, rival
        open_ones.append(claim)


def _reaches(earlier: _values.Network, subnet: _values.Network) -> bool:
    return earlier.version == subnet.version and int(earlier.broadcast_address) >= int(subnet.network_address)


def _subnets(members: t.Iterable[Member]) -> t.Iterator[_Claim]:
    for member in members:
        if SUBNETS not in member.checks:
            continue
        for network in member.inventory.networks:
            if network.present and network.scenario == ROUTED:
                for where, subnet in _network_checks.subnets(network):
                    yield _Claim(member.name, where, subnet)


def _in_lans(members: t.Iterable[Member], check: str) -> t.Iterator[tuple[Member, Network]]:
    for member in members:
        if check in member.checks:
            for network in member.inventory.networks:
                if network.present and network.scenario == L2:
                    yield member, network


def _macs(members: t.Sequence[Member]) -> t.Iterator[tuple[t.Any, _Claim]]:
    """Those that are given; the others are derived of what tells hosts from each other."""
    for member, network in _in_lans(members, MACS):
        for guest in member.inventory.guests:
            for nic in guest.nics or ():
                if not guest.present or nic.network is not network or not nic.mac:
                    continue
                try:
                    mac = _values.mac_address("mac", nic.mac)
                except LabspanError:
                    continue
                yield (member.lan_of(network), mac), _Claim(member.name, f"{nic.where}.mac", mac)


def _addresses(members: t.Sequence[Member]) -> t.Iterator[tuple[t.Any, _Claim]]:
    """Those of guests, and those that hosts have on their bridges."""
    for member, network in _in_lans(members, ADDRESSES):
        places = [
            (f"{nic.where}.address", nic.address)
            for guest in member.inventory.guests
            for nic in guest.nics or ()
            if guest.present and nic.network is network and nic.address
        ]
        own = network.options.get("addresses") or ()
        places += [(f"{network.where}.addresses[{number}]", text) for number, text in enumerate(own)]
        for where, text in places:
            try:
                address = ipaddress.ip_interface(str(text).strip()).ip
            except ValueError:
                continue
            yield (member.lan_of(network), address), _Claim(member.name, where, address)
