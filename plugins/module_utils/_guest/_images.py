# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disk images as they are found: what is in a file, what it is built on, and who has it open. Reads only.

Headers are read here instead of by C(qemu-img info), which costs a process for every look and opens whatever a foreign
image points to.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import stat
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import IMAGE_ROOT, Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import BASE_FORMATS, Disk

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQ")
_QCOW2_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_EXTERNAL_DATA = 1 << 2
_HEAD = 1 << 16
_LONGEST_CHAIN = 32

# version, flags, capacity, grain size, descriptor's sector and number of sectors; block/vmdk.c
_VMDK_HEADER = struct.Struct("<4sIIQQQQ")
_SECTOR = 512

# QEMU takes one byte of the file for each permission that it uses (100 + n) and does not share (200 + n);
# block/file-posix.c, and bit 1 is "write" (include/block/block-common.h).
_USES_WRITE = 101
_SHARES_NO_WRITE = 201
_SHARES_NO_READ = 200

# l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")

#: Formats with a known beginning, and where it stands.
_MAGIC = (
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
)


@dataclasses.dataclass(frozen=True)
class Image:
    """What a file that could be a disk holds."""

    path: str
    format: str
    size: t.Optional[int]
    """As the guest sees it; None for formats whose header is not read here."""
    device: int
    inode: int
    backing: t.Optional[str] = None
    backing_format: t.Optional[str] = None
    external: bool = False
    """It keeps its data in another file or reads from something that is no file."""

    @property
    def identity(self) -> tuple[int, int]:
        """The file itself, whatever names it has."""
        return self.device, self.inode


class Bounds(t.NamedTuple):
    """Where the images may be that an image is built on."""

    directories: frozenset[str]
    files: frozenset[str]
    """What the task names itself."""

    def hold(self, path: str) -> bool:
        real = os.path.realpath(path)
        if real in self.files:
            return True
        # What is no file, a host's own disk above all, is taken from the task's word only.
        if os.path.exists(real) and not os.path.isfile(real):
            return False
        return any(real.startswith(f"{directory}/") for directory in self.directories)


def bounds(disk: Disk, guest: str) -> Bounds:
    """The directories of the disk, of its base image as the task names it, of the guest, and of downloaded images."""
    near = [disk.path] if disk.base_image is None else [disk.path, disk.base_image]
    directories = {os.path.realpath(os.path.dirname(path)) for path in near}
    directories |= {os.path.realpath(Places(guest).state), os.path.realpath(IMAGE_ROOT)}
    files = {os.path.realpath(disk.base_image)} if disk.base_image is not None else set()
    return Bounds(frozenset(directories - {"/"}), frozenset(files))


