# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bridges that a task asks for, as a resource of the runner.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _adoption,
    _bridge_options,
    _bridge_plan,
    _bridge_state,
    _deps,
    _foresight,
    _links,
    _netlink,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Adoption, Record
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_plan import Surroundings, WantedBridge
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import (
    SETTINGS,
    TIMES,
    AddressChange,
    Bridge,
    Closed,
    Closing,
    Existence,
    OwnVlans,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attach, Setting
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Link, Netlink, Route
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource


@dataclasses.dataclass(frozen=True)
class BridgesState:
    """The bridges that the task names, and what it takes to judge them."""

    names: tuple[str, ...]
    bridges: t.Mapping[str, Bridge]
    links: t.Mapping[str, Link]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    """Read only where an address is missing."""
    surroundings: t.Mapping[str, Surroundings]


class Bridges(Resource[BridgesState]):
    """Bridges made of the options of C(linux_bridge), one dict for each."""

    plural: t.ClassVar[str] = "bridges"
    singular: t.ClassVar[str] = "bridge"

    def __init__(self, bridges: t.Sequence[Options], *, single: bool = False, check_mode: bool = False) -> None:
        super().__init__(single=single)
        self._check_mode = check_mode
        self._options = bridges
        self._netlink = Netlink()
        self._wanted: list[WantedBridge] = []
        self._closed: t.Optional[dict[str, Closed]] = None
        self._closed_bridges: dict[str, set[str]] = {}
        self._told = False

    def wanted(self) -> t.Sequence[WantedBridge]:
        """The bridges that the options ask for, in their order."""
        if not self._wanted:
            self._wanted = [_bridge_options.wanted_bridge(options) for options in self._options]
            _bridge_options.check_list(self._wanted)
        return self._wanted

    def read(self) -> BridgesState:
        self.wanted()
        links = self._netlink.links()
        names = tuple(want.name for want in self._wanted)
        for name in names:
            if name in links and links[name].bridge is None:
                raise Refused(
                    f"name: {name} exists and is not a bridge but {_links.kind_of(links[name])}. Choose another."
                )
        records = _adoption.read(names)
        boot = _adoption.boot()
        adopted = {
            name: record
            for name, record in records.items()
            if name in links and _adoption.holds(record, links[name].index, links[name].alias, boot)
        }
        addresses = tuple(self._netlink.addresses())
        vlans = (
            self._netlink.vlans() if any(want.vlans is not None or want.port_vlans for want in self._wanted) else None
        )
        closed = self._read_closed()
        state = BridgesState(
            names=names,
            bridges={
                name: dataclasses.replace(
                    _bridge(links[name], links, addresses, vlans), adopted=adopted.get(name), closed=closed.get(name)
                )
                for name in names
                if name in links
            },
            links=links,
            addresses=addresses,
            routes=(),
            surroundings=self._surroundings(links, boot, records, adopted, closed),
        )
        return (
            dataclasses.replace(state, routes=tuple(self._netlink.routes())) if self._misses_address(state) else state
        )

    def plan(self, have: BridgesState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes: list[Change] = []
        # Of a network's bridges, the one that was closed is opened before another is closed.
        for want in sorted(self._wanted, key=lambda want: want.closes):
            self._check_ports(want, have)
            self._check_closed(want, have)
            changes += _bridge_plan.plan_bridge(have.bridges.get(want.name), want, have.surroundings[want.name])
        self._check_addresses(have, changes)
        self._tell_of_strangers(have)
        return changes

    def predict(self, have: BridgesState, changes: t.Sequence[Change]) -> BridgesState:
        if not changes:
            return have
        bridges: dict[str, Bridge] = {}
        for name in have.names:
            about = [change for change in changes if change.subject == f"bridge {name}" or _port_of(change) == name]
            bridge = _bridge_state.state_after(have.bridges.get(name), about)
            if bridge is not None:
                bridges[name] = bridge
        return dataclasses.replace(have, bridges=bridges)

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: BridgesState) -> None:
        for name in (name for name in then.names if any(change.subject == f"bridge {name}" for change in changes)):
            bridge = then.bridges.get(name)
            if bridge is None:
                world.set_link(name, None)
            else:
                world.set_link(name, _link(bridge, then.links.get(name)))
                world.set_addresses(name, bridge.addresses)
        for change in changes:
            if isinstance(change, Attach) and change.name in then.links:
                now = then.links[change.name]
                world.set_link(change.name, dataclasses.replace(now, master=change.after and change.after.bridge))
        _adoption.foresee(world, changes)

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Adoption):
                _adoption.apply(change)
            elif isinstance(change, Closing):
                _apply_closed(change)
            elif isinstance(change, Existence) and change.after is not None:
                self._create(change, done)
                continue
            elif isinstance(change, Setting) and change.setting == "ipv6":
                _write_ipv6_setting(change.name, "disable_ipv6", int(not change.after))
            elif isinstance(change, Setting) and change.setting == "accept_ra":
                _write_ipv6_setting(change.name, "accept_ra", int(change.after))
            else:
                _links.send(self._netlink, [(change, _requests(change))], done)
                continue
            done.append(change)
        made = [change for change in changes if isinstance(change, Existence) and change.after is not None]
        _links.send(
            self._netlink, [(change, [_netlink.set_link(change.name, alias=change.after.alias)]) for change in made], []
        )

    def render(self, state: BridgesState) -> dict[str, dict[str, t.Any]]:
        return {name: _render(state.bridges[name]) for name in state.names if name in state.bridges}

    def _create(self, change: Existence, done: list[Change]) -> None:
        bridge = t.cast(Bridge, change.after)
        settings = {key: getattr(bridge, key) for key in SETTINGS if getattr(bridge, key) is not None}
        if not bridge.vlan_filtering:  # a kernel without it refuses even to switch it off
            settings.pop("vlan_filtering", None)
        # One send: the kernel carries out all of it before anything can interrupt this process, so that no bridge is
        # ever left without its owner's mark. That it is finished is marked when the rest of the plan is done.
        requests = [
            _netlink.create_bridge(bridge.name, bridge.mac_address),
            _netlink.set_link(bridge.name, alias=_links.unfinished(bridge.alias), mtu=bridge.mtu),
            _netlink.set_bridge(bridge.name, {key: int(value) for key, value in settings.items()}),
        ]
        refusals = self._netlink.send(requests)
        if refusals[0] is None:
            done.append(change)
        for refusal in refusals:
            if refusal is not None:
                raise _links.failure(_named(change, settings), refusal)
        if bridge.vlan_default_pvid is not None:
            self._check_pvid(bridge)
        if bridge.ipv6 is not None:
            if _read_ipv6(bridge.name) != bridge.ipv6:
                _write_ipv6_setting(bridge.name, "disable_ipv6", int(not bridge.ipv6))
            # No guest's router advertisement, nor the one of this host's own DHCP server, is to configure the host
            # (CVE-2020-13401 was that).
            _write_ipv6_setting(bridge.name, "accept_ra", 0)
        index = _links.index_of(bridge.name)
        rest = [
            _netlink.add_address(address, index)
            for address in bridge.addresses
            if not _bridge_state.is_link_local(address)
        ]
        _links.send(self._netlink, [(change, rest + [_netlink.set_link(bridge.name, up=True)] * bridge.enabled)], [])

    def _check_pvid(self, bridge: Bridge) -> None:
        """A kernel without bridge VLAN filtering drops this setting without a word."""
        info = self._netlink.links()[bridge.name].bridge
        if info is None or info.vlan_default_pvid is None:
            raise SystemFailure(
                "vlan_default_pvid: the kernel of this host was built without bridge VLAN filtering "
                "(CONFIG_BRIDGE_VLAN_FILTERING)."
            )

    def _read_closed(self) -> dict[str, Closed]:
        """What closes the host off on each bridge, where the task has to know."""
        asked = [want for want in self._wanted if want.host_access is not None or not want.present]
        if not asked or (not _deps.find_program("nft") and all(want.host_access is None for want in asked)):
            return {}
        from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _closed

        found = _closed.read([want.network for want in asked])
        if self._closed is None:
            closing = {want.network: want.name for want in asked if want.closes}
            self._closed = _closed.want(closing, found) if closing else {}
        self._closed_bridges = {network: _bridge_state.closed_bridges(closed) for network, closed in found.items()}
        return {
            want.name: found[want.network] if self._closed_bridges[want.network] <= {want.name} else ()
            for want in asked
        }

    def _surroundings(
        self,
        links: t.Mapping[str, Link],
        boot: str,
        records: t.Mapping[str, Record],
        adopted: t.Mapping[str, Record],
        closed: t.Mapping[str, Closed],
    ) -> dict[str, Surroundings]:
        common = Surroundings(
            boot=boot,
            taps=frozenset(name for name, link in links.items() if link.tun is not None),
            attached={
                name: how
                for name, how in ((name, _links.attachment(link, None)) for name, link in links.items())
                if how is not None
            },
            owners={name: _links.owner_of(link.alias) for name, link in links.items()},
            ipv6_default=_read_ipv6("default"),
        )
        return {
            want.name: dataclasses.replace(
                common,
                closed=(self._closed or {}).get(want.network, ()),
                closed_now=closed.get(want.name),
                stale=None if want.name in adopted else records.get(want.name),
            )
            for want in self._wanted
        }

    def _check_closed(self, want: WantedBridge, have: BridgesState) -> None:
        """Refuse to close a second bridge of a network, which would open the first."""
        if not want.closes:
            return
        opened = {other.name for other in self._wanted if not other.present or other.host_access}
        others = self._closed_bridges.get(want.network, set()) - opened - {want.name}
        for other in sorted(others):
            if have.links.get(other) is None or _links.owner_of(have.links[other].alias) != want.network:
                continue
            message = (
                f"host_access: the host is closed off from the network {want.network} on bridge {other} already, and "
                "a network has one closed bridge."
            )
            if not self._check_mode:
                raise Refused(
                    f"{message} Remove bridge {other} first (state: absent), open the host there (host_access: true), "
                    f"or give bridge {want.name} a network of its own."
                )
            self.warnings.append(
                f"{message} In check mode this is only a warning, because an earlier task may open it."
            )

    def _misses_address(self, state: BridgesState) -> bool:
        return any(
            address not in [present.address for present in state.bridges[want.name].addresses]
            if want.name in state.bridges
            else True
            for want in self._wanted
            for address in want.addresses or ()
        )

    def _check_ports(self, want: WantedBridge, have: BridgesState) -> None:
        if not want.present:
            return
        for port in want.ports or ():
            link = have.links.get(port)
            if link is None:
                message = f"ports: the interface {port} of bridge {want.name} does not exist."
                if not self._check_mode:
                    raise Refused(f"{message} Make it first, or take it out of the list.")
                self.warnings.append(
                    f"{message} In check mode this is only a warning, because an earlier task may make it."
                )
            elif link.master != want.name:
                _check_free(want, link, have.addresses)

    def _tell_of_strangers(self, have: BridgesState) -> None:
        """Say once which bridges stay: when the plan is verified, what was adopted and put back looks the same."""
        if not self._told:
            self.warnings += _links.left_alone("bridge", self._wanted, have.bridges)
        self._told = True

    def _check_addresses(self, have: BridgesState, changes: t.Sequence[Change]) -> None:
        tolerant = {want.name for want in self._wanted if want.allow_overlap}
        for change in changes:
            if isinstance(change, AddressChange) and change.after is not None:
                self._check_address(change.after, have, change.name in tolerant)

    def _check_address(self, address: Address, have: BridgesState, tolerant: bool) -> None:
        for other in have.addresses:
            if other.interface != address.interface and other.address.ip == address.address.ip:
                raise Refused(
                    f"addresses: {address.address} of bridge {address.interface} is already an address of "
                    f"{other.interface}. Give the bridge another one, or remove it there first."
                )
        network = address.address.network
        if network.is_link_local:
            return
        overlap = next(_overlaps(address, have), None)
        if overlap is None:
            return
        message = f"addresses: the subnet {network} of bridge {address.interface} overlaps {overlap}."
        if not tolerant:
            raise Refused(
                f"{message} Hosts in one of them would not be reached. Choose another subnet, or set "
                "allow_overlap: true."
            )
        self.warnings.append(message)


