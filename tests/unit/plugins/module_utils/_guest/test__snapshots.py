# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _snapshot_resource, _snapshots
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._snapshots import Disk, Stopped

DISKS = (Disk("/d/a.qcow2", "qcow2"), Disk("/d/b.qcow2", "qcow2"), Disk("/d/c.qcow2", "qcow2"))


def test_the_table_of_an_image_is_read_as_qemu_img_reads_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    assert _snapshots.read_table(str(path)) == ()
    for name in ("one", "a-much-longer-name.2", "x" * 63, "last"):
        subprocess.run(["qemu-img", "snapshot", "-c", name, path], check=True)
    subprocess.run(["qemu-img", "snapshot", "-d", "one", path], check=True)
    said = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True).stdout
    )
    expected = [(one["name"], one["vm-state-size"]) for one in said["snapshots"]]
    found = _snapshots.read_table(str(path))
    assert [(one.name, one.memory) for one in found] == expected
    assert len(found) == 3
    assert all(one.created and one.created.startswith("20") for one in found)


def test_other_images_have_none_and_a_broken_table_is_told_of(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    assert _snapshots.read_table(str(path)) == ()
    path.write_bytes(b"MBR" * 100)
    assert _snapshots.read_table(str(path)) == ()
    head = bytearray(72)
    head[:4] = b"QFI\xfb"
    head[60:64] = (3).to_bytes(4, "big")
    head[64:72] = (72).to_bytes(8, "big")
    path.write_bytes(bytes(head) + b"\0" * 10)
    with pytest.raises(SystemFailure, match="is cut short"):
        _snapshots.read_table(str(path))


class Recorded(Stopped):
    """Notes what would be done, and fails at some of it."""

    def __init__(self, *failing: tuple[str, str, str]) -> None:
        super().__init__("vm1", None)
        self.done: list[tuple[str, str, str]] = []
        self._failing = failing

    def _snapshot(self, action: str, name: str, disk: Disk, purpose: str) -> None:
        step = (action, name, disk.path[3])
        if step in self._failing:
            raise SystemFailure(f"qemu-img could not {purpose} {disk.path}.")
        self.done.append(step)


def test_what_was_taken_of_the_first_disks_goes_when_a_later_one_refuses() -> None:
    images = Recorded(("-c", "s", "c"))
    with pytest.raises(SystemFailure, match="could not take the snapshot s of /d/c"):
        images.take("s", DISKS)
    assert images.done == [("-c", "s", "a"), ("-c", "s", "b"), ("-d", "s", "a"), ("-d", "s", "b")]


def test_a_revert_keeps_how_the_disks_are_until_all_have_gone() -> None:
    images = Recorded()
    images.revert("s", DISKS[:2], "before")
    assert images.done == [
        *(("-c", "before", disk) for disk in "ab"),
        *(("-a", "s", disk) for disk in "ab"),
        *(("-d", "before", disk) for disk in "ab"),
    ]


def test_a_revert_that_fails_in_the_middle_leaves_all_disks_as_they_were() -> None:
    images = Recorded(("-a", "s", "b"))
    with pytest.raises(SystemFailure, match="All disks of guest vm1 are as they were"):
        images.revert("s", DISKS, "before")
    assert images.done[3:] == [
        ("-a", "s", "a"),
        ("-a", "before", "a"),
        ("-a", "before", "b"),
        *(("-d", "before", disk) for disk in "abc"),
    ]


def test_a_revert_that_cannot_be_taken_back_keeps_everything_and_says_where() -> None:
    images = Recorded(("-a", "s", "b"), ("-a", "before", "a"))
    with pytest.raises(SystemFailure, match="kept as the snapshot before: go back to that"):
        images.revert("s", DISKS, "before")
    assert not [step for step in images.done if step[0] == "-d"]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"snapshot": None}, "snapshot"),
        ({"snapshot": "../x"}, "snapshot"),
        ({"snapshot": "12"}, "snapshot"),
        ({"timeout": 0}, "timeout"),
        ({"state": "absent", "quiesce": True}, "quiesce"),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, t.Any], option: str) -> None:
    complete = {"name": "vm1", "snapshot": "s", "state": "present", "timeout": 1.0, **options}
    with pytest.raises(InvalidInput) as caught:
        _snapshot_resource.build([complete], single=True, check_mode=False)
    assert caught.value.details["option"] == option
