# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _live, _slots, _state
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._disks import Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec, Nic, Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, GuestState, Want
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from hypothesis import given
from hypothesis import strategies as st

PROCESS = Process(7, 700)


def nic(number: int, **other: t.Any) -> Nic:
    return Nic(f"52:54:00:00:00:0{number}", **{"model": "virtio-net-pci", "tap": f"t{number}", **other})


def disk(name: str, bus: str = "virtio", **other: t.Any) -> Disk:
    return Disk(f"/{name}", "raw", bus, **other)


def definition(spec: GuestSpec) -> Definition:
    return Definition(spec, "tcg", tuple(_argv.command_line(spec, program="/qemu", accelerator="tcg")))


def running(spec: GuestSpec, run_state: str = "running") -> GuestState:
    nics, disks = _slots.parts(spec)
    attached = frozenset(part.id for part in (*nics, *disks))
    images = {path: Image(path, "raw", 1024, 1, 2) for path in ("/a", "/b", "/c")}
    return GuestState(definition(spec), PROCESS, run_state, images=images, attached=attached)


def want(spec: GuestSpec, state: str = "running", **wish: t.Any) -> Want:
    return Want(Wish("vm1", state, {}, **wish), definition(spec))


def spec(machine: str = "q35", **attributes: t.Any) -> GuestSpec:
    return GuestSpec("vm1", machine=machine, **attributes)


def sentences(have: GuestState, wanted: Want) -> tuple[list[str], list[str]]:
    changes = [change.sentence.replace(" guest vm1", "") for change in _state.plan(have, wanted)]
    return changes, _state.pending_restart(have, wanted)


TWO = (nic(1), nic(2))
RECORD = "Record what is attached to"


