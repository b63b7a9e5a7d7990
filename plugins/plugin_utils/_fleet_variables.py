# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the variables of hosts ask of them, read for many hosts at once.

Each host is looked at by itself: one whose variables cannot be evaluated fails by itself, when its task is.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import (
    _fleet,
    _inventory,
    _language,
    _scenarios,
    _validation,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._inventory import Inventory, Network
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _fleet_shape

NETWORKS = ("vmnet_networks", "vmnet_networks_extra")
GUESTS = ("vmnet_guests", "vmnet_guests_extra")

#: Variable -> option of lab_host.
_OTHERS = {"vmnet_state": "state", "vmnet_account": "account", "vmnet_persistent": "persistent"}

#: What the playbooks read beside those.
_OF_RUNS = (
    "vmnet_exclusive",
    "vmnet_fleet_checks",
    "vmnet_lan",
    "vmnet_hosts",
    "vmnet_serial",
    "vmnet_drawing",
    "vmnet_status",
    "vmnet_scenarios",
    "vmnet_width",
)

_ALL = (*NETWORKS, *GUESTS, *_OTHERS, *_OF_RUNS)

#: What the inventory plugin gives to guests. One that is a lab host too has many more of them.
_OF_GUESTS = "vmnet_host"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a host, in the types that the module takes."""

    inventory: Inventory
    lan: t.Union[str, dict[str, str]]
    checks: tuple[str, ...]


def plain(value: t.Any) -> t.Any:
    """The value with everything in it evaluated; raises when something cannot be."""
    if isinstance(value, t.Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def is_asked(variables: t.Mapping[str, t.Any]) -> bool:
    """Whether anything is asked of the host."""
    return any(name in variables for name in (*NETWORKS, *GUESTS))


def misspelt(names: t.Iterable[str]) -> list[str]:
    """A sentence for each variable that is almost one of ours: what it lists would be taken for unwanted."""
    ours = {name for name in map(str, names) if name.startswith("vmnet_")}
    if _OF_GUESTS in ours:
        return []
    close = {name: difflib.get_close_matches(name, _ALL, 1, 0.85) for name in sorted(ours.difference(_ALL))}
    return [
        f"{name}: there is no such variable; perhaps {found[0]} is meant. If it is yours, give it another name."
        for name, found in close.items()
        if found
    ]


def read(variables: t.Mapping[str, t.Any]) -> tuple[t.Optional[Asked], list[str]]:
    """What the variables of a host ask of it, and what is wrong with how they are written."""
    options: Options = {"networks": [], "guests": []}
    places: tuple[list[str], list[str]] = ([], [])
    for option, names, at in (("networks", NETWORKS, places[0]), ("guests", GUESTS, places[1])):
        for name in names:
            entries = plain(variables.get(name, []))
            if not isinstance(entries, list):
                if entries is None:
                    return None, [f"{name}: is empty; write [] for none, or leave it out."]
                return None, _fleet_shape.wrong(name, entries, _language.OPTIONS[option])
            options[option] += entries
            at += [f"{name}[{number}]" for number in range(len(entries))]
    options.update({option: plain(variables[name]) for name, option in _OTHERS.items() if name in variables})
    # What is no boolean would be taken for false by the playbook.
    found = _fleet_shape.wrong("vmnet_exclusive", plain(variables.get("vmnet_exclusive")), {"type": "bool"})
    if found:
        return None, found
    judged = ArgumentSpecValidator(_language.OPTIONS).validate(options)
    if judged.error_messages:
        return None, _misshapen(options, places) or [_readable(message) for message in judged.error_messages]
    told = judged.validated_parameters
    inventory = _inventory.read(
        told["networks"],
        told["guests"],
        state=told["state"],
        account=told["account"],
        persistent=told["persistent"],
        places=places,
    )
    lan = plain(variables.get("vmnet_lan", ""))
    checks = plain(variables.get("vmnet_fleet_checks", list(_fleet.CHECKS)))
    unknown = [check for check in checks if check not in _fleet.CHECKS]
    if unknown:
        return None, [f"vmnet_fleet_checks: {unknown[0]!r} is no check; choose of {', '.join(_fleet.CHECKS)}."]
    return Asked(inventory, lan if isinstance(lan, dict) else str(lan), tuple(checks)), []


def _misshapen(options: Options, places: tuple[list[str], list[str]]) -> list[str]:
    """What Ansible refuses, in words that say where it is."""
    found: list[str] = []
    for option, at in zip(("networks", "guests"), places):
        element = {"type": "dict", "options": _language.OPTIONS[option]["options"]}
        for where, entry in zip(at, options[option]):
            scenario = entry.get("scenario") if isinstance(entry, dict) else None
            words = _language.WORDS.get(str(scenario)) if option == "networks" else None
            found += _fleet_shape.wrong(where, entry, element, words)
    for name, option in _OTHERS.items():
        found += _fleet_shape.wrong(name, options.get(option), _language.OPTIONS[option])
    return found


def _readable(message: str) -> str:
    return message if message.endswith(".") else f"{message}."


def problems_of(asked: Asked) -> list[str]:
    """What cannot be right on the host by itself."""
    found = _validation.problems(asked.inventory)
    if not found:
        try:
            _scenarios.of(asked.inventory)
        except LabspanError as error:
            found.append(str(error))
    return found


def uplinks(inventory: Inventory) -> list[Network]:
    """The networks that have an uplink."""
    return [network for network in inventory.networks if network.scenario == _language.L2]
