# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges, who is behind their ports, and taps, as data. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Seen
from ansible_collections.labspan.vmnet.plugins.module_utils._info._who import Who

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Link

Data = t.Dict[str, t.Any]

TAP = "tap"
UPLINK = "uplink"
OTHER = "other"

# BR_STATE_* (linux/if_bridge.h)
_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")

_MAKERS = {
    "docker": r"docker0|docker_gwbridge|br-[0-9a-f]{12}",
    "libvirt": r"virbr\d+",
    "lxc": r"lxcbr\d+",
    "lxd": r"lxdbr\d+",
    "incus": r"incusbr\d+",
    "podman": r"podman\d+|cni-podman\d+",
    "kubernetes": r"cni\d+|kube-bridge",
    "proxmox": r"vmbr\d+",
}


def is_tap(link: Link) -> bool:
    """Whether an interface is a tap."""
    return link.tun is not None and link.tun.mode == "tap"


def of_networks(seen: Seen, who: Who) -> list[str]:
    """The bridges that are ours, or that our taps and guests are on."""
    found = {name for name, link in seen.links.items() if link.kind == "bridge" and seen.owner(name) is not None}
    found |= {bridge for bridge in seen.moved if bridge in seen.links}
    for name, link in seen.links.items():
        if link.master is not None and (seen.owner(name) is not None or who.at_tap(name) is not None):
            found.add(link.master)
    return sorted(name for name in found if seen.links[name].kind == "bridge")


def maker(bridge: str) -> t.Optional[str]:
    """Whose a bridge is, by its name."""
    return next((name for name, pattern in _MAKERS.items() if re.fullmatch(pattern, bridge)), None)


def kind(seen: Seen, port: str) -> str:
    """What a port of a bridge is."""
    link = seen.links[port]
    if is_tap(link):
        return TAP
    if link.master is not None and seen.moved.get(link.master) == port:
        return UPLINK
    leads_out = link.master is not None and link.master in seen.default_interfaces.values()
    # A card has no kind; where the host's card is a veth, as in a container, the default route tells.
    return UPLINK if link.kind is None or leads_out else OTHER


def render(seen: Seen, who: Who) -> list[Data]:
    """The bridges of the networks."""
    behind: dict[str, list[str]] = {}
    for entry in seen.learnt:
        behind.setdefault(entry.port, []).append(entry.mac)
    return [_bridge(seen, who, name, behind) for name in of_networks(seen, who)]


def _bridge(seen: Seen, who: Who, name: str, behind: t.Mapping[str, t.Sequence[str]]) -> Data:
    link = seen.links[name]
    owner = seen.owner(name)
    settings = link.bridge
    return {
        "name": name,
        "network": owner,
        "by": maker(name) if owner is None else None,
        "addresses": seen.addresses_of(name, link_local=True),
        "mac": link.mac,
        "mtu": link.mtu,
        "stp": settings is not None and settings.stp != 0,
        "vlan_filtering": settings.vlan_filtering if settings is not None else None,
        "up": link.up,
        "carrier": link.carrier,
        "ports": [_port(seen, who, port, behind.get(port, ())) for port in seen.ports(name)],
    }


def _port(seen: Seen, who: Who, name: str, heard: t.Sequence[str]) -> Data:
    link = seen.links[name]
    plug = who.at_tap(name)
    macs = dict.fromkeys(([plug.nic.mac] if plug is not None else []) + sorted(heard))
    state = link.port.state if link.port is not None else 0
    return {
        "name": name,
        "kind": kind(seen, name),
        "guest": plug.guest if plug is not None else None,
        "nic": plug.number if plug is not None else None,
        "up": link.up,
        "carrier": link.carrier,
        "state": _STATES[state] if state < len(_STATES) else "disabled",
        "isolated": link.port is not None and link.port.isolated,
        "neighbours": [_neighbour(who, mac, link.master, mac in heard) for mac in macs],
    }


def _neighbour(who: Who, mac: str, bridge: t.Optional[str], heard: bool) -> Data:
    plug = who.plug(mac, bridge)
    lease = who.lease(mac, bridge)
    return {
        "mac": mac,
        "heard": heard,
        "guest": plug.guest if plug is not None else None,
        "name": lease.name if lease is not None else None,
        "addresses": list(_values.in_order(who.addresses(mac, bridge))),
        "lease": {"address": lease.address, "expires": lease.expires} if lease is not None else None,
    }


def foreign(seen: Seen, who: Who) -> list[Data]:
    """The bridges of others."""
    ours = of_networks(seen, who)
    return [
        {
            "name": name,
            "by": maker(name),
            "addresses": seen.addresses_of(name),
            "ports": seen.ports(name),
            "up": link.up,
        }
        for name, link in sorted(seen.links.items())
        if link.kind == "bridge" and name not in ours
    ]


def taps(seen: Seen, who: Who, account: t.Callable[[int], str], group: t.Callable[[int], str]) -> list[Data]:
    """The taps of networks and guests, and others on the same bridges; C(account) and C(group) name numbers."""
    ours = of_networks(seen, who)
    plugs = {guest.process.pid: guest.name for guest in seen.guests.values() if guest.process is not None}
    found = []
    for name, link in sorted(seen.links.items()):
        plug = who.at_tap(name)
        owner = seen.owner(name)
        if not is_tap(link) or link.tun is None or not (owner or plug or link.master in ours):
            continue
        holder = seen.holders.get(name)
        held = [{"pid": holder.pid, "program": holder.name, "guest": plugs.get(holder.pid)}] if holder else []
        found.append(
            {
                "name": name,
                "network": owner,
                "bridge": link.master,
                "guest": plug.guest if plug is not None else None,
                "nic": plug.number if plug is not None else None,
                "owner": account(link.tun.owner) if link.tun.owner is not None else None,
                "group": group(link.tun.group) if link.tun.group is not None else None,
                "multi_queue": link.tun.multi_queue,
                "mtu": link.mtu,
                "mac": link.mac,
                "up": link.up,
                "carrier": link.carrier,
                "holders": held,
            }
        )
    return found
