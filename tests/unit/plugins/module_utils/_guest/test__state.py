# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _state
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._disks import MadeDisk
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._images import Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._labels import Labels
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec, Nic, Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, GuestState, Unit, Want
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from hypothesis import given
from hypothesis import strategies as st

SPEC = GuestSpec("vm1")
PROCESS = Process(7, 700)


def definition(spec: GuestSpec = SPEC) -> Definition:
    return Definition(spec, "tcg", ("qemu", str(spec.memory)))


def want(state: str = "running", spec: GuestSpec = SPEC, **wish: t.Any) -> Want:
    restart_of = wish.pop("restart_of", None)
    return Want(Wish("vm1", state, {}, **wish), definition(spec), restart_of)


def alive(run_state: str = "running", spec: GuestSpec = SPEC, **state: t.Any) -> GuestState:
    return GuestState(definition(spec), PROCESS, run_state, **state)


def kinds(have: GuestState, wanted: Want) -> list[str]:
    return [type(change).__name__ for change in _state.plan(have, wanted)]


MORE = dataclasses.replace(SPEC, memory=1024)
WITH_DISK = dataclasses.replace(SPEC, disks=(Disk("/d", "qcow2", "virtio", size=2048),))
IMAGE = Image("/d", "qcow2", 1024, 1, 2)
LABELLED = dataclasses.replace(SPEC, labels=Labels((("role", "web"),)))
NICS = (Nic("52:54:00:00:00:01", "e1000"), Nic("52:54:00:00:00:02", "e1000", tap="t0"))
TAPPED = Nic("52:54:00:00:00:02", "e1000", tap="t0", bridge="br0", network="blue")
HERE = dataclasses.replace(SPEC, nics=(TAPPED,))
THERE = dataclasses.replace(SPEC, nics=(dataclasses.replace(TAPPED, bridge="br1", network="green"),))
RENAMED = dataclasses.replace(SPEC, nics=(dataclasses.replace(TAPPED, network="green"),))
SAME = dataclasses.replace(SPEC, nics=(dataclasses.replace(TAPPED, network=None),), network="blue")
PULLED = dataclasses.replace(SPEC, nics=(NICS[0], dataclasses.replace(NICS[1], link=False)))


@pytest.mark.parametrize(
    ("have", "wanted", "expected"),
    [
        (GuestState(), want(), ["Define", "Start"]),
        (GuestState(), want("stopped"), ["Define"]),
        (GuestState(), want("paused", WITH_DISK), ["Define", "CreateDisk", "Start"]),
        (GuestState(), want("absent"), []),
        (GuestState(definition()), want(), ["Start"]),
        (GuestState(definition()), want(spec=MORE), ["Define", "Start"]),
        (GuestState(definition(WITH_DISK), images={"/d": IMAGE}), want("stopped", WITH_DISK), ["GrowDisk"]),
        (GuestState(definition()), want("absent"), ["Forget"]),
        (GuestState(made=(MadeDisk("/d", 1, 2),)), want("absent"), []),
        (GuestState(made=(MadeDisk("/d", 1, 2),)), want("absent", remove_disks=True), ["RemoveDisk", "Forget"]),
        (alive(), want(), []),
        (alive("paused"), want(), ["SetActivity"]),
        (alive("prelaunch"), want(), ["SetActivity"]),
        (alive("io-error"), want(), ["SetActivity"]),
        (alive("suspended"), want(), []),
        (alive("unknown"), want(), []),
        (alive("prelaunch"), want("paused"), []),
        (alive(), want("paused"), ["SetActivity"]),
        (alive(), want("stopped"), ["Stop"]),
        (alive("unknown"), want("stopped"), ["Stop"]),
        (alive(), want("stopped", MORE), ["Stop", "Define"]),
        (alive(), want("absent"), ["Stop", "Forget"]),
        (alive(), want(spec=MORE), []),
        (alive(), want(spec=MORE, restart="if_needed"), ["Stop", "Define", "Start"]),
        (alive(), want(restart="if_needed"), []),
        (alive(), want(spec=LABELLED, restart="if_needed"), ["Define"]),
        (GuestState(definition(LABELLED)), want("stopped"), ["Define"]),
        (alive("internal-error"), want(restart="if_needed"), ["Stop", "Start"]),
        (alive(), want("restarted", restart_of=PROCESS), ["Stop", "Start"]),
        (alive(), want("restarted", restart_of=Process(7, 600)), []),
        (GuestState(definition()), want("restarted"), ["Start"]),
        (alive(spec=WITH_DISK, images={"/d": IMAGE}), want(spec=WITH_DISK), ["GrowDisk"]),
        (alive("paused", spec=WITH_DISK, images={"/d": IMAGE}), want("paused", spec=WITH_DISK), ["GrowDisk"]),
        (alive("unknown", spec=WITH_DISK, images={"/d": IMAGE}), want(spec=WITH_DISK), []),
        (alive(spec=dataclasses.replace(SPEC, nics=NICS)), want(spec=PULLED), ["SetLink", "Record"]),
        (alive(spec=HERE), want(spec=THERE), ["Define"]),
        (alive(spec=HERE), want(spec=RENAMED), ["Define"]),
        (alive(spec=HERE), want(spec=SAME), []),
        (alive(spec=HERE, as_defined=False), want(spec=THERE), []),
        (GuestState(definition(HERE)), want("stopped", RENAMED), ["Define"]),
        (GuestState(definition(HERE)), want("stopped", HERE), []),
        (GuestState(None, PROCESS, "running"), want(), []),
        (GuestState(None, PROCESS, "running"), want(restart="if_needed"), ["Stop", "Define", "Start"]),
    ],
)
def test_the_plan(have: GuestState, wanted: Want, expected: list[str]) -> None:
    assert kinds(have, wanted) == expected


