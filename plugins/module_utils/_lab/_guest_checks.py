# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cannot be right in the guests of a host, and in how they refer to its networks. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import posixpath
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _subnets, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _options, _spec
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _network_checks
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._inventory import Guest, Inventory, Network, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import complete, given
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._problems import Problems

#: What an entry may say of a card that is no option of the module.
_OWN_WORDS = ("network", "address")


def check(inventory: Inventory, problems: Problems) -> None:
    """Take down everything that is wrong with the guests."""
    names: dict[t.Any, str] = {}
    for guest in inventory.guests:
        option = f"{guest.where}.name"
        with problems.of():
            _values.object_name(option, guest.name)
        problems.once(option, guest.name, names, "give each guest of the host its own name.")
    # Of two guests of one name, what follows from the name is the same, and no news.
    first = {guest.name: guest for guest in reversed(inventory.guests)}
    present = [guest for guest in inventory.guests if guest.present and first[guest.name] is guest]
    for guest in present:
        _check_options(guest, problems)
        for nic in guest.nics or ():
            _check_place(guest, nic, inventory, problems)
    _check_taps(inventory, present, problems)
    _check_macs(inventory, present, problems)
    _check_addresses(inventory, present, problems)
    _check_disks(present, problems)


def _check_options(guest: Guest, problems: Problems) -> None:
    """What the module would refuse; where a card is, and its MAC address, is looked at apart."""
    entry = dict(guest.entry)
    if guest.nics is not None:
        without = (*_OWN_WORDS, "mac", "tap", "bridge")
        cards = [{name: value for name, value in nic.entry.items() if name not in without} for nic in guest.nics]
        entry["nics"] = [card if card.get("user") else {**card, "bridge": "lab0"} for card in cards]
    with problems.of(f"{guest.where}."):
        _spec.wish(complete(_options.OPTIONS, {**entry, "name": "lab"}), identity="")


def _check_place(guest: Guest, nic: Nic, inventory: Inventory, problems: Problems) -> None:
    told = nic.entry.get("network")
    if told and nic.network is None and not nic.entry.get("user"):
        known = ", ".join(dict.fromkeys(network.name for network in inventory.networks)) or "none"
        problems.add(f"{nic.where}.network", told, f"is no network of this host; its networks are: {known}.")
    if nic.entry.get("user"):
        for word in ("network", "address", "tap", "bridge"):
            if nic.entry.get(word):
                problems.add(f"{nic.where}.{word}", nic.entry[word], "does not go with user: true; choose one.")
        return
    if nic.network is None and not any(nic.entry.get(word) for word in ("network", "bridge", "tap")):
        problems.tell(f"{nic.where}: leads nowhere; name a network, or give bridge, tap or user: true.")
    if nic.network is not None and not nic.network.present:
        problems.add(
            f"{nic.where}.network",
            nic.network.name,
            f"is to be absent, and the guest {guest.name} is not; take it off that network, or let it be absent, too.",
        )
    if nic.network is not None and nic.entry.get("bridge") not in (None, nic.network.bridge):
        problems.add(
            f"{nic.where}.bridge",
            nic.entry["bridge"],
            f"is not that of network {nic.network.name}, {nic.network.bridge}; give one of the two.",
        )


def _check_taps(inventory: Inventory, guests: t.Sequence[Guest], problems: Problems) -> None:
    bridges = {network.bridge: network.where for network in inventory.networks}
    listed = {tap.get("name"): network for network in inventory.networks for tap in network.taps}
    used: dict[t.Any, str] = {}
    for guest in guests:
        for nic in guest.nics or ():
            option = f"{nic.where}.tap"
            if nic.tap is None:
                continue
            with problems.of():
                _values.interface_name(option, nic.tap)
            problems.once(option, nic.tap, used, "each NIC has a tap of its own.")
            if nic.tap in bridges:
                problems.add(option, nic.tap, f"is the bridge of {bridges[nic.tap]}; a NIC is plugged into a tap.")
            network = listed.get(nic.tap)
            if network is not None and nic.network is not None and network is not nic.network:
                problems.add(
                    option,
                    nic.tap,
                    f"is a tap of network {network.name}, and the NIC is on {nic.network.name}; choose one.",
                )


