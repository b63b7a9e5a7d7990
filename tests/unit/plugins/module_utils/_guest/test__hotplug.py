# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _hotplug, _qmp
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._live import Device, SetMedium
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._slots import Part
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk

CD = Disk("/new.iso", "raw", "scsi", media="cdrom", read_only=True)


class Drive:
    """A QEMU with one CD drive, C(disk0), and images, of which one may be in it."""

    def __init__(self, nodes: t.Collection[str], inserted: t.Optional[str]) -> None:
        self.files = dict.fromkeys(nodes, "/old.iso")
        self.inserted = inserted
        self.there = True
        self.open = False
        #: How often the guest is asked before it lets go of the CD.
        self.stubborn = 0
        self.unwanted: t.Optional[str] = None

    def devices(self) -> set[str]:
        return {"disk0"} if self.there else set()

    def event(self, _timeout: float) -> dict[str, t.Any]:
        return {"event": "DEVICE_DELETED", "data": {"device": "disk0"}}

    def execute(self, command: str, **arguments: t.Any) -> t.Any:
        node = arguments.get("node-name", "")
        if command == "query-block":
            inserted = {"inserted": {"node-name": self.inserted}} if self.inserted else {}
            return [{"qdev": "disk0", "tray_open": self.open, **inserted}]
        if command == "blockdev-open-tray":
            self.stubborn -= 1
            self.open = self.stubborn < 0
        if command == "blockdev-close-tray":
            self.open = False
        if command in ("blockdev-insert-medium", "blockdev-remove-medium") and not self.open:
            raise _qmp.QmpError("", "Tray of device 'disk0' is not open")
        if command == "blockdev-insert-medium" and self.files[node] == self.unwanted:
            raise _qmp.QmpError("", "Failed to get shared lock")
        if command == "blockdev-add":
            if node in self.files:
                raise _qmp.QmpError("", f"Duplicate nodes with node-name='{node}'")
            self.files[node] = arguments["file"]["filename"]
        elif command == "blockdev-del":
            if node not in self.files or node == self.inserted:
                raise _qmp.QmpError("", f"Failed to find node with node-name='{node}'")
            del self.files[node]
        elif command == "blockdev-insert-medium":
            self.inserted = node
        elif command == "blockdev-remove-medium":
            self.inserted = None
        elif command == "device_del":
            self.there, self.inserted = False, None
        return {}


def connect(monkeypatch: pytest.MonkeyPatch, drive: Drive) -> None:
    monkeypatch.setattr(_hotplug, "_connection", lambda _name: contextlib.nullcontext(drive))


@pytest.mark.parametrize(
    ("nodes", "inserted"),
    [
        (["image0"], "image0"),
        (["image0", "image0-next"], "image0"),
        (["image0", "image0-next"], "image0-next"),
        (["image0", "image0-next"], None),
        (["image0-next"], "image0-next"),
        (["image0-next"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("path", ["/new.iso", ""])
def test_a_cd_is_changed_whatever_a_killed_run_has_left(
    monkeypatch: pytest.MonkeyPatch, nodes: list[str], inserted: t.Optional[str], path: str
) -> None:
    drive = Drive(nodes, inserted)
    connect(monkeypatch, drive)
    after = Disk(path, "raw", "scsi", media="cdrom", read_only=True)
    _hotplug.set_medium(SetMedium("disk0", "", CD, after, "guest", "disk0", 1.0))
    assert list(drive.files.values()) == ([path] if path else [])
    assert drive.inserted == next(iter(drive.files), None)


def test_a_guest_is_asked_for_its_cd_until_it_lets_go_or_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(["image0"], "image0")
    connect(monkeypatch, drive)
    monkeypatch.setattr(_hotplug, "_LOOK_AGAIN", 0)
    drive.stubborn = 1 << 30
    with pytest.raises(SystemFailure, match=r"has not let go of the CD in drive 0 within 0\.05 seconds"):
        _hotplug.set_medium(SetMedium("disk0", "", CD, CD, "guest", "disk0", 0.05))
    assert (drive.files, drive.inserted) == ({"image0": "/old.iso"}, "image0")
    drive.stubborn = 3
    _hotplug.set_medium(SetMedium("disk0", "", CD, CD, "guest", "disk0", 60.0))
    assert (drive.files, drive.inserted, drive.open) == ({"image0-next": "/new.iso"}, "image0-next", False)


@pytest.mark.parametrize("inserted", ["image0", "image0-next", None])
def test_a_cd_that_the_drive_refuses_leaves_the_old_one_in_it(
    monkeypatch: pytest.MonkeyPatch, inserted: t.Optional[str]
) -> None:
    drive = Drive([inserted] if inserted else [], inserted)
    connect(monkeypatch, drive)
    drive.unwanted = CD.path
    before = dict(drive.files)
    with pytest.raises(SystemFailure, match="drive 0 of guest guest cannot be changed: Failed to get shared lock"):
        _hotplug.set_medium(SetMedium("disk0", "", CD, CD, "guest", "disk0", 1.0))
    assert (drive.files, drive.inserted, drive.open) == (before, inserted, False)


@pytest.mark.parametrize("nodes", [["image0"], ["image0-next"], ["image0", "image0-next"]])
def test_a_drive_that_is_unplugged_leaves_no_image(monkeypatch: pytest.MonkeyPatch, nodes: list[str]) -> None:
    drive = Drive(nodes, nodes[-1])
    connect(monkeypatch, drive)
    _hotplug.unplug("guest", Device(CD, Part("disk0", None, 0)), 1.0)
    assert drive.files == {}


@pytest.mark.parametrize(
    ("words", "head", "expected"),
    [
        ("user,id=net0", "type", {"type": "user", "id": "net0"}),
        (
            "virtio-net-pci,netdev=net1,mac=52:54:00:00:00:01,mq=on,vectors=6,romfile=",
            "driver",
            {
                "driver": "virtio-net-pci",
                "netdev": "net1",
                "mac": "52:54:00:00:00:01",
                "mq": True,
                "vectors": 6,
                "romfile": "",
            },
        ),
        (
            "driver=raw,node-name=image1,read-only=off,discard=unmap,file.driver=file,file.filename=/a,,b,,,,c",
            "driver",
            {
                "driver": "raw",
                "node-name": "image1",
                "read-only": False,
                "discard": "unmap",
                "file": {"driver": "file", "filename": "/a,b,,c"},
            },
        ),
    ],
)
def test_words_of_the_command_line_become_what_qemu_wants_in_json(
    words: str, head: str, expected: dict[str, t.Any]
) -> None:
    assert _hotplug.arguments(words, head=head) == expected
