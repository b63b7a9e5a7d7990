# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the collection has left on a host, looked up once and only as far as it is asked about. Reads only.

A network that has no rules is declared to have none, in case it had some before. To look for them thoroughly is the
business of those who remove them; here it is only found out whether there is a reason to.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _adoption,
    _deps,
    _dhcp_unit,
    _links,
    _netlink,
    _sysctl,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files, _interfaces, _rules_files, _sections
from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import Paths
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import (
    _closed,
    _nft,
    _nft_text,
    _port_security_text,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey


class Traces:
    """What is there of networks."""

    @functools.cached_property
    def links(self) -> dict[str, _netlink.Link]:
        """Every interface by name."""
        with _netlink.Netlink() as netlink:
            return netlink.links()

    @functools.cached_property
    def tables(self) -> t.Optional[set[TableKey]]:
        """Every table of nftables; None where no program tells."""
        return _nft.tables() if _deps.find_program("nft") else None

    @functools.cached_property
    def directories(self) -> dict[str, dict[str, str]]:
        """The files of every network that lasts."""
        return {network: _files.files_of(network) for network in _files.networks()}

    @functools.cached_property
    def forwarded(self) -> set[str]:
        """The networks for which settings of the kernel were changed."""
        return set(_sysctl.Record.parse(_sysctl.read_text(_sysctl.RECORD)).needs)

    @functools.cached_property
    def served(self) -> set[str]:
        """The networks whose DHCP server has left a file."""
        found: set[str] = set()
        for directory in (Paths("").state, Paths("").runtime):
            found.update(os.path.splitext(name)[0] for name in _listed(directory))
        lasting = (name for name in _files.networks() if os.path.exists(_dhcp_unit.configuration(name)))
        return found.union(lasting)

    @functools.cached_property
    def adopted(self) -> set[str]:
        """The interfaces of which it is recorded how they were found."""
        return {os.path.splitext(name)[0] for name in _listed(_adoption.DIRECTORY)}

    @functools.cached_property
    def sections(self) -> dict[tuple[str, str], str]:
        """Kind and name of every interface that comes back after a reboot, and its network."""
        return {
            (kind, name): network
            for network, files in self.directories.items()
            for kind in ("bridge", "tap")
            for name in _sections.names(_sections.parse(files.get(_interfaces.LINKS)), kind)
        }

    def owner(self, interface: str) -> t.Optional[str]:
        """The network that an interface belongs to; None for one that is not there or not ours."""
        link = self.links.get(interface)
        return None if link is None else _links.owner_of(link.alias)

    def has_rules(self, network: str) -> bool:
        """Whether there is anything that nat_masquerade makes."""
        return (
            self.tables is None
            or _nft_text.key(network) in self.tables
            or network in self.forwarded
            or os.path.exists(_sysctl.boot_file(network))
            or any(map(_rules_files.is_of_networks, self.directories.get(network, ())))
        )

    def has_port_security(self, network: str) -> bool:
        """Whether there is a filter of ports."""
        key = _port_security_text.key(network)
        return (self.tables is not None and key in self.tables) or _rules_files.PORTS in self.directories.get(
            network, ()
        )

    def has_server(self, network: str) -> bool:
        """Whether there is anything of a DHCP server."""
        return network in self.served

    def has_interface(self, kind: str, name: str) -> bool:
        """Whether an interface is there, or comes back, or was adopted once."""
        return name in self.links or name in self.adopted or (kind, name) in self.sections

    def is_closed(self, network: str) -> bool:
        """Whether the host is closed off from a network."""
        return self.tables is not None and any(key in self.tables for key in _closed.keys(network))


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
