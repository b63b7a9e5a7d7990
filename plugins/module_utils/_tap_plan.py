# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taps as they are and as they shall be, and the steps between. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _adoption, _links
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Adoption, Record
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attach, Attachment, Setting
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

#: What a tap is made with, and keeps for its life.
FIXED = ("owner", "group", "multi_queue")


@dataclasses.dataclass(frozen=True)
class Tap:
    """A tap as it is, or exactly as it shall be."""

    name: str
    owner: t.Optional[int]
    group: t.Optional[int] = None
    multi_queue: bool = False
    alias: str = ""
    enabled: bool = True
    mtu: int = 1500
    mac_address: t.Optional[str] = None
    """None before the kernel has chosen one."""
    attachment: t.Optional[Attachment] = None
    vnet_hdr: bool = dataclasses.field(default=False, compare=False)
    """Only what a tap begins with: the process that opens it changes this at will."""
    index: int = dataclasses.field(default=0, compare=False)
    adopted: t.Optional[Record] = None


@dataclasses.dataclass(frozen=True)
class WantedTap:
    """What a task says about one tap; None means "leave alone"."""

    name: str
    network: str
    present: bool = True
    bridge: t.Optional[str] = None
    """The empty string takes the tap off its bridge."""
    owner: t.Optional[int] = None
    group: t.Optional[int] = None
    multi_queue: t.Optional[bool] = None
    vnet_hdr: t.Optional[bool] = None
    enabled: t.Optional[bool] = None
    mtu: t.Optional[int] = None
    mac_address: t.Optional[str] = None
    default_mac: t.Optional[str] = None
    """That of a tap that is made, so that it has the same one whenever it is."""
    note: t.Optional[str] = None
    hairpin: t.Optional[bool] = None
    bpdu_guard: t.Optional[bool] = None
    learning: t.Optional[bool] = None
    flooding: t.Optional[bool] = None
    isolated: t.Optional[bool] = None
    vlans: t.Optional[frozenset[Vlan]] = None
    recreate: str = "if_needed"
    adopt: bool = True
    force: bool = False


@dataclasses.dataclass(frozen=True)
class Existence(Change):
    """A tap is made or removed; states are C(Tap) or None."""

    @property
    def name(self) -> str:
        return t.cast(Tap, self.after or self.before).name


#: Asked only when it matters: who holds these taps open.
FindHolders = t.Callable[[t.Collection[str]], t.Mapping[str, object]]


def plan_taps(
    have: t.Mapping[str, Tap],
    wanted: t.Sequence[WantedTap],
    *,
    stale: t.Mapping[str, Record],
    boot: str,
    bridges: t.Collection[str],
    find_holders: FindHolders,
    recreated: t.Collection[str] = (),
    taken_from: t.Collection[str] = (),
) -> list[Change]:
    """The changes for all taps, sorted so that those of one kind can be carried out together.

    C(stale) are records of interfaces that are gone, C(bridges) the bridges that there are, C(recreated) the taps that
    were replaced already in this run, C(taken_from) the networks whose taps may become another's.
    """
    for want in wanted:
        tap = have.get(want.name)
        if tap is not None:
            force = want.force or (want.present and _links.owner_of(tap.alias) in taken_from)
            _links.check_owner(_what(want.name), tap.alias, want.network, force=force)
    steps = [
        change
        for want in wanted
        for change in _plan_tap(have.get(want.name), want, stale.get(want.name), boot, bridges, want.name in recreated)
    ]
    _refuse_held(steps, have, wanted, find_holders)
    return sorted(steps, key=lambda change: _phase(change, stale))


