# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What goes in a task that also makes things: the same resources under names of their own, planned before what comes.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _dhcp, _links, _taps
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_plan import WantedBridge
from ansible_collections.labspan.vmnet.plugins.module_utils._bridges import Bridges, BridgesState
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _networks, _port_security
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Remark


class RemovedBridges(Bridges):
    """Bridges of networks that go."""

    plural: t.ClassVar[str] = "removed_bridges"

    def __init__(self, bridges: t.Sequence[Options], *, check_mode: bool, coming: t.Collection[str]) -> None:
        """C(coming) are bridges that are made in the same task: one that has been made is not the one that went."""
        super().__init__(bridges, check_mode=check_mode)
        self._coming = coming

    def plan(self, have: BridgesState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        wanted, self._wanted = self._wanted, [want for want in self._wanted if not self._is_new(want, have)]
        try:
            return super().plan(have, ahead)
        finally:
            self._wanted = wanted

    def _is_new(self, want: WantedBridge, have: BridgesState) -> bool:
        bridge = have.bridges.get(want.name)
        return bridge is not None and want.name in self._coming and _links.owner_of(bridge.alias) != want.network


class RemovedTaps(_taps.TapDevices):
    """Taps of networks and guests that go."""

    plural: t.ClassVar[str] = "removed_taps"


class Rules(_networks.Networks):
    """What nat_masquerade calls networks."""

    plural: t.ClassVar[str] = "rules"


class RemovedRules(_networks.Networks):
    """Rules of networks that go, or have none any more."""

    plural: t.ClassVar[str] = "removed_rules"


class PortSecurity(_port_security.PortSecurity):
    """What port_security calls networks."""

    plural: t.ClassVar[str] = "port_security"


class RemovedPortSecurity(_port_security.PortSecurity):
    """Filters of networks that go, or have none any more."""

    plural: t.ClassVar[str] = "removed_port_security"


class Servers(_dhcp.Servers):
    """DHCP servers, whose options are those of a network."""

    def _where(self, index: int) -> str:
        return f"network {self._wishes[index].name}: dhcp."


class RemovedServers(Servers):
    """DHCP servers of networks that go, or have none any more."""

    plural: t.ClassVar[str] = "removed_servers"


class Remarks(Remark):
    """What the user is told of what stays."""

    plural: t.ClassVar[str] = "remarks"

    def __init__(self, sentences: t.Sequence[str]) -> None:
        super().__init__()
        self._sentences = sentences

    def plan(self, have: None, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        self.warnings.extend(self._sentences)
        return []
