# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's own iptables programs: which worlds are in use, their tables, and changes as one restore for each table.

Reading never registers a legacy table: those that are registered are listed in /proc, and only those are read.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import subprocess
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import MissingDependency, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import BaseChain
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Saved, World, parse

TABLES = ("filter", "nat")
FAMILIES = (4, 6)

_PREFIX = {4: "iptables", 6: "ip6tables"}
_NFT_FAMILY = {4: "ip", 6: "ip6"}
_REGISTERED = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
_VERSION_WORD = {"nft": "nf_tables", "legacy": "legacy"}


def registered(family: int) -> frozenset[str]:
    """The legacy tables that the kernel holds in this network namespace."""
    try:
        with open(_REGISTERED[family], encoding="ascii") as file:
            return frozenset(file.read().split())
    except OSError:  # a kernel without legacy tables
        return frozenset()


def in_use(family: int, chains: t.Optional[t.Iterable[BaseChain]]) -> dict[World, frozenset[str]]:
    """The tables of both flavours that exist, by their world; C(chains) is None where no nft can tell."""
    nft = frozenset(TABLES)  # iptables-nft-save shows a table that does not exist as an empty one, and makes none
    if chains is not None:
        nft = frozenset(chain.table.name for chain in chains if chain.table.family == _NFT_FAMILY[family])
    return {
        World("nft", family): nft & frozenset(TABLES),
        World("legacy", family): registered(family) & frozenset(TABLES),
    }


def flavour_of_host() -> str:
    """The world that the host's own C(iptables-restore) writes to."""
    program = _deps.program("iptables-restore", purpose="for backend: iptables")
    return "legacy" if _VERSION_WORD["legacy"] in _version(program) else "nft"


def read(world: World, table: str) -> t.Optional[Saved]:
    """A table that is known to exist; None when no program of the host can read it."""
    program = _find(world, "save")
    if program is None:
        return None
    result = _run([program, "-t", table])
    if result.returncode != 0 or "is incompatible" in result.stdout + result.stderr:
        return None
    return parse(result.stdout)


def save(world: World) -> t.Optional[str]:
    """All tables of a world that is known to have some, with counters; None when no program of the host prints them."""
    program = _find(world, "save")
    if program is None:
        return None
    result = _run([program, "-c"])
    if result.returncode != 0:
        said = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
        raise SystemFailure(f"{os.path.basename(program)} does not print the rules of this host ({said}).")
    return result.stdout


def restore(world: World, script: str) -> None:
    """Carry out one table's script, wholly or not at all."""
    program = _find(world, "restore")
    if program is None:
        raise MissingDependency(
            f"no program of the managed host writes rules of {world}. Install the package iptables (Debian's name)."
        )
    wait = ["-w", "30"] if world.flavour == "legacy" else ["-w"]
    result = _run([program, "--noflush", *wait], script)
    if result.returncode != 0:
        raise SystemFailure(f"{os.path.basename(program)} refused the rules: {' '.join(result.stderr.split())}")


def can_write(world: World) -> bool:
    """Whether the host has the programs for this world."""
    return _find(world, "save") is not None and _find(world, "restore") is not None


def _find(world: World, what: str) -> t.Optional[str]:
    prefix = _PREFIX[world.family]
    exact = _deps.find_program(f"{prefix}-{world.flavour}-{what}")
    if exact is not None:
        return exact
    plain = _deps.find_program(f"{prefix}-{what}")
    return plain if plain is not None and _VERSION_WORD[world.flavour] in _version(plain) else None


def _version(program: str) -> str:
    return _run([program, "--version"]).stdout


def _run(command: t.Sequence[str], script: t.Optional[str] = None) -> subprocess.CompletedProcess[str]:
    return _commands.run(command, stdin=script or "")
