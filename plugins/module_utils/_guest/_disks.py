# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disk images: what is in a file, who has it open, and making one without ever touching one that is there.

Headers are read here instead of by C(qemu-img info), which costs a process for every look and opens whatever a foreign
image points to.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import stat
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import FORMATS, Disk

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQ")
_QCOW2_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_EXTERNAL_DATA = 1 << 2
_HEAD = 1 << 16
_LONGEST_CHAIN = 32

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
    (0, b"LUKS\xba\xbe", "luks"),
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


@dataclasses.dataclass(frozen=True)
class MadeDisk:
    """A disk that was made for a guest: the path and the file, so that another file put there later is not ours."""

    path: str
    device: int
    inode: int

    def is_there(self) -> bool:
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) == (self.device, self.inode)


def inspect(path: str) -> t.Optional[Image]:
    """What the file holds; None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SystemFailure(f"the disk image {path} cannot be read ({error.strerror}).") from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            raise Refused(f"{path} is neither a file nor a block device, so it cannot be a disk image.")
        head = file.read(_HEAD)
        size = file.seek(0, os.SEEK_END)
    image = Image(path, "raw", size, found.st_dev, found.st_ino)
    if head.startswith(_QCOW2_MAGIC):
        return _qcow2(image, head)
    for offset, magic, image_format in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return dataclasses.replace(image, format=image_format, size=None)
    return image


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
    return backing is not None and ":" in backing.partition("/")[0]


def _backing_path(image: str, backing: t.Optional[str]) -> t.Optional[str]:
    if backing is None or _is_no_file(backing):
        return backing
    return os.path.normpath(os.path.join(os.path.dirname(image), backing))


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


def chain(path: str) -> list[Image]:
    """The image and everything below it; raises when a part is missing or is no file."""
    images: list[Image] = []
    current: t.Optional[str] = path
    while current is not None:
        image = inspect(current)
        if image is None:
            below = f", on which {images[-1].path} is built," if images else ""
            raise Refused(f"the image {current}{below} does not exist.")
        if image.external:
            raise Refused(
                f"the image {image.path} keeps or reads data elsewhere than in image files"
                f"{f' ({image.backing})' if image.backing else ''}; such an image is not taken from a file's word."
            )
        images.append(image)
        if len(images) > _LONGEST_CHAIN:
            raise Refused(f"the image {path} is built on itself, or on more than {_LONGEST_CHAIN} others.")
        current = image.backing
    return images


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


def checksum_problem(disk: Disk) -> t.Optional[str]:
    """What is wrong with the checksum of the disk's base image."""
    if disk.checksum is None or disk.base_image is None:
        return None
    algorithm, _colon, wanted = disk.checksum.partition(":")
    digest = hashlib.new(algorithm)
    with open(disk.base_image, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() == wanted:
        return None
    return f"the base image {disk.base_image} has the {algorithm} checksum {digest.hexdigest()}, not {wanted}."


def make(disk: Disk, uid: int, gid: int, record: t.Callable[[MadeDisk], None]) -> MadeDisk:
    """Make the image; raises when anything is at its path, and then has changed nothing there.

    It is made under another name and linked to its own, which the kernel refuses when that is taken. C(record) is
    called with the file's identity before it gets its name.
    """
    directory, name = os.path.split(disk.path)
    temporary = os.path.join(directory, f".{name}.labspan")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        _fill(disk, temporary)
        os.chown(temporary, uid, gid)
        found = os.stat(temporary)
        made = MadeDisk(disk.path, found.st_dev, found.st_ino)
        record(made)
        os.link(temporary, disk.path)
    except FileExistsError:
        raise Refused(f"{disk.path} appeared while this task ran; nothing was done to it.") from None
    except OSError as error:
        raise SystemFailure(f"the disk {disk.path} cannot be made ({error.strerror}).") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return made


def _fill(disk: Disk, path: str) -> None:
    if disk.format == "raw":
        os.truncate(path, disk.size or 0)
        return
    words = ["create", "-q", "-f", disk.format]
    if disk.base_image is not None:
        words += ["-b", disk.base_image, "-F", str(disk.base_format)]
    _qemu_img([*words, path, *([str(disk.size)] if disk.size is not None else [])], f"make the disk {disk.path}")


def grow(disk: Disk) -> None:
    """Make the image as large as the disk wants; QEMU refuses to shrink by itself."""
    _qemu_img(["resize", "-q", "-f", disk.format, disk.path, str(disk.size)], f"grow the disk {disk.path}")


def _qemu_img(words: t.Sequence[str], purpose: str) -> None:
    program = _deps.program("qemu-img", purpose=f"to {purpose}")
    done = _commands.run([program, *words])
    if done.returncode:
        raise SystemFailure(f"qemu-img could not {purpose}: {(done.stderr or done.stdout).strip()}")


def remove(made: MadeDisk) -> None:
    """Remove a disk that was made here, if it is still that file."""
    if made.is_there():
        os.unlink(made.path)


def complete(options: t.Mapping[str, t.Any], defined: t.Optional[Disk], image: t.Optional[Image]) -> Disk:
    """A disk with what the task left open: as it was defined, as the file is, or the default."""
    given = {name: value for name, value in options.items() if value is not None}
    if defined is not None:
        given.setdefault("format", defined.format)
        given.setdefault("size", defined.size)
        if given.setdefault("base_image", defined.base_image) == defined.base_image:
            given.setdefault("base_format", defined.base_format)
            given.setdefault("checksum", defined.checksum)
    known = image.format if image is not None and image.format in FORMATS else "qcow2"
    given.setdefault("format", known)
    return _resolve_base(Disk(**given))


def _resolve_base(disk: Disk) -> Disk:
    """The disk with the format of its base image, which is read from that where the task does not say it."""
    if disk.base_image is None or disk.base_format is not None:
        return disk
    with contextlib.suppress(LabspanError):  # what is wrong with it is said where all problems are
        base = inspect(disk.base_image)
        if base is not None:
            return dataclasses.replace(disk, base_format=base.format)
    return disk


def existing_problems(disk: Disk, image: Image) -> list[str]:
    """Why a file that is there cannot be this disk."""
    problems = []
    if image.format != disk.format:
        problems.append(
            f"the file {disk.path} is there and holds a {image.format} image, not {disk.format}. "
            f"Give format: {image.format}, or another path."
        )
    elif disk.base_image is not None and image.backing != disk.base_image:
        found = f"is built on {image.backing}" if image.backing else "has no base image"
        problems.append(
            f"the disk {disk.path} is there and {found}, not on {disk.base_image}. It is left as it is: give the base "
            "image that it has, or another path for a new disk."
        )
    elif disk.base_image is not None and image.backing_format not in (None, disk.base_format):
        problems.append(
            f"the disk {disk.path} reads its base image {disk.base_image} as {image.backing_format}, not as "
            f"{disk.base_format}."
        )
    if disk.size is not None and image.size is not None and disk.size < image.size:
        problems.append(
            f"the disk {disk.path} has {image.size} bytes and would have to shrink to {disk.size}, which would cut off "
            "what the guest wrote. Give its size or a larger one, or leave size out."
        )
    return problems


def base_problems(disk: Disk) -> list[str]:
    """Why the disk cannot be built on its base image."""
    if disk.base_image is None:
        return []
    try:
        images = chain(disk.base_image)
    except LabspanError as error:
        return [str(error)]
    base = images[0]
    problems = []
    if base.format != disk.base_format:
        problems.append(
            f"the base image {disk.base_image} is a {base.format} image, not {disk.base_format}. Give base_format: "
            f"{base.format}, or leave it out."
        )
    if disk.size is not None and base.size is not None and disk.size < base.size:
        problems.append(
            f"the disk {disk.path} of {disk.size} bytes is smaller than its base image {disk.base_image} "
            f"({base.size} bytes). Give at least that size, or leave size out."
        )
    problems += [
        f"the image {image.path}, on which {disk.path} is to be built, is open for writing in a running QEMU. Stop "
        "that guest first, and never run a guest on a base image itself."
        for image in images
        if is_open(image.path, for_writing_only=True)
    ]
    return problems
