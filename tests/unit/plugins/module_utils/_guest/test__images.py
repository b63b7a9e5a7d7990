# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import struct
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _images
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._images import Bounds, Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk
from hypothesis import given
from hypothesis import strategies as st

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*words: t.Union[str, pathlib.Path]) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def here(directory: pathlib.Path) -> Bounds:
    return Bounds(frozenset([os.path.realpath(directory)]), frozenset())


@needs_qemu_img
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_qcow2_header_is_read_as_qemu_img_wrote_it(tmp_path: pathlib.Path, compat: str) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    path = tmp_path / "o.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", "-F", "raw", "-b", "base.raw", path, "3M")
    image = _images.inspect(str(path))
    assert image is not None
    assert (image.format, image.size, image.external) == ("qcow2", 3 << 20, False)
    assert (image.backing, image.backing_format) == (str(tmp_path / "base.raw"), "raw")
    assert [part.path for part in _images.chain(str(path), here(tmp_path))] == [str(path), str(tmp_path / "base.raw")]


@needs_qemu_img
@pytest.mark.parametrize("image_format", ["qcow2", "raw", "vmdk", "vdi", "vhdx", "qed"])
def test_formats_are_told_apart(tmp_path: pathlib.Path, image_format: str) -> None:
    qemu_img("create", "-f", image_format, tmp_path / "i", "1M")
    image = _images.inspect(str(tmp_path / "i"))
    assert image is not None
    assert image.format == image_format


@needs_qemu_img
def test_an_image_that_reaches_elsewhere_is_not_followed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data.raw'},data_file_raw=on", path, "1M")
    with pytest.raises(Refused, match="keeps or reads data elsewhere"):
        _images.chain(str(path), here(tmp_path))
    loop, other = tmp_path / "loop.qcow2", tmp_path / "other.qcow2"
    for above, below in ((loop, other), (other, loop)):
        qemu_img("create", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, above, "1M")
    with pytest.raises(Refused, match="is built on itself"):
        _images.chain(str(loop), here(tmp_path))


@needs_qemu_img
def test_a_chain_stays_within_its_bounds(tmp_path: pathlib.Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    qemu_img("create", "-f", "qcow2", outside / "base.qcow2", "1M")
    qemu_img("create", "-f", "qcow2", inside / "base.qcow2", "1M")
    (inside / "link.qcow2").symlink_to(outside / "base.qcow2")
    (inside / "away").symlink_to(outside)

    def overlay(backing: t.Union[str, pathlib.Path], backing_format: str = "qcow2") -> str:
        path = inside / "o.qcow2"
        path.unlink(missing_ok=True)
        qemu_img("create", "-u", "-f", "qcow2", "-F", backing_format, "-b", str(backing), path, "1M")
        return str(path)

    for good in ("base.qcow2", inside / "base.qcow2", "../in/base.qcow2"):
        assert len(_images.chain(overlay(good), here(inside))) == 2
    for bad in (outside / "base.qcow2", "../out/base.qcow2", "link.qcow2", "away/../out/base.qcow2", "/dev/null"):
        with pytest.raises(Refused, match="not in a directory where"):
            _images.chain(overlay(bad), here(inside))
    named = Disk(str(inside / "o.qcow2"), "qcow2", "virtio", base_image=str(outside / "base.qcow2"))
    assert len(_images.chain(overlay(outside / "base.qcow2"), _images.bounds(named, "g"))) == 2
    with pytest.raises(Refused, match="which it calls vdi"):
        _images.chain(overlay("base.qcow2", "vdi"), here(inside))
    # What is recorded as raw is read as raw, whatever it looks like: QEMU does not follow it, nor do we.
    qemu_img("create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", inside / "trap.qcow2", "1M")
    assert [part.format for part in _images.chain(overlay("trap.qcow2", "raw"), here(inside))] == ["qcow2", "raw"]
    with pytest.raises(Refused, match="/etc/shadow, which is not in a directory"):
        _images.chain(overlay("trap.qcow2"), here(inside))


@needs_qemu_img
def test_a_format_that_qemu_would_guess_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    path = tmp_path / "o.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "base.raw", path, "1M")
    content = path.read_bytes()
    at = content.index(struct.pack(">I", _images._BACKING_FORMAT))
    path.write_bytes(content[:at] + struct.pack(">I", 0x12345678) + content[at + 4 :])
    with pytest.raises(Refused, match="QEMU would guess it"):
        _images.chain(str(path), here(tmp_path))


@needs_qemu_img
def test_a_vmdk_image_that_names_other_files_is_not_followed(tmp_path: pathlib.Path) -> None:
    qemu_img("create", "-f", "vmdk", tmp_path / "whole.vmdk", "1M")
    assert len(_images.chain(str(tmp_path / "whole.vmdk"), here(tmp_path))) == 1
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "parts.vmdk", "1M")
    overlay = tmp_path / "overlay.vmdk"
    qemu_img("create", "-f", "vmdk", "-F", "vmdk", "-b", tmp_path / "whole.vmdk", overlay, "1M")
    for path in (tmp_path / "parts.vmdk", overlay):
        with pytest.raises(Refused, match="keeps or reads data elsewhere"):
            _images.chain(str(path), here(tmp_path))


def test_a_broken_header_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "b").write_bytes(b"QFI\xfb\0\0\0\3")
    with pytest.raises(Refused, match="cut short"):
        _images.inspect(str(tmp_path / "b"))
    with pytest.raises(Refused, match="neither a file nor a block device"):
        _images.inspect("/dev/null")
    assert _images.inspect(str(tmp_path / "none")) is None


@given(st.binary(max_size=300))
def test_no_header_makes_it_fall_over(rest: bytes) -> None:
    image = Image("/d/i", "raw", 1, 1, 1)
    try:
        found = _images._qcow2(image, b"QFI\xfb" + rest)
    except Refused:
        return
    assert found.format == "qcow2"


def test_locks_of_qemu_are_seen(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(bytes(512))
    assert not _images.is_open(str(path))
    assert _images.holder(str(path)) == "another process"
    with path.open("r+b") as holder:
        for byte, writing in ((200, False), (101, True)):
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
            assert _images.is_open(str(path), for_writing_only=True) is writing
        assert _images.is_open(str(path))
    assert not _images.is_open(str(path))