def test_a_running_guest_is_recorded_on_the_network_that_it_was_moved_to() -> None:
    have, wanted = alive(spec=HERE), want(spec=THERE)
    (change,) = _state.plan(have, wanted)
    expected = "Change the definition of guest vm1: the bridge of NIC 0 is br1, the network green"
    assert change.sentence == expected
    then = _state.predict(have, [change])
    assert then.definition is not None
    assert [(nic.bridge, nic.network) for nic in then.definition.spec.nics] == [("br1", "green")]
    assert _state.plan(then, wanted) == []
    assert _state.pending_restart(then, wanted) == []


@pytest.mark.parametrize(
    ("have", "wanted", "sentence"),
    [
        (alive("internal-error"), want(), "cannot go on \\(QEMU says internal-error\\)"),
        (alive("unknown"), want("paused"), "cannot be paused"),
    ],
)
def test_what_cannot_be_done_is_refused(have: GuestState, wanted: Want, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        _state.plan(have, wanted)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"network": "other"}, []),
        ({"memory": 64}, ["memory is 512, wanted 64"]),
        ({"cmdline": "quiet"}, ["cmdline is not set, wanted quiet"]),
        ({"extra_args": ("-S",)}, ["extra_args is [], wanted ['-S']"]),
        ({"accelerator": "tcg"}, []),
        ({"accelerator": "kvm"}, ["accelerator is tcg, wanted kvm"]),
        ({"disks": (Disk("/d", "raw", "ide"),)}, ["disk 0 (/d) is not attached"]),
        ({"nics": NICS[:1]}, ["NIC 0 (52:54:00:00:00:01 on the user-mode network) is not attached"]),
        ({"nics": NICS[1:]}, ["NIC 0 (52:54:00:00:00:02 on tap t0) is not attached"]),
    ],
)
def test_each_difference_is_named(changes: dict[str, t.Any], expected: list[str]) -> None:
    assert _state.differences(definition(), dataclasses.replace(SPEC, **changes)) == expected


def test_differences_of_what_is_attached_are_named_one_by_one() -> None:
    before = dataclasses.replace(SPEC, nics=NICS)
    after = dataclasses.replace(SPEC, nics=(dataclasses.replace(NICS[0], model="rtl8139", link=False),))
    assert _state.differences(definition(before), after) == [
        "NIC 0: model is e1000, wanted rtl8139",
        "NIC 1 (52:54:00:00:00:02 on tap t0) is attached and not wanted",
    ]


disks = st.lists(
    st.builds(
        Disk,
        path=st.sampled_from(["/a", "/b"]),
        format=st.just("qcow2"),
        bus=st.sampled_from(["virtio", "ide"]),
        size=st.sampled_from([2048, 4096]),
    ),
    max_size=2,
    unique_by=lambda disk: disk.path,
).map(tuple)
nics = st.lists(
    st.builds(
        Nic,
        mac=st.sampled_from(["52:54:00:00:00:01", "52:54:00:00:00:02"]),
        model=st.sampled_from(["e1000", "virtio-net-pci"]),
        tap=st.sampled_from(["t0", "t1"]),
        link=st.booleans(),
    ),
    max_size=2,
    unique_by=(lambda nic: nic.mac, lambda nic: nic.tap),
).map(tuple)
specs = st.builds(GuestSpec, name=st.just("vm1"), memory=st.sampled_from([64, 128]), disks=disks, nics=nics)
definitions = st.none() | specs.map(definition)


