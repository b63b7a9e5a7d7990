# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The managers of the host's network that are told to keep off, and have to hear of it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

_NETWORK_MANAGER = "/etc/NetworkManager/conf.d"
_NETWORKD = "/etc/systemd/network"
_NETWORKD_UNIT = "systemd-networkd.service"

_NOTE = """\
# Made by labspan.vmnet: these interfaces of the network {network} are not the host's own.
"""


def files(network: str, names: t.Sequence[str]) -> dict[str, t.Optional[str]]:
    """For each manager that this host has, the file that tells it to leave exactly these interfaces alone."""
    texts = {_NETWORK_MANAGER: _network_manager_text, _NETWORKD: _networkd_text}
    return {
        path: texts[os.path.dirname(path)](network, sorted(names)) if names else None
        for path in paths(network)
        if os.path.isdir(os.path.dirname(os.path.dirname(path)) if _NETWORK_MANAGER in path else _NETWORKD)
    }


def paths(network: str) -> list[str]:
    """Where these files are."""
    return [f"{_NETWORK_MANAGER}/90-labspan-{network}.conf", f"{_NETWORKD}/00-labspan-{network}.network"]


def names_in(text: t.Optional[str]) -> list[str]:
    """The interfaces that a file names."""
    names: list[str] = []
    for line in (text or "").splitlines():
        if line.startswith("match-device="):
            names += [spec.partition(":=")[2] for spec in line.partition("=")[2].split(",")]
        elif line.startswith("Name="):
            names.append(line.partition("=")[2])
    return names


def reader(path: str) -> t.Optional[t.Callable[[], None]]:
    """Who reads the file at this path, to be told that it changed."""
    directory = os.path.dirname(path)
    return {_NETWORK_MANAGER: _tell_network_manager, _NETWORKD: _tell_networkd}.get(directory)


def _network_manager_text(network: str, names: t.Sequence[str]) -> str:
    devices = ",".join(f"interface-name:={name}" for name in names)
    section = f"[device-labspan-{network}]\nmatch-device={devices}\nmanaged=0\n"
    return _NOTE.format(network=network) + section


def _networkd_text(network: str, names: t.Sequence[str]) -> str:
    matches = "".join(f"Name={name}\n" for name in names)
    return f"{_NOTE.format(network=network)}[Match]\n{matches}\n[Link]\nUnmanaged=yes\n"


def _tell_network_manager() -> None:
    """It goes on with all that it runs: only the interfaces that the file names are looked at anew."""
    nmcli = _deps.find_program("nmcli")
    if nmcli is None or not _systemd.is_running() or not _is_active("NetworkManager.service"):
        return
    _run([nmcli, "general", "reload", "conf"])


def _tell_networkd() -> None:
    """It reconfigures the interfaces for which another file counts now, and no others."""
    networkctl = _deps.find_program("networkctl")
    if networkctl is None or not _systemd.is_running() or not _is_active(_NETWORKD_UNIT):
        return
    _run([networkctl, "reload"])


def _is_active(unit: str) -> bool:
    return _systemd.show(unit, "ActiveState").get("ActiveState") == "active"


def _run(argv: t.Sequence[str]) -> None:
    done = _commands.run(argv)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise SystemFailure(f"{' '.join(argv)} failed: {said}.")
