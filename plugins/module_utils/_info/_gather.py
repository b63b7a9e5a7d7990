# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vmnet_info may be asked for, which of the host's parts it reads for that, and which of it is told.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _process, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._info import _bridges, _networks, _readers
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Seen
from ansible_collections.labspan.vmnet.plugins.module_utils._info._who import Who

SUBSETS = ("host", "networks", "bridges", "taps", "guests", "rules", "forward_blockers", "leases", "foreign_bridges")

OPTIONS: dict[str, t.Any] = {
    "gather": {"type": "list", "elements": "str", "choices": ["all", *SUBSETS], "default": ["all"]},
    "networks": {"type": "list", "elements": "str"},
    "guests": {"type": "list", "elements": "str"},
    "agent": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 2.0},
}

#: What is read -> what it is read for.
_NEEDED = {
    "addresses": {"host", "networks", "bridges", "forward_blockers", "foreign_bridges"},
    "default_interfaces": {"host", "networks", "bridges", "forward_blockers"},
    "neighbours": {"bridges", "guests"},
    "learnt": {"bridges"},
    "guests": {"networks", "bridges", "taps", "guests", "leases", "foreign_bridges"},
    "servers": {"networks", "bridges", "guests", "leases"},
    "holders": {"taps"},
    "rules": {"host", "networks", "rules", "forward_blockers"},
    "files": {"networks"},
    "moved": {"networks", "bridges", "taps", "forward_blockers", "foreign_bridges"},
    "forwarding": {"host"},
    "bridge_netfilter": {"host", "forward_blockers"},
    "systemd": {"host"},
}

#: What an account that is not root sees only in part.
_OF_ROOT = {
    "the definitions of guests and how they are": "guests",
    "who holds the taps": "holders",
    "the rules of the firewall": "rules",
}

Data = t.Dict[str, t.Any]
Warn = t.Callable[[str], None]


def gather(params: t.Mapping[str, t.Any], warnings: list[str]) -> Data:
    """The parts of the host that the parameters ask for; what could not be seen is a sentence in C(warnings)."""
    wanted = set(SUBSETS) if "all" in params["gather"] else set(params["gather"])
    networks = _names("networks", params.get("networks"))
    guests = _names("guests", params.get("guests"))
    if params["timeout"] <= 0:
        raise InvalidInput("timeout", params["timeout"], "is no time to answer in; give seconds.")
    needed = {part for part, subsets in _NEEDED.items() if wanted & subsets}
    if os.geteuid() != 0:
        unseen = [what for what, part in _OF_ROOT.items() if part in needed]
        if unseen:
            warnings.append(f"Only root sees {', '.join(unseen)}. Run the task as root (become: true).")
    seen = _read(needed, warnings.append)
    if "guests" in wanted or ("bridges" in wanted and params["agent"]):
        seen = _ask(seen, guests, params, warnings.append)
    return _limit(_told(seen, wanted), networks, guests)


def _names(option: str, given: t.Optional[t.Sequence[str]]) -> t.Optional[frozenset[str]]:
    return None if given is None else frozenset(_values.object_name(option, name) for name in given)


def _read(needed: t.Collection[str], warn: Warn) -> Seen:
    processes = functools.lru_cache(maxsize=None)(lambda: list(_process.here()))
    found: dict[str, t.Any] = _part("links", lambda: _readers.network(needed), warn, {})
    readers: dict[str, t.Callable[[], t.Any]] = {
        "guests": lambda: _guests(processes),
        "servers": lambda: _readers.servers(processes),
        "holders": lambda: _readers.holders(found.get("links", {})),
        "rules": lambda: _readers.rules(warn),
        "files": _readers.boot_files,
        "moved": _readers.moved_uplinks,
        "forwarding": _readers.forwarding,
        "bridge_netfilter": _readers.bridge_netfilter,
        "systemd": _readers.service_manager,
    }
    for part, reader in readers.items():
        if part in needed:
            value = _part(part, reader, warn, None)
            if value is not None:
                found[part] = value
    seen = Seen(**found)
    if "rules" in needed and _deps.find_program("nft") is None and _networks.names(seen):
        warn("rules: there is no nft on this host, and without it what is in nftables is not seen. Install nftables.")
    return seen


