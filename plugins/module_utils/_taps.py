# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The taps that a task asks for, as a resource of the runner.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import grp
import itertools
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _adoption,
    _foresight,
    _links,
    _netlink,
    _tap_plan,
    _tun,
    _values,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Adoption, Record
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Link, Netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._tap_plan import Existence, Tap, WantedTap

#: Taps held open at once while they are made; a process may have 1024 descriptors.
_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class TapsState:
    """The taps that the task names, and what it takes to judge them."""

    taps: t.Mapping[str, Tap]
    links: t.Mapping[str, Link]
    stale: t.Mapping[str, Record]
    boot: str


class TapDevices(Resource[TapsState]):
    """Taps made of the options of C(tap_device), one dict for each."""

    plural: t.ClassVar[str] = "taps"
    singular: t.ClassVar[str] = "tap"

    def __init__(
        self,
        taps: t.Sequence[Options],
        *,
        single: bool = False,
        check_mode: bool = False,
        leaving: t.Callable[[], t.Collection[int]] = tuple,
        taken_from: t.Collection[str] = (),
    ) -> None:
        """C(leaving) tells the processes that an earlier resource of the same run ends: what they hold will be free.

        C(taken_from) are the networks whose taps may become another's.
        """
        super().__init__(single=single)
        self._taken_from = taken_from
        self._check_mode = check_mode
        self._leaving = leaving
        self._options = taps
        self._netlink = Netlink()
        self._identity = _values.host_identity()
        self._recreated: set[str] = set()
        self._wanted: list[WantedTap] = []
        self._asked = False
        self._told = False

    def wanted(self) -> t.Sequence[WantedTap]:
        """The taps that the options ask for, in their order."""
        if not self._asked:  # those that are spared leave the list
            self._wanted = [self._want(options) for options in self._options]
            _check_list(self._wanted)
            self._asked = True
        return self._wanted

    def read(self) -> TapsState:
        self.wanted()
        links = self._netlink.links()
        names = [want.name for want in self._wanted]
        records = _adoption.read(names)
        boot = _adoption.boot() if records else ""
        vlans = self._netlink.vlans() if self._vlans_matter(records) else None
        for name in names:
            if name in links:
                _check_kind(links[name])
        taps = {name: _tap(links[name], vlans) for name in names if name in links}
        adopted = {
            name: record
            for name, record in records.items()
            if name in links and _adoption.holds(record, links[name].index, links[name].alias, boot)
        }
        return TapsState(
            taps={name: dataclasses.replace(tap, adopted=adopted.get(name)) for name, tap in taps.items()},
            links=links,
            stale={name: record for name, record in records.items() if name not in adopted},
            boot=boot or _adoption.boot(),
        )

    def plan(self, have: TapsState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        bridges = _bridges_ahead(have.links, ahead)
        for want in self._wanted:
            self._check_bridge(want, have, bridges)
            _check_mac(want, have)
        changes = _tap_plan.plan_taps(
            have.taps,
            self._wanted,
            stale=have.stale,
            boot=have.boot,
            bridges=bridges,
            find_holders=functools.partial(_holders, have.links, {*self._leaving(), *_foresight.leaving()}),
            recreated=self._recreated,
            taken_from=self._taken_from,
        )
        _check_port_limit(have, self.predict(have, changes))
        self._warn_of_ineffective(have, ahead)
        self._tell_of_strangers(have)
        return changes

    def _tell_of_strangers(self, have: TapsState) -> None:
        """Say once which taps stay: when the plan is verified, what was adopted and put back looks the same."""
        if not self._told:
            self.warnings += _links.left_alone("tap", self._wanted, have.taps)
        self._told = True

    def spare(self, names: t.Iterable[str]) -> None:
        """Leave these taps alone, whatever the options say."""
        spared = set(names)
        self._wanted = [want for want in self._wanted if want.name not in spared]

    def predict(self, have: TapsState, changes: t.Sequence[Change]) -> TapsState:
        return dataclasses.replace(have, taps=_tap_plan.state_after(have.taps, changes)) if changes else have

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: TapsState) -> None:
        for name in dict.fromkeys(_tap_plan.name_in(change) for change in changes):
            tap = then.taps.get(name)
            world.set_link(name, None if tap is None else _link(tap, then.links.get(name)))
        _adoption.foresee(world, changes)

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for _kind, run in itertools.groupby(changes, key=_kind_of):
            group = list(run)
            first = group[0]
            if isinstance(first, Adoption):
                for change in group:
                    _adoption.apply(t.cast(Adoption, change))
                    done.append(change)
            elif isinstance(first, Existence) and first.after is None:
                self._delete(group, done)
            elif isinstance(first, Existence):
                self._create(t.cast("list[Existence]", group), done)
            else:
                _links.send(self._netlink, [(change, _requests(change)) for change in group], done)

    def render(self, state: TapsState) -> dict[str, dict[str, t.Any]]:
        return {want.name: _render(state.taps[want.name]) for want in self._wanted if want.name in state.taps}

    def _create(self, changes: t.Sequence[Existence], done: list[Change]) -> None:
        for start in range(0, len(changes), _CHUNK):
            self._create_chunk(changes[start : start + _CHUNK], done)

    def _create_chunk(self, changes: t.Sequence[Existence], done: list[Change]) -> None:
        """Made, marked as ours and unfinished, and only then made to last: what dies before leaves nothing behind.

        Attaching waits for the last step, because a tap that is let go loses its carrier, and the bridge would follow.
        """
        descriptors: list[int] = []
        try:
            for change in changes:
                tap = t.cast(Tap, change.after)
                descriptors.append(
                    _tun.create(
                        tap.name,
                        owner=tap.owner,
                        group=tap.group,
                        multi_queue=tap.multi_queue,
                        vnet_hdr=tap.vnet_hdr,
                    )
                )
            marks = [
                (change, [_netlink.set_link(change.name, alias=_links.unfinished(t.cast(Tap, change.after).alias))])
                for change in changes
            ]
            _links.send(self._netlink, marks, [])
            for change, descriptor in zip(changes, descriptors):
                _tun.persist(descriptor)
                done.append(change)
                self._recreated.add(change.name)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        _links.send(self._netlink, [(change, _settle_requests(t.cast(Tap, change.after))) for change in changes], [])

    def _delete(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        names = [t.cast(Existence, change).name for change in changes]
        if len(names) == 1:
            _links.send(self._netlink, [(changes[0], [_netlink.delete_link(names[0])])], done)
            return
        self._delete_together(changes, names)
        done.extend(changes)

    def _delete_together(self, changes: t.Sequence[Change], names: t.Sequence[str]) -> None:
        """One request for all: each request of its own would make the kernel wait 17 ms.

        The kernel deletes whatever is in the group, so the group must hold exactly these, and is looked at again.
        """
        links = self._netlink.links()
        used = {link.group for link in links.values()}
        group = next(number for number in itertools.count(0x6C61) if number not in used)
        moved: list[Change] = []
        try:
            into = [(change, [_netlink.set_link(name, group=group)]) for change, name in zip(changes, names)]
            _links.send(self._netlink, into, moved)
            members = {link.name for link in self._netlink.links().values() if link.group == group}
            if members != set(names):
                raise SystemFailure(
                    "the interfaces of this host change while taps are being deleted. Run the task again."
                )
            refusal = self._netlink.send([_netlink.delete_group(group)])[0]
            if refusal is not None:
                raise _links.failure(changes[0], refusal)
        except Exception:
            back = [_netlink.set_link(name, group=links[name].group) for name in names if name in links]
            self._netlink.send(back)
            raise

    def _vlans_matter(self, records: t.Mapping[str, Record]) -> bool:
        recorded = (record.found.get("attachment") or {} for record in records.values())
        return any(want.vlans is not None for want in self._wanted) or any(found.get("vlans") for found in recorded)

    def _want(self, options: Options) -> WantedTap:
        name = _values.interface_name("name", options["name"])
        bridge = options.get("bridge")
        if bridge:
            _values.interface_name("bridge", bridge)
        network = _values.object_name("network", options.get("network") or bridge or name)
        note = options.get("alias")
        if note is not None:
            _links.check_alias("alias", network, note)
        mac = options.get("mac_address")
        present = options.get("state", "present") == "present"
        # An account is looked up for a tap that is to be there: the host may never have had it.
        accounts = options if present else {}
        flags = ("multi_queue", "vnet_hdr", "enabled", *_links.PORT_SETTINGS)
        return WantedTap(
            name=name,
            network=network,
            present=present,
            bridge=bridge,
            owner=self._account("owner", accounts.get("owner"), _foresight.uid_of),
            group=self._account("group", accounts.get("group"), lambda text: grp.getgrnam(text).gr_gid),
            mtu=_links.check_mtu("mtu", options.get("mtu")),
            mac_address=_values.mac_address("mac_address", mac) if mac else None,
            default_mac=_values.derived_mac(self._identity, "tap", name),
            note=note,
            vlans=_links.wanted_vlans("vlans", options.get("vlans")),
            recreate=options.get("recreate") or "if_needed",
            adopt=options.get("adopt") is not False,
            force=bool(options.get("force")),
            **{flag: options.get(flag) for flag in flags},
        )

    def _account(self, option: str, text: t.Optional[str], find: t.Callable[[str], int]) -> t.Optional[int]:
        if text is None:
            return None
        if str(text).isdigit():
            return int(text)
        try:
            return find(text)
        except KeyError:
            error = InvalidInput(
                option, text, "is not known on the managed host. Create the account first, or give its number."
            )
        if not self._check_mode:
            raise error
        self.warnings.append(f"{error} In check mode this is only a warning, because an earlier task may create it.")
        return None

    def _check_bridge(self, want: WantedTap, have: TapsState, bridges: t.Collection[str]) -> None:
        if not want.present or not want.bridge or want.bridge in bridges:
            return
        link = have.links.get(want.bridge)
        if link is not None and link.kind != "bridge":
            raise Refused(f"bridge: {want.bridge} is not a bridge but {_links.kind_of(link)}. Name a bridge.")
        message = f"bridge: the bridge {want.bridge} of tap {want.name} does not exist."
        if not self._check_mode:
            raise Refused(f"{message} Make it first (labspan.vmnet.linux_bridge), or correct the name.")
        self.warnings.append(f"{message} In check mode this is only a warning, because an earlier task may make it.")

    def _warn_of_ineffective(self, have: TapsState, ahead: t.Mapping[str, t.Any]) -> None:
        predicted = getattr(ahead.get("bridges"), "bridges", {})
        for want in self._wanted:
            link = have.links.get(want.bridge or "")
            stp = (
                predicted[want.bridge].stp
                if want.bridge in predicted
                else bool(link and link.bridge and link.bridge.stp)
            )
            if want.present and want.bpdu_guard and want.bridge and not stp:
                self.warnings.append(
                    f"bpdu_guard of tap {want.name} does nothing while STP is off on bridge {want.bridge}: the kernel "
                    "looks at it only when it handles BPDUs itself."
                )


def _bridges_ahead(links: t.Mapping[str, Link], ahead: t.Mapping[str, t.Any]) -> set[str]:
    """The bridges that there will be when it is the taps' turn."""
    bridges = {name for name, link in links.items() if link.kind == "bridge"}
    state = ahead.get("bridges")
    if state is not None:
        bridges = (bridges - set(state.names)) | set(state.bridges)
    return bridges


def _check_list(wanted: t.Sequence[WantedTap]) -> None:
    seen: dict[str, str] = {}
    for want in wanted:
        if want.mac_address is None or not want.present:
            continue
        other = seen.setdefault(want.mac_address, want.name)
        if other != want.name:
            raise InvalidInput(
                "mac_address",
                want.mac_address,
                f"is given to the taps {other} and {want.name}; give each its own, or leave it out.",
            )


def _check_mac(want: WantedTap, have: TapsState) -> None:
    """Two ports of a bridge with one address make it forget where either is."""
    current = have.taps.get(want.name)
    if not want.present or want.mac_address is None or (current and current.mac_address == want.mac_address):
        return
    for link in have.links.values():
        if link.mac == want.mac_address and link.name != want.name:
            raise InvalidInput(
                "mac_address", want.mac_address, f"is the address of {link.name} already; give another one."
            )


def _check_kind(link: Link) -> None:
    if link.tun is None or link.tun.mode != "tap":
        raise Refused(f"name: {link.name} exists and is not a tap but {_links.kind_of(link)}. Choose another name.")


def _check_port_limit(have: TapsState, then: TapsState) -> None:
    others = (link.master for name, link in have.links.items() if link.master and name not in have.taps)
    ours = (tap.attachment.bridge for tap in then.taps.values() if tap.attachment)
    counts: dict[str, int] = {}
    for bridge in itertools.chain(others, ours):
        counts[bridge] = counts.get(bridge, 0) + 1
    for bridge, count in counts.items():
        if count > _links.MAXIMUM_PORTS:
            raise Refused(
                f"bridge {bridge} would have {count} ports, and the kernel allows {_links.MAXIMUM_PORTS} (EXFULL). "
                "Put the rest on another bridge."
            )


def _tap(link: Link, vlans: t.Optional[t.Mapping[str, frozenset[_netlink.Vlan]]]) -> Tap:
    tun = t.cast(_netlink.TunInfo, link.tun)
    return Tap(
        name=link.name,
        owner=tun.owner,
        group=tun.group,
        multi_queue=tun.multi_queue,
        alias=link.alias,
        enabled=link.up,
        mtu=link.mtu,
        mac_address=link.mac,
        attachment=_links.attachment(link, vlans),
        vnet_hdr=tun.vnet_hdr,
        index=link.index,
    )


def _link(tap: Tap, now: t.Optional[Link]) -> Link:
    """A tap as the kernel will show it."""
    how = tap.attachment
    port = (
        None
        if how is None
        else _netlink.PortInfo(how.hairpin, how.bpdu_guard, how.learning, how.flooding, how.isolated, state=0)
    )
    return Link(
        index=tap.index,
        name=tap.name,
        kind="tun",
        up=tap.enabled,
        carrier=now is not None and now.carrier,
        mtu=tap.mtu,
        mac=tap.mac_address or "",
        alias=tap.alias,
        master=how.bridge if how else None,
        group=now.group if now else 0,
        port=port,
        tun=_netlink.TunInfo(
            "tap",
            tap.owner,
            tap.group,
            packet_info=False,
            vnet_hdr=tap.vnet_hdr,
            persistent=True,
            multi_queue=tap.multi_queue,
        ),
    )


def _holders(
    links: t.Mapping[str, Link], leaving: t.Collection[int], names: t.Collection[str]
) -> t.Mapping[str, _tun.Holder]:
    found = _tun.holders(names, {name for name in names if name in links and links[name].carrier})
    return {name: holder for name, holder in found.items() if holder.pid not in leaving}


def _kind_of(change: Change) -> tuple[t.Any, ...]:
    return (type(change) if isinstance(change, (Adoption, Existence)) else None, change.after is None)


def _requests(change: Change) -> list[_netlink.Request]:
    if isinstance(change, _links.Attach):
        return _links.attach_requests(change)
    return [_links.setting_request(t.cast(_links.Setting, change))]


def _settle_requests(tap: Tap) -> list[_netlink.Request]:
    """What remains for a tap that was made: its settings, its bridge, and up last; with them it is finished."""
    what = f"tap {tap.name}"
    master = _links.index_of(tap.attachment.bridge) if tap.attachment else None
    mtu = None if tap.mtu == Tap.mtu else tap.mtu
    requests = [
        _netlink.set_link(
            tap.name, mac=tap.mac_address, mtu=mtu, alias=tap.alias, master=master, up=tap.enabled or None
        )
    ]
    if tap.attachment is not None:
        fresh = _links.Attachment(tap.attachment.bridge)
        requests += _links.attach_requests(_links.attach(what, tap.name, fresh, tap.attachment))
    return requests


def _render(tap: Tap) -> dict[str, t.Any]:
    attachment = tap.attachment
    return {
        "adopted": tap.adopted is not None,
        "alias": tap.alias,
        "bridge": attachment.bridge if attachment else None,
        "enabled": tap.enabled,
        "group": _group_name(tap.group),
        "mac_address": tap.mac_address,
        "mtu": tap.mtu,
        "multi_queue": tap.multi_queue,
        "network": _links.owner_of(tap.alias),
        "owner": _user_name(tap.owner),
        **{setting: getattr(attachment, setting) if attachment else None for setting in _links.PORT_SETTINGS},
        **({"vlans": _links.render_vlans(attachment.vlans)} if attachment and attachment.vlans is not None else {}),
    }


def _user_name(number: t.Optional[int]) -> t.Optional[str]:
    if number is None:
        return None
    try:
        return _foresight.name_of(number)
    except KeyError:
        return str(number)


@functools.cache
def _group_name(number: t.Optional[int]) -> t.Optional[str]:
    if number is None:
        return None
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
