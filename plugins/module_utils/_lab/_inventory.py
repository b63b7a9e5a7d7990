# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an inventory says of one host, with the defaults in place and each network card on its network. Pure.

Nothing is refused here: what cannot be right is for C(_validation) to tell, all at once.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _belongings, _language
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import given

Entries = t.Sequence[t.Mapping[str, t.Any]]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the host."""

    where: str
    """As its entry is called in errors: C(networks[2])."""
    name: str
    scenario: str
    bridge: str
    present: bool
    account: str
    """That of guests that name none; empty if each has its own."""
    persistent: str
    options: Options
    """Everything else, with the scenario's defaults."""
    entry: Options
    """What was written."""

    @property
    def taps(self) -> list[Options]:
        return [given(tap) for tap in self.entry.get("taps", ())]

    @property
    def gateway(self) -> str:
        """The bridge's IPv4 address, where it is given."""
        told = self.options.get("gateway") or ()
        gateways = [text for text in ([told] if isinstance(told, str) else told) if text]
        return str(gateways[0]) if gateways else ""

    @property
    def serves(self) -> bool:
        """Whether there is a DHCP server."""
        return self.scenario in _language.WITH_SUBNET and bool(self.options["dhcp_enabled"])


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network card of a guest."""

    where: str
    entry: Options
    network: t.Optional[Network]
    """The one that it is on, if it is one of this host's list."""
    bridge: t.Optional[str]
    tap: t.Optional[str]
    """None for a card on QEMU's own network."""
    mac: t.Optional[str]
    """None for one that is derived on the host, of whom nothing is known here."""
    address: t.Optional[str]


@dataclasses.dataclass(frozen=True)
class Guest:
    """A guest of the host."""

    where: str
    name: str
    present: bool
    home: t.Optional[Network]
    """The network in whose list it is."""
    account: str
    """Whom it runs as."""
    shared: t.Optional[str]
    """That account, if it is not the guest's own one."""
    entry: Options
    nics: t.Optional[tuple[Nic, ...]]
    """None leaves them as they are."""


@dataclasses.dataclass(frozen=True)
class Inventory:
    """All that a host shall hold, in the order in which it was written."""

    networks: tuple[Network, ...]
    guests: tuple[Guest, ...]


def read(
    networks: Entries,
    guests: Entries,
    *,
    state: str = "present",
    account: str = "",
    persistent: str = "auto",
    identity: t.Optional[str] = None,
    places: t.Optional[tuple[t.Sequence[str], t.Sequence[str]]] = None,
) -> Inventory:
    """The inventory of one host.

    C(identity) is the host's, of which MAC addresses are derived; None where it is not known, as on the controller.
    C(places) are what the entries of the two lists are called in errors.
    """
    at_networks, at_guests = places or (_numbered("networks", networks), _numbered("guests", guests))
    read_networks = tuple(
        _network(where, given(entry), state, account, persistent) for where, entry in zip(at_networks, networks)
    )
    found = _Places(read_networks, identity)
    inside = [
        _guest(f"{network.where}.guests[{number}]", given(entry), network, network.account, network.present, found)
        for network in read_networks
        for number, entry in enumerate(network.entry.get("guests", ()))
    ]
    beside = [
        _guest(where, given(entry), None, account, state != "absent", found) for where, entry in zip(at_guests, guests)
    ]
    return Inventory(read_networks, (*inside, *beside))


def _numbered(name: str, entries: Entries) -> list[str]:
    return [f"{name}[{number}]" for number in range(len(entries))]


class _Places:
    """What a network card can be on."""

    def __init__(self, networks: t.Sequence[Network], identity: t.Optional[str]) -> None:
        networks = sorted(networks, key=lambda network: not network.present)
        # The first of several of one name is as good as any: that there are several is told elsewhere.
        self.by_name = {network.name: network for network in reversed(networks)}
        self.by_bridge = {network.bridge: network for network in reversed(networks)}
        self.by_tap = {tap.get("name"): network for network in reversed(networks) for tap in network.taps}
        self.identity = identity


def _network(where: str, entry: Options, state: str, account: str, persistent: str) -> Network:
    scenario = str(entry.get("scenario"))
    options = {**_language.DEFAULTS.get(scenario, {}), **entry}
    name = str(entry.get("name"))
    return Network(
        where=where,
        name=name,
        scenario=scenario,
        bridge=str(options.get("bridge") or f"{name}0"),
        present="absent" not in (state, entry.get("state")),
        account=str(entry.get("account") or account),
        persistent=str(entry.get("persistent") or persistent),
        options=options,
        entry=entry,
    )


def _guest(
    where: str, entry: Options, home: t.Optional[Network], account: str, present: bool, places: _Places
) -> Guest:
    name = str(entry.get("name"))
    nics = entry.get("nics", None if home is None else [{}])
    return Guest(
        where=where,
        name=name,
        present=present and entry.get("state") != "absent",
        home=home,
        account=_belongings.account_of({**entry, "name": name}, account),
        shared=entry.get("user") or account or None,
        entry=entry,
        nics=None
        if nics is None
        else tuple(
            _nic(f"{where}.nics[{number}]", name, number, given(nic), home, places) for number, nic in enumerate(nics)
        ),
    )


def _nic(where: str, guest: str, number: int, entry: Options, home: t.Optional[Network], places: _Places) -> Nic:
    user = bool(entry.get("user"))
    if user:
        network = None
    elif entry.get("network"):
        network = places.by_name.get(entry["network"])
    elif entry.get("bridge"):
        network = places.by_bridge.get(entry["bridge"])
    elif entry.get("tap"):
        network = places.by_tap.get(entry["tap"])
    else:
        network = home
    bridge = entry.get("bridge")
    # A tap that somebody made is used as it is; one that is to be made has to know its bridge.
    if bridge is None and network is not None and entry.get("tap") not in places.by_tap:
        bridge = network.bridge
    mac = entry.get("mac")
    if mac is None and places.identity is not None:
        mac = _spec.derived_mac(places.identity, guest, number)
    return Nic(
        where=where,
        entry=entry,
        network=network,
        bridge=bridge,
        tap=None if user else _belongings.tap_of(guest, number, entry),
        mac=None if mac is None else str(mac),
        address=entry.get("address"),
    )
