# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image with a guest's cloud-init seed: made by a program or library of the host, for nobody's eyes but QEMU's.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import stat
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _process, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import MissingDependency, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _seed
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._seed import Asked, SeedFile
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, SetSeed
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

#: By this name cloud-init finds it among all disks.
LABEL = "cidata"

#: Fastest first; all of them take mkisofs' options.
_PROGRAMS: tuple[tuple[str, ...], ...] = (("genisoimage",), ("mkisofs",), ("xorriso", "-as", "mkisofs"))


@dataclasses.dataclass(frozen=True)
class Saved:
    """An image and its record as they were, for the way back."""

    image: bytes = dataclasses.field(repr=False)
    record: t.Optional[bytes]
    uid: int
    gid: int


class Seeds:
    """The seeds of the guests that a task asks for, and those that were there before it."""

    def __init__(self, asked: t.Mapping[str, t.Optional[Asked]]) -> None:
        self._asked = asked
        self._saved: dict[str, Saved] = {}

    def problems(self, drafts: t.Mapping[str, t.Sequence[Change]]) -> list[str]:
        """Why seeds cannot be made on this host."""
        if not any(self._is_to_make(change) for changes in drafts.values() for change in changes):
            return []
        if _maker() is not None:
            return []
        try:
            _deps.pycdlib()
        except MissingDependency as error:
            return [f"cloud_init: {error}"]
        return []

    def warnings(self, drafts: t.Mapping[str, t.Sequence[Change]]) -> list[str]:
        """What cloud-init will not take in seeds that are to be made."""
        found = []
        for guest, changes in drafts.items():
            asked = self._asked.get(guest)
            if asked is not None and any(self._is_to_make(change) for change in changes):
                found += [
                    f"cloud_init.{option} of guest {guest} is text that does not say what it is, which cloud-init "
                    "ignores. Begin it with #cloud-config, #! or another header of cloud-init, or give data."
                    for option in _seed.needs_warning(asked)
                ]
        return found

    def apply(self, change: SetSeed, definition: t.Optional[Definition]) -> None:
        """Carry a change out, or its inverse."""
        guest, before, after = change.guest, change.before, change.after
        saved = self._saved.pop(guest, None)
        if saved is None:
            now = _save(guest)
            if now is not None:
                self._saved[guest] = now
        if after is None:
            _remove(guest)
        elif saved is not None:
            _restore(guest, saved)
        elif before is not None and before.digest == after.digest:
            _hand_over(guest, *_owner(definition))
        else:
            asked = self._asked.get(guest)
            record = definition.spec.cloud_init if definition else None
            if asked is None or record is None or record.salt is None:
                raise SystemFailure(f"the cloud-init seed of guest {guest} is not known any more.")
            files = _seed.files(asked, guest, record.salt)
            _write(guest, _build(guest, files), *_owner(definition))
            _write_record(guest, after.digest)

    @staticmethod
    def _is_to_make(change: Change) -> bool:
        if not isinstance(change, SetSeed) or change.after is None:
            return False
        return change.before is None or change.before.digest != change.after.digest


def wanted(spec: GuestSpec) -> t.Optional[SeedFile]:
    """The image that the guest's definition leads to. Until there is an account it belongs to root."""
    seed = spec.cloud_init
    if seed is None or seed.digest is None:
        return None
    account = _process.find_account(spec.user)
    return SeedFile(seed.digest, account.uid if account else 0)


def _owner(definition: t.Optional[Definition]) -> tuple[int, int]:
    account = _process.find_account(definition.spec.user) if definition else None
    return (account.uid, account.gid) if account else (0, 0)


def read(guest: str) -> t.Optional[SeedFile]:
    """What is there; its digest is known only while the file is the very one that was written."""
    places = Places(guest)
    try:
        found = os.lstat(places.seed)
    except OSError:
        return None
    digest = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(places.seed_record, encoding="utf-8") as file:
            record = json.load(file)
        if record["file"] == _identity(found) and stat.S_IMODE(found.st_mode) == 0o600:
            digest = str(record["digest"])
    return SeedFile(digest, found.st_uid)


def _hand_over(guest: str, uid: int, gid: int) -> None:
    """Give the image to another account."""
    digest = (read(guest) or SeedFile("", uid)).digest
    os.chown(Places(guest).seed, uid, gid, follow_symlinks=False)
    _write_record(guest, digest)


def _save(guest: str) -> t.Optional[Saved]:
    """The image as it is, before it is changed."""
    places = Places(guest)
    try:
        found = os.lstat(places.seed)
        image = _content(places.seed)
    except OSError:
        return None
    record = None
    with contextlib.suppress(OSError):
        record = _content(places.seed_record)
    return Saved(image, record, found.st_uid, found.st_gid)


def _restore(guest: str, saved: Saved) -> None:
    """Put an image back."""
    _write(guest, saved.image, saved.uid, saved.gid)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        _write_record(guest, str(json.loads(saved.record or b"")["digest"]))


def _remove(guest: str) -> None:
    """Take the image away, and what a run that was killed has left of it."""
    places = Places(guest)
    for path in (places.seed, places.seed_record):
        _whole_files.remove(path)


def _maker() -> t.Optional[list[str]]:
    for name, *words in _PROGRAMS:
        path = _deps.find_program(name)
        if path is not None:
            return [path, *words]
    return None


def _build(guest: str, files: t.Mapping[str, bytes]) -> bytes:
    maker = _maker()
    return _by_library(files) if maker is None else _by_program(maker, Places(guest), files)


def _by_library(files: t.Mapping[str, bytes]) -> bytes:
    image = _deps.pycdlib().PyCdlib()
    image.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for number, (name, data) in enumerate(sorted(files.items())):
        image.add_fp(
            io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100400
        )
    output = io.BytesIO()
    image.write_fp(output)
    image.close()
    return output.getvalue()


def _by_program(maker: t.Sequence[str], places: Places, files: t.Mapping[str, bytes]) -> bytes:
    """The program wants files: they are in /run, which is memory, in a directory that only root can enter."""
    _whole_files.make_directories(os.path.dirname(places.seed_parts), 0o700)
    # A run that was killed may have left some.
    shutil.rmtree(places.seed_parts, ignore_errors=True)
    _whole_files.make_directory(places.seed_parts, 0o700)
    try:
        parts, output = os.path.join(places.seed_parts, "parts"), os.path.join(places.seed_parts, "seed.iso")
        _whole_files.make_directory(parts, 0o700)
        for name, data in files.items():
            _create(os.path.join(parts, name), data)
        done = _commands.run([*maker, "-quiet", "-o", output, "-V", LABEL, "-J", "-r", parts], umask=0o077)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise SystemFailure(
                f"{maker[0]} could not make the cloud-init seed of guest {places.name}: "
                f"{said[-1].rstrip('.') if said else f'exit status {done.returncode}'}."
            )
        return _content(output)
    finally:
        shutil.rmtree(places.seed_parts, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(places.seed_parts))


def _write(guest: str, image: bytes, uid: int, gid: int) -> None:
    """Put an image in the place of the one that is there; a guest that has that open keeps it."""
    path = Places(guest).seed
    try:
        _whole_files.replace(path, image, mode=0o600, owner=(uid, gid))
    except OSError as error:
        raise SystemFailure(f"the cloud-init seed {path} could not be written: {error.strerror}.") from None


def _write_record(guest: str, digest: str) -> None:
    places = Places(guest)
    record = {"digest": digest, "file": _identity(os.lstat(places.seed))}
    _whole_files.replace(places.seed_record, json.dumps(record), mode=0o600)


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _create(path: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
