# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _links, _tap_plan
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Adoption, Record
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attachment
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._tap_plan import Existence, Tap, WantedTap
from hypothesis import given
from hypothesis import strategies as st

BOOT = "boot"
BRIDGES = ("br0", "br1")
OURS = "labspan.vmnet:lab"


def plan(
    have: t.Mapping[str, Tap],
    wanted: t.Sequence[WantedTap],
    *,
    held: t.Optional[t.Mapping[str, str]] = None,
    stale: t.Optional[t.Mapping[str, Record]] = None,
) -> list[Change]:
    holders = held or {}
    return _tap_plan.plan_taps(
        have,
        wanted,
        stale=stale or {},
        boot=BOOT,
        bridges=BRIDGES,
        find_holders=lambda names: {name: holders[name] for name in names if name in holders},
    )


def sentences(changes: t.Iterable[Change]) -> list[str]:
    return [change.sentence for change in changes]


flags = st.booleans()
macs = st.integers(0, 3).map(lambda number: f"02:00:00:00:00:0{number}")
vlan_sets = st.frozensets(st.builds(Vlan, st.integers(1, 4), st.just(False), flags), max_size=2)
attachments = st.builds(Attachment, st.sampled_from(BRIDGES), flags, flags, flags, flags, flags, vlan_sets)
names = st.sampled_from(["t0", "t1", "t2"])


@st.composite
def taps(draw: st.DrawFn) -> Tap:
    name = draw(names)
    tap = Tap(
        name=name,
        owner=draw(st.sampled_from([None, 0, 1000])),
        group=draw(st.sampled_from([None, 0])),
        multi_queue=draw(flags),
        alias=draw(st.sampled_from(["", "uplink to the lab", OURS, f"{OURS} a note"])),
        enabled=draw(flags),
        mtu=draw(st.sampled_from([1500, 9000])),
        mac_address=draw(macs),
        attachment=draw(st.none() | attachments),
        index=draw(st.integers(2, 9)),
    )
    if tap.alias.startswith(OURS) and draw(flags):
        found = dataclasses.replace(draw(taps_by_others()), name=name)
        record = Record(name, "lab", tap.index, BOOT, json.loads(json.dumps(_tap_plan.found_state(found))))
        tap = dataclasses.replace(tap, adopted=record)
    return tap


def taps_by_others() -> st.SearchStrategy[Tap]:
    return st.builds(
        Tap,
        name=names,
        owner=st.sampled_from([None, 0]),
        alias=st.sampled_from(["", "by hand"]),
        enabled=flags,
        mac_address=macs,
        attachment=st.none() | attachments,
    )


def optional(strategy: st.SearchStrategy[t.Any]) -> st.SearchStrategy[t.Any]:
    return st.none() | strategy


wanted_taps = st.builds(
    WantedTap,
    name=names,
    network=st.just("lab"),
    present=st.booleans(),
    bridge=optional(st.sampled_from(["", *BRIDGES])),
    owner=optional(st.sampled_from([0, 1000])),
    group=optional(st.just(0)),
    multi_queue=optional(flags),
    enabled=optional(flags),
    mtu=optional(st.sampled_from([1500, 1400])),
    mac_address=optional(macs),
    note=optional(st.sampled_from(["", "a note"])),
    isolated=optional(flags),
    learning=optional(flags),
    flooding=optional(flags),
    hairpin=optional(flags),
    bpdu_guard=optional(flags),
    vlans=optional(vlan_sets),
    force=st.just(True),
)


def by_name(found: t.Iterable[t.Any]) -> dict[str, t.Any]:
    return {each.name: each for each in found}


@given(st.lists(taps()).map(by_name), st.lists(wanted_taps).map(by_name))
def test_any_state_reaches_any_wish_and_then_rests(have: dict[str, Tap], wanted: dict[str, WantedTap]) -> None:
    wishes = list(wanted.values())
    then = _tap_plan.state_after(have, plan(have, wishes))
    # A tap that was put back as it was found is nobody's: asking again for its removal would be refused, or forced.
    wishes = [want for want in wishes if want.present or want.name not in then]
    assert sentences(plan(then, wishes)) == []
    for want in wishes:
        if want.present:
            assert_fulfilled(then[want.name], want)
    for name in set(have) - set(wanted):
        assert then[name] == have[name]


