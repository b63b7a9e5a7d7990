# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what an inventory says of a host to what each module would be told: the roles' C(vars/main.yml) in Python. Pure.

What a scenario has not is declared absent, so that a network that was of another one before loses what that one had.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _bridge_options,
    _dhcp_options,
    _subnets,
    _tap_options,
    _values,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _options as _rule_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_options
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _accounts
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _options as _guest_options
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _belongings, _inventory, _validation
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._inventory import Entries, Guest, Inventory, Network
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import (
    L2,
    NAT,
    PARTS,
    PRIVATE,
    WITH_SUBNET,
    complete,
    given,
)

#: A name that DNS takes, which not every guest's is.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")

#: Bridge -> addresses of the host and its gateways there, which no guest may take.
Protected = t.Callable[[str], t.Sequence[str]]


@dataclasses.dataclass(frozen=True)
class LabNetwork:
    """A network by its name, for whoever asks which is which."""

    name: str
    scenario: str
    bridge: str
    state: str


@dataclasses.dataclass(frozen=True)
class Lab:
    """What each module would be told, each item with all of its options."""

    accounts: list[Options]
    """Of guests that run as one of their own. Those that are absent go when their guests have gone."""
    bridges: list[Options]
    """Without those of l2 networks, which bridge_uplink makes."""
    taps: list[Options]
    rules: list[Options]
    servers: list[Options]
    port_security: list[Options]
    guests: list[Options]
    networks: t.Mapping[str, LabNetwork]


def expand(
    networks: Entries,
    guests: Entries,
    *,
    state: str = "present",
    account: str = "",
    persistent: str = "auto",
    identity: str = "",
    protected: Protected = lambda bridge: (),
    parts: t.Collection[str] = PARTS,
) -> Lab:
    """What is wanted of a host; raises with everything that cannot be right in it.

    C(protected) is asked for l2 networks that have guests.
    """
    inventory = _inventory.read(
        networks, guests, state=state, account=account, persistent=persistent, identity=identity or None
    )
    _validation.check(inventory)
    return only(of(inventory, protected=protected), parts)


def only(lab: Lab, parts: t.Collection[str]) -> Lab:
    """The lab without what is not in C(parts), which has been judged, and is left as it is.

    A network has the leases of its guests also where nobody sees to the guests.
    """
    if "guests" not in parts:
        lab = dataclasses.replace(lab, accounts=[], guests=[])
    if "networks" not in parts:
        lab = dataclasses.replace(lab, bridges=[], taps=[], rules=[], servers=[], port_security=[])
    return lab


def of(inventory: Inventory, *, protected: Protected = lambda bridge: ()) -> Lab:
    """What is wanted of a host whose inventory has been read; raises for what cannot be made sense of."""
    guests = [_guest(guest) for guest in inventory.guests]
    of_networks = {network.name: _guests_on(inventory, network) for network in inventory.networks}
    return Lab(
        accounts=list(_accounts_of(inventory)),
        bridges=[_bridge(network) for network in inventory.networks if network.scenario != L2],
        taps=[tap for network in inventory.networks for tap in _taps(network, inventory)],
        rules=[_rules(network) for network in inventory.networks],
        servers=[_server(network, inventory) for network in inventory.networks],
        port_security=[_port_security(network, of_networks[network.name], protected) for network in inventory.networks],
        guests=guests,
        networks={
            network.name: LabNetwork(network.name, network.scenario, network.bridge, _state(network.present))
            for network in inventory.networks
        },
    )


def _state(present: bool) -> str:
    return "present" if present else "absent"


def _lasts(network: Network) -> str:
    """The host's own manager of networks brings back the bridge of an uplink; ours are its taps and rules alone."""
    if network.scenario == L2 and network.persistent == "true":
        return "auto"
    return network.persistent


def _accounts_of(inventory: Inventory) -> t.Iterator[Options]:
    for guest in inventory.guests:
        if guest.shared is None:
            yield complete(_accounts.OPTIONS, {"name": guest.name, "state": _state(guest.present)})


def _absent(network: Network) -> Options:
    return {"name": network.name, "bridge": network.bridge, "persistent": _lasts(network), "state": "absent"}


def _addresses(network: Network) -> list[str]:
    options = network.options
    made = []
    for family in ("", "6"):
        subnet = options.get(f"subnet{family}")
        if subnet:
            gateway = network.gateway if not family else options.get("gateway6")
            places = (f"{network.where}.subnet{family}", f"{network.where}.gateway{family}")
            made.append(_subnets.bridge_address(subnet, gateway, options=places))
    return made


def _sources(network: Network) -> list[str]:
    return [subnet for subnet in (network.options.get("subnet"), network.options.get("subnet6")) if subnet]


def _bridge(network: Network) -> Options:
    # An address is given to private as little as access to the host, which takes away what there is.
    scenario: Options = (
        {"host_access": False}
        if network.scenario == PRIVATE
        else {"host_access": True, "addresses": _addresses(network)}
    )
    return complete(
        _bridge_options.OPTIONS,
        {"enabled": True},
        network.options.get("bridge_options") or {},
        scenario,
        {
            "name": network.bridge,
            "network": network.name,
            "persistent": network.persistent,
            "state": _state(network.present),
        },
    )