def state_after(have: t.Mapping[str, Tap], changes: t.Iterable[Change]) -> dict[str, Tap]:
    """The taps after these changes."""
    taps = dict(have)
    records = {name: tap.adopted for name, tap in have.items()}
    for change in changes:
        if isinstance(change, Existence):
            taps.pop(change.name, None)
            if change.after is not None:  # the record is about the name, and outlives the replacement of the tap
                taps[change.name] = dataclasses.replace(change.after, adopted=records.get(change.name))
        elif isinstance(change, Setting):
            taps[change.name] = dataclasses.replace(taps[change.name], **{change.setting: change.after})
        elif isinstance(change, Attach):
            taps[change.name] = dataclasses.replace(taps[change.name], attachment=change.after)
        elif isinstance(change, Adoption):
            record = t.cast(Record, change.after or change.before)
            records[record.name] = change.after
            if record.name in taps:
                taps[record.name] = dataclasses.replace(taps[record.name], adopted=change.after)
    return taps


def name_in(change: Change) -> str:
    """The tap that a change is about."""
    if isinstance(change, Adoption):
        return t.cast(Record, change.after or change.before).name
    return t.cast(t.Union[Existence, Setting, Attach], change).name


def found_state(tap: Tap) -> dict[str, t.Any]:
    """A tap as plain data, for the record of how it was found."""
    found = dataclasses.asdict(dataclasses.replace(tap, adopted=None))
    if tap.attachment is not None:
        found["attachment"]["vlans"] = None if tap.attachment.vlans is None else sorted(tap.attachment.vlans)
    return found


def restored(record: Record) -> Tap:
    """The tap that a record is about, as it was found."""
    found = dict(record.found)
    if found["attachment"] is not None:
        vlans = found["attachment"]["vlans"]
        vlans = None if vlans is None else frozenset(Vlan(*vlan) for vlan in vlans)
        found["attachment"] = Attachment(**{**found["attachment"], "vlans": vlans})
    return Tap(**found)


def _plan_tap(
    have: t.Optional[Tap],
    want: WantedTap,
    stale: t.Optional[Record],
    boot: str,
    bridges: t.Collection[str],
    recreated: bool,
) -> list[Change]:
    what = _what(want.name)
    if have is None:
        forgotten: list[Change] = [_adoption.forget(what, stale)] if stale else []
        return forgotten + ([_create(_new(want))] if want.present else [])
    if not want.present:
        return _plan_absent(have, want, bridges)
    target = _target(_as_new(have, want) if _links.is_unfinished(have.alias) else have, want)
    adoption: list[Change] = []
    if _links.owner_of(have.alias) is None and have.adopted is None:
        adoption = _adopt(have, want, boot)
    return adoption + _steps(have, target, want.recreate, recreated)


def _adopt(have: Tap, want: WantedTap, boot: str) -> list[Change]:
    what = _what(have.name)
    if not want.adopt:
        raise Refused(
            f"{what} exists and labspan.vmnet did not make it. Use another name, or have it adopted with adopt: true."
        )
    return [_adoption.adopt(what, Record(have.name, want.network, have.index, boot, found_state(have)))]


def _plan_absent(have: Tap, want: WantedTap, bridges: t.Collection[str]) -> list[Change]:
    what = _what(have.name)
    if have.adopted is not None:
        target = dataclasses.replace(restored(have.adopted), adopted=have.adopted)
        if target.attachment is not None and target.attachment.bridge not in bridges:
            target = dataclasses.replace(target, attachment=None)
        return [*_steps(have, target, "if_needed", False), _adoption.forget(what, have.adopted)]
    if _links.is_nobodys(have) and not want.force:
        return []
    return [_delete(have)]


def _new(want: WantedTap) -> Tap:
    bare = _as_new(Tap(want.name, 0 if want.owner is None else want.owner), want)
    return dataclasses.replace(_target(bare, want), vnet_hdr=bool(want.vnet_hdr))


def _as_new(tap: Tap, want: WantedTap) -> Tap:
    """The tap with what a new one has, whatever the task says."""
    return dataclasses.replace(tap, enabled=True, mac_address=want.default_mac or tap.mac_address)


def _target(have: Tap, want: WantedTap) -> Tap:
    """C(have) with everything that the task has an opinion about."""
    note = _links.note_of(have.alias) if want.note is None else want.note
    opinions = {key: getattr(want, key) for key in (*FIXED, "vnet_hdr", "enabled", "mtu", "mac_address")}
    return dataclasses.replace(
        have,
        alias=_links.alias_of(want.network, note),
        attachment=_wanted_attachment(have.attachment, want),
        **{key: value for key, value in opinions.items() if value is not None},
    )