def _overlaps(address: Address, have: BridgesState) -> t.Iterator[str]:
    """What this host already reaches through another interface, of the subnet that an address brings."""
    network = address.address.network
    for route in have.routes:
        if (
            route.destination is None
            or route.table != _netlink.MAIN_TABLE
            or route.interface in (None, address.interface)
        ):
            continue
        if route.destination.version == network.version and route.destination.overlaps(t.cast(t.Any, network)):
            yield f"{route.destination}, which this host reaches through {route.interface}"
    for other in have.addresses:
        there = other.address.network
        if other.interface == address.interface or there.version != network.version or there.is_link_local:
            continue
        if there.overlaps(t.cast(t.Any, network)):
            yield f"{there}, in which {other.interface} has the address {other.address.ip}"


def _check_free(want: WantedBridge, link: Link, addresses: t.Sequence[Address]) -> None:
    """Refuse a port that would be torn from where it is, or lose what it has."""
    if link.kind == "bridge":
        raise Refused(f"ports: {link.name} is a bridge, and a bridge cannot be the port of a bridge.")
    if link.master is not None:
        raise Refused(f"ports: {link.name} is a port of {link.master} already. Take it off there first.")
    _links.check_owner(f"interface {link.name}", link.alias, want.network, force=want.force)
    has = [
        address for address in addresses if address.interface == link.name and not _bridge_state.is_link_local(address)
    ]
    if has:
        raise Refused(
            f"ports: {link.name} has {', '.join(str(each.address) for each in has)}, and addresses do not work on a "
            "port. Remove them there first; what needs them belongs on the bridge (addresses)."
        )


