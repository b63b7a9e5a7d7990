# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imports of this collection out of Ansible's archive: compiled once, and executed when something in them is needed.

Ansible sends a module and all that it might import as a zip archive, which has no byte code: whatever is imported is
compiled in each run, and by Python's own zipimport (3.9 to 3.13) twice, once only to find out the file's name. What is
imported here is compiled when something in it is needed, or taken from the byte code that lab_host keeps. What is left
of the cost of an import is mostly dataclasses, half of which a run has no instance of: these are made when needed, too.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
import types
import typing as t
import zipimport

from ansible_collections.labspan.vmnet.plugins.module_utils._kept_code import Store

_PACKAGE = f"{__name__.rpartition('.')[0]}."
_store = Store()

_at_once = dataclasses.dataclass
_LATER = "_labspan_dataclass"


def install() -> None:
    """Import like that from now on, where this very file comes from an archive; anywhere else nothing is different.

    Not for a module that works with threads: two of them might execute the same import.
    """
    if isinstance(getattr(__spec__, "loader", None), zipimport.zipimporter):
        sys.meta_path.insert(0, _Finder())
        dataclasses.dataclass = _dataclass


def keep() -> None:
    """Keep the byte code of what this run has needed, for the runs to come."""
    _store.keep()


def drop() -> None:
    """Keep none of what runs before have kept."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        _store.drop()


def _dataclass(cls: t.Optional[type] = None, **options: t.Any) -> t.Any:
    """Make a class of this collection a dataclass with its first instance: six methods are compiled for each."""
    if cls is None:
        return lambda decorated: _dataclass(decorated, **options)
    if not cls.__module__.startswith(_PACKAGE):
        return _at_once(cls, **options)

    def first(self: t.Any, *args: t.Any, **keywords: t.Any) -> None:
        for base in reversed(type(self).__mro__):
            wanted = vars(base).get(_LATER)
            if wanted is not None:
                delattr(base, _LATER)
                del base.__init__  # type: ignore[misc]
                _at_once(base, **wanted)
        type(self).__init__(self, *args, **keywords)

    setattr(cls, _LATER, options)
    cls.__init__ = first  # type: ignore[misc]
    return cls


class _Loader:
    """Executes a file of an archive, with what tracebacks ask for."""

    def __init__(self, archive: zipimport.zipimporter, path: str) -> None:
        self._archive = archive
        self._path = path

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> None:
        """Python's own kind of module will do."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill the module."""
        text = self._archive.get_data(self._path)
        # Byte code has the name of its file in it, and the archive has another one in each run.
        path = module.__name__.replace(".", os.sep) + ".py"
        exec(_store.code(module.__name__, text, path), module.__dict__)

    def get_source(self, fullname: str) -> str:
        """The text of the file."""
        return t.cast("str", self._archive.get_source(fullname))


class _Finder:
    """Finds the files of this collection in an archive; packages are left to Python."""

    def find_spec(
        self, fullname: str, path: t.Optional[t.Sequence[str]], _target: t.Optional[types.ModuleType] = None
    ) -> t.Optional[importlib.machinery.ModuleSpec]:
        """The way to import a module, or None if it is not one of ours."""
        if not fullname.startswith(_PACKAGE):
            return None
        for entry in path or ():
            archive = pkgutil.get_importer(entry)
            if not isinstance(archive, zipimport.zipimporter):
                continue
            try:
                if archive.is_package(fullname):
                    return None
            except zipimport.ZipImportError:
                continue
            location = os.path.join(entry, f"{fullname.rpartition('.')[2]}.py")
            loader = importlib.util.LazyLoader(_Loader(archive, location))  # type: ignore[arg-type]
            specification = importlib.machinery.ModuleSpec(fullname, loader, origin=location)
            specification.has_location = True
            return specification
        return None
