# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The builder of the tiny guest reads kernels and modules, and writes archives, without the programs made for it."""

from __future__ import annotations

import fnmatch
import gzip
import importlib.util
import json
import lzma
import pathlib
import stat
import struct
import subprocess
import sys
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILDER = ROOT / "roles" / "tiny_guest" / "files" / "build_tiny_guest.py"


def _load() -> t.Any:
    specification = importlib.util.spec_from_file_location("build_tiny_guest", BUILDER)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["build_tiny_guest"] = module
    specification.loader.exec_module(module)
    return module


builder = _load()


def elf(sections: dict[bytes, bytes], interpreter: bool = False) -> bytes:
    """A 64-bit little-endian ELF file with these sections, and one program header."""
    names = b"\0" + b"".join(name + b"\0" for name in (*sections, b".shstrtab"))
    contents = [*sections.values(), names]
    start = 64 + 56
    headers = [bytes(64)]
    for name, content in zip((*sections, b".shstrtab"), contents):
        offset = start + sum(len(earlier) for earlier in contents[: contents.index(content)])
        headers.append(struct.pack("<IIQQQQIIQQ", names.index(name + b"\0"), 1, 0, 0, offset, len(content), 0, 0, 1, 0))
    table = start + sum(len(content) for content in contents)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 64, table, 0, 64, 56, 1, 64, len(headers), len(headers) - 1)
    program = struct.pack("<IIQQQQQQ", 3 if interpreter else 1, 0, 0, 0, 0, 0, 0, 0)
    return head + program + b"".join(contents) + b"".join(headers)


def module(name: str, *, depends: str = "", aliases: tuple[str, ...] = ()) -> t.Any:
    fields = [f"depends={depends}", "license=GPL", *(f"alias={alias}" for alias in aliases)]
    return builder.read_module(name, elf({b".text": b"code", b".modinfo": "\0".join(fields).encode() + b"\0"}))


def test_a_module_tells_its_dependencies_and_aliases() -> None:
    found = module("virtio_net", depends="virtio,net_failover", aliases=("virtio:d00000001v*",))
    assert found.depends == ("virtio", "net_failover")
    assert found.aliases == ("virtio:d00000001v*",)


def test_another_architecture_is_refused_with_a_sentence() -> None:
    with pytest.raises(builder.BuildError, match="this architecture is not supported"):
        builder.read_module("x", b"\x7fELF\x01\x02".ljust(200, b"\0"))


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    modules = {
        "top": module("top", depends="left,right"),
        "left": module("left", depends="base-ring"),
        "right": module("right", depends="base-ring,left"),
        "base_ring": module("base_ring"),
    }
    assert builder.load_order("top", modules) == ["base_ring", "left", "right", "top"]


def test_a_missing_dependency_is_named() -> None:
    with pytest.raises(builder.BuildError, match="top needs gone"):
        builder.load_order("top", {"top": module("top", depends="gone")})


@pytest.mark.parametrize(
    ("alias", "device"),
    [
        ("pci:v00008086d0000100Esv*sd*bc*sc*i*", "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"),
        ("acpi*:LNXPWRBN:*", "acpi:LNXPWRBN:"),
        ("virtio:d00000001v*", "virtio:d00000001v00001AF4"),
    ],
)
def test_the_shell_finds_the_driver_of_a_device(alias: str, device: str) -> None:
    assert fnmatch.fnmatchcase(device, alias)
    modules = {"other": module("other", aliases=("pci:v0000FFFFd*",)), "driver": module("driver", aliases=(alias,))}
    script = builder.modules_script({"other": ["other"], "driver": ["base", "driver"]}, modules)
    script += (
        f'module_for "{device}"; echo "$driver"; load_order "$driver"; echo "$order"; module_for no; echo "$driver"\n'
    )
    found = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == ["driver", "base driver", ""]


def bzimage(payload: bytes) -> bytes:
    """A kernel image with two sectors of set-up code, and the payload 64 bytes into what follows."""
    image = bytearray(3 * 512)
    image[0x1F1] = 2
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + bytes(64) + payload + b"more"


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (lzma.compress(elf({}), check=lzma.CHECK_CRC32) + b"size", "vmlinux"),
        (gzip.compress(elf({}), mtime=0) + b"size", "vmlinux"),
        (lzma.compress(b"not an ELF file") + b"size", "vmlinuz"),
        (b"\x02!L\x18 LZ4, which Python cannot read", "vmlinuz"),
    ],
)
def test_the_kernel_is_taken_out_of_its_wrapping_where_python_can(payload: bytes, name: str) -> None:
    image = bzimage(payload)
    assert builder.bootable_kernel(image) == (name, elf({}) if name == "vmlinux" else image)