def _bridge(
    link: Link,
    links: t.Mapping[str, Link],
    addresses: t.Sequence[Address],
    vlans: t.Optional[t.Mapping[str, frozenset[_netlink.Vlan]]],
) -> Bridge:
    info = t.cast(_netlink.BridgeInfo, link.bridge)
    attached = {
        name: _links.attachment(port, vlans) for name, port in links.items() if port.master == link.name and port.port
    }
    return Bridge(
        name=link.name,
        mac_address=link.mac,
        alias=link.alias,
        enabled=link.up,
        mtu=link.mtu,
        **{key: getattr(info, key) for key in SETTINGS if key != "stp"},
        stp=bool(info.stp),
        ipv6=_read_ipv6(link.name),
        accept_ra=_read_accept_ra(link.name) if _links.is_unfinished(link.alias) else None,
        addresses=tuple(address for address in addresses if address.interface == link.name),
        ports={name: how for name, how in attached.items() if how is not None},
        vlans=None if vlans is None else vlans.get(link.name, frozenset()),
        index=link.index,
    )


def _link(bridge: Bridge, now: t.Optional[Link]) -> Link:
    """A bridge as the kernel will show it."""
    settings = {key: getattr(bridge, key) for key in SETTINGS}
    known = now.bridge if now else None
    info = _netlink.BridgeInfo(
        **settings, bridge_id=known.bridge_id if known else "", root_id=known.root_id if known else ""
    )
    return Link(
        index=bridge.index,
        name=bridge.name,
        kind="bridge",
        up=bridge.enabled,
        carrier=now is not None and now.carrier,
        mtu=bridge.mtu,
        mac=bridge.mac_address,
        alias=bridge.alias,
        master=None,
        group=now.group if now else 0,
        bridge=info,
    )


