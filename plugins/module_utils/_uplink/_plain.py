# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host whose network card no program configures at boot: made by hand, perhaps with a DHCP client that runs it now.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._dhcp_clients import Clients
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import Step


class PlainHost(Manager):
    """Moves what is there, and has no place to write it down."""

    name = "none"

    def __init__(self) -> None:
        self._clients = Clients()

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        if persistent:
            return (
                f"persistent: nothing that this collection knows configures {move.interface} at boot "
                "(systemd-networkd, netplan, NetworkManager, ifupdown), so there is no file in which the bridge would "
                "outlive a reboot. "
                f"Configure {move.interface} with one of them, or set persistent: false."
            )
        return self._clients.refusal(move)

    def leases(self, interface: str) -> bool:
        return self._clients.leases(interface)

    def before(self, move: Move) -> t.Sequence[Step]:
        return self._clients.before(move)

    def after(self, move: Move) -> t.Sequence[Step]:
        return self._clients.after(move)


def find(interface: str) -> Manager:
    """The stand-in for a manager; for any interface."""
    del interface
    return PlainHost()