def _taps(network: Network, inventory: Inventory) -> t.Iterator[Options]:
    owners = {nic.tap: guest.account for guest in inventory.guests for nic in guest.nics or () if nic.entry.get("tap")}
    for tap in network.taps:
        yield complete(
            _tap_options.OPTIONS,
            {"enabled": True, "owner": owners.get(tap["name"], network.account or "root")},
            tap,
            {"network": network.name, "bridge": network.bridge, "persistent": _lasts(network)},
            {} if network.present else {"state": "absent"},
        )


def _rules(network: Network) -> Options:
    if network.scenario not in WITH_SUBNET:
        return complete(_rule_options.OPTIONS, _absent(network))
    options = network.options
    of_nat = ("port_forwards", "exclude_destinations")
    return complete(
        _rule_options.OPTIONS,
        {
            "name": network.name,
            "bridge": network.bridge,
            "sources": _sources(network),
            "out_interface": options["uplink"],
            "masquerade": network.scenario == NAT,
            "forward": options["forward"],
            "forwarding": True,
            "backend": options["backend"],
            "persistent": network.persistent,
            "state": _state(network.present),
            **({name: options[name] for name in of_nat} if network.scenario == NAT else {}),
        },
    )


def _server(network: Network, inventory: Inventory) -> Options:
    if not network.serves:
        return complete(_dhcp_options.OPTIONS, _absent(network))
    told = given(network.options["dhcp"])
    has_ipv6 = bool(network.options["subnet6"])
    return complete(
        _dhcp_options.OPTIONS,
        {"router_advertisements": has_ipv6, "ipv6_default_route": has_ipv6},
        told,
        {
            "name": network.name,
            "bridge": network.bridge,
            "persistent": network.persistent,
            "state": _state(network.present),
            **_leases(network, inventory, told.get("leases")),
        },
    )


def _leases(network: Network, inventory: Inventory, listed: t.Optional[Entries]) -> Options:
    """The static leases: those that are listed, and one for each card on the network that has an address."""
    leases = [given(lease) for lease in listed or ()]
    macs = {_mac(lease.get("mac")) for lease in leases}
    names = {str(lease.get("name")).lower() for lease in leases}
    for guest in inventory.guests:
        for nic in guest.nics or ():
            if nic.network is not network or not nic.address or not nic.mac or not guest.present:
                continue
            if _mac(nic.mac) in macs:
                continue
            lease: Options = {"mac": nic.mac, "address": nic.address}
            name = guest.name.lower()
            if _LABEL.match(name) and name not in names:
                lease["name"] = name
                names.add(name)
            leases.append(lease)
    return {} if listed is None and not leases else {"leases": leases}


def _mac(text: t.Any) -> str:
    try:
        return _values.mac_address("mac", str(text))
    except LabspanError:
        return str(text)


def _guests_on(inventory: Inventory, network: Network) -> list[Options]:
    """The guests with the cards that they have, for what is known of them by their ports on the network's bridge."""
    return [
        {
            "name": guest.name,
            "nics": [
                {**nic.entry, "bridge": nic.network.bridge if nic.network else (nic.bridge or "elsewhere")}
                for nic in guest.nics or ()
            ],
            "addresses": [nic.address for nic in guest.nics or ()],
        }
        for guest in inventory.guests
        if guest.present and any(nic.network is network for nic in guest.nics or ())
    ]


def _port_security(network: Network, guests: t.Sequence[Options], protected: Protected) -> Options:
    absent = complete(_port_security_options.OPTIONS, _absent(network))
    if network.scenario != L2 or not network.present or not network.options["port_security"]:
        return absent
    told = given(network.options["port_security_options"])
    where = f"{network.where}.port_security_options.ports"
    listed = [given(port) for port in told.get("ports", ())]
    ports = _belongings.guest_ports(guests, network.bridge, listed, option=where)
    # Without a guest there is nothing to filter, unless what is not listed is to be dropped.
    if not ports and told.get("unlisted", "accept") == "accept":
        return absent
    known = {(guest["name"], number): address for guest in guests for number, address in enumerate(guest["addresses"])}
    for port in ports:
        address = known.get((str(port.get("guest")), int(port.get("nic") or 0)))
        if address and port.get("addresses") is None:
            port["addresses"] = [address]
    return complete(
        _port_security_options.OPTIONS,
        told,
        {
            "name": network.name,
            "bridge": network.bridge,
            "state": "present",
            "persistent": _lasts(network),
            "ports": ports,
            "protected_addresses": [*protected(network.bridge), *told.get("protected_addresses", ())],
        },
    )


def _guest(guest: Guest) -> Options:
    network = guest.home or next((nic.network for nic in guest.nics or () if nic.network is not None), None)
    nics = None if guest.nics is None else [_nic(nic, network) for nic in guest.nics]
    return complete(
        _guest_options.OPTIONS,
        guest.entry,
        {
            "user": guest.shared,
            "network": network.name if network else None,
            "nics": nics,
            "state": guest.entry.get("state") if guest.present else "absent",
        },
    )


def _nic(nic: _inventory.Nic, of_guest: t.Optional[Network]) -> Options:
    words = {name: value for name, value in nic.entry.items() if name not in ("network", "bridge", "address")}
    if nic.entry.get("network") and nic.network is None:
        raise InvalidInput(f"{nic.where}.network", nic.entry["network"], "is no network of this host.")
    if nic.bridge is not None:
        words["bridge"] = nic.bridge
    if nic.network is not None and nic.network is not of_guest:
        words["network"] = nic.network.name
    return words
