# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Code of this collection that a managed host keeps until it is shut down: texts, and the byte code made of them.

Byte code is used for exactly the text and the Python that it was made of, texts for exactly the release that they are
of, and both only out of a directory into which nobody but root can write. Whatever is wrong with them, texts come from
the controller again, and are compiled anew.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import marshal
import os
import stat
import sys
import types
import typing as t

DIRECTORY = "/run/labspan/code"

_NAME = f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}{sys.flags.optimize}"
_ARCHIVE = ".zip"

#: By the name of the module: the digest of its text, and what that was compiled to.
_Codes = t.Dict[str, t.Tuple[bytes, bytes]]


class Store:
    """What was kept, and what of this run is to be."""

    def __init__(self, directory: str = DIRECTORY, user: int = 0) -> None:
        self._directory = directory
        self._user = user
        self._kept: t.Optional[_Codes] = None
        self._fresh: _Codes = {}
        self._used: set[str] = set()
        self._outdated = False

    def code(self, name: str, text: bytes, path: str) -> types.CodeType:
        """What a module's text is compiled to."""
        if self._kept is None:
            self._kept = self._load()
        digest = hashlib.sha256(text).digest()
        known, compiled = self._kept.get(name, (b"", b""))
        if known == digest:
            self._used.add(name)
            return t.cast("types.CodeType", marshal.loads(compiled))
        self._outdated = self._outdated or name in self._kept
        code = compile(text, path, "exec", dont_inherit=True)
        self._fresh[name] = (digest, marshal.dumps(code))
        return code

    def open_texts(self, release: str) -> t.Optional[int]:
        """A file descriptor of the archive with the texts of a release, None if it is not here."""
        if os.geteuid() != self._user:
            return None
        try:
            with self._open_directory() as directory:
                return _open(f"{release}{_ARCHIVE}", directory)
        except OSError:
            return None

    def keep_texts(self, release: str, archive: bytes) -> None:
        """Have the texts of this release at hand for the next run, and those of no other one."""
        if os.geteuid() != self._user:
            return
        with contextlib.suppress(OSError), self._writable() as directory:
            kept = f"{release}{_ARCHIVE}"
            _replace(os.path.join(self._directory, kept), archive)
            for name in os.listdir(directory):
                if name.endswith(_ARCHIVE) and name != kept:
                    os.unlink(name, dir_fd=directory)

    def keep(self) -> None:
        """Have what was compiled in this run at hand for the next one."""
        if not self._fresh or os.geteuid() != self._user:
            return
        kept = self._kept or {}
        # What was not looked at is of the same release, unless something else was not.
        found = {name: kept[name] for name in self._used} if self._outdated else kept
        with contextlib.suppress(OSError), self._writable():
            _replace(os.path.join(self._directory, _NAME), marshal.dumps({**found, **self._fresh}))

    def drop(self) -> None:
        """Keep nothing."""
        with contextlib.suppress(OSError), self._open_directory() as directory:
            for name in os.listdir(directory):
                os.unlink(name, dir_fd=directory)
            os.rmdir(self._directory)

    def _load(self) -> _Codes:
        if os.geteuid() != self._user:
            return {}
        try:
            with self._open_directory() as directory, os.fdopen(_open(_NAME, directory), "rb") as file:
                found = marshal.load(file)
                return t.cast("_Codes", found) if isinstance(found, dict) else {}
        except (OSError, ValueError, EOFError, TypeError):
            return {}

    @contextlib.contextmanager
    def _writable(self) -> t.Iterator[int]:
        """The directory, made if need be. OSError (a full disk, or it is not ours) is no harm: it is just slower."""
        from ansible_collections.labspan.vmnet.plugins.module_utils import _whole_files

        _whole_files.make_directories(self._directory, 0o700)
        with self._open_directory() as directory:
            yield directory

    @contextlib.contextmanager
    def _open_directory(self) -> t.Iterator[int]:
        """The directory, which must be the user's alone; then so is all that is in it."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != self._user or stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(self._directory)
            yield descriptor
        finally:
            os.close(descriptor)


def _open(name: str, directory: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _replace(path: str, content: bytes) -> None:
    from ansible_collections.labspan.vmnet.plugins.module_utils import _whole_files

    _whole_files.replace(path, content, mode=0o600)
