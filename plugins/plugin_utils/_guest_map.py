# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what lab hosts tell of themselves (C(labspan.vmnet.vmnet_info)) to the inventory's hosts and groups. Pure.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _ways
from ansible_collections.labspan.vmnet.plugins.plugin_utils._ways import Door

ALL = "vmnet_guests"

AUTO, ALWAYS, NEVER = JUMPS = ("auto", "always", "never")
FAMILIES = {"ipv4": 4, "ipv6": 6}

#: Who knows an address of a guest, best first.
SOURCES = ("lease", "agent", "neighbour", "declared")
_DECLARED = "declared"

#: The connection for guests that no packet of the controller's or the lab host's reaches.
GUEST_CONNECTION = "labspan.vmnet.guest"

#: States in which there is no process that could answer.
_SILENT = ("stopped", "broken")

_L2 = "l2"

#: What is passed on of a guest as vmnet_info tells it; the variable has the prefix vmnet_.
_FACTS = (
    "state",
    "memory",
    "cpus",
    "architecture",
    "machine",
    "firmware",
    "accelerator",
    "user",
    "unit",
    "autostart",
    "guest_agent",
    "pending_restart",
    "nics",
    "disks",
)

Data = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class LabHost:
    """A lab host: its name in the inventory, the way into it, and the variables that make its connection."""

    name: str
    door: Door
    connection: Data


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the inventory's file says about all guests."""

    jump: str = AUTO
    prefer: str = "ipv4"


@dataclasses.dataclass(frozen=True)
class Guest:
    """A host of the inventory."""

    host: str
    guest: str
    variables: Data
    groups: tuple[str, ...]
    """Those that it is in itself."""

    @property
    def identity(self) -> str:
        """A name that no other guest has."""
        return f"{self.guest}.{self.host}"


@dataclasses.dataclass(frozen=True)
class Group:
    """A group, and the one that it is part of."""

    name: str
    parent: t.Optional[str] = None


class Candidate(t.NamedTuple):
    """An address by which a guest may be reached. The least is the best."""

    far: bool
    """Not behind the lab host's bridge, as far as the host's addresses tell."""
    declared: bool
    """Nobody has seen it yet."""
    family: int
    nic: int
    source: int
    order: int
    address: str
    scenario: t.Optional[str]


def draw(host: LabHost, info: Data, settings: Settings) -> tuple[list[Group], list[Guest]]:
    """The map of one lab host: its groups, parents first, and its guests."""
    here = group_name("vmnet_host", host.name)
    groups = [Group(ALL), Group(here, ALL)]
    networks = {network["name"]: network for network in info.get("networks") or ()}
    groups += [Group(group_name(here, "network", name), here) for name in sorted(networks)]
    guests = []
    for told in sorted(info.get("guests") or (), key=lambda one: str(one["name"])):
        guest = _guest(host, told, info, networks, settings)
        groups += _groups_for(guest, here)
        guests.append(guest)
    return groups, guests


def in_order(groups: t.Iterable[Group]) -> list[Group]:
    """Each once, the map of the lab first, as it was drawn, and what goes across it after that, by name."""
    found = list(dict.fromkeys(groups))
    across = [group for group in found if group.parent is None and group.name != ALL]
    return [*(group for group in found if group not in across), *sorted(across, key=lambda group: group.name)]


def names(guests: t.Sequence[Guest], taken: t.Collection[str]) -> list[str]:
    """The name of each in the inventory: its own, followed by its host's where another has that name, too."""
    times = collections.Counter(guest.guest for guest in guests)
    return [guest.guest if times[guest.guest] == 1 and guest.guest not in taken else guest.identity for guest in guests]


def group_name(*words: str) -> str:
    """A name of a group that Ansible takes as it is."""
    return "_".join(re.sub(r"[^A-Za-z0-9_]", "_", word) for word in words)