@pytest.mark.parametrize(
    ("before", "after", "actions", "pending"),
    [
        (spec(), spec(), [], []),
        (spec(), spec(nics=(nic(1),)), [RECORD, "Plug NIC 52:54:00:00:00:01 on tap t1 into"], []),
        (spec(nics=TWO), spec(nics=TWO[1:]), ["Unplug NIC 52:54:00:00:00:01 on tap t1 from", RECORD], []),
        (
            spec(nics=TWO[:1]),
            spec(nics=TWO[1:]),
            [
                "Unplug NIC 52:54:00:00:00:01 on tap t1 from",
                RECORD,
                "Plug NIC 52:54:00:00:00:02 on tap t2 into",
            ],
            [],
        ),
        (spec(nics=TWO), spec(nics=TWO[::-1]), [], ["the NICs are attached in another order than wanted"]),
        (
            spec(nics=TWO),
            spec(nics=(nic(1, model="e1000"), nic(2, link=False))),
            ["Set the link of NIC 1 of down", "Record the settings of"],
            ["NIC 0: model is virtio-net-pci, wanted e1000"],
        ),
        (spec(nics=(nic(1),)), spec(nics=(nic(1, tap="t2"),)), [], ["NIC 0: tap is t1, wanted t2"]),
        (
            spec(nics=(nic(1),)),
            spec(nics=(nic(2, tap="t1"),)),
            [],
            ["NIC 0: mac is 52:54:00:00:00:01, wanted 52:54:00:00:00:02"],
        ),
        (
            spec(nics=TWO),  # the address of one on the tap of the other: both stay
            spec(nics=(nic(1, tap="t2"),)),
            [],
            ["NIC 0: tap is t1, wanted t2"],
        ),
        (spec(), spec(disks=(disk("a"),)), [RECORD, "Plug disk /a into"], []),
        (spec(), spec(disks=(disk("x"),)), [RECORD, "Make the disk /x for", "Plug disk /x into"], []),
        (
            spec(),
            spec(disks=(disk("a", size=4096),)),
            [RECORD, "Grow the disk /a of from 1024 to 4096 bytes", "Plug disk /a into"],
            [],
        ),
        (
            spec(disks=(disk("a"),)),
            spec(disks=(disk("a", "scsi"),)),
            [],
            ["disk 0: bus is virtio, wanted scsi"],
        ),
        (
            spec(),
            spec(disks=(disk("a", "scsi"), disk("b", "ide"))),
            [],
            [
                "disk 0 (/a) is not attached: the running guest has no SCSI controller",
                "disk 1 (/b) is not attached: disks on ide are not plugged in while a guest runs",
            ],
        ),
        (
            spec(disks=(disk("a", "sata"),)),
            spec(),
            [],
            ["disk 0 (/a) is attached and not wanted: disks on sata are not pulled out while a guest runs"],
        ),
        (spec(disks=(disk("a", "scsi"),)), spec(), ["Unplug disk /a from", RECORD], []),
        (
            spec(nics=()),
            spec(nics=tuple(nic(n) for n in range(6))),
            [RECORD, *(f"Plug NIC 52:54:00:00:00:0{n} on tap t{n} into" for n in range(4))],
            [
                f"NIC {n} (52:54:00:00:00:0{n} on tap t{n}) is not attached: all 4 PCI Express ports of the running "
                "guest are taken"
                for n in (4, 5)
            ],
        ),
        (
            spec("microvm"),
            spec("microvm", nics=(nic(1),)),
            [],
            [
                "NIC 0 (52:54:00:00:00:01 on tap t1) is not attached: the machine microvm takes no device while it "
                "runs",
            ],
        ),
        (
            spec("pc"),
            spec("pc", nics=tuple(nic(n) for n in range(6))),
            [RECORD, *(f"Plug NIC 52:54:00:00:00:0{n} on tap t{n} into" for n in range(6))],
            [],
        ),
        (
            spec(disks=(disk("a", "sata", media="cdrom", read_only=True),)),
            spec(disks=(Disk("", "raw", "sata", media="cdrom", read_only=True),)),
            ["Take /a out of CD drive 0 of", "Record the settings of"],
            [],
        ),
        (spec(memory=512), spec(memory=256), [], ["memory is 512, wanted 256"]),
        (
            spec(memory=512, balloon=True),
            spec(memory=256, balloon=True),
            ["Set the memory of from 512 to 256 MiB by its balloon", "Record the settings of"],
            [],
        ),
        (
            spec(memory=512, balloon=True),
            spec(memory=600, balloon=True),
            [],
            ["memory is 512, wanted 600: it was started with 512"],
        ),
        (
            spec(memory=512),
            spec(memory=256, balloon=True),
            [],
            ["balloon is False, wanted True", "memory is 512, wanted 256"],
        ),
    ],
)
def test_the_plan_and_what_has_to_wait(
    before: GuestSpec, after: GuestSpec, actions: list[str], pending: list[str]
) -> None:
    assert sentences(running(before), want(after)) == (actions, pending)


def test_what_a_service_cannot_see_waits() -> None:
    have = running(spec())
    have = dataclasses.replace(have, definition=dataclasses.replace(definition(spec()), manager="systemd"))
    own = Disk("/var/lib/labspan/guests/vm1/b.raw", "raw", "virtio")
    actions, pending = sentences(have, want(spec(disks=(disk("a"), own, disk("c", read_only=True)))))
    assert [action for action in actions if action.startswith("Plug")] == [
        f"Plug disk {own.path} into",
        "Plug disk /c into",
    ]
    assert pending == [
        "disk 0 (/a) is not attached: the unit of the running guest lets it open only what it was started with there"
    ]


def test_names_and_places_are_those_of_this_process_and_never_used_twice() -> None:
    have = running(spec(nics=TWO))
    for wanted in ((nic(2), nic(3)), (nic(3), nic(1)), (nic(1), nic(4), nic(5))):
        have = _state.predict(have, _state.plan(have, want(spec(nics=wanted))))
        assert have.definition is not None
        assert have.definition.live is not None
        assert have.definition.spec.nics == wanted
        assert have.definition.argv == definition(spec(nics=wanted)).argv
        assert have.definition.live.argv == definition(spec(nics=TWO)).argv
        parts = have.definition.live.nics
        assert have.attached == {part.id for part in parts}
        assert len({part.port for part in parts}) == len(parts) == len(wanted)