def _wanted_attachment(have: t.Optional[Attachment], want: WantedTap) -> t.Optional[Attachment]:
    bridge = (have.bridge if have else "") if want.bridge is None else want.bridge
    if not bridge:
        return None
    base = dataclasses.replace(have, bridge=bridge) if have else Attachment(bridge)
    opinions = {key: getattr(want, key) for key in (*_links.PORT_SETTINGS, "vlans")}
    return dataclasses.replace(base, **{key: value for key, value in opinions.items() if value is not None})


def _steps(have: Tap, target: Tap, recreate: str, recreated: bool) -> list[Change]:
    differing = [key for key in FIXED if getattr(have, key) != getattr(target, key)]
    if differing and recreate == "never":
        differences = ", ".join(f"{key} is {_show(have, key)} and shall be {_show(target, key)}" for key in differing)
        raise Refused(
            f"{_what(have.name)}: {differences}; that cannot change on a living tap. Set recreate: if_needed to have "
            "it replaced when no process holds it open."
        )
    if differing or (recreate == "always" and not recreated):
        return [_delete(have), _create(dataclasses.replace(target, index=0))]
    what = _what(have.name)
    changes: list[Change] = [
        _links.setting(what, have.name, key, getattr(have, key), getattr(target, key))
        for key in ("alias", "mtu", "mac_address", "enabled")
        if getattr(have, key) != getattr(target, key)
    ]
    if have.attachment != target.attachment:
        changes.append(_links.attach(what, have.name, have.attachment, target.attachment))
    return sorted(changes, key=_finishes)


def _finishes(change: Change) -> bool:
    return isinstance(change, Setting) and change.setting == "alias" and _links.is_unfinished(change.before)


def _refuse_held(
    steps: t.Sequence[Change], have: t.Mapping[str, Tap], wanted: t.Sequence[WantedTap], find_holders: FindHolders
) -> None:
    leaving = {change.name for change in steps if isinstance(change, Existence) and change.after is None}
    returning = {
        change.name: change.after for change in steps if isinstance(change, Existence) and change.after is not None
    }
    forced = {want.name for want in wanted if want.force}
    held = find_holders(leaving - forced) if leaving - forced else {}
    for name in sorted(held):
        purpose = f"be replaced, as {_why_replaced(have[name], returning[name])}" if name in returning else "be removed"
        raise Refused(
            f"{_what(name)} is to {purpose}, and is in use by {held[name]}, which would lose its network. "
            "Stop that process first (or take the tap away from it with force: true).",
            in_use_by={key: str(holder) for key, holder in held.items()},
        )


def _why_replaced(have: Tap, target: Tap) -> str:
    differing = [key for key in FIXED if getattr(have, key) != getattr(target, key)]
    return f"{' and '.join(differing)} cannot change on a living tap" if differing else "recreate: always asks for it"


def _phase(change: Change, stale: t.Container[str]) -> int:
    if isinstance(change, Adoption):
        # A record that is out of date goes first, or it would be taken for one about the tap that is made next.
        return 0 if change.after is not None or t.cast(Record, change.before).name in stale else 5
    if isinstance(change, Existence):
        return 1 if change.after is None else 2
    return 3 if isinstance(change, Setting) and change.setting == "alias" and not _finishes(change) else 4


def _create(tap: Tap) -> Existence:
    bridge = f" on bridge {tap.attachment.bridge}" if tap.attachment else ""
    return Existence(_what(tap.name), f"Create {_what(tap.name)}{bridge}", None, tap)


def _delete(tap: Tap) -> Existence:
    return Existence(_what(tap.name), f"Delete {_what(tap.name)}", tap, None)


def _show(tap: Tap, key: str) -> str:
    value = getattr(tap, key)
    return "unset" if value is None else str(value)


def _what(name: str) -> str:
    return f"tap {name}"
