# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our nftables tables: read, brought into the form that the host's own nft prints, replaced in one transaction.

Two texts of a table are compared only after the same nft has listed both, so that no version's way of writing a rule
can look like a difference. The ruleset as a whole is never listed: beside a large foreign set that takes half a second.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import json
import subprocess
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _foresight
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _child


class TableKey(t.NamedTuple):
    """A table of nftables, as C(nft) wants to hear it."""

    family: str
    name: str

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


class BaseChain(t.NamedTuple):
    """A chain of anybody; hook and policy are empty for one that is only jumped to."""

    table: TableKey
    name: str
    hook: str
    policy: str


def owner_comment(network: str) -> str:
    """What marks a rule as ours, in every backend."""
    return f"labspan.vmnet:{network}"


def chains() -> list[BaseChain]:
    """Every chain of the host; neither rules nor sets are listed."""
    listed = json.loads(_run(["-j", "list", "chains"], purpose="list its chains"))["nftables"]
    found = (entry["chain"] for entry in listed if "chain" in entry)
    return [
        BaseChain(
            TableKey(chain["family"], chain["table"]), chain["name"], chain.get("hook", ""), chain.get("policy", "")
        )
        for chain in found
    ]


def tables() -> set[TableKey]:
    """Every table of the host; in a task of many kinds as it was when the first of them asked."""
    world = _foresight.world()
    return _read_tables() if world is None else world.dump("tables", _read_tables)


def live(keys: t.Iterable[TableKey]) -> dict[TableKey, str]:
    """The listings of these tables; a table that does not exist is left out."""
    if _foresight.world() is not None:
        there = tables()
        keys = [key for key in keys if key in there]
    # One process for each table: nft 1.0.6 caches only the last of several tables named in one request.
    listings = {key: _listing(key) for key in keys}
    return {key: text for key, text in listings.items() if text is not None}


def canonical(tables: t.Mapping[TableKey, str], listed: t.Mapping[t.Any, t.Any]) -> dict[TableKey, str]:
    """The same tables as the host's nft lists them once they are loaded, found out where they touch nothing.

    A text that is to the letter among those C(listed) needs no finding out: it is how nft lists what it says.
    """
    known = {key: text for key, text in tables.items() if listed.get(key) == text}
    tables = {key: text for key, text in tables.items() if key not in known}
    if not tables:
        return known

    def load_and_list() -> str:
        load("".join(tables.values()))
        return _run(["-s", "list", "ruleset"], purpose="list the wanted tables")  # nothing else is in that namespace

    purpose = "bring nftables rules into their listed form"
    return {**known, **_split(_child.call(load_and_list, purpose=purpose, throw_away_namespace=True))}


def replacement(key: TableKey, text: t.Optional[str]) -> str:
    """The script that puts C(text) in the place of whatever the table holds; with None the table goes."""
    return f"table {key}\ndelete table {key}\n{text or ''}"


def is_strangers(listing: str, network: str) -> bool:
    """Whether a table with the name of ours holds something, and no rule of it is marked as the network's.

    An empty one is what is left of ours when somebody flushes it, and has nothing that could be lost.
    """
    content = [
        line
        for line in listing.splitlines()[1:]
        if line.strip() not in ("", "}") and not line.startswith(("\tchain ", "\t\ttype "))
    ]
    return bool(content) and f'"{owner_comment(network)}"' not in listing


def load(script: str) -> None:
    """Run a script as the one transaction that nft makes of it."""
    _run(["-f", "-"], purpose="load rules", script=script)


def _read_tables() -> set[TableKey]:
    words = (line.split() for line in _run(["list", "tables"], purpose="list its tables").splitlines())
    return {TableKey(word[1], word[2]) for word in words if len(word) == 3}


def _listing(key: TableKey) -> t.Optional[str]:
    result = _try(["-s", "list", "table", key.family, key.name])
    if result.returncode == 0:
        return result.stdout
    if "No such file or directory" in result.stderr:
        return None
    raise _failure(f"list the table {key}", result)


def _split(listing: str) -> dict[TableKey, str]:
    found: dict[TableKey, str] = {}
    key: t.Optional[TableKey] = None
    for line in listing.splitlines(keepends=True):
        if line.startswith("table "):
            _table, family, name = line.split()[:3]
            key = TableKey(family, name)
            found[key] = ""
        if key is not None:
            found[key] += line
    return {key: text.rstrip("\n") + "\n" for key, text in found.items()}


def _run(arguments: t.Sequence[str], *, purpose: str, script: t.Optional[str] = None) -> str:
    result = _try(arguments, script)
    if result.returncode != 0:
        raise _failure(purpose, result)
    return result.stdout


def _try(arguments: t.Sequence[str], script: t.Optional[str] = None) -> subprocess.CompletedProcess[str]:
    nft = _deps.program("nft", purpose="for the rules of the network")
    return _commands.run([nft, *arguments], stdin=script or "")


def _failure(purpose: str, result: subprocess.CompletedProcess[str]) -> SystemFailure:
    return SystemFailure(
        f"nft does not {purpose}: {' '.join(result.stderr.split()) or f'exit status {result.returncode}'}"
    )