def inspect(path: str) -> t.Optional[Image]:
    """What the file holds; None when there is none."""
    try:
        if not _can_hold_an_image(os.stat(path)):  # the mere opening of some devices does something
            raise _no_image(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SystemFailure(f"the disk image {path} cannot be read ({error.strerror}).") from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return _inspect(path, file)


def _inspect(path: str, file: t.BinaryIO) -> Image:
    found = os.fstat(file.fileno())
    if not _can_hold_an_image(found):
        raise _no_image(path)
    head = os.pread(file.fileno(), _HEAD, 0)
    size = file.seek(0, os.SEEK_END)
    image = Image(path, "raw", size, found.st_dev, found.st_ino)
    if head.startswith(_QCOW2_MAGIC):
        return _qcow2(image, head)
    for offset, magic, image_format in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            external = image_format == "vmdk" and _vmdk_reaches_out(head)
            return dataclasses.replace(image, format=image_format, size=None, external=external)
    return image


def _can_hold_an_image(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)


def _no_image(path: str) -> Refused:
    return Refused(f"{path} is neither a file nor a block device, so it cannot be a disk image.")


def inspect_open(path: str, descriptor: int) -> Image:
    """What an open file holds that has no name yet; C(path) is the one it is going to have."""
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        return _inspect(path, file)


def _qcow2(image: Image, head: bytes) -> Image:
    try:
        _magic, version, backing_offset, backing_length, _cluster_bits, size = _QCOW2_HEADER.unpack_from(head)
        incompatible, length = (0, 72)
        if version >= 3:
            (incompatible,) = struct.unpack_from(">Q", head, 72)
            (length,) = struct.unpack_from(">I", head, 100)
        backing = os.fsdecode(head[backing_offset : backing_offset + backing_length]) if backing_offset else None
        return dataclasses.replace(
            image,
            format="qcow2",
            size=size,
            backing=_backing_path(image.path, backing),
            backing_format=_backing_format(head, length),
            external=bool(incompatible & _EXTERNAL_DATA) or _is_no_file(backing),
        )
    except struct.error:
        raise Refused(f"the qcow2 header of {image.path} is cut short: the image is broken.") from None


def _is_no_file(backing: t.Optional[str]) -> bool:
    """Whether a backing name is a protocol or a JSON description instead of a path."""
    return backing is not None and (":" in backing.partition("/")[0] or "\0" in backing or not backing)


def _backing_path(image: str, backing: t.Optional[str]) -> t.Optional[str]:
    if backing is None or _is_no_file(backing):
        return backing
    path = os.path.join(os.path.dirname(image), backing)
    # Where a directory on the way is a link, ".." leads elsewhere than the text says.
    return path if ".." in path.split("/") else os.path.normpath(path)


def _backing_format(head: bytes, offset: int) -> t.Optional[str]:
    while offset + _QCOW2_EXTENSION.size <= len(head):
        kind, length = _QCOW2_EXTENSION.unpack_from(head, offset)
        offset += _QCOW2_EXTENSION.size
        if kind == 0:
            break
        if kind == _BACKING_FORMAT:
            return head[offset : offset + length].decode("ascii", "replace")
        offset += (length + 7) & ~7
    return None


def _vmdk_reaches_out(head: bytes) -> bool:
    """Whether a VMDK image names other files: the parts that it consists of, or a parent."""
    if not head.startswith(b"KDMV"):
        return True  # nothing but a description
    try:
        _magic, _version, _flags, capacity, _grain, sector, sectors = _VMDK_HEADER.unpack_from(head)
    except struct.error:
        return True
    description = head[sector * _SECTOR : (sector + sectors) * _SECTOR]
    return not capacity or (sector + sectors) * _SECTOR > len(head) or b"parentFileNameHint" in description


def chain(path: str, within: Bounds) -> list[Image]:
    """The image and everything below it; raises when a part is missing, is no file, or is not within the bounds.

    What QEMU would have to guess the format of is refused: a guest can write into a raw disk whatever it wants to be
    taken for.
    """
    images: list[Image] = []
    current: t.Optional[str] = path
    while current is not None:
        above = images[-1] if images else None
        if above is not None and not within.hold(current):
            raise Refused(
                f"the image {above.path} is built on {current}, which is not in a directory where its images are "
                f"looked for ({', '.join(sorted(within.directories))}); a file's word for that is not taken. Name that "
                "image as base_image if it is meant, and do not use this one if it is not."
            )
        image = inspect(current)
        if image is None:
            below = f", on which {above.path} is built," if above else ""
            raise Refused(f"the image {current}{below} does not exist.")
        if above is not None and above.backing_format == "raw":
            images.append(dataclasses.replace(image, format="raw", backing=None, external=False))
            break
        if image.external:
            raise Refused(
                f"the image {image.path} keeps or reads data elsewhere than in image files"
                f"{f' ({image.backing})' if image.backing else ''}; such an image is not taken from a file's word."
            )
        _check_format(image, above)
        images.append(image)
        if len(images) > _LONGEST_CHAIN:
            raise Refused(f"the image {path} is built on itself, or on more than {_LONGEST_CHAIN} others.")
        current = image.backing
    return images


def _check_format(image: Image, above: t.Optional[Image]) -> None:
    if image.format not in BASE_FORMATS:
        raise Refused(f"the image {image.path} has the format {image.format}, which is not used here. Convert it.")
    if above is not None and above.backing_format != image.format:
        raise Refused(
            f"the image {above.path} is built on {image.path}, a {image.format} image, which it calls "
            f"{above.backing_format}. Put it right with qemu-img rebase -u."
        )
    if image.backing is not None and image.backing_format is None:
        raise Refused(
            f"the image {image.path} is built on {image.backing} and does not say which format that has, so that QEMU "
            "would guess it. Record it with qemu-img rebase -u -F FORMAT -b BACKING IMAGE."
        )


def is_open(path: str, *, for_writing_only: bool = False) -> bool:
    """Whether some QEMU has the image open, or (C(for_writing_only)) may be writing to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if for_writing_only:
            return _is_locked(descriptor, _USES_WRITE, 1)
        return _is_locked(descriptor, _SHARES_NO_READ, _SHARES_NO_WRITE - _SHARES_NO_READ + 1)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, start: int, length: int) -> bool:
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    except OSError:  # a file system without locks: QEMU does without them, too
        return False
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def holder(path: str) -> str:
    """Who has the file open, in words: the kernel does not tell whose such a lock is, but whose descriptors are."""
    with contextlib.suppress(OSError):
        wanted = os.stat(path)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if int(pid) != os.getpid() and _has_open(pid, wanted):
                return _introduce(int(pid))
    return "another process"


def _has_open(pid: str, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), wanted):
                    return True
    return False


def _introduce(pid: int) -> str:
    argv = _process.argv_of(pid)
    program = os.path.basename(argv[0]) if argv else "a program"
    titles = [word.partition("=")[2].partition(",")[0] for flag, word in zip(argv, argv[1:]) if flag == "-name"]
    return f"{program} (pid {pid}{f', guest {titles[0]}' if titles and titles[0] else ''})"
