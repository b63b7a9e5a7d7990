# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import struct
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _disks
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._disks import Image, MadeDisk
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk
from hypothesis import given
from hypothesis import strategies as st

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

IMAGE = Image("/d", "qcow2", 4096, 1, 2)


def qemu_img(*words: t.Union[str, pathlib.Path]) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


@needs_qemu_img
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_qcow2_header_is_read_as_qemu_img_wrote_it(tmp_path: pathlib.Path, compat: str) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    path = tmp_path / "o.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", "-F", "raw", "-b", "base.raw", path, "3M")
    image = _disks.inspect(str(path))
    assert image is not None
    assert (image.format, image.size, image.external) == ("qcow2", 3 << 20, False)
    assert (image.backing, image.backing_format) == (str(tmp_path / "base.raw"), "raw")
    assert [part.path for part in _disks.chain(str(path))] == [str(path), str(tmp_path / "base.raw")]


@needs_qemu_img
@pytest.mark.parametrize("image_format", ["qcow2", "raw", "vmdk", "vdi", "vhdx", "qed"])
def test_formats_are_told_apart(tmp_path: pathlib.Path, image_format: str) -> None:
    qemu_img("create", "-f", image_format, tmp_path / "i", "1M")
    image = _disks.inspect(str(tmp_path / "i"))
    assert image is not None
    assert image.format == image_format


@needs_qemu_img
def test_an_image_that_reaches_elsewhere_is_not_followed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data.raw'},data_file_raw=on", path, "1M")
    with pytest.raises(Refused, match="keeps or reads data elsewhere"):
        _disks.chain(str(path))
    loop, other = tmp_path / "loop.qcow2", tmp_path / "other.qcow2"
    for above, below in ((loop, other), (other, loop)):
        qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, above, "1M")
    with pytest.raises(Refused, match="is built on itself"):
        _disks.chain(str(loop))


def test_a_broken_header_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "b").write_bytes(b"QFI\xfb\0\0\0\3")
    with pytest.raises(Refused, match="cut short"):
        _disks.inspect(str(tmp_path / "b"))
    with pytest.raises(Refused, match="neither a file nor a block device"):
        _disks.inspect("/dev/null")
    assert _disks.inspect(str(tmp_path / "none")) is None


@given(st.binary(max_size=300))
def test_no_header_makes_it_fall_over(rest: bytes) -> None:
    image = Image("/d/i", "raw", 1, 1, 1)
    try:
        found = _disks._qcow2(image, b"QFI\xfb" + rest)
    except Refused:
        return
    assert found.format == "qcow2"


def test_a_disk_is_never_made_over_anything(tmp_path: pathlib.Path) -> None:
    disk = Disk(str(tmp_path / "d.raw"), "raw", "virtio", size=1 << 20)
    recorded: list[MadeDisk] = []
    made = _disks.make(disk, -1, -1, recorded.append)
    assert recorded == [made]
    assert made.is_there()
    with pytest.raises(Refused, match="nothing was done to it"):
        _disks.make(disk, -1, -1, recorded.append)
    assert made.is_there()
    assert os.listdir(tmp_path) == ["d.raw"]
    os.symlink("/nowhere", tmp_path / "link")
    with pytest.raises(Refused):
        _disks.make(dataclasses.replace(disk, path=str(tmp_path / "link")), -1, -1, recorded.append)


def test_only_the_file_that_was_made_is_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "d.raw"
    made = _disks.make(Disk(str(path), "raw", "virtio", size=512), -1, -1, lambda _made: None)
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
        ({}, Disk("/d", "raw", "virtio", size=1024), IMAGE, {"format": "raw", "size": 1024}),
        (
            {"base_image": "/b"},
            Disk("/d", "qcow2", "virtio", base_image="/b", base_format="vmdk"),
            None,
            {"format": "qcow2", "base_image": "/b", "base_format": "vmdk"},
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


def test_locks_of_qemu_are_seen(tmp_path: pathlib.Path) -> None:
    import fcntl

    path = tmp_path / "d"
    path.write_bytes(bytes(512))
    assert not _disks.is_open(str(path))
    with path.open("r+b") as holder:
        for byte, writing in ((200, False), (101, True)):
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
            assert _disks.is_open(str(path), for_writing_only=True) is writing
        assert _disks.is_open(str(path))
    assert not _disks.is_open(str(path))