def assert_fulfilled(tap: Tap, want: WantedTap) -> None:
    for key in ("owner", "group", "multi_queue", "enabled", "mtu", "mac_address"):
        assert getattr(want, key) in (None, getattr(tap, key))
    assert tap.alias.split(" ")[0] == "labspan.vmnet:lab"
    if want.bridge is not None:
        assert (tap.attachment.bridge if tap.attachment else "") == want.bridge
    if tap.attachment is not None:
        for key in ("isolated", "learning", "flooding", "hairpin", "bpdu_guard", "vlans"):
            assert getattr(want, key) in (None, getattr(tap.attachment, key))


@given(st.lists(taps()).map(by_name), st.lists(wanted_taps).map(by_name))
def test_undoing_every_change_in_reverse_gives_what_was(have: dict[str, Tap], wanted: dict[str, WantedTap]) -> None:
    changes = plan(have, list(wanted.values()))
    there = _tap_plan.state_after(have, changes)
    back = _tap_plan.state_after(there, [change.inverse() for change in reversed(changes)])
    # The record of an adopted tap is a file of its own and came through untouched.
    assert {name: dataclasses.replace(tap, adopted=None) for name, tap in back.items()} == {
        name: dataclasses.replace(tap, adopted=None) for name, tap in have.items()
    }


@given(taps_by_others(), wanted_taps)
def test_an_adopted_tap_goes_back_to_what_it_was(found: Tap, want: WantedTap) -> None:
    want = dataclasses.replace(want, name=found.name, present=True)
    adopted = _tap_plan.state_after({found.name: found}, plan({found.name: found}, [want]))
    assert adopted[found.name].adopted is not None
    gone = plan(adopted, [WantedTap(found.name, "lab", present=False)])
    back = _tap_plan.state_after(adopted, gone)[found.name]
    assert dataclasses.replace(back, attachment=None) == dataclasses.replace(found, attachment=None)
    assert (back.attachment is None) == (found.attachment is None)


@given(taps())
def test_the_record_of_a_tap_survives_its_file(tap: Tap) -> None:
    record = Record(tap.name, "lab", 3, BOOT, json.loads(json.dumps(_tap_plan.found_state(tap))))
    assert _tap_plan.restored(record) == dataclasses.replace(tap, adopted=None)


def test_a_tap_that_is_created_belongs_to_root_unless_told() -> None:
    (change,) = plan({}, [WantedTap("t0", "lab")])
    assert change.after.owner == 0
    assert change.sentence == "Create tap t0"


OWNED = Tap("t0", owner=1000, alias=OURS, mac_address="02:00:00:00:00:01", index=5)


@pytest.mark.parametrize(
    ("have", "want", "words"),
    [
        (Tap("t0", 0, alias="labspan.vmnet:other"), WantedTap("t0", "lab"), "belongs to the network 'other'"),
        (Tap("t0", 0, alias="labspan.vmnet:other"), WantedTap("t0", "lab", present=False), "belongs to the network"),
        (Tap("t0", 0), WantedTap("t0", "lab", adopt=False), "did not make it"),
        (OWNED, WantedTap("t0", "lab", owner=0, recreate="never"), "owner is 1000 and shall be 0"),
    ],
)
def test_what_is_not_ours_or_not_possible_is_refused(have: Tap, want: WantedTap, words: str) -> None:
    with pytest.raises(Refused, match=words):
        plan({"t0": have}, [want])


def test_what_is_nobodys_is_not_removed_unless_forced() -> None:
    have = {"t0": Tap("t0", 0)}
    assert plan(have, [WantedTap("t0", "lab", present=False)]) == []
    assert plan(have, [WantedTap("t0", "lab", present=False, force=True)]) != []


def test_force_takes_over_and_removes() -> None:
    foreign = {"t0": Tap("t0", 0, alias="labspan.vmnet:other")}
    assert sentences(plan(foreign, [WantedTap("t0", "lab", force=True)])) == ["Mark tap t0 as the network lab's"]
    assert sentences(plan(foreign, [WantedTap("t0", "lab", present=False, force=True)])) == ["Delete tap t0"]


@pytest.mark.parametrize("want", [WantedTap("t0", "lab", owner=0), WantedTap("t0", "lab", present=False)])
def test_a_tap_in_use_is_not_taken_from_its_process(want: WantedTap) -> None:
    held = {"t0": "qemu-system-x86 (pid 4711)"}
    with pytest.raises(Refused, match=r"qemu-system-x86 \(pid 4711\)") as caught:
        plan({"t0": OWNED}, [want], held=held)
    assert caught.value.details["in_use_by"] == held
    assert plan({"t0": OWNED}, [want])
    assert plan({"t0": OWNED}, [dataclasses.replace(want, force=True)], held=held)


