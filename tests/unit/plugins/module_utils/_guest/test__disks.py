# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _disks
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._disks import MadeDisk
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._images import Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk

IMAGE = Image("/d", "qcow2", 4096, 1, 2)


def test_a_disk_is_never_made_over_anything(tmp_path: pathlib.Path) -> None:
    disk = Disk(str(tmp_path / "d.raw"), "raw", "virtio", size=1 << 20)
    recorded: list[MadeDisk] = []
    made = _disks.make(disk, "g", -1, -1, recorded.append)
    assert recorded == [made]
    assert made.is_there()
    with pytest.raises(Refused, match="nothing was done to it"):
        _disks.make(disk, "g", -1, -1, recorded.append)
    assert made.is_there()
    assert os.listdir(tmp_path) == ["d.raw"]
    os.symlink("/nowhere", tmp_path / "link")
    with pytest.raises(Refused):
        _disks.make(dataclasses.replace(disk, path=str(tmp_path / "link")), "g", -1, -1, recorded.append)


def test_only_the_file_that_was_made_is_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "d.raw"
    made = _disks.make(Disk(str(path), "raw", "virtio", size=512), "g", -1, -1, lambda _made: None)
    path.rename(tmp_path / "kept")
    path.write_text("another", encoding="ascii")
    _disks.remove(made)
    assert path.read_text(encoding="ascii") == "another"
    (tmp_path / "kept").rename(path)
    _disks.remove(made)
    assert not path.exists()


@pytest.mark.parametrize(
    ("disk", "image", "sentence"),
    [
        (Disk("/d", "qcow2", "virtio"), IMAGE, None),
        (Disk("/d", "qcow2", "virtio", size=8192), IMAGE, None),
        (Disk("/d", "raw", "virtio"), IMAGE, "holds a qcow2 image, not raw"),
        (Disk("/d", "qcow2", "virtio", size=512), IMAGE, "would have to shrink"),
        (Disk("/d", "qcow2", "virtio", base_image="/b"), IMAGE, "has no base image, not on /b"),
        (
            Disk("/d", "qcow2", "virtio", base_image="/b"),
            dataclasses.replace(IMAGE, backing="/c"),
            "is built on /c, not on /b",
        ),
        (
            Disk("/d", "qcow2", "virtio", base_image="/b", base_format="raw"),
            dataclasses.replace(IMAGE, backing="/b", backing_format="qcow2"),
            "as qcow2, not as raw",
        ),
    ],
)
def test_an_existing_file_is_the_disk_or_is_refused(disk: Disk, image: Image, sentence: t.Optional[str]) -> None:
    problems = _disks.existing_problems(disk, image)
    if sentence is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert sentence in problems[0]


@pytest.mark.parametrize(
    ("options", "defined", "image", "expected"),
    [
        ({}, None, None, {"format": "qcow2"}),
        ({}, None, dataclasses.replace(IMAGE, format="raw"), {"format": "raw"}),
        ({"format": "raw"}, None, IMAGE, {"format": "raw"}),
        ({}, Disk("/d", "raw", "virtio", size=1024), None, {"format": "raw", "size": 1024}),
        ({}, Disk("/d", "raw", "virtio", size=1024), IMAGE, {"format": "raw", "size": IMAGE.size}),
        ({"size": 1024}, Disk("/d", "raw", "virtio", size=512), IMAGE, {"format": "raw", "size": 1024}),
        ({}, Disk("/d", "raw", "virtio", size=1 << 40), IMAGE, {"format": "raw", "size": 1 << 40}),
        (
            {"base_image": "/b"},
            Disk("/d", "qcow2", "virtio", base_image="/b", base_format="vmdk"),
            None,
            {"format": "qcow2", "base_image": "/b", "base_format": "vmdk"},
        ),
        (
            {},
            Disk("/d", "qcow2", "virtio", base_image="/b", source="https://h/b", checksum="md5:0"),
            None,
            {"format": "qcow2", "base_image": "/b", "source": "https://h/b", "checksum": "md5:0"},
        ),
        (
            {"base_image": "/c"},
            Disk("/d", "qcow2", "virtio", base_image="/b", base_format="vmdk"),
            None,
            {"format": "qcow2", "base_image": "/c"},
        ),
    ],
)
def test_what_a_disk_leaves_open_is_completed(
    options: dict[str, t.Any], defined: t.Optional[Disk], image: t.Optional[Image], expected: dict[str, t.Any]
) -> None:
    given_options = {"path": "/d", "bus": "virtio", "read_only": False, "size": None, "base_image": None, **options}
    assert _disks.complete(given_options, defined, image) == Disk("/d", bus="virtio", **expected)
