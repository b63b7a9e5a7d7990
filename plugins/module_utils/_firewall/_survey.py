# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every rule of the host's firewall, whoever made it, for the one who has to search them all.

Listing everything may take half a second beside a large set, so this is no way to look after one's own rules. Reading
registers no table of the kernel.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _iptables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Saved, World, parse

_TABLES = ("raw", "mangle", "nat", "filter", "security")
_ARP_TABLES = "/proc/net/arp_tables_names"


class Table(t.NamedTuple):
    """A table of iptables or arptables; C(content) is None where no program of the host can read it."""

    where: str
    content: t.Optional[Saved]


def ruleset() -> t.Optional[str]:
    """What nft lists; empty where the kernel has no nftables, None where the host has no nft to list it."""
    nft = _deps.find_program("nft")
    if nft is None:
        return None
    result = _commands.run([nft, "-s", "list", "ruleset"])
    if result.returncode == 0:
        return result.stdout
    if "not supported" in result.stderr:
        return ""
    raise SystemFailure(f"nft does not list the host's rules: {' '.join(result.stderr.split())}")


def xtables(*, with_nft: bool) -> list[Table]:
    """The legacy tables that exist; C(with_nft) also those of iptables-nft, as far as iptables shows them."""
    found = []
    for family in _iptables.FAMILIES:
        for table in sorted(_iptables.registered(family)):
            world = World("legacy", family)
            found.append(Table(f"{world}, table {table}", _iptables.read(world, table)))
        if with_nft:
            for table in _TABLES:
                world = World("nft", family)
                saved = _iptables.read(world, table)
                if saved is not None:
                    found.append(Table(f"{world}, table {table}", saved))
    return [*found, *_arp()]


def _arp() -> t.Iterator[Table]:
    try:
        with open(_ARP_TABLES, encoding="ascii") as file:
            names = file.read().split()
    except OSError:
        return
    if names:
        program = _deps.find_program("arptables-legacy-save")
        saved = _commands.run([program]) if program is not None else None
        yield Table("arptables-legacy", parse(saved.stdout) if saved is not None and not saved.returncode else None)
