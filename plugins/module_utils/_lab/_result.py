# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The result of a task that is about a whole host: what was done for which network and guest, and how all is now. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _sysctl
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Adoption
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files, _managers
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _nft_text
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._parts import File, Flows, PartChange, Setting
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Place
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import Lab
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Outcome

_UNIT = re.compile(r"labspan-(?:network|dhcp)@(.+)\.service\Z")
#: Items by their names, by the plural of their kind.
_Items = t.Mapping[str, t.Mapping[str, t.Any]]

#: What the resources of a task of one kind are called, where there are two of them here.
_KINDS = ("removed_", "former_")


class Subjects:
    """Which network or guest a change is about."""

    def __init__(self, lab: Lab, taps: t.Iterable[t.Mapping[str, t.Any]], guests: t.Mapping[str, str]) -> None:
        """C(taps) are the options of all taps of the task, C(guests) the guests that have some of them."""
        self._networks = set(lab.networks)
        self._guests = guests
        self._interfaces = {each["name"]: each["network"] for each in (*lab.bridges, *taps)}
        self._subnets = {subnet: each["name"] for each in lab.rules for subnet in each["sources"] or ()}
        self._paths = {
            path: network
            for network in lab.networks
            for path in (*_managers.paths(network), _sysctl.boot_file(network))
        }

    def network(self, change: Change) -> t.Optional[str]:
        """The network."""
        if isinstance(change, PartChange):
            return self._network_of_part(change.part)
        if isinstance(change, _files.FileChange):
            directory, _slash, _name = change.path.rpartition("/")
            named = _UNIT.search(change.path)
            if os.path.dirname(directory) == _files.NETWORKS:
                return os.path.basename(directory)
            return named.group(1) if named else self._paths.get(change.path)
        if isinstance(change, _files.UnitChange):
            named = _UNIT.search(change.unit)
            return named.group(1) if named else None
        interface = (change.after or change.before).name if isinstance(change, Adoption) else _text(change, "name")
        found = self._interfaces.get(interface or "") or _text(change, "network")
        return found or self._of_bridge(change)

    def guest(self, change: Change) -> t.Optional[str]:
        """The guest; one of its taps counts as the guest's own."""
        return _text(change, "guest") or self._guests.get(_text(change, "name") or "")

    def _of_bridge(self, change: Change) -> t.Optional[str]:
        """Of a port that is none of ours, the network of the bridge that it comes to or leaves."""
        bridge = _text(change.after, "bridge") or _text(change.before, "bridge")
        return self._interfaces.get(bridge or "")

    def _network_of_part(self, part: t.Any) -> t.Optional[str]:
        if isinstance(part, Place):
            return part.network
        if isinstance(part, File):
            return self._paths.get(part.path)
        if isinstance(part, Setting):
            return next((self._interfaces[word] for word in part.key.split("/") if word in self._interfaces), None)
        if isinstance(part, Flows):
            return self._subnets.get(part.address)
        if isinstance(part, TableKey):
            return next((network for network in self._networks if _nft_text.key(network) == part), None)
        return None


def present(lab: Lab, subjects: Subjects, outcome: Outcome) -> dict[str, t.Any]:
    """The result."""
    changes = [change for changes in outcome.plans for change in changes]
    shown = {resource.plural: resource.render(state) for resource, state in zip(outcome.resources, outcome.final)}
    result: dict[str, t.Any] = {"changed": bool(changes), "actions": outcome.actions}
    for resource, state in zip(outcome.resources, outcome.final):
        for key, value in resource.facts(state).items():
            result[key] = _joined(result.get(key), value)
    of_networks: dict[str, list[str]] = {}
    of_guests: dict[str, list[str]] = {}
    for change in changes:
        of_networks.setdefault(subjects.network(change) or "", []).append(change.sentence)
        of_guests.setdefault(subjects.guest(change) or "", []).append(change.sentence)
    result["networks"] = [
        _network(lab, name, shown, of_networks.get(name, [])) for name in {**lab.networks, **of_networks} if name
    ]
    guests = {guest["name"]: None for guest in lab.guests}
    result["guests"] = [
        _guest(name, shown.get("guests", {}).get(name), of_guests.get(name, []))
        for name in {**guests, **of_guests}
        if name
    ]
    before: _Items = {}
    after: _Items = {}
    if changes:
        before = _together((each.plural, each.render(had)) for each, had in zip(outcome.resources, outcome.have))
        after = _with_ports(_together(shown.items()))
    result["diff"] = {"before": _differing(before, after), "after": _differing(after, before)}
    if changes:  # Ansible prints this below the difference
        result["diff"]["prepared"] = "".join(f"- {action}\n" for action in outcome.actions)
    return result