def _check_macs(inventory: Inventory, guests: t.Sequence[Guest], problems: Problems) -> None:
    seen: dict[t.Any, str] = {}

    def note(option: str, value: t.Any) -> None:
        try:
            mac = _values.mac_address(option, str(value))
        except LabspanError as error:
            problems.tell(str(error))
            return
        problems.once(option, mac, seen, "give each its own, or leave it out to have one derived.")

    for network in inventory.networks:
        if not network.present:
            continue
        bridge = given(network.options.get("bridge_options") or {}).get("mac_address")
        if bridge:
            note(f"{network.where}.bridge_options.mac_address", bridge)
        for number, tap in enumerate(network.taps):
            if tap.get("mac_address"):
                note(f"{network.where}.taps[{number}].mac_address", tap["mac_address"])
    for guest in guests:
        for nic in guest.nics or ():
            if nic.mac:
                note(f"{nic.where}.mac", nic.mac)


def _check_addresses(inventory: Inventory, guests: t.Sequence[Guest], problems: Problems) -> None:
    seen: dict[t.Any, str] = {}
    for network in inventory.networks:
        for place, address in _leased(network):
            seen.setdefault((network.name, address), place)
    for guest in guests:
        for nic in guest.nics or ():
            if nic.address is None or nic.entry.get("user"):
                continue
            option = f"{nic.where}.address"
            try:
                address = ipaddress.ip_address(str(nic.address).strip())
            except ValueError:
                problems.add(option, nic.address, "is not an address; write it without prefix length, as in 10.97.0.5.")
                continue
            if nic.network is None:
                if not nic.entry.get("network"):
                    problems.add(option, nic.address, "belongs to no network of this host; name the NIC's network.")
                continue
            first = seen.setdefault((nic.network.name, address), option)
            if first != option and not _is_same_card(nic, first, nic.network):
                problems.add(option, str(address), f"is also at {first}; give each guest its own.")
            _check_inside(option, address, nic.network, problems)


def _leased(network: Network) -> t.Iterator[tuple[str, t.Any]]:
    if not (network.present and network.serves):
        return
    for number, lease in enumerate(given(network.options.get("dhcp") or {}).get("leases") or ()):
        try:
            yield f"{network.where}.dhcp.leases[{number}].address", ipaddress.ip_address(str(lease.get("address")))
        except ValueError:
            continue


def _is_same_card(nic: Nic, first: str, network: Network) -> bool:
    """Whether the first place is a static lease for this very card."""
    leases = given(network.options.get("dhcp") or {}).get("leases") or ()
    for number, lease in enumerate(leases):
        if first == f"{network.where}.dhcp.leases[{number}].address" and nic.mac:
            return str(lease.get("mac")).lower().replace("-", ":") == nic.mac.lower().replace("-", ":")
    return False


def _check_inside(option: str, address: t.Any, network: Network, problems: Problems) -> None:
    inside = [subnet for _where, subnet in _network_checks.subnets(network) if subnet.version == address.version]
    if network.serves and address.version == 6:
        problems.add(option, str(address), "cannot be leased: guests configure IPv6 themselves. Give an IPv4 address.")
        return
    if inside and not any(address in subnet for subnet in inside):
        problems.add(option, str(address), f"is not in the subnet of network {network.name}, {inside[0]}.")
        return
    for subnet in inside:
        if subnet.version == 4 and address in (subnet[0], subnet[-1]):
            problems.add(option, str(address), f"is no host address of the subnet {subnet}.")
        try:
            own = ipaddress.ip_interface(_subnets.bridge_address(str(subnet), _gateway(network, subnet.version))).ip
        except LabspanError:
            continue
        if address == own:
            problems.add(option, str(address), f"is the host's own address on the bridge {network.bridge}.")


def _gateway(network: Network, version: int) -> str:
    return network.gateway if version == 4 else str(network.options.get("gateway6") or "")


def _check_disks(guests: t.Sequence[Guest], problems: Problems) -> None:
    """A disk that two guests write is lost, and so is what was made on a base image that somebody writes."""
    used: dict[str, tuple[str, bool]] = {}
    bases: dict[str, str] = {}
    placed = [
        (f"{guest.where}.disks[{number}]", given(disk))
        for guest in guests
        for number, disk in enumerate(guest.entry.get("disks") or ())
    ]
    for where, disk in placed:
        if disk.get("base_image"):
            bases.setdefault(posixpath.normpath(str(disk["base_image"])), where)
    for where, disk in placed:
        if not disk.get("path"):
            continue
        path = posixpath.normpath(str(disk["path"]))
        only_read = bool(disk.get("read_only")) or disk.get("media") == _spec.CDROM
        first, first_only_reads = used.setdefault(path, (where, only_read))
        if first != where and not (only_read and first_only_reads):
            problems.add(
                f"{where}.path", path, f"is also the disk at {first}; two guests that share a disk destroy it."
            )
        if path in bases and not only_read:
            problems.add(
                f"{where}.path",
                path,
                f"is the base image of {bases[path]}, which must not be written; give the guest an overlay of its own.",
            )
