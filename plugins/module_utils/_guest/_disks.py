# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks of guests: what stands in the way of one, making it without ever touching a file that is there, growing it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _images
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._images import Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import FORMATS, Disk


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


def make(disk: Disk, guest: str, uid: int, gid: int, record: t.Callable[[MadeDisk], None]) -> MadeDisk:
    """Make the image; raises when anything is at its path, and then has changed nothing there.

    It is made under another name and linked to its own, which the kernel refuses when that is taken. C(record) is
    called with the file's identity before it gets its name.
    """
    directory, name = os.path.split(disk.path)
    temporary = os.path.join(directory, f".{name}.labspan")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            _fill(_with_fetched_base(disk, guest), temporary)
            found = os.fstat(file.fileno())
            made = MadeDisk(disk.path, found.st_dev, found.st_ino)
            if not dataclasses.replace(made, path=temporary).is_there():  # the directory may be somebody else's
                raise Refused(f"somebody put another file in the place of {temporary} while it was made.")
            os.fchown(file.fileno(), uid, gid)
            os.fsync(file.fileno())  # else it could have its name after a power cut, and be empty
        record(made)
        os.link(temporary, disk.path)
    except FileExistsError:
        raise Refused(f"{disk.path} appeared while this task ran; nothing was done to it.") from None
    except OSError as error:
        raise SystemFailure(f"the disk {disk.path} cannot be made ({error.strerror}).") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
            _whole_files.sync(directory)
    return made


def _with_fetched_base(disk: Disk, guest: str) -> Disk:
    """The disk with what could not be known of its base image before that was fetched."""
    if disk.source is None or disk.base_image is None:
        return disk
    problems = base_problems(disk, guest)
    base = _images.inspect(disk.base_image)
    if base is None:
        raise Refused(f"the image {disk.base_image}, which was fetched from {disk.source}, is gone.")
    if problems:
        raise Refused(" ".join(problems))
    return dataclasses.replace(disk, base_format=base.format)


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
        given.setdefault("size", _remembered_size(defined, image))
        if given.setdefault("base_image", defined.base_image) == defined.base_image:
            given.setdefault("base_format", defined.base_format)
            given.setdefault("checksum", defined.checksum)
            given.setdefault("source", defined.source)
    known = image.format if image is not None and image.format in FORMATS else "qcow2"
    given.setdefault("format", known)
    return _resolve_base(Disk(**given))


def as_found(disk: Disk, image: t.Optional[Image]) -> Disk:
    """A defined disk that the task says nothing of; it may have grown since."""
    return dataclasses.replace(disk, size=_remembered_size(disk, image))


def _remembered_size(defined: Disk, image: t.Optional[Image]) -> t.Optional[int]:
    """Nobody asks for what an earlier task has asked for: a disk that has become larger is as large as it is."""
    if defined.size is None or image is None or image.size is None:
        return defined.size
    return max(defined.size, image.size)


def _resolve_base(disk: Disk) -> Disk:
    """The disk with the format of its base image, which is read from that where the task does not say it."""
    if disk.base_image is None or disk.base_format is not None or disk.source is not None:
        return disk
    with contextlib.suppress(LabspanError):  # what is wrong with it is said where all problems are
        base = _images.inspect(disk.base_image)
        if base is not None:
            return dataclasses.replace(disk, base_format=base.format)
    return disk


def existing_problems(disk: Disk, image: Image) -> list[str]:
    """Why a file that is there cannot be this disk."""
    problems = []
    if disk.is_cdrom and image.format != "raw":
        problems.append(f"{disk.path} holds a {image.format} image, not that of a CD. Give an ISO image.")
    elif image.format != disk.format:
        problems.append(
            f"the file {disk.path} is there and holds a {image.format} image, not {disk.format}. "
            f"Give format: {image.format}, or another path."
        )
    elif disk.base_image is not None and not _is_same(image.backing, disk.base_image):
        found = f"is built on {image.backing}" if image.backing else "has no base image"
        problems.append(
            f"the disk {disk.path} is there and {found}, not on {disk.base_image}. It is left as it is: give the base "
            "image that it has, or another path for a new disk."
        )
    elif disk.base_format is not None and image.backing_format not in (None, disk.base_format):
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


def _is_same(backing: t.Optional[str], base: str) -> bool:
    return backing == base or (backing is not None and os.path.realpath(backing) == os.path.realpath(base))


def base_problems(disk: Disk, guest: str) -> list[str]:
    """Why the disk cannot be built on its base image."""
    if disk.base_image is None or (disk.source is not None and not os.path.exists(disk.base_image)):
        return []
    try:
        images = _images.chain(disk.base_image, _images.bounds(disk, guest))
    except LabspanError as error:
        return [str(error)]
    base = images[0]
    problems = []
    if disk.base_format is not None and base.format != disk.base_format:
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
        f"the image {image.path}, on which {disk.path} is to be built, is open for writing in a running QEMU: "
        f"{_images.holder(image.path)}. Stop it first, and never run a guest on a base image itself."
        for image in images
        if _images.is_open(image.path, for_writing_only=True)
    ]
    return problems