def _port_of(change: Change) -> t.Optional[str]:
    """The bridge that an attachment is about; this collection's bridges never swap ports in one task."""
    if not isinstance(change, Attach):
        return None
    return t.cast(_links.Attachment, change.after or change.before).bridge


def _requests(change: Change) -> list[_netlink.Request]:
    if isinstance(change, Existence):
        return [_netlink.set_link(change.name, up=False), _netlink.delete_link(change.name)]
    if isinstance(change, Setting):
        return [_links.setting_request(change)]
    if isinstance(change, Attach):
        return _links.attach_requests(change)
    if isinstance(change, OwnVlans):
        return _links.vlan_requests(change.name, change.before, change.after, on_bridge_itself=True)
    address = t.cast(AddressChange, change)
    index = _links.index_of(address.name)
    if address.after is not None:
        return [_netlink.add_address(address.after, index)]
    # Unless the kernel promotes them, the secondary addresses of a subnet go with its primary one.
    restored = [_netlink.add_address(secondary, index) for secondary in address.secondaries]
    return [_netlink.remove_address(t.cast(Address, address.before), index), *restored]


def _named(change: Existence, settings: t.Mapping[str, t.Any]) -> Change:
    """The change with what it sets in its sentence, for an error that can come from any of it."""
    told = {key: value for key, value in settings.items() if value != getattr(Bridge(change.name), key)}
    words = ", ".join(f"{key}: {value}" for key, value in told.items())
    return dataclasses.replace(change, sentence=f"{change.sentence} ({words})") if words else change


