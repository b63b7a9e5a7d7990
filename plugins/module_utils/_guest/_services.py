# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests as systemd's services: what it has of them, changing that, and their starts and ends through it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _links, _process, _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _limits, _store, _tpm, _units
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import NONE, SYSTEMD, GuestSpec, Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, GuestState, Unit
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

#: How long the journal of a busy host may take to hear of what QEMU said.
_JOURNAL_TIMEOUT = 2.0

#: Starting, ending, or started since nobody was found; what was killed and does not end is active, too.
_ON_THE_WAY = ("activating", "deactivating", "active")

_WANTS = f"{_units.UNITS}/multi-user.target.wants"


def read(name: str) -> Unit:
    """What systemd has of the guest, from its files alone."""
    return Unit(
        _files.read(_units.drop_in_path(name)),
        is_enabled(name),
        _files.read(_tpm.drop_in_path(name)),
    )


def is_enabled(name: str) -> bool:
    """Whether the guest starts at boot."""
    return os.path.lexists(os.path.join(_WANTS, _units.unit(name)))


def coming_back(names: t.Sequence[str]) -> set[str]:
    """Which of these guests, none of which was found, systemd is about to start again, or still ends.

    For systemd one that was killed is active until the last thread of its QEMU is gone: that is waited for.
    """
    if not names or not _systemd.is_running():
        return set()
    units = {_units.unit(name): name for name in names}
    deadline = time.monotonic() + _store.LAST_WRITE
    while True:
        states = _systemd.shows(list(units), "ActiveState", "MainPID")
        if time.monotonic() > deadline or not any(map(_is_dying, states.values())):
            break
        time.sleep(0.05)
    return {name for unit, name in units.items() if states[unit].get("ActiveState") in _ON_THE_WAY}


def _is_dying(state: t.Mapping[str, str]) -> bool:
    """Whether systemd takes for active what has no memory any more."""
    return state.get("ActiveState") == "active" and not _process.argv_of(int(state.get("MainPID") or 0))


def with_units(state: t.Mapping[str, GuestState]) -> dict[str, GuestState]:
    """The states with what systemd has of the guests."""
    units = {name: read(name) for name in state}
    returning = coming_back(
        [name for name, guest in state.items() if guest.process is None and units[name].drop_in is not None]
    )
    return {
        name: dataclasses.replace(guest, unit=units[name], coming_back=name in returning)
        for name, guest in state.items()
    }


def manager(spec: GuestSpec, have: GuestState) -> str:
    """Who shall start the guest; one that runs keeps what it was started by unless the task says otherwise."""
    if spec.service_manager != "auto":
        return spec.service_manager
    if have.process is not None and have.definition is not None:
        return have.definition.manager
    return SYSTEMD if _systemd.is_running() else NONE


def unit_of(wish: Wish, definition: Definition) -> Unit:
    """What systemd shall have of a guest that is defined so."""
    if definition.manager != SYSTEMD or not definition.argv:
        return Unit()
    text = _units.drop_in(
        definition.spec,
        definition.argv,
        networks=_networks(definition.spec),
        groups=_existing_groups("kvm"),
        directives=_limits.directives(definition.spec.limits),
    )
    tpm = _tpm.drop_in(definition.spec) if definition.spec.tpm else None
    return Unit(text, definition.spec.autostart and wish.wants_process, tpm)


def _networks(spec: GuestSpec) -> list[str]:
    """The networks that the guest is on, by whose units it is preceded at boot."""
    found = {nic.network for nic in spec.nics if nic.network is not None}
    if spec.network is not None:
        return sorted({spec.network, *found})
    for nic in spec.nics:
        owner = nic.network or nic.bridge
        if owner is None and nic.tap is not None:
            owner = _links.owner_of(_links.read_alias(nic.tap) or "")
        if owner is not None:
            found.add(owner)
    return sorted(found)


def _existing_groups(*names: str) -> list[str]:
    known = {group.gr_name for group in grp.getgrall()}
    return [name for name in names if name in known]


def set_units(units: t.Mapping[str, Unit]) -> None:
    """Bring what systemd has of the guests into these states."""
    names = {name: _units.unit(name) for name in units}
    leaving = [unit for name, unit in names.items() if not units[name].enabled and read(name).enabled]
    if leaving:
        _systemd.disable(*leaving)
    texts = {_units.drop_in_path(name): unit.drop_in for name, unit in units.items()}
    texts.update((_tpm.drop_in_path(name), unit.tpm) for name, unit in units.items())
    stale = {path: text for path, text in texts.items() if _files.read(path) != text}
    for path, text in stale.items():
        _files.put(path, text)
    if stale:
        _systemd.daemon_reload()
    coming = [unit for name, unit in names.items() if units[name].enabled and not read(name).enabled]
    if coming:
        _systemd.enable(*coming)


def prune(names: t.Iterable[str]) -> None:
    """Remove what a run that was killed has left where it took the files of units away."""
    for name in names:
        for path in (_units.drop_in_path(name), _tpm.drop_in_path(name)):
            _files.put(path, None)


def start(held_back: t.Mapping[str, bool]) -> dict[str, Process]:
    """Start the guests, all at once; those that are held back do not run before they are told to."""
    units = [_units.unit(name) for name in held_back]
    states = _systemd.shows(units, "ActiveState")
    for name, waits in held_back.items():
        places = Places(name)
        _store.make_state_directory(places)
        if states[_units.unit(name)].get("ActiveState") != "active":  # else systemd was faster, and those are in use
            _store.clear_runtime(places)
        text = f"{_units.START_VARIABLE}={_argv.PAUSED}\n" if waits else None
        _files.put(_units.START_FILE % name, text)
    try:
        _systemd.reset_failed(*units)
        _systemd.start(*units)
        processes = {}
        for name, state in zip(held_back, _systemd.shows(units, "MainPID").values()):
            process = _process.identify(int(state.get("MainPID") or 0))
            if process is None:
                raise SystemFailure(f"guest {name} did not start. QEMU said: {said(name)}.")
            processes[name] = process
        return processes
    finally:
        for name in held_back:  # else a start after a crash would be held back, too
            _files.put(_units.START_FILE % name, None)


def ended(names: t.Iterable[str]) -> None:
    """Have systemd take note that the guests are to be down, whatever their ends looked like to it."""
    units = [_units.unit(name) for name in names]
    if units and _systemd.is_running():
        _systemd.stop(*units)
        _systemd.reset_failed(*units)


def said(name: str) -> str:
    """The last words of the guest's QEMU, from the journal."""
    deadline = time.monotonic() + _JOURNAL_TIMEOUT
    words = _words(name)
    while not words and time.monotonic() < deadline:
        time.sleep(0.1)
        words = _words(name)
    return (" | ".join(words) or "nothing").rstrip(".")


def _words(name: str) -> list[str]:
    unit = _units.unit(name)
    lines = [line.strip() for line in _systemd.log(unit, lines=20).splitlines()]
    # The journal has systemd's own words about the unit, too.
    return [line for line in lines if line and not line.startswith((f"{unit}:", f"Starting {unit}", f"Started {unit}"))]
