# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges and taps as the lines of C(ip -batch) that make them again. Pure.

A section begins with the line that makes the interface; all others do nothing where it is so already. The interface is
the fourth word of every line: the script looks for it there.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _bridge_state, _links
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import Bridge
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attachment
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._tap_plan import Tap

_MTU = 1500
_NOPREFIXROUTE = 0x200
_FOREVER = Address.valid

#: Settings of a bridge in the words of ip(8), which counts as the kernel does.
_WORDS = {
    "forward_delay": "forward_delay",
    "hello_time": "hello_time",
    "max_age": "max_age",
    "ageing_time": "ageing_time",
    "stp": "stp_state",
    "priority": "priority",
    "group_forward_mask": "group_fwd_mask",
    "multicast_snooping": "mcast_snooping",
    "multicast_querier": "mcast_querier",
    "vlan_filtering": "vlan_filtering",
    "vlan_default_pvid": "vlan_default_pvid",
}

#: What a kernel without bridge VLAN filtering refuses to hear of; left out where it is the kernel's own default.
_UNSAID = {"vlan_filtering": False, "vlan_default_pvid": 1}

_PORT_WORDS = {
    "hairpin": "hairpin",
    "bpdu_guard": "guard",
    "learning": "learning",
    "flooding": "flood",
    "isolated": "isolated",
}


def bridge_lines(bridge: Bridge, *, has_mtu: bool) -> list[str]:
    """The bridge with its addresses, without its ports. C(has_mtu) is whether its MTU was asked for.

    Otherwise the kernel gives it the smallest of its ports', and will do so again.
    """
    settings = {key: getattr(bridge, key) for key in _WORDS}
    words = [
        f"{_WORDS[key]} {int(value)}"
        for key, value in settings.items()
        if value is not None and _UNSAID.get(key, -1) != value
    ]
    made = " ".join(["link add name", bridge.name, "address", bridge.mac_address, "type bridge", *words])
    lines = [made, _alias(bridge.name, bridge.alias)]
    if has_mtu:
        lines.append(f"link set dev {bridge.name} mtu {bridge.mtu}")
    lines += [
        _address(address)
        for address in bridge.addresses
        if not _bridge_state.is_link_local(address) and address.valid == _FOREVER
    ]
    if bridge.enabled:
        lines.append(f"link set dev {bridge.name} up")
    return lines


def bridge_settings(bridge: Bridge) -> list[str]:
    """Settings that a bridge needs before it is up, in the form of sysctl.d(5)."""
    if bridge.ipv6 is None:
        return []
    settings = {"disable_ipv6": int(not bridge.ipv6), "accept_ra": 0}
    return [f"net/ipv6/conf/{bridge.name}/{key} = {value}" for key, value in settings.items()]


def port_lines(name: str, attachment: Attachment) -> list[str]:
    """An interface of somebody else's on a bridge of ours."""
    return [*_attached(name, attachment), f"link set dev {name} up"]


def tap_lines(tap: Tap, *, vnet_hdr: bool) -> list[str]:
    """The tap, and how it hangs on its bridge."""
    made = ["tuntap add name", tap.name, "mode tap"]
    made += [f"user {tap.owner}"] if tap.owner is not None else []
    made += [f"group {tap.group}"] if tap.group is not None else []
    made += ["multi_queue"] if tap.multi_queue else []
    made += ["vnet_hdr"] if vnet_hdr else []
    lines = [" ".join(made), _alias(tap.name, tap.alias)]
    if tap.mac_address is not None:
        lines.append(f"link set dev {tap.name} address {tap.mac_address}")
    if tap.mtu != _MTU:
        lines.append(f"link set dev {tap.name} mtu {tap.mtu}")
    if tap.attachment is not None:
        lines += _attached(tap.name, tap.attachment)
    if tap.enabled:
        lines.append(f"link set dev {tap.name} up")
    return lines


def sets_mtu(lines: t.Sequence[str]) -> bool:
    """Whether an interface's section sets its MTU."""
    return any(line.startswith("link set dev ") and line.split()[4] == "mtu" for line in lines)


def has_vnet_hdr(lines: t.Sequence[str]) -> bool:
    """Whether a tap's section makes it with the virtio header."""
    return any(line.startswith("tuntap add ") and line.endswith(" vnet_hdr") for line in lines)


def without_master(lines: t.Sequence[str], bridge: str) -> tuple[str, ...]:
    """A section without what hangs the interface on this bridge, which is gone."""
    if not any(line.endswith(f" master {bridge}") for line in lines):
        return tuple(lines)
    return tuple(line for line in lines if " master " not in line and " type bridge_slave " not in line)


def vlan_lines(name: str, vlans: t.Iterable[Vlan], *, on_bridge_itself: bool = False) -> list[str]:
    """The VLANs of a port or of a bridge itself, and no others, as the lines of C(bridge -batch)."""
    own = " self" if on_bridge_itself else ""
    kept = sorted(vlans)
    gone = _gaps([vlan.id for vlan in kept])
    lines = [f"vlan del dev {name} vid {_range(first, last)}{own}" for first, last in gone]
    for vlan in kept:
        flags = " pvid" * vlan.pvid + " untagged" * vlan.untagged
        lines.append(f"vlan add dev {name} vid {vlan.id}{flags}{own}")
    return lines


def _gaps(numbers: t.Sequence[int]) -> t.Iterator[tuple[int, int]]:
    first = 1
    for number in (*numbers, 4095):
        if first < number:
            yield first, number - 1
        first = number + 1


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _attached(name: str, attachment: Attachment) -> list[str]:
    fresh = Attachment(attachment.bridge)
    words = [
        f"{word} {'on' if getattr(attachment, key) else 'off'}"
        for key, word in _PORT_WORDS.items()
        if getattr(attachment, key) != getattr(fresh, key)
    ]
    lines = [f"link set dev {name} master {attachment.bridge}"]
    return lines + ([f"link set dev {name} type bridge_slave {' '.join(words)}"] if words else [])


def _address(address: Address) -> str:
    words = [f"address replace dev {address.interface} {address.address}"]
    if address.peer:
        words = [f"address replace dev {address.interface} {address.address.ip} peer {address.peer}"]
    if address.broadcast:
        words.append(f"broadcast {address.broadcast}")
    if address.label not in (None, address.interface):
        words.append(f"label {address.label}")
    if address.address.version == 6:
        words.append("nodad")
    if address.flags & _NOPREFIXROUTE:
        words.append("noprefixroute")
    return " ".join(words)


def _alias(name: str, alias: str) -> str:
    quote = next((quote for quote in "\"'" if quote not in alias), None)
    if quote is None or set(alias) & set("#\\"):
        raise InvalidInput(
            "alias",
            _links.note_of(alias),
            "cannot be written into a file of ip -batch, which has no way to say '#', '\\' or both kinds of quotes. "
            "Leave them out, or set persistent: false.",
        )
    return f"link set dev {name} alias {quote}{alias}{quote}"
