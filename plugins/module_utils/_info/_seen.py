# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was read of a host, before anything is made of it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _links
from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import Lease

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._counted import Rules
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition
    from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Learnt, Link, Neighbour
    from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
    from ansible_collections.labspan.vmnet.plugins.module_utils._tun import Holder


@dataclasses.dataclass(frozen=True)
class Server:
    """What there is of a network's DHCP server; the texts are empty where there is no file."""

    network: str
    configuration: str = ""
    configuration_file: str = ""
    reservations: str = ""
    leases: tuple[Lease, ...] = ()
    """Those that have not run out."""
    lease_file: str = ""
    process: t.Optional[Process] = None
    unit: t.Optional[str] = None
    bridge: t.Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Guest:
    """What there is of a guest."""

    name: str
    definition: t.Optional[Definition] = None
    process: t.Optional[Process] = None
    as_defined: bool = True
    run_state: t.Optional[str] = None
    """QEMU's own word; None without a process."""
    hidden: bool = False
    """Whether a process of it could not be seen if there were one."""
    told: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """MAC address -> addresses, by the word of its agent."""
    enabled: bool = False
    """Whether its unit starts at boot."""
    sizes: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Path of an image -> the bytes that it takes."""


@dataclasses.dataclass(frozen=True)
class Files:
    """What of a network comes back at boot."""

    paths: tuple[str, ...] = ()
    unit: t.Optional[str] = None
    """Set when it is enabled."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """All that was read; what was not asked for, or could not be read, is empty."""

    links: t.Mapping[str, Link] = dataclasses.field(default_factory=dict)
    addresses: t.Sequence[Address] = ()
    default_interfaces: t.Mapping[int, t.Optional[str]] = dataclasses.field(default_factory=dict)
    """IP version -> the interface of the default route."""
    neighbours: t.Sequence[Neighbour] = ()
    learnt: t.Sequence[Learnt] = ()
    holders: t.Mapping[str, Holder] = dataclasses.field(default_factory=dict)
    servers: t.Mapping[str, Server] = dataclasses.field(default_factory=dict)
    """By network."""
    guests: t.Mapping[str, Guest] = dataclasses.field(default_factory=dict)
    rules: t.Optional[Rules] = None
    """None when nobody could tell."""
    files: t.Mapping[str, Files] = dataclasses.field(default_factory=dict)
    """By network."""
    moved: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Bridge -> the card whose place it took for good."""
    forwarding: t.Mapping[int, t.Any] = dataclasses.field(default_factory=dict)
    """IP version -> whether all of the host forwards, and the interfaces on which it does."""
    bridge_netfilter: t.Collection[int] = ()
    """The IP versions whose rules see what passes from port to port of a bridge."""
    systemd: bool = False

    def owner(self, interface: str) -> t.Optional[str]:
        """The network whose interface this is, by its mark."""
        link = self.links.get(interface)
        return _links.owner_of(link.alias) if link is not None else None

    def ports(self, bridge: str) -> list[str]:
        """The ports of a bridge, by name."""
        return sorted(name for name, link in self.links.items() if link.master == bridge)

    def addresses_of(self, interface: str, *, link_local: bool = False) -> list[str]:
        """The addresses of an interface as CIDR, IPv4 first."""
        found = [one.address for one in self.addresses if one.interface == interface]
        kept = [address for address in found if link_local or not (address.version == 6 and address.ip.is_link_local)]
        return [str(address) for address in sorted(kept, key=lambda address: address.version)]
