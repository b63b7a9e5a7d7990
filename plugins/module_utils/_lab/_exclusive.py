# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection has made on a host and a task does not list: added to what is to go.

Ours is what says so: an interface by its alias, a table by the comments of its rules, files by where they are. What has
nothing to do with the collection is not looked at, and what another program would lose by is left, with a warning.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _bridge_options,
    _dhcp_options,
    _links,
    _tap_options,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _nft, _options, _port_security_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._account_names import name_of
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import defined_guests, former_guests
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import L2, complete
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import Lab, LabNetwork
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._traces import Traces
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _record

_OURS = re.compile(r'"labspan\.vmnet:([^"]+)"')
_BRIDGE = re.compile(r'iifname "([^"]+)"')
_PREFIX, _CLOSED = "labspan_", "_closed"

#: What takes an uplink back.
_TAKE_BACK = "The role l2 with l2_state: absent, or bridge_uplink with state: absent, takes it back."


def with_leftovers(lab: Lab, traces: Traces) -> tuple[Lab, list[str]]:
    """What is wanted, and that everything else of ours is absent; and what the user is to be told of what stays."""
    search = _Search(lab, traces)
    search.links()
    search.tables()
    search.files()
    guests = sorted({*defined_guests(), *former_guests()} - {guest["name"] for guest in lab.guests})
    names = {network: LabNetwork(network, "", "", "absent") for network in sorted(search.names())}
    return (
        dataclasses.replace(
            lab,
            accounts=[*lab.accounts, *_accounts(guests)],
            bridges=[*lab.bridges, *search.items("bridges")],
            taps=[*lab.taps, *search.items("taps")],
            rules=[*lab.rules, *search.items("rules")],
            servers=[*lab.servers, *search.items("servers")],
            port_security=[*lab.port_security, *search.items("port_security")],
            guests=[*lab.guests, *_guests(guests)],
            networks={**lab.networks, **names},
        ),
        search.remarks,
    )


def uplinks_that_stay(lab: Lab) -> list[str]:
    """What is to be said of listed networks on an uplink that go."""
    return [
        f"the bridge {network.bridge} of the network {network.name} stays until the host's network card leaves it, "
        "which is not done here: the playbook site does so next, and elsewhere the role l2 with l2_state: absent, or "
        "bridge_uplink with state: absent."
        for network in lab.networks.values()
        if network.scenario == L2 and network.state == "absent" and os.path.exists(_record.path_of(network.bridge))
    ]


class _Search:
    def __init__(self, lab: Lab, traces: Traces) -> None:
        self._traces = traces
        self._listed = set(lab.networks)
        self._bridges = {each["name"] for each in lab.bridges} | {each.bridge for each in lab.networks.values()}
        """Those that are listed, and those that are found to stay."""
        self._taps = {each["name"] for each in lab.taps}
        self._found: dict[str, dict[str, Options]] = {}
        self.remarks: list[str] = []

    def items(self, kind: str) -> list[Options]:
        """What was found of a kind."""
        return [item for _name, item in sorted(self._found.get(kind, {}).items())]

    def names(self) -> set[str]:
        """The networks that were found and are not listed."""
        found = {item.get("network") or item["name"] for items in self._found.values() for item in items.values()}
        return found - self._listed

    def links(self) -> None:
        """Bridges and taps of ours, those that come back after a reboot with them."""
        for name, link in self._traces.links.items():
            network = _links.owner_of(link.alias)
            if network is not None and link.bridge is not None:
                self._bridge(name, network)
            elif network is not None and link.tun is not None:
                self._add_interface("taps", name, network)
        for (kind, name), network in self._traces.sections.items():
            self._add_interface("bridges" if kind == "bridge" else "taps", name, network)

    def tables(self) -> None:
        """Rules, filters of ports, and what closes the host off."""
        named = [key for key in self._traces.tables or () if key.name.startswith(_PREFIX)]
        unlisted = [key for key in named if self._network_named(key) not in self._listed]
        for key, listing in _nft.live(sorted(unlisted)).items():
            owners = _OURS.findall(listing)
            network = owners[0] if owners else ""
            if key == TableKey("bridge", f"{_PREFIX}{network}"):
                self._add("port_security", network, _port_security_options.OPTIONS)
            elif key == TableKey("inet", f"{_PREFIX}{network}"):
                self._add("rules", network, _options.OPTIONS)
            elif key.name == f"{_PREFIX}{network}{_CLOSED}":
                for bridge in _BRIDGE.findall(listing)[:1]:
                    self._add_interface("bridges", bridge, network)

    def files(self) -> None:
        """What settings, DHCP servers and the next boot have of networks."""
        for network in {*self._traces.forwarded, *self._traces.directories}:
            if self._traces.has_rules(network):
                self._add("rules", network, _options.OPTIONS)
            if self._traces.has_port_security(network):
                self._add("port_security", network, _port_security_options.OPTIONS)
        for network in self._traces.served:
            self._add("servers", network, _dhcp_options.OPTIONS)

    def _network_named(self, key: TableKey) -> str:
        name = key.name[len(_PREFIX) :]
        closed = name.endswith(_CLOSED) and name[: -len(_CLOSED)] in self._listed
        return name[: -len(_CLOSED)] if closed else name

    def _bridge(self, name: str, network: str) -> None:
        if name in self._bridges:
            return
        others = sorted(
            port.name for port in self._traces.links.values() if port.master == name and _is_others(port, network)
        )
        if os.path.exists(_record.path_of(name)):
            self.remarks.append(
                f"the bridge {name} of the network {network} is not listed, and stays: it has the host's network card. "
                f"{_TAKE_BACK}"
            )
            self._bridges.add(name)
        elif others and name not in self._traces.adopted:
            self.remarks.append(
                f"the bridge {name} of the network {network} is not listed, and stays, because it has ports that this "
                f"collection did not make: {', '.join(others)}. Take them off it; of an uplink, {_TAKE_BACK[0].lower()}"
                f"{_TAKE_BACK[1:]}"
            )
            self._bridges.add(name)
        else:
            self._add_interface("bridges", name, network)

    def _add_interface(self, kind: str, name: str, network: str) -> None:
        if name in (self._bridges if kind == "bridges" else self._taps):
            return
        options = _bridge_options.OPTIONS if kind == "bridges" else _tap_options.OPTIONS
        item = complete(options, {"name": name, "network": network, "state": "absent"})
        self._found.setdefault(kind, {}).setdefault(name, item)

    def _add(self, kind: str, network: str, options: Options) -> None:
        if network not in self._listed:
            item = complete(options, {"name": network, "state": "absent"})
            self._found.setdefault(kind, {}).setdefault(network, item)


def _is_others(port: Link, network: str) -> bool:
    """Whether a port of a bridge of this network is another program's; a tap of ours goes with what it belongs to."""
    owner = _links.owner_of(port.alias)
    return owner is None or (port.tun is None and owner != network)


def _guests(names: t.Sequence[str]) -> list[Options]:
    if not names:
        return []
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _options as _guest_options

    return [complete(_guest_options.OPTIONS, {"name": name, "state": "absent"}) for name in names]


def _accounts(guests: t.Sequence[str]) -> list[Options]:
    """Those that were made for the guests; one of the same name that was not is none of ours."""
    found = []
    for guest in guests:
        try:
            entry = pwd.getpwnam(name_of(guest))
        except KeyError:
            continue
        if entry.pw_gecos == f"guest {guest} of labspan.vmnet":
            found.append({"name": guest, "state": "absent"})
    return found
