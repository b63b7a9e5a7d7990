# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are whole or not there: whoever reads one, after a power cut too, finds the old content or the new one.

The new content is on the disk under another name before it takes the place of the old one, and the directory is on the
disk before the caller goes on. That other name is hidden, so that no pattern such as interfaces.d/* takes it for a
file, and says whose it is: what a process that is gone has left is taken away by the next one that writes there.

Of the standard library alone: the uplink's dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

_UNFINISHED = re.compile(r"\..+\.labspan-(?P<boot>[0-9a-f]*)-(?P<pid>\d+)", re.DOTALL)


def replace(
    path: str, content: t.Union[str, bytes], *, mode: int = 0o644, owner: t.Optional[tuple[int, int]] = None
) -> None:
    """Put a file with this content, mode and owner (the caller) in place; raises C(OSError) and has changed nothing."""
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    with _in_place_of(path) as temporary:
        # Whoever may write to the directory gets no file of ours to keep open, and none of theirs is taken.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())


def link(path: str, target: str) -> None:
    """Put a symbolic link in place, likewise."""
    with _in_place_of(path) as temporary:
        os.symlink(target, temporary)


def remove(path: str) -> bool:
    """Take a file away for good, and what was left of one that was to take its place; whether there was a file."""
    directory = os.path.dirname(path)
    try:
        sweep(directory)
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    sync(directory)
    return True


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory for good, and those above it that are not there, through which everybody may pass."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent)
    with contextlib.suppress(FileExistsError):  # another run was faster; what is no directory shows itself soon
        make_directory(path, mode)
    sync(parent)


def make_directory(path: str, mode: int) -> None:
    """Make a directory that has this mode from the beginning, whatever the umask; raises C(OSError) if it is there."""
    # Mended later, the mode would be wrong for good if this process is killed before.
    before = os.umask(0o777 & ~mode)
    try:
        os.mkdir(path, mode)
    finally:
        os.umask(before)


def sync(directory: str) -> None:
    """Have the names in a directory outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: str) -> None:
    """Take away what processes that are gone have left unfinished in a directory."""
    unfinished = [(name, _UNFINISHED.fullmatch(name)) for name in os.listdir(directory)]
    for name, match in unfinished:
        if match and not (match["boot"] == _boot() and os.path.exists(f"/proc/{match['pid']}")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))


@contextlib.contextmanager
def _in_place_of(path: str) -> t.Iterator[str]:
    """The name under which to make what then takes the place of the file."""
    directory, name = os.path.split(path)
    sweep(directory)
    temporary = os.path.join(directory, f".{name}.labspan-{_boot()}-{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(directory)


def _boot() -> str:
    """What tells this boot's processes from those of another that had the same numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except OSError:
        return ""
