# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What runs the host's network card, and how it is told that a bridge has taken the card's place.

A manager (systemd-networkd, NetworkManager, ifupdown, ...) is asked three things: what to do before the burst that
moves the addresses, what to do after it, and which files make the same of the next boot. All three are plans: nothing
is done by the one that makes them.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import abc
import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import Step, WriteFile


@dataclasses.dataclass(frozen=True)
class Move:
    """What the managers are told of the move."""

    bridge: str
    interface: str
    """The network card."""
    mac: str
    """Of the bridge; the card's unless the task says otherwise."""
    mtu: int
    mode: str
    """C(move) (as the card was), C(dhcp), C(static) (with the addresses below) or C(none). Not for the way back, which
    takes all that the bridge has."""
    addresses: tuple[str, ...] = ()
    """For C(static): with prefix length."""
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    """Ports of the bridge now, other than the card; they must be ports when all is done."""
    stp: bool = False
    forward_delay: float = 0.0
    """Seconds."""
    back: bool = False
    """The way back: from the bridge to the card (C(state: absent))."""

    @property
    def source(self) -> str:
        """The interface that has the addresses before."""
        return self.bridge if self.back else self.interface

    @property
    def target(self) -> str:
        """The interface that has them afterwards."""
        return self.interface if self.back else self.bridge

    @property
    def carries_leases(self) -> bool:
        """Whether the target gets the leased addresses of the source, so that somebody must renew them there."""
        return self.back or self.mode in ("move", "dhcp")


class Manager(abc.ABC):
    """One program that runs, or configures at boot, the network card of a host."""

    #: As in the result: C(networkd), C(netplan), C(networkmanager), C(ifupdown), C(none).
    name: t.ClassVar[str]

    @abc.abstractmethod
    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        """Why this manager cannot follow the move, as a sentence with a remedy; None when it can. Reads only."""

    @abc.abstractmethod
    def leases(self, interface: str) -> bool:
        """Whether it renews the dynamic addresses of the interface, and C(before) and C(after) carry that over."""

    def before(self, move: Move) -> t.Sequence[Step]:
        """Steps right before the burst, such as to stop a DHCP client (without releasing its lease)."""
        return ()

    def after(self, move: Move) -> t.Sequence[Step]:
        """Steps right after the burst, still under the guard, such as to start the client on the bridge.

        Whatever they leave must be gone after a reboot: files in /run only.
        """
        return ()

    def files(self, move: Move) -> t.Sequence[WriteFile]:
        """What must be on the disk for the next boot, in the order of writing: after any number of them the host boots
        with a working network. The same answer when they are there already. Not asked for the way back: then the files
        that were there before the move are brought back."""
        return ()

    def settle(self, move: Move) -> t.Sequence[Step]:
        """Steps when the files are as they must be, or for the way back as they were: with no effect on the network.

        Such as to have the manager read them, and to remove what C(before) and C(after) left in /run. Asked for after
        the files were written; nothing when there is nothing to do."""
        return ()