def _apply_closed(change: Closing) -> None:
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _closed

    _closed.apply(change.network, change.after)


def _ipv6_path(name: str, setting: str) -> str:
    return f"/proc/sys/net/ipv6/conf/{name}/{setting}"


def _read_ipv6(name: str) -> t.Optional[bool]:
    """Whether IPv6 is on; None where the kernel has none."""
    disabled = _read_ipv6_setting(name, "disable_ipv6")
    return None if disabled is None else disabled == "0"


def _read_accept_ra(name: str) -> t.Optional[bool]:
    """Whether router advertisements are heeded; None where the kernel has no IPv6."""
    accepted = _read_ipv6_setting(name, "accept_ra")
    return None if accepted is None else accepted != "0"


def _read_ipv6_setting(name: str, setting: str) -> t.Optional[str]:
    try:
        with open(_ipv6_path(name, setting), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _write_ipv6_setting(name: str, setting: str, value: int) -> None:
    path = _ipv6_path(name, setting)
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(value))
    except OSError as error:
        raise SystemFailure(f"{path} cannot be written ({error.strerror}).") from error


def _render(bridge: Bridge) -> dict[str, t.Any]:
    priority = 32768 if bridge.priority is None else bridge.priority
    return {
        "addresses": [str(each.address) for each in bridge.addresses if not _bridge_state.is_link_local(each)],
        "adopted": bridge.adopted is not None,
        "enabled": bridge.enabled,
        "host_access": None if bridge.closed is None else not bridge.closed,
        "id": f"{priority:04x}.{bridge.mac_address.replace(':', '')}",
        "mac_address": bridge.mac_address,
        "mtu": bridge.mtu,
        "network": _links.owner_of(bridge.alias),
        "ports": sorted(bridge.ports),
        **{key: getattr(bridge, key) for key in SETTINGS if key not in TIMES},
        **{key: _bridge_state.seconds(getattr(bridge, key)) for key in TIMES},
        **({} if bridge.vlans is None else {"vlans": _links.render_vlans(bridge.vlans)}),
    }
