# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""When the service is there that loads rules again: as long as any network has rules among its files. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_script

_WANTS = {
    f"{_systemd.UNITS}/multi-user.target.wants/{_rules_script.SERVICE}": _rules_script.SERVICE,
    # Nothing but that unit is started by it, and the unit only looks.
    f"{_systemd.UNITS}/docker.service.wants/{_rules_script.CHECK}": _rules_script.CHECK,
}

#: The program, the units and what has them started, by their paths; a symbolic link as C(_files) has it.
FILES: t.Mapping[str, str] = {
    _rules_script.PROGRAM: _rules_script.SCRIPT,
    **{f"{_systemd.UNITS}/{name}": text for name, text in _rules_script.UNITS.items()},
    **{path: f"-> {_systemd.UNITS}/{unit}" for path, unit in _WANTS.items()},
}


def are_rules(name: str) -> bool:
    """Whether a file of a network is one that the service loads."""
    return name.endswith(".nft") or name.startswith(("rules.", "accept."))


def surroundings(directories: t.Mapping[str, t.Collection[str]]) -> dict[str, t.Optional[str]]:
    """The files beside those of the networks; in reverse when they go, so that nothing starts what is not there."""
    if _needed(directories):
        return dict(FILES)
    return dict.fromkeys(reversed(list(FILES)))


def services(directories: t.Mapping[str, t.Collection[str]]) -> dict[str, bool]:
    """The service, and whether it is to run."""
    return {_rules_script.SERVICE: _needed(directories)}


def _needed(directories: t.Mapping[str, t.Collection[str]]) -> bool:
    return any(are_rules(name) for files in directories.values() for name in files)
