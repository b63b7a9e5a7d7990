# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbook site.yml needs to know of all lab hosts before it goes to any of them."""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _fleet, _language
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _fleet_variables
from ansible_collections.labspan.vmnet.plugins.plugin_utils._fleet_variables import Asked

Variables = t.Mapping[str, t.Mapping[str, t.Any]]

#: A pattern that no host matches, and that Ansible does not warn of.
NOBODY = "all:!all"

#: The words of an l2 network that are the uplink's.
_UPLINK = (
    "interface",
    "address_mode",
    "addresses",
    "gateway",
    "dns",
    "mac",
    "stp",
    "forward_delay",
    "confirm_timeout",
    "probe",
    "accept_risk",
    "force",
)


def fleet_check(hostvars: Variables, hosts: t.Sequence[str]) -> dict[str, t.Any]:
    """What is wrong with what is asked of each of the hosts, of whom nothing is asked, and who has an uplink."""
    problems: dict[str, list[str]] = {}
    members: list[_fleet.Member] = []
    idle: list[str] = []
    for host in map(str, hosts):
        asked, found = _look(hostvars, host)
        if asked is not None:
            members.append(_fleet.Member(host, asked.inventory, asked.lan, asked.checks))
            found = _fleet_variables.problems_of(asked)
        elif not found and not _is_asked(hostvars, host):
            idle.append(host)
        if found:
            problems[host] = found
    for host, found in _fleet.conflicts(members).items():
        problems[host] = [*problems.get(host, []), *found]
    return {"problems": problems, "idle": idle, "uplinked": _of_kind(hostvars, hosts, "uplinked")}


def fleet_hosts(hostvars: Variables, hosts: t.Sequence[str], kind: str) -> t.Union[str, list[str]]:
    """The hosts of a kind: C(plain) have no uplink to be moved, C(uplinked) have, C(returning) get their card back.
    C(l2) are either of the last two.

    C(first) are those that are plain, if there are any, and one that is uplinked.
    """
    if kind == "first":
        plain = _of_kind(hostvars, hosts, "plain")
        return [*plain, *_of_kind(hostvars, hosts, "uplinked")[:1]] if plain else NOBODY
    return _of_kind(hostvars, hosts, kind) or NOBODY


def _of_kind(hostvars: Variables, hosts: t.Sequence[str], kind: str) -> list[str]:
    return [str(host) for host in hosts if _is_kind(_uplinks_are_present(hostvars, str(host)), kind)]


def lab_uplinks(
    networks: t.Sequence[t.Mapping[str, t.Any]], state: str = "present", persistent: str = "auto"
) -> list[dict[str, t.Any]]:
    """The uplinks of the l2 networks among these, as the role l2 would move them."""
    told = {"vmnet_networks": networks, "vmnet_state": state, "vmnet_persistent": persistent}
    asked, _found = _fleet_variables.read(told)
    if asked is None:
        return []  # the task that converges the host tells why
    return [
        {
            "network": network.name,
            "state": "present" if network.present else "absent",
            "uplink": {
                **{word: network.options[word] for word in _UPLINK},
                "bridge": network.bridge,
                "persistent": network.persistent != "false",
            },
        }
        for network in _fleet_variables.uplinks(asked.inventory)
    ]


def _look(hostvars: Variables, host: str) -> tuple[t.Optional[Asked], list[str]]:
    """What is asked of the host; nothing when its variables cannot be evaluated, which its own task will tell best."""
    try:
        found = _fleet_variables.misspelt(hostvars[host])
        if found or not _fleet_variables.is_asked(hostvars[host]):
            return None, found
        return _fleet_variables.read(hostvars[host])
    except Exception:  # whatever a template of somebody else's does
        return None, []


def _is_asked(hostvars: Variables, host: str) -> bool:
    try:
        return _fleet_variables.is_asked(hostvars[host])
    except Exception:  # whatever a template of somebody else's does; the host's own task will tell
        return True


def _uplinks_are_present(hostvars: Variables, host: str) -> list[bool]:
    """Of each l2 network of the host, whether it is to be there. Before the first play nothing is known of any host."""
    found: list[bool] = []
    if host not in hostvars:
        return found
    try:
        variables = hostvars[host]
        everything = variables.get("vmnet_state") != "absent"
        for name in _fleet_variables.NETWORKS:
            for network in variables.get(name, ()):
                if network.get("scenario") == _language.L2:
                    found.append(everything and network.get("state") != "absent")
    except Exception:  # whatever a template of somebody else's does; the host's own task will tell
        return []
    return found


def _is_kind(uplinks: t.Sequence[bool], kind: str) -> bool:
    if kind == "l2":
        return bool(uplinks)
    if kind == "returning":
        return not all(uplinks)
    return any(uplinks) == (kind == "uplinked")


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"fleet_check": fleet_check, "fleet_hosts": fleet_hosts, "lab_uplinks": lab_uplinks}