def test_after_a_restart_nothing_is_left_of_it() -> None:
    have = running(spec(nics=TWO))
    have = _state.predict(have, _state.plan(have, want(spec(nics=TWO[1:]))))
    again = want(spec(nics=TWO[1:]), "restarted")
    again = dataclasses.replace(again, restart_of=PROCESS)
    changes = _state.plan(have, again)
    assert [type(change).__name__ for change in changes] == ["Stop", "Start"]
    then = _state.predict(have, changes)
    assert then.definition == definition(spec(nics=TWO[1:]))


def test_what_the_guest_gave_back_by_itself_is_plugged_in_again_or_cleaned_up() -> None:
    have = dataclasses.replace(running(spec(nics=TWO)), attached=frozenset(["nic1"]))
    assert sentences(have, want(spec(nics=TWO)))[0] == ["Plug NIC 52:54:00:00:00:01 on tap t1 into"]
    assert sentences(have, want(spec(nics=TWO[1:])))[0] == ["Unplug NIC 52:54:00:00:00:01 on tap t1 from", RECORD]


def test_a_paused_guest_gives_nothing_back() -> None:
    have, wanted = running(spec(nics=TWO), "paused"), spec(nics=TWO[1:])
    with pytest.raises(Refused, match="guest vm1 is paused, and only a guest that runs can give back NIC 52:54"):
        _state.plan(have, want(wanted, "paused"))
    assert sentences(have, want(wanted))[0][0] == "Resume"
    assert sentences(have, want(spec(nics=(*TWO, nic(3))), "paused"))[0][-1].startswith("Plug")


def test_of_a_guest_that_is_not_heard_everything_waits() -> None:
    have = dataclasses.replace(running(spec(nics=TWO), "unknown"), attached=None)
    assert sentences(have, want(spec(nics=(nic(2), nic(3))))) == (
        [],
        [
            "NIC 0 (52:54:00:00:00:01 on tap t1) is attached and not wanted",
            "NIC 1 (52:54:00:00:00:03 on tap t3) is not attached",
        ],
    )


nics = st.lists(
    st.builds(nic, st.integers(1, 6), model=st.sampled_from(["e1000", "virtio-net-pci"]), link=st.booleans()),
    max_size=5,
    unique_by=lambda one: one.mac,
).map(tuple)
disks = st.lists(
    st.builds(disk, st.sampled_from("abcd"), bus=st.sampled_from(["virtio", "ide", "scsi"])),
    max_size=3,
    unique_by=lambda one: one.path,
).map(tuple)
specs = st.builds(
    spec,
    st.sampled_from(["q35", "pc"]),
    nics=nics,
    disks=disks,
    memory=st.sampled_from([64, 128]),
    balloon=st.booleans(),
)


@given(specs, st.lists(specs, min_size=1, max_size=3))
def test_a_guest_that_changes_again_and_again_is_what_was_asked_for_but_for_what_is_pending(
    first: GuestSpec, later: list[GuestSpec]
) -> None:
    have = running(first)
    for wanted in later:
        wanted = dataclasses.replace(wanted, machine=first.machine)
        pending = _state.pending_restart(have, want(wanted))
        changes = _state.plan(have, want(wanted))
        back = _state.predict(_state.predict(have, changes), [change.inverse() for change in reversed(changes)])
        assert (back.definition, back.attached) == (have.definition, have.attached)
        ordered = sorted(changes, key=_state.phase)
        assert _state.predict(have, ordered) == _state.predict(have, changes)
        have = _state.predict(have, changes)
        assert _state.plan(have, want(wanted)) == []
        assert _state.pending_restart(have, want(wanted)) == pending
        assert have.definition is not None
        if not pending:
            assert (have.definition.spec.nics, have.definition.spec.disks) == (wanted.nics, wanted.disks)
            assert have.definition.spec.memory == wanted.memory
            assert have.definition.argv == definition(wanted).argv
        there = _live.devices(have.definition)
        assert have.attached == {device.part.id for device in there}
        for places in ([device.part.port for device in there], [device.part.unit for device in there]):
            taken = [place for place in places if place is not None]
            assert len(taken) == len(set(taken))