def _part(part: str, reader: t.Callable[[], t.Any], warn: Warn, otherwise: t.Any) -> t.Any:
    try:
        return reader()
    except (LabspanError, OSError) as error:
        warn(f"{part}: {error}")
        return otherwise


def _guests(processes: t.Callable[[], _readers.Processes]) -> t.Any:
    from ansible_collections.labspan.vmnet.plugins.module_utils._info import _asking

    return _asking.defined(processes)


def _ask(seen: Seen, only: t.Optional[frozenset[str]], params: t.Mapping[str, t.Any], warn: Warn) -> Seen:
    import dataclasses

    from ansible_collections.labspan.vmnet.plugins.module_utils._info import _asking

    asked = {name: guest for name, guest in seen.guests.items() if only is None or name in only}
    told = _asking.ask(asked, agent=params["agent"], timeout=params["timeout"], warn=warn)
    return dataclasses.replace(seen, guests={**seen.guests, **told})


def _told(seen: Seen, wanted: t.Collection[str]) -> Data:
    who = Who(seen)
    tellers: dict[str, t.Callable[[], t.Any]] = {
        "host": lambda: _host(seen),
        "networks": lambda: _networks.render(seen, who),
        "bridges": lambda: _bridges.render(seen, who),
        "taps": lambda: _bridges.taps(seen, who, _account, _group),
        "guests": lambda: _guests_told(seen, who),
        "rules": lambda: _networks.rules(seen),
        "forward_blockers": lambda: _blockers(seen),
        "leases": lambda: _networks.leases(seen, who),
        "foreign_bridges": lambda: _bridges.foreign(seen, who),
    }
    return {subset: tellers[subset]() for subset in SUBSETS if subset in wanted}


def _guests_told(seen: Seen, who: Who) -> list[Data]:
    from ansible_collections.labspan.vmnet.plugins.module_utils._info import _guests

    return _guests.render(seen, who)


def _host(seen: Seen) -> Data:
    system = os.uname()
    uplinks = {f"ipv{version}": seen.default_interfaces.get(version) for version in (4, 6)}
    forwarding: Data = {}
    for version, (everywhere, interfaces) in seen.forwarding.items():
        forwarding[f"ipv{version}"] = everywhere
        forwarding[f"ipv{version}_interfaces"] = [name for name in interfaces if name in seen.links]
    makers = None
    if seen.rules is not None:
        from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _blocking

        makers = _blocking.makers(seen.rules.survey)
    return {
        "hostname": system.nodename,
        "kernel": system.release,
        "machine": system.machine,
        "service_manager": "systemd" if seen.systemd else "none",
        "uplinks": uplinks,
        "forwarding": forwarding,
        "bridge_netfilter": bool(seen.bridge_netfilter),
        "firewalls": makers,
    }


def _blockers(seen: Seen) -> list[Data]:
    if seen.rules is None:
        return []
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _blocking

    found = []
    for traffic in _networks.traffic(seen):
        found += [blocker._asdict() for blocker in _blocking.blockers(seen.rules.survey, traffic)]
    return found


def _limit(found: Data, networks: t.Optional[frozenset[str]], guests: t.Optional[frozenset[str]]) -> Data:
    """What is found of these networks and guests only; None is all of them. Pure."""
    if networks is not None:
        for subset, belongs in _BELONGS.items():
            if subset in found:
                found[subset] = [entry for entry in found[subset] if networks.intersection(belongs(entry))]
    if guests is not None:
        if "guests" in found:
            found["guests"] = [entry for entry in found["guests"] if entry["name"] in guests]
        if "taps" in found:
            found["taps"] = [entry for entry in found["taps"] if entry["guest"] in guests]
    return found


def _account(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _own(entry: Data) -> list[t.Any]:
    return [entry["network"]]


#: To which networks an entry of each list belongs.
_BELONGS: dict[str, t.Callable[[Data], t.Sequence[t.Any]]] = {
    "networks": lambda entry: [entry["name"]],
    "bridges": _own,
    "taps": _own,
    "guests": lambda entry: [nic["network"] for nic in entry["nics"]],
    "rules": _own,
    "forward_blockers": _own,
    "leases": _own,
}
