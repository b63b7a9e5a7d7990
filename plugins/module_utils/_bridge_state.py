# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges as they are: their states, the changes between states, and the record of how one was found. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Adoption, Record
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attach, Attachment, Setting
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

#: Settings that only a bridge has, in an order in which the kernel takes them one by one.
SETTINGS = (
    "forward_delay",
    "hello_time",
    "max_age",
    "ageing_time",
    "stp",
    "priority",
    "group_forward_mask",
    "multicast_snooping",
    "multicast_querier",
    "vlan_filtering",
    "vlan_default_pvid",
)

#: Settings that a task gives in seconds and the kernel counts in hundredths.
TIMES = ("forward_delay", "hello_time", "max_age", "ageing_time")

Closed = t.Tuple[str, ...]


#: The bridge in what closes the host off, as nft lists it and a file has it.
_CLOSED_BRIDGE = re.compile(r'iifname "([^"]+)"')


def closed_bridges(closed: t.Iterable[str]) -> set[str]:
    """The bridges on which this closes the host off; none when somebody has emptied it."""
    return {bridge for text in closed for bridge in _CLOSED_BRIDGE.findall(text)}


@dataclasses.dataclass(frozen=True)
class Bridge:
    """A bridge as it is, or exactly as it shall be. The defaults are the kernel's own, and no multicast snooping.

    Snooping without a querier on the network stops IPv6 neighbour discovery after some minutes.
    """

    name: str
    mac_address: str = ""
    alias: str = ""
    enabled: bool = False
    mtu: int = 1500
    forward_delay: t.Optional[int] = 1500
    hello_time: t.Optional[int] = 200
    max_age: t.Optional[int] = 2000
    ageing_time: t.Optional[int] = 30000
    stp: t.Optional[bool] = False
    priority: t.Optional[int] = 32768
    group_forward_mask: t.Optional[int] = 0
    multicast_snooping: t.Optional[bool] = False
    multicast_querier: t.Optional[bool] = False
    vlan_filtering: t.Optional[bool] = False
    vlan_default_pvid: t.Optional[int] = None
    """None where the kernel has no bridge VLAN filtering."""
    ipv6: t.Optional[bool] = True
    """None where the kernel has no IPv6."""
    accept_ra: t.Optional[bool] = None
    """Whether the host heeds router advertisements; None when nobody asked."""
    closed: t.Optional[Closed] = None
    """What keeps guests from the host, as the firewall lists it; None when nobody asked."""
    addresses: tuple[Address, ...] = ()
    ports: t.Mapping[str, Attachment] = dataclasses.field(default_factory=dict)
    vlans: t.Optional[frozenset[Vlan]] = None
    """The bridge's own VLANs; None when nobody asked."""
    index: int = dataclasses.field(default=0, compare=False)
    adopted: t.Optional[Record] = None


@dataclasses.dataclass(frozen=True)
class Existence(Change):
    """A bridge is made or removed; states are C(Bridge) or None."""

    @property
    def name(self) -> str:
        return t.cast(Bridge, self.after or self.before).name


@dataclasses.dataclass(frozen=True)
class AddressChange(Change):
    """An address comes or goes; states are C(Address) or None."""

    name: str
    secondaries: tuple[Address, ...] = ()
    """What the kernel may take away together with the address, and shall stay."""


@dataclasses.dataclass(frozen=True)
class Closing(Change):
    """The firewall's part of closing the host off on a bridge, or of opening it again; states are C(Closed)."""

    name: str
    network: str


@dataclasses.dataclass(frozen=True)
class OwnVlans(Change):
    """The VLANs of the bridge itself; states are sets or None."""

    name: str


def state_after(have: t.Optional[Bridge], changes: t.Iterable[Change]) -> t.Optional[Bridge]:
    """The bridge after these changes."""
    for change in changes:
        have = state_after_one(have, change)
    return have


def found_state(bridge: Bridge) -> dict[str, t.Any]:
    """A bridge as plain data, for the record of how it was found."""
    found = dataclasses.asdict(dataclasses.replace(bridge, adopted=None, closed=None))
    found["addresses"] = [{**entry, "address": str(entry["address"])} for entry in found["addresses"]]
    found["vlans"] = _plain_vlans(bridge.vlans)
    for port, attachment in bridge.ports.items():
        found["ports"][port]["vlans"] = _plain_vlans(attachment.vlans)
    return found


def restored(record: Record) -> Bridge:
    """The bridge that a record is about, as it was found."""
    found = dict(record.found)
    found["addresses"] = tuple(
        Address(**{**entry, "address": ipaddress.ip_interface(entry["address"])}) for entry in found["addresses"]
    )
    found["vlans"] = _vlans(found["vlans"])
    found["ports"] = {
        port: Attachment(**{**entry, "vlans": _vlans(entry["vlans"])}) for port, entry in found["ports"].items()
    }
    return Bridge(**found)


def _plain_vlans(vlans: t.Optional[frozenset[Vlan]]) -> t.Optional[list[Vlan]]:
    return None if vlans is None else sorted(vlans)


def _vlans(vlans: t.Optional[t.Sequence[t.Sequence[t.Any]]]) -> t.Optional[frozenset[Vlan]]:
    return None if vlans is None else frozenset(Vlan(*vlan) for vlan in vlans)


def is_link_local(address: Address) -> bool:
    """Whether the kernel gave the interface this address by itself."""
    return address.address.version == 6 and address.address.ip.is_link_local


def address_key(address: Address) -> tuple[str, str]:
    """What makes two addresses of an interface the same one."""
    return str(address.address), address.peer or ""


def state_after_one(have: t.Optional[Bridge], change: Change) -> t.Optional[Bridge]:
    """The bridge after one change."""
    if isinstance(change, Existence):
        return t.cast("t.Optional[Bridge]", change.after)
    if have is None:
        return None
    if isinstance(change, Setting):
        return dataclasses.replace(have, **{change.setting: change.after})
    if isinstance(change, AddressChange):
        left = tuple(address for address in have.addresses if address != change.before)
        return dataclasses.replace(have, addresses=(*left, change.after) if change.after else left)
    if isinstance(change, Attach):
        ports = {port: how for port, how in have.ports.items() if port != change.name}
        attached = {change.name: change.after} if change.after is not None else {}
        return dataclasses.replace(have, ports={**ports, **attached})
    if isinstance(change, Closing):
        return dataclasses.replace(have, closed=change.after)
    if isinstance(change, OwnVlans):
        return dataclasses.replace(have, vlans=change.after)
    if isinstance(change, Adoption):
        return dataclasses.replace(have, adopted=change.after)
    return have


def seconds(hundredths: t.Optional[int]) -> t.Union[int, float, None]:
    """A time of the kernel's as people say it."""
    if hundredths is None:
        return None
    return hundredths // 100 if hundredths % 100 == 0 else hundredths / 100