def test_a_kernel_that_is_no_bzimage_is_booted_as_it_is() -> None:
    assert builder.bootable_kernel(bytes(4096)) == ("vmlinuz", bytes(4096))


def test_static_programs_are_told_from_dynamic_ones() -> None:
    assert builder.is_static(elf({}))
    assert not builder.is_static(elf({}, interpreter=True))
    assert not builder.is_static(b"#!/bin/sh")


def test_archives_are_what_the_kernel_reads() -> None:
    archive = builder.Cpio()
    archive.directory("dir")
    archive.file("dir/file", "content", 0o755)
    archive.link("link", "dir/file")
    archive.add("null", stat.S_IFCHR | 0o600, device=(1, 3))
    entries = list(_read_cpio(archive.bytes()))
    assert [(name, oct(mode), content) for name, mode, content, _device in entries] == [
        ("dir", oct(stat.S_IFDIR | 0o755), b""),
        ("dir/file", oct(stat.S_IFREG | 0o755), b"content"),
        ("link", oct(stat.S_IFLNK | 0o777), b"dir/file"),
        ("null", oct(stat.S_IFCHR | 0o600), b""),
    ]
    assert entries[3][3] == (1, 3)


def _read_cpio(archive: bytes) -> t.Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    """Documentation/driver-api/early-userspace/buffer-format.rst of the kernel."""
    position = 0
    while True:
        assert position % 4 == 0
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * number : position + 14 + 8 * number], 16) for number in range(13)]
        name = archive[position + 110 : position + 110 + fields[11] - 1].decode()
        content = position + (110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return
        yield name, fields[1], archive[content : content + fields[6]], (fields[9], fields[10])
        position = (content + fields[6] + 3) // 4 * 4


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("./boot/vmlinuz-6.1.0-56-amd64", True),
        ("./lib/modules/6.1.0/modules.builtin", True),
        ("./lib/modules/6.1.0/kernel/drivers/net/virtio_net.ko", True),
        ("/usr/lib/modules/6.1.0/kernel/drivers/virtio/virtio.ko.xz", True),
        ("./lib/modules/6.1.0/kernel/drivers/gpu/drm/amd.ko", False),
        ("./lib/modules/6.1.0/kernel/drivers/net/virtio_net.ko.zst", False),
        ("./boot/System.map-6.1.0", False),
    ],
)
def test_only_what_can_be_of_use_is_read(path: str, wanted: bool) -> None:
    assert builder.wanted_path(path) is wanted


def test_a_kernel_without_virtio_is_refused_and_a_built_in_one_is_not() -> None:
    busybox = builder.Busybox(elf({}), ("sh",))
    with pytest.raises(builder.BuildError, match="has no virtio_net, virtio_pci"):
        builder.initramfs(builder.Kernel("6.1", b"", {}, frozenset()), busybox)
    assert builder.initramfs(builder.Kernel("6.1", b"", {}, frozenset(["virtio_net", "virtio_pci"])), busybox)


def test_the_guest_s_scripts_are_valid_shell() -> None:
    for script in (builder.INIT, builder.SAY, builder.REPORT, builder.UDHCPC, builder.SET_HOSTNAME, builder.INDEX):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_images_are_current_only_if_complete_and_made_by_this_builder(tmp_path: pathlib.Path) -> None:
    marker = {"fingerprint": "f", "kernel": "vmlinux", "initrd": "initrd.img", "files": {"vmlinux": 3, "initrd.img": 2}}
    assert builder.existing(tmp_path, "f") is None
    (tmp_path / "vmlinux").write_bytes(b"abc")
    (tmp_path / "initrd.img").write_bytes(b"ab")
    (tmp_path / "build.json").write_text(json.dumps(marker))
    assert builder.existing(tmp_path, "f") == marker
    assert builder.existing(tmp_path, "g") is None
    (tmp_path / "initrd.img").write_bytes(b"a")
    assert builder.existing(tmp_path, "f") is None
    (tmp_path / "build.json").write_text("{")
    assert builder.existing(tmp_path, "f") is None
