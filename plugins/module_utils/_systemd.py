# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's systemd, where it runs us: units told to it, started, ended and asked about.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

#: Where an administrator's units are, ours among them.
UNITS = "/etc/systemd/system"

_BOOTED = "/run/systemd/system"
_NAMESPACES = ("/proc/self/ns/net", "/proc/1/ns/net")

State = t.Dict[str, str]
"""Properties of a unit, as C(systemctl show) prints them."""


def is_running() -> bool:
    """Whether systemd runs this host, and what it starts would be in our network namespace."""
    try:
        same = os.path.samestat(os.stat(_NAMESPACES[0]), os.stat(_NAMESPACES[1]))
    except OSError:
        return False
    return same and os.path.isdir(_BOOTED) and _deps.find_program("systemctl") is not None


def daemon_reload() -> None:
    """Have systemd read its units anew; what runs goes on running."""
    _order("daemon-reload")


def enable(*units: str) -> None:
    """Have the units started at boot."""
    if units:
        _order("enable", "--quiet", *units)


def disable(*units: str) -> None:
    """Have the units started at boot no more; one that is not there is left out."""
    if units:
        _call("disable", "--quiet", *units)


def start(*units: str) -> None:
    """Start the units, as their files have them now, and wait until they are up."""
    _heed_files(units)
    _units("start", units)


def restart(*units: str) -> None:
    """Start the units anew, as their files have them now, and wait until they are up."""
    _heed_files(units)
    _units("restart", units)


def reload(*units: str) -> None:
    """Have the units read their configuration, and wait until they have."""
    _units("reload", units)


def stop(*units: str) -> None:
    """End the units and wait until they are down; one that is not there is left out."""
    present = [unit for unit in units if show(unit, "LoadState")["LoadState"] != "not-found"]
    _units("stop", present)


def reset_failed(*units: str) -> None:
    """Forget that the units failed, so that nothing of them is left."""
    for unit in units:
        _call("reset-failed", unit)


def show(unit: str, *properties: str) -> State:
    """What systemd has of a unit, those of C(properties) if any are given; also of a unit that is not there."""
    return shows([unit], *properties)[unit]


def shows(units: t.Sequence[str], *properties: str) -> dict[str, State]:
    """The same of many units, in one call."""
    if not units:
        return {}
    wanted = [f"--property={','.join(dict.fromkeys(properties))}"] if properties else []
    blocks = _order("show", *wanted, "--", *units).rstrip("\n").split("\n\n")
    states = []
    for block in blocks:
        pairs = (line.partition("=") for line in block.splitlines())
        states.append({key: value for key, _equals, value in pairs})
    if len(states) != len(units):
        raise SystemFailure(f"systemctl told of {len(states)} units when it was asked for {', '.join(units)}.")
    return dict(zip(units, states))


def log(unit: str, *, lines: int = 10) -> str:
    """The last that the unit said since the boot."""
    journalctl = _deps.find_program("journalctl")
    if journalctl is None:
        return ""
    _commands.run([journalctl, "--sync"])  # what was said a moment ago may still be on its way
    command = [journalctl, "--no-pager", "--quiet", "-b", "-o", "cat", "-n", str(lines), "-u", unit]
    return _commands.run(command).stdout.strip()


def _heed_files(units: t.Sequence[str]) -> None:
    """A run that was killed may have written files of which systemd was not told."""
    states = shows(units, "NeedDaemonReload").values()
    if any(state.get("NeedDaemonReload") == "yes" for state in states):
        daemon_reload()


def _units(verb: str, units: t.Sequence[str]) -> None:
    if not units:
        return
    error = _call(verb, *units)[1]
    if error:
        said = " / ".join(text for text in (log(unit) for unit in units) if text)
        journal = f" Its journal ends with: {said}" if said else ""
        raise SystemFailure(f"systemctl {verb} {' '.join(units)} failed: {error}{journal}")


def _order(*words: str) -> str:
    output, error = _call(*words)
    if error:
        raise SystemFailure(f"systemctl {' '.join(words)} failed: {error}")
    return output


def _call(*words: str) -> tuple[str, str]:
    program = _deps.program("systemctl", purpose="to speak to systemd")
    result = _commands.run([program, *words])
    error = " ".join(result.stderr.split()) or f"it ended with {result.returncode}"
    return result.stdout, error if result.returncode else ""
