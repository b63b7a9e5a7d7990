# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which addresses guests have: what the host knows of them, and what answers on the wire.

The host knows from the leases of its DHCP servers, from its neighbour table, and from the agents in guests. All of that
may be of yesterday, so what somebody waits for is asked on the wire, and the answer must come from the guest's MAC
address. Link-local addresses are no addresses here, since every guest has one.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import glob
import ipaddress
import json
import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _dhcp_unit, _dnsmasq
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Link, Neighbour, Netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _reach
from ansible_collections.labspan.vmnet.plugins.module_utils._values import counts, in_order

Addresses = t.Mapping[str, t.Tuple[str, ...]]
"""MAC address -> addresses."""

_MOST_DECLARED = 64
_TOKEN = re.compile(r"[0-9A-Fa-f:.]{3,45}")

_AGENT_TIMEOUT = 1.0


class Lease(t.NamedTuple):
    """A lease of one of the host's DHCP servers."""

    bridge: t.Optional[str]
    """None when the server's configuration does not tell any more."""
    mac: str
    address: str


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What the host knows, read in one go."""

    links: t.Mapping[str, Link]
    own: t.Sequence[Address]
    neighbours: t.Sequence[Neighbour]
    leases: t.Sequence[Lease]

    def segment(self, nic: Nic) -> t.Optional[str]:
        """The interface on which the NIC's neighbours are: the bridge of its tap, or the tap."""
        if nic.tap is None:
            return None
        link = self.links.get(nic.tap)
        return (link.master if link is not None else nic.bridge) or nic.tap

    def of(self, nic: Nic) -> list[str]:
        """The addresses of a NIC, as far as the host knows; leases first."""
        segment = self.segment(nic)
        if segment is None:
            return []
        found = [lease.address for lease in self.leases if lease.mac == nic.mac and lease.bridge in (None, segment)]
        found += [one.address for one in self.neighbours if one.mac == nic.mac and one.interface == segment]
        return [address for address in dict.fromkeys(found) if counts(address)]


def look(*, own: bool = True) -> Knowledge:
    """Read what the host knows; its own addresses are needed only to ask."""
    with Netlink() as netlink:
        links = netlink.links()
        return Knowledge(links, netlink.addresses() if own else (), netlink.neighbours(), list(_leases()))


def known(specs: t.Iterable[GuestSpec]) -> dict[str, Addresses]:
    """Guest -> the addresses of its NICs, from everything that can be asked without waiting. For running guests."""
    guests = list(specs)
    knowledge = look(own=False) if any(nic.tap is not None for spec in guests for nic in spec.nics) else None
    return {spec.name: _known(spec, knowledge) for spec in guests if spec.nics}


def _known(spec: GuestSpec, knowledge: t.Optional[Knowledge]) -> Addresses:
    told = from_agent(spec) if spec.guest_agent else {}
    found = {}
    for nic in spec.nics:
        addresses = [*(knowledge.of(nic) if knowledge is not None else ()), *told.get(nic.mac, ())]
        found[nic.mac] = in_order(addresses)
    return found


def from_agent(spec: GuestSpec) -> dict[str, list[str]]:
    """MAC address -> addresses, by the word of the agent; nothing when none is there."""
    if not _agent.is_listening(spec.name, timeout=_AGENT_TIMEOUT):
        return {}
    try:
        with _agent.Agent(spec.name, timeout=_AGENT_TIMEOUT) as agent:
            interfaces = agent.interfaces()
    except LabspanError:
        return {}
    found: dict[str, list[str]] = collections.defaultdict(list)
    for interface in interfaces:
        if interface.mac is not None:
            addresses = [address.partition("/")[0] for address in interface.addresses]
            found[interface.mac] += [address for address in addresses if counts(address)]
    return dict(found)


def declared(network_config: t.Any) -> tuple[str, ...]:
    """Every address that is in a network configuration, as data or text, whatever for.

    Routers and name servers are among them, and what is no address of the guest does not answer from its MAC address.
    """
    text = network_config if isinstance(network_config, str) else json.dumps(network_config or {})
    found = [_canonical(token) for token in _TOKEN.findall(text)]
    return tuple(dict.fromkeys(address for address in found if address and counts(address)))[:_MOST_DECLARED]


def answering(knowledge: Knowledge, segment: str, candidates: t.Collection[str], *, timeout: float) -> dict[str, str]:
    """Those of the addresses that answer on this segment -> the MAC address of who answers."""
    sources = choose_sources(candidates, [one.address for one in knowledge.own if one.interface == segment])
    # Asked by nobody, an IPv6 address would take the question for a sign that it is taken (RFC 4862, section 5.4.3).
    asked = [address for address in candidates if address in sources or ipaddress.ip_address(address).version == 4]
    if not asked:
        return {}
    return _reach.owners(segment, asked, sources=sources, timeout=timeout)


def choose_sources(candidates: t.Iterable[str], own: t.Sequence[t.Any]) -> dict[str, str]:
    """From which of the host's addresses each is asked.

    An IPv4 one from the same network only: a guest does not answer to a stranger whom it could not reach.
    """
    found = {}
    for candidate in candidates:
        target = ipaddress.ip_address(candidate)
        same = [one for one in own if one.version == target.version]
        near = [one for one in same if target in one.network]
        if target.version == 6:
            near += [one for one in same if one.ip.is_link_local]
        if near:
            found[candidate] = str(near[0].ip)
    return found


def _canonical(token: str) -> t.Optional[str]:
    try:
        return str(ipaddress.ip_address(token.strip(".:") if "::" not in token else token))
    except ValueError:
        return None


def _leases() -> t.Iterator[Lease]:
    """The leases of all networks that have not run out."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    for path in sorted(glob.glob(glob.escape(_dnsmasq.Paths("").state) + "/*.leases")):
        network = os.path.basename(path)[: -len(".leases")]
        places = (_dnsmasq.Paths(network).configuration, _dhcp_unit.configuration(network))
        bridge = next(filter(None, (_dnsmasq.bridge_of(_read(path)) for path in places)), None)
        for lease in _dnsmasq.parse_leases(_read(path)):
            if lease.expires is None or lease.expires > now:
                yield Lease(bridge, lease.mac, lease.address)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
