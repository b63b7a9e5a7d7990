# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that outlive the host's uptime, and units of systemd, as changes.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _managers
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

NETWORKS = "/etc/labspan/networks"
WANTS = f"{_systemd.UNITS}/multi-user.target.wants"

#: Directories that we make, and remove when nothing is in them any more.
_OURS = ("/etc/labspan", "/usr/local/lib/labspan")

_LINK = "-> "
_PROGRAMS = "/usr/local/lib/labspan/"

#: What a DHCP server reads is that server's own concern.
_NOT_OF_NETWORKS = {"dnsmasq.conf"}


@dataclasses.dataclass(frozen=True)
class FileChange(Change):
    """A file is written or removed; states are its text or None. That of a symbolic link is C(-> ) and its target."""

    path: str


@dataclasses.dataclass(frozen=True)
class UnitChange(Change):
    """A unit is started or stopped; states tell whether it is active."""

    unit: str


def link_to(target: str) -> str:
    """The text of a symbolic link."""
    return f"{_LINK}{target}"


def write(path: str, before: t.Optional[str], after: t.Optional[str]) -> FileChange:
    """The change of a file, with its sentence."""
    if path.startswith(WANTS):
        unit = os.path.basename(path)
        sentence = f"{'Enable' if after else 'Disable'} {unit}"
    else:
        sentence = f"{'Write' if after is not None else 'Remove'} {path}"
    return FileChange(path, sentence, before, after, path)


def activity(unit: str, *, active: bool) -> UnitChange:
    """The change of a unit, with its sentence."""
    return UnitChange(unit, f"{'Start' if active else 'Stop'} {unit}", not active, active, unit)


def read(path: str) -> t.Optional[str]:
    """What is at the path; None when there is nothing."""
    try:
        if os.path.islink(path):
            return link_to(os.readlink(path))
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SystemFailure(f"{path} cannot be read ({error}). Repair it, or take it away.") from error


def networks() -> list[str]:
    """The networks that have files."""
    try:
        return sorted(entry.name for entry in os.scandir(NETWORKS) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def files_of(network: str) -> dict[str, str]:
    """The files of a network by their names."""
    directory = os.path.join(NETWORKS, network)
    try:
        entries = sorted(entry for entry in set(os.listdir(directory)) - _NOT_OF_NETWORKS if entry[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    texts = {entry: read(os.path.join(directory, entry)) for entry in entries}
    return {entry: text for entry, text in texts.items() if text is not None}


def apply(changes: t.Sequence[Change], done: list[Change]) -> None:
    """Carry out the changes in order. Who has read the files reads them again, before a unit starts or at the end."""
    tell: dict[t.Callable[[], None], None] = {}
    for change in changes:
        if isinstance(change, FileChange):
            put(change.path, change.after)
            reader = _reader(change.path)
            tell.update({reader: None} if reader else {})
        elif isinstance(change, UnitChange):
            _tell(tell)
            (_systemd.start if change.after else _systemd.stop)(change.unit)
        done.append(change)
    _tell(tell)


def put(path: str, text: t.Optional[str]) -> None:
    """Put a file in place as a whole and for good, or remove it with the directories of ours that are then empty."""
    directory = os.path.dirname(path)
    try:
        if text is None:
            _whole_files.remove(path)
            _prune(directory)
            return
        _whole_files.make_directories(directory)
        if text.startswith(_LINK):
            _whole_files.link(path, text[len(_LINK) :])
        else:
            _whole_files.replace(path, text, mode=0o755 if path.startswith(_PROGRAMS) else 0o644)
    except OSError as error:
        raise SystemFailure(f"{path} cannot be written ({error.strerror}).") from error


def active(units: t.Sequence[str]) -> dict[str, bool]:
    """Which of the units are active; where systemd does not run, none is."""
    if not units or not _systemd.is_running():
        return dict.fromkeys(units, False)
    return {unit: state.get("ActiveState") == "active" for unit, state in _systemd.shows(units, "ActiveState").items()}


def _prune(directory: str) -> None:
    if directory.startswith(f"{_systemd.UNITS}/") and directory != WANTS:
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    while any(directory == ours or directory.startswith(f"{ours}/") for ours in _OURS):
        try:
            os.rmdir(directory)
        except OSError:
            return
        directory = os.path.dirname(directory)


def _reader(path: str) -> t.Optional[t.Callable[[], None]]:
    if path.startswith(f"{_systemd.UNITS}/") and not path.startswith(f"{WANTS}/"):
        return _reload_units
    return _managers.reader(path)


def _reload_units() -> None:
    if _systemd.is_running():
        _systemd.daemon_reload()


def _tell(readers: dict[t.Callable[[], None], None]) -> None:
    for reader in readers:
        reader()
    readers.clear()
