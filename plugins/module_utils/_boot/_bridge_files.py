# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges that last.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _interfaces, _link_text
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._interfaces import (
    LINKS,
    SETTINGS,
    VLANS,
    Edit,
    InterfaceFiles,
    Item,
    KeepOff,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import Directories
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_plan import WantedBridge
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import Bridge, Closed, closed_bridges
from ansible_collections.labspan.vmnet.plugins.module_utils._bridges import Bridges, BridgesState
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

#: What closes the host off on a bridge.
CLOSED = "closed.nft"


def lasting(bridges: Bridges, options: t.Sequence[Options]) -> list[Resource[t.Any]]:
    """Bridges between what has to be told before them, and what is written after them for the next boot."""
    items = items_of(bridges, options)
    return [KeepOff(("bridge", items)), bridges, BridgeFiles(bridges, items)]


def items_of(bridges: Bridges, options: t.Sequence[Options]) -> t.Callable[[], t.Sequence[Item]]:
    """What the options say about the lasting of the bridges, found out when it is first asked for."""
    return functools.cache(lambda: _interfaces.lasting_items("bridge", bridges.wanted(), options))


class BridgeFiles(InterfaceFiles):
    """The sections of bridges, of ports that are not ours, and what closes the host off."""

    def __init__(self, bridges: Bridges, items: t.Callable[[], t.Sequence[Item]]) -> None:
        super().__init__(items)
        self._bridges = bridges

    def contribute(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> Directories:
        state = t.cast(BridgesState, ahead[self._bridges.plural])
        edit = Edit(directories)
        closed: dict[str, Closed] = {}
        for want, item in zip(self._bridges.wanted(), self._items()):
            bridge = state.bridges.get(want.name)
            if bridge is None or not want.present or not edit.lasts("bridge", item):
                _take_out(edit, want)
                now: t.Optional[Closed] = ()
            else:
                _put_in(edit, want, bridge, {port for port in bridge.ports if state.links[port].tun is None})
                now = bridge.closed
            if now:
                closed[want.network] = now
            elif now is not None and _closes(directories.get(want.network, {}).get(CLOSED, ""), want.name):
                closed.setdefault(want.network, ())  # unless another bridge of the network is closed now
        files = edit.result(self._networks())
        for network, text in closed.items():
            files[network].pop(CLOSED, None)
            files[network].update({CLOSED: _closed_text(network, text)} if text else {})
        return files


def _put_in(edit: Edit, want: WantedBridge, bridge: Bridge, others: t.Collection[str]) -> None:
    heading = f"bridge {want.name}"
    edit.drop_elsewhere(want.network, heading)
    links = edit.sections(want.network, LINKS)
    has_mtu = "mtu" in want.settings or _link_text.sets_mtu(links.get(heading, ()))
    links[heading] = tuple(_link_text.bridge_lines(bridge, has_mtu=has_mtu))
    edit.sections(want.network, SETTINGS)[heading] = tuple(_link_text.bridge_settings(bridge))
    vlans = edit.sections(want.network, VLANS)
    if want.vlans is not None:
        vlans[heading] = tuple(_link_text.vlan_lines(want.name, want.vlans, on_bridge_itself=True))
    kept = [port for port in others if port in (want.ports or ()) or f"port {port}" in links]
    for port in _ports_in(edit, want):
        if port not in kept:
            edit.drop(want.network, f"port {port}")
    for port in kept:
        links[f"port {port}"] = tuple(_link_text.port_lines(port, bridge.ports[port]))
        if port in want.port_vlans:
            vlans[f"port {port}"] = tuple(_link_text.vlan_lines(port, want.port_vlans[port]))


def _take_out(edit: Edit, want: WantedBridge) -> None:
    for port in _ports_in(edit, want):
        edit.drop(want.network, f"port {port}")
    edit.drop(want.network, f"bridge {want.name}")
    if not want.present:
        links = edit.sections(want.network, LINKS)
        links.update({heading: _link_text.without_master(lines, want.name) for heading, lines in links.items()})


def _ports_in(edit: Edit, want: WantedBridge) -> list[str]:
    return [
        heading.split(" ", 1)[1]
        for heading, lines in edit.sections(want.network, LINKS).items()
        if heading.startswith("port ") and any(line.endswith(f" master {want.name}") for line in lines)
    ]


def _closes(text: str, bridge: str) -> bool:
    return bool(text) and closed_bridges([text]) <= {bridge}


def _closed_text(network: str, closed: Closed) -> str:
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _closed

    return (
        f"# Closes the host off from the network {network}. Made by labspan.vmnet.\n{_closed.script(network, closed)}"
    )