def candidates(told: Data, info: Data, settings: Settings) -> list[Candidate]:
    """The addresses of a guest, the one to use first."""
    own = {bridge["name"]: _networks_of(bridge) for bridge in info.get("bridges") or ()}
    scenarios = {network["name"]: network.get("scenario") for network in info.get("networks") or ()}
    preferred = FAMILIES[settings.prefer]
    found = []
    for number, nic in enumerate(told.get("nics") or ()):
        scenario = scenarios.get(nic.get("network"))
        near = own.get(nic.get("bridge"), ())
        for order, entry in enumerate(nic.get("addresses") or ()):
            address = ipaddress.ip_address(entry["address"])
            source = entry.get("source")
            found.append(
                Candidate(
                    far=not any(address in network for network in near) and scenario != _L2,
                    declared=source == _DECLARED,
                    family=0 if address.version == preferred else 1,
                    nic=number,
                    source=SOURCES.index(source) if source in SOURCES else len(SOURCES),
                    order=order,
                    address=str(address),
                    scenario=scenario,
                )
            )
    return sorted(found, key=lambda one: one[:-1])


def _networks_of(bridge: Data) -> tuple[t.Any, ...]:
    found = (ipaddress.ip_interface(address) for address in bridge.get("addresses") or ())
    return tuple(address.network for address in found if not address.is_link_local)


def _guest(host: LabHost, told: Data, info: Data, networks: t.Mapping[str, Data], settings: Settings) -> Guest:
    name, nics = str(told["name"]), told.get("nics") or ()
    ways = candidates(told, info, settings)
    on = [network for network in dict.fromkeys(nic.get("network") for nic in nics) if network]
    scenarios = [str(networks[network]["scenario"]) for network in on if networks.get(network, {}).get("scenario")]
    variables = {
        "vmnet_guest": name,
        "vmnet_host": host.name,
        "vmnet_host_connection": dict(host.connection),
        **{f"vmnet_{fact}": told[fact] for fact in _FACTS if fact in told},
        "vmnet_labels": dict(told.get("labels") or {}),
        "vmnet_network_names": on,
        "vmnet_scenarios": list(dict.fromkeys(scenarios)),
        "vmnet_macs": [nic["mac"] for nic in nics if nic.get("mac")],
        "vmnet_taps": [nic["tap"] for nic in nics if nic.get("tap")],
        "vmnet_addresses": list(dict.fromkeys(one.address for one in ways)),
        **_reached(host, name, None if told.get("state") in _SILENT else ways, settings),
    }
    return Guest(host.name, name, variables, tuple(_memberships(host, told, variables)))


def _reached(host: LabHost, guest: str, ways: t.Optional[t.Sequence[Candidate]], settings: Settings) -> Data:
    """The variables by which Ansible gets to a guest. Nothing is left to its name, which others may have, too."""
    for one in ways or ():
        outside = one.scenario == _L2 and settings.jump == AUTO
        jump = not (outside or host.door.is_here or settings.jump == NEVER)
        if one.far or (jump and not host.door.leads_through):
            continue
        # Said outright: what is said of all hosts, such as the connection local, is meant for others.
        found = {"ansible_connection": "ssh", "ansible_host": one.address}
        if outside and not host.door.is_here:
            return found
        return {
            **found,
            "ansible_ssh_common_args": _ways.arguments(host.door, one.address, f"{guest}.{host.name}", jump=jump),
            "ansible_control_path": _ways.control_path(host.name, guest, one.address),
        }
    return {"ansible_connection": GUEST_CONNECTION}


def _memberships(host: LabHost, told: Data, variables: Data) -> t.Iterator[str]:
    here = group_name("vmnet_host", host.name)
    places = [_place(here, nic) for nic in told.get("nics") or () if nic.get("network") or nic.get("bridge")]
    yield from dict.fromkeys(places or [here])
    for network in variables["vmnet_network_names"]:
        yield group_name("vmnet_network", network)
    for scenario in variables["vmnet_scenarios"]:
        yield group_name("vmnet_scenario", scenario)
    yield group_name("vmnet_state", str(told.get("state") or "unknown"))
    for key, value in variables["vmnet_labels"].items():
        yield group_name("vmnet_label", str(key), *([str(value)] if value else []))


def _place(here: str, nic: Data) -> str:
    if nic.get("network"):
        return group_name(here, "network", nic["network"])
    return group_name(here, "bridge", nic["bridge"])


def _groups_for(guest: Guest, here: str) -> t.Iterator[Group]:
    for name in guest.groups:
        if name == here:
            continue
        inside = name.startswith((f"{here}_network_", f"{here}_bridge_"))
        yield Group(name, here if inside else None)