def _network(
    lab: Lab, name: str, shown: t.Mapping[str, t.Mapping[str, t.Any]], actions: t.Sequence[str]
) -> dict[str, t.Any]:
    network = lab.networks.get(name)
    bridge = network.bridge if network is not None else None
    known = shown.get("bridges", {}).get(bridge or "", {})
    guests = shown.get("guests", {})
    return {
        "name": name,
        "scenario": (network.scenario or None) if network is not None else None,
        "state": network.state if network is not None else "absent",
        "bridge": bridge or None,
        "addresses": known.get("addresses", []),
        "taps": sorted(tap for tap, each in shown.get("taps", {}).items() if each["network"] == name),
        "guests": sorted(
            guest for guest, each in guests.items() if any(nic["bridge"] == bridge for nic in each.get("nics", ()))
        ),
        "lan_routes": shown.get("rules", {}).get(name, {}).get("lan_routes", []),
        "changed": bool(actions),
        "actions": list(actions),
    }


def _guest(name: str, now: t.Optional[t.Mapping[str, t.Any]], actions: t.Sequence[str]) -> dict[str, t.Any]:
    return {"name": name, "state": "absent", **(now or {}), "changed": bool(actions), "actions": list(actions)}


def _together(shown: t.Iterable[tuple[str, t.Mapping[str, t.Any]]]) -> dict[str, t.Any]:
    """Everything of one kind under one name, be it to stay or to go."""
    found: dict[str, t.Any] = {}
    for plural, items in shown:
        for word in _KINDS:
            plural = plural[len(word) :] if plural.startswith(word) else plural
        found.setdefault(plural, {}).update(items)
    return {plural: items for plural, items in found.items() if items}


def _with_ports(items: dict[str, t.Any]) -> dict[str, t.Any]:
    """With the taps among the ports of bridges: what is only planned, each kind says without the kinds after it."""
    taps: dict[str, set[str]] = {}
    for name, tap in items.get("taps", {}).items():
        taps.setdefault(tap["bridge"] or "", set()).add(name)
    bridges = {
        name: {**bridge, "ports": sorted({*bridge["ports"], *taps.get(name, ())})}
        for name, bridge in items.get("bridges", {}).items()
    }
    return {**items, "bridges": bridges} if bridges else items


def _differing(items: _Items, others: _Items) -> _Items:
    """Those that the others do not have, or not like that: a host is too much to be shown whole."""
    found = {
        plural: {name: item for name, item in some.items() if others.get(plural, {}).get(name) != item}
        for plural, some in items.items()
    }
    return {plural: some for plural, some in found.items() if some}


def _joined(one: t.Any, other: t.Any) -> t.Any:
    if isinstance(one, list) and isinstance(other, list):
        return one + [each for each in other if each not in one]
    return {**one, **other} if isinstance(one, dict) and isinstance(other, dict) else other


def _text(thing: t.Any, attribute: str) -> t.Optional[str]:
    """An attribute that some kinds of changes and states have."""
    found = getattr(thing, attribute, None)
    return found if isinstance(found, str) else None