@st.composite
def states(draw: st.DrawFn) -> GuestState:
    process = draw(st.none() | st.just(PROCESS))
    run_state = draw(st.sampled_from(["running", "paused", "prelaunch", "internal-error", "unknown"]))
    images = {path: Image(path, "qcow2", 1024, 1, 2) for path in draw(st.sets(st.sampled_from(["/a", "/b"])))}
    made = tuple(MadeDisk(path, 1, 2) for path in sorted(images) if draw(st.booleans()))
    return GuestState(
        draw(definitions), process, run_state if process else None, draw(st.booleans()) or not process, images, made
    )


@st.composite
def wants(draw: st.DrawFn) -> Want:
    state = draw(st.sampled_from(["running", "stopped", "paused", "restarted", "absent"]))
    return Want(
        Wish(
            "vm1",
            state,
            {},
            restart=draw(st.sampled_from(["never", "if_needed"])),
            remove_disks=state == "absent" and draw(st.booleans()),
        ),
        definition(draw(specs)),
        draw(st.sampled_from([None, PROCESS])),
    )


ACTIVITIES = {
    "running": "running",
    "restarted": "running",
    "paused": "paused",
    "stopped": "stopped",
    "absent": "stopped",
}


@given(states(), wants())
def test_any_state_becomes_the_wanted_one_and_stays_it(have: GuestState, wanted: Want) -> None:
    try:
        changes = _state.plan(have, wanted)
    except Refused:
        return
    then = _state.predict(have, changes)
    assert _state.plan(then, wanted) == []
    if then.activity != "unknown":
        assert then.activity == ACTIVITIES[wanted.wish.state]
    if wanted.wish.state == "absent":
        assert not then.is_there
        assert then.made == (() if wanted.wish.remove_disks else have.made)
    elif then.process is None:
        assert then.definition == wanted.definition
    elif not _state.pending_restart(then, wanted):
        assert then.definition is not None
        assert _state.differences(then.definition, wanted.spec) == []
        assert [nic.link for nic in then.definition.spec.nics] == [nic.link for nic in wanted.spec.nics] or (
            then.activity == "unknown"
        )


@given(states(), wants())
def test_a_process_ends_only_when_somebody_allows_it(have: GuestState, wanted: Want) -> None:
    try:
        changes = _state.plan(have, wanted)
    except Refused:
        return
    if wanted.wish.state in ("running", "paused") and wanted.wish.restart == "never":
        assert not any(isinstance(change, _state.Stop) for change in changes)
    if not wanted.wish.remove_disks:
        assert not any(isinstance(change, _state.RemoveDisk) for change in changes)


@given(states(), wants())
def test_what_can_be_taken_back_leads_back(have: GuestState, wanted: Want) -> None:
    try:
        changes = _state.plan(have, wanted)
    except Refused:
        return
    if not all(change.reversible for change in changes):
        return
    then = _state.predict(have, changes)
    back = _state.predict(then, [change.inverse() for change in reversed(changes)])
    if have.run_state == "prelaunch":  # a guest that has begun cannot go back to before
        back = dataclasses.replace(back, run_state="prelaunch")
    assert back == have


@given(st.lists(wants(), max_size=3), states())
def test_changes_of_several_guests_keep_their_order(several: list[Want], have: GuestState) -> None:
    for wanted in several:
        try:
            changes = _state.plan(have, wanted)
        except Refused:
            continue
        ordered = sorted(changes, key=_state.phase)
        assert _state.predict(have, ordered) == _state.predict(have, changes)


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (Unit(), "Write the unit of guest vm1, and have it started when the host boots"),
        (Unit("old", True, "tpm"), "Change the unit of guest vm1"),
        (Unit("text", False, "tpm"), "Have guest vm1 started when the host boots"),
        (Unit("text", True), "Write the unit of the TPM of guest vm1"),
        (Unit("text", True, "old"), "Write the unit of the TPM of guest vm1"),
        (Unit("text", True, "tpm"), None),
    ],
)
def test_what_changes_in_a_unit_is_what_the_sentence_says(before: Unit, sentence: t.Optional[str]) -> None:
    wanted = dataclasses.replace(want(), unit_of=lambda _definition: Unit("text", True, "tpm"))
    changes = _state.plan(alive(unit=before), wanted)
    assert [change.sentence for change in changes] == ([sentence] if sentence else [])