@pytest.mark.parametrize(
    ("want", "reason"),
    [
        (WantedTap("t0", "lab", owner=0), "as owner cannot change"),
        (WantedTap("t0", "lab", owner=0, multi_queue=True), "as owner and multi_queue cannot change"),
        (WantedTap("t0", "lab", recreate="always"), "as recreate: always asks for it"),
    ],
)
def test_why_a_tap_in_use_would_be_replaced_is_told(want: WantedTap, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        plan({"t0": OWNED}, [want], held={"t0": "qemu"})


def test_a_tap_in_use_may_change_what_a_living_tap_can_change() -> None:
    changes = plan({"t0": OWNED}, [WantedTap("t0", "lab", mtu=9000, bridge="br0")], held={"t0": "qemu"})
    assert sentences(changes) == ["Set the MTU of tap t0 from 1500 to 9000", "Attach tap t0 to bridge br0"]


def test_replacing_keeps_what_the_task_does_not_mention() -> None:
    have = dataclasses.replace(OWNED, attachment=Attachment("br0", isolated=True), mtu=9000)
    deleted, created = plan({"t0": have}, [WantedTap("t0", "lab", owner=0)])
    assert isinstance(deleted, Existence)
    assert created.after == dataclasses.replace(have, owner=0)


def test_moving_to_another_bridge_keeps_the_port_settings() -> None:
    have = dataclasses.replace(OWNED, attachment=Attachment("br0", isolated=True))
    (change,) = plan({"t0": have}, [WantedTap("t0", "lab", bridge="br1")])
    assert change.sentence == "Move tap t0 from bridge br0 to bridge br1"
    assert change.after == Attachment("br1", isolated=True)


def test_recreate_always_replaces_once_per_run() -> None:
    want = WantedTap("t0", "lab", recreate="always")
    assert sentences(plan({"t0": OWNED}, [want])) == ["Delete tap t0", "Create tap t0"]
    again = _tap_plan.plan_taps(
        {"t0": OWNED}, [want], stale={}, boot=BOOT, bridges=(), find_holders=lambda _names: {}, recreated={"t0"}
    )
    assert again == []


def test_a_record_of_an_interface_that_is_gone_is_forgotten() -> None:
    record = Record("t0", "lab", 3, "another boot", {})
    forgotten, created = plan({}, [WantedTap("t0", "lab")], stale={"t0": record})
    assert (forgotten.sentence, created.sentence) == ("Forget how tap t0 was found", "Create tap t0")
    assert [type(change) for change in plan({}, [WantedTap("t0", "lab", present=False)], stale={"t0": record})] == [
        Adoption
    ]


def test_changes_are_sorted_so_that_each_kind_is_one_batch() -> None:
    have = {name: dataclasses.replace(OWNED, name=name) for name in ("t0", "t1")}
    wanted = [WantedTap("t0", "lab", owner=0), WantedTap("t1", "lab", present=False), WantedTap("t2", "lab")]
    assert sentences(plan(have, wanted)) == ["Delete tap t0", "Delete tap t1", "Create tap t0", "Create tap t2"]


@pytest.mark.parametrize("enabled", [None, True, False])
def test_a_tap_that_a_killed_run_has_left_is_finished_last(enabled: t.Optional[bool]) -> None:
    want = WantedTap("t0", "lab", bridge="br0", enabled=enabled, default_mac="02:00:00:00:00:0a", note="of web")
    have = {"t0": Tap("t0", 0, alias=_links.unfinished(OURS), enabled=False, mac_address="02:00:00:00:00:0f", index=3)}
    changes = plan(have, [want])
    then = _tap_plan.state_after(have, changes)["t0"]
    assert (then.enabled, then.mac_address, then.alias) == (enabled is not False, want.default_mac, f"{OURS} of web")
    assert sentences(changes)[-1] == "Mark tap t0 as finished, after a run that was ended before it was"
    for length in range(len(changes)):
        left = plan(_tap_plan.state_after(have, changes[:length]), [want])
        assert sentences(left) == sentences(changes[length:])
    assert plan({"t0": then}, [want]) == []
