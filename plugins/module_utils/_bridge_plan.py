# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges as they shall be, and the steps that lead there. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _adoption, _links
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Record
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import (
    SETTINGS,
    TIMES,
    AddressChange,
    Bridge,
    Closed,
    Closing,
    Existence,
    OwnVlans,
    address_key,
    found_state,
    is_link_local,
    restored,
    seconds,
    state_after_one,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attachment, Setting
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Vlan, new_address
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Address as InterfaceAddress


@dataclasses.dataclass(frozen=True)
class WantedBridge:
    """What a task says about one bridge; None means "leave alone"."""

    name: str
    network: str
    default_mac: str
    present: bool = True
    settings: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    """C(mtu), C(mac_address) and those of C(SETTINGS), in the kernel's units."""
    enabled: t.Optional[bool] = None
    host_access: t.Optional[bool] = None
    addresses: t.Optional[tuple[InterfaceAddress, ...]] = None
    exclusive_addresses: bool = True
    ports: t.Optional[tuple[str, ...]] = None
    exclusive_ports: bool = False
    vlans: t.Optional[frozenset[Vlan]] = None
    port_vlans: t.Mapping[str, frozenset[Vlan]] = dataclasses.field(default_factory=dict)
    adopt: bool = True
    force: bool = False
    allow_overlap: bool = False

    @property
    def closes(self) -> bool:
        """Whether the host is to be closed off on the bridge."""
        return self.present and self.host_access is False


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What the plan of one bridge has to know about the host."""

    boot: str
    taps: frozenset[str] = frozenset()
    """The host's taps: they are not C(ports) of a bridge, but tap_device's."""
    attached: t.Mapping[str, Attachment] = dataclasses.field(default_factory=dict)
    """How every port of the host hangs on its bridge."""
    owners: t.Mapping[str, t.Optional[str]] = dataclasses.field(default_factory=dict)
    """Whose each interface is; interfaces that do not exist are left out."""
    closed: Closed = ()
    """What closes the host off on this bridge, as the firewall will list it."""
    closed_now: t.Optional[Closed] = None
    """What does now, be the bridge there or not; None when nobody asked. What names another bridge is none of it."""
    ipv6_default: t.Optional[bool] = True
    """Whether an interface that is made has IPv6."""
    stale: t.Optional[Record] = None
    """The record of an interface of this name that is gone."""


def plan_bridge(have: t.Optional[Bridge], want: WantedBridge, around: Surroundings) -> list[Change]:
    """The changes from C(have) to what is wanted."""
    what = _what(want.name)
    if have is None:
        forgotten: list[Change] = [_adoption.forget(what, around.stale)] if around.stale else []
        if not want.present:
            return forgotten + _open_up(want, around)
        return forgotten + _plan_new(want, around)
    _links.check_owner(what, have.alias, want.network, force=want.force)
    if not want.present:
        return _plan_absent(have, want, around)
    target = _target(have, want, around)
    adoption: list[Change] = []
    if _links.owner_of(have.alias) is None and have.adopted is None:
        if not want.adopt:
            raise Refused(
                f"{what} exists and labspan.vmnet did not make it. Use another name, or have it adopted with "
                "adopt: true."
            )
        record = Record(have.name, want.network, have.index, around.boot, found_state(have))
        adoption = [_adoption.adopt(what, record)]
    return adoption + _Steps(have, want.network, around).to(target)


def _plan_new(want: WantedBridge, around: Surroundings) -> list[Change]:
    bare = Bridge(
        want.name, mac_address=want.default_mac, ipv6=around.ipv6_default, enabled=True, closed=around.closed_now
    )
    target = _target(bare, want, around)
    first = dataclasses.replace(
        target,
        enabled=False,
        ipv6=around.ipv6_default and target.ipv6,
        closed=bare.closed,
        addresses=(),
        ports={},
        vlans=None,
    )
    created = Existence(_what(want.name), f"Create {_what(want.name)}", None, first)
    return [created, *_Steps(first, want.network, around).to(target)]


def _plan_absent(have: Bridge, want: WantedBridge, around: Surroundings) -> list[Change]:
    what = _what(have.name)
    if have.adopted is not None:
        found = restored(have.adopted)
        target = dataclasses.replace(
            found,
            adopted=have.adopted,
            closed=() if have.closed is not None else None,
            ports=_ports_found(have, found, want, around),
            vlans=found.vlans if have.vlans is not None else None,
            # Addresses of link-local scope are the kernel's.
            addresses=(*(each for each in found.addresses if not is_link_local(each)), *_kernel_addresses(have)),
        )
        steps = _Steps(have, want.network, around)
        return [*steps.to(target, exact_order=True), _adoption.forget(what, have.adopted)]
    if _links.is_nobodys(have) and not want.force:
        return []
    foreign = sorted(port for port in have.ports if not _is_ours(port, want, around))
    if foreign and not want.force:
        raise Refused(
            f"{what} is to be removed, and has ports that are not the network {want.network}'s: {', '.join(foreign)}. "
            "Take them off first, list them in ports, or set force: true.",
            foreign_ports=foreign,
        )
    detached = [_links.attach(f"interface {port}", port, have.ports[port], None) for port in sorted(have.ports)]
    bare = dataclasses.replace(have, ports={})
    deleted = Existence(what, f"Delete {what}", bare, None)
    return [*detached, deleted, *_open_up(want, around)]


def _open_up(want: WantedBridge, around: Surroundings) -> list[Change]:
    return [_closing(want.name, want.network, around.closed_now, ())] if around.closed_now else []


def _ports_found(have: Bridge, found: Bridge, want: WantedBridge, around: Surroundings) -> t.Mapping[str, Attachment]:
    """The ports of an adopted bridge that goes back to what it was: ours leave, its own come back if they are free."""
    ports = {port: how for port, how in have.ports.items() if port in found.ports or not _is_ours(port, want, around)}
    free = {port for port in found.ports if port in around.owners and port not in around.attached}
    return {**ports, **{port: how for port, how in found.ports.items() if port in free or port in have.ports}}


def _is_ours(port: str, want: WantedBridge, around: Surroundings) -> bool:
    return around.owners.get(port) == want.network or port in (want.ports or ())


def _kernel_addresses(bridge: Bridge) -> tuple[Address, ...]:
    return tuple(address for address in bridge.addresses if is_link_local(address))


def _target(have: Bridge, want: WantedBridge, around: Surroundings) -> Bridge:
    """C(have) with everything that the task has an opinion about."""
    unfinished = _links.is_unfinished(have.alias)
    target = dataclasses.replace(
        have,
        alias=_links.alias_of(want.network, _links.note_of(have.alias)),
        enabled=have.enabled or unfinished if want.enabled is None else want.enabled,
        accept_ra=False if unfinished and have.accept_ra else have.accept_ra,
        addresses=_wanted_addresses(have, want),
        ports=_wanted_ports(have, want, around),
        vlans=have.vlans if want.vlans is None else want.vlans,
        **want.settings,
    )
    if want.host_access is False:
        # The kernel's own link-local addresses go with IPv6; they are nothing to be removed one by one.
        ipv6 = None if have.ipv6 is None else False
        target = dataclasses.replace(target, closed=around.closed, ipv6=ipv6, addresses=())
    elif want.host_access and have.closed:
        target = dataclasses.replace(target, closed=(), ipv6=around.ipv6_default)
    if target.ipv6 is False and any(address.address.version == 6 for address in target.addresses):
        target = dataclasses.replace(target, ipv6=True)
    _check_target(have, target)
    return target


def _check_target(have: Bridge, target: Bridge) -> None:
    what = _what(target.name)
    about_vlans = [key for key in ("vlan_filtering", "vlan_default_pvid", "vlans") if getattr(target, key)]
    if have.index and have.vlan_default_pvid is None and about_vlans:
        raise Refused(
            f"{about_vlans[0]}: the kernel of this host was built without bridge VLAN filtering "
            "(CONFIG_BRIDGE_VLAN_FILTERING)."
        )
    for setting in SETTINGS:
        if have.index and getattr(have, setting) is None and getattr(target, setting) is not None:
            raise Refused(f"{setting}: the kernel of this host was built without what {what} needs for it.")
    delay = target.forward_delay
    if target.stp and delay is not None and not 200 <= delay <= 3000:
        raise InvalidInput("forward_delay", delay / 100, "is not allowed while STP is on; give 2 to 30 seconds.")
    if target.ipv6 is None and any(address.address.version == 6 for address in target.addresses):
        raise Refused(f"addresses: the kernel of this host has no IPv6, and {what} is to have an IPv6 address.")
    if len(target.ports) > _links.MAXIMUM_PORTS:
        raise Refused(
            f"{what} would have {len(target.ports)} ports, and the kernel allows {_links.MAXIMUM_PORTS} (EXFULL)."
        )


def _wanted_addresses(have: Bridge, want: WantedBridge) -> tuple[Address, ...]:
    if want.addresses is None:
        return have.addresses
    present = {address_key(address): address for address in have.addresses}
    wanted = [new_address(want.name, address) for address in want.addresses]
    listed = {address_key(address): present.get(address_key(address), address) for address in wanted}
    kept = [
        address
        for key, address in present.items()
        if key not in listed and (not want.exclusive_addresses or is_link_local(address))
    ]
    return (*listed.values(), *kept)


def _wanted_ports(have: Bridge, want: WantedBridge, around: Surroundings) -> t.Mapping[str, Attachment]:
    ports = dict(have.ports)
    if want.ports is not None:
        ports.update({port: Attachment(want.name) for port in want.ports if port not in ports})
        if want.exclusive_ports:
            ports = {port: how for port, how in ports.items() if port in want.ports or port in around.taps}
    for port, vlans in want.port_vlans.items():
        if port not in ports:
            raise InvalidInput("vlans[].port", port, f"is not a port of {_what(want.name)}; list it in ports.")
        ports[port] = dataclasses.replace(ports[port], vlans=vlans)
    return ports


class _Steps:
    """The changes from one complete state to another, in an order in which each can be made and undone."""

    def __init__(self, have: Bridge, network: str, around: Surroundings) -> None:
        self._now = have
        self._what = _what(have.name)
        self._network = network
        self._around = around
        self._changes: list[Change] = []

    def to(self, target: Bridge, *, exact_order: bool = False) -> list[Change]:
        if target.closed:  # first of all, so that there is no moment in which the host answers
            self._close(target)
        if not _links.is_unfinished(self._now.alias):
            self._set("alias", target)
        self._set("accept_ra", target)
        if self._now.enabled and not target.enabled:
            self._lose_ipv6()
            self._set("enabled", target)
        if self._now.ipv6 and target.ipv6 is False:
            self._lose_ipv6()
            self._set("ipv6", target)
        order = ("stp", *SETTINGS) if not target.stp else SETTINGS  # a delay that STP does not allow needs it off first
        for key in dict.fromkeys(("mtu", "mac_address", *order)):
            if getattr(target, key) is not None:
                self._set(key, target)
        if target.ipv6:
            self._set("ipv6", target)
        self._set_addresses(target, exact_order)
        self._set_ports(target)
        if target.vlans is not None and self._now.vlans != target.vlans:
            self._emit(
                OwnVlans(
                    self._what, f"Set the VLANs of {self._what} itself", self._now.vlans, target.vlans, target.name
                )
            )
        self._set("enabled", target)
        self._set("alias", target)
        if target.closed == ():
            self._close(target)
        return self._changes

    def _emit(self, change: Change) -> None:
        self._changes.append(change)
        self._now = t.cast(Bridge, state_after_one(self._now, change))

    def _set(self, key: str, target: Bridge) -> None:
        before, after = getattr(self._now, key), getattr(target, key)
        if before != after:
            self._emit(_setting(self._what, target.name, key, before, after))

    def _close(self, target: Bridge) -> None:
        if self._now.closed != target.closed:
            self._emit(_closing(target.name, self._network, self._now.closed, t.cast(Closed, target.closed)))

    def _lose_ipv6(self) -> None:
        """Take off by name what the kernel would drop without a word, so that undoing brings it back."""
        for address in reversed(self._now.addresses):
            if address.address.version == 6 and not is_link_local(address):
                self._remove(address)

    def _set_addresses(self, target: Bridge, exact_order: bool) -> None:
        wanted = {address_key(address): address for address in target.addresses}
        ours = [address for address in self._now.addresses if not is_link_local(address)]
        if exact_order and [address_key(each) for each in ours] != [
            key for key, each in wanted.items() if not is_link_local(each)
        ]:
            for address in reversed(ours):
                self._remove(address)
        for key, address in wanted.items():
            if key not in {address_key(each) for each in self._now.addresses}:
                self._emit(_address_change(self._what, None, address))
        # A subnet's primary address is its first one, and takes the others with it.
        for address in reversed(self._now.addresses):
            if address_key(address) not in wanted and not is_link_local(address):
                self._remove(address, kept=wanted)

    def _remove(self, address: Address, kept: t.Optional[t.Mapping[tuple[str, str], Address]] = None) -> None:
        secondaries = tuple(
            each
            for each in self._now.addresses
            if kept is not None
            and address_key(each) in kept
            and each.address.version == 4
            and each.address.network == address.address.network
        )
        self._emit(_address_change(self._what, address, None, secondaries))

    def _set_ports(self, target: Bridge) -> None:
        names = sorted({*self._now.ports, *target.ports})
        for port in sorted(names, key=lambda name: name in target.ports):  # those that leave make room first
            before, after = self._now.ports.get(port), target.ports.get(port)
            if before != after:
                self._emit(_links.attach(f"interface {port}", port, before, after))


def _setting(what: str, name: str, key: str, before: t.Any, after: t.Any) -> Setting:
    change = _links.setting(what, name, key, before, after)
    if key not in TIMES:
        return change
    sentence = f"Set the {key.replace('_', ' ')} of {what} from {seconds(before)} to {seconds(after)} seconds"
    return dataclasses.replace(change, sentence=sentence)


def _address_change(
    what: str, before: t.Optional[Address], after: t.Optional[Address], secondaries: tuple[Address, ...] = ()
) -> AddressChange:
    address = t.cast(Address, after or before)
    sentence = (
        f"Add the address {address.address} to {what}" if after else f"Remove the address {address.address} from {what}"
    )
    return AddressChange(what, sentence, before, after, address.interface, secondaries)


def _closing(name: str, network: str, before: t.Optional[Closed], after: Closed) -> Closing:
    sentence = f"Close the host off on {_what(name)}" if after else f"Open the host on {_what(name)}"
    return Closing(_what(name), sentence, before or (), after, name, network)


def _what(name: str) -> str:
    return f"bridge {name}"
