# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only speaker of netlink: links, addresses and routes, read in whole dumps and written in batches.

Requests are made of pyroute2's message classes; what comes back is taken apart by _rtnetlink.py.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import sys
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _foresight, _rtnetlink
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import (
    AF_INET,
    AF_INET6,
    MAIN_TABLE,
    Address,
    BridgeInfo,
    Learnt,
    Link,
    Neighbour,
    PortInfo,
    Route,
    TunInfo,
    Vlan,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Refusal,
    Wire,
    pack_attributes,
)

__all__ = [
    "AF_INET",
    "AF_INET6",
    "MAIN_TABLE",
    "Address",
    "BridgeInfo",
    "Learnt",
    "Link",
    "Neighbour",
    "Netlink",
    "PortInfo",
    "Refusal",
    "Request",
    "Route",
    "TunInfo",
    "Vlan",
]

_AF_BRIDGE = 7
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_RTM_SETLINK = 19
_RTM_NEWADDR = 20
_RTM_DELADDR = 21
_RTM_GETADDR = 22
_RTM_GETROUTE = 26
_RTM_GETNEIGH = 30
_IFLA_EXT_MASK = 29
_IFF_UP = 0x1
_RTEXT_FILTER_BRVLAN = 0x2
_RTEXT_FILTER_SKIP_STATS = 0x8
_IFA_F_NODAD = 0x2
_IFA_F_KEPT = 0x2 | 0x4 | 0x100 | 0x200 | 0x400  # nodad, optimistic, mngtmpaddr, noprefixroute, autojoin
_BRIDGE_FLAGS_SELF = 2
_VLAN_PVID = 0x2
_VLAN_UNTAGGED = 0x4
_FOREVER = 0xFFFFFFFF


# What is asked is a header of zeros, so that a host that is only looked at needs no pyroute2, nor its time.
_ANY_ADDRESS = bytes(8)
_ANY_ROUTE = bytes(12)
_ANY_NEIGHBOUR = bytes(12)


class Request(t.NamedTuple):
    """A request to change something, not yet sent."""

    kind: int
    flags: int
    message: t.Any


class Netlink:
    """A conversation with the kernel's rtnetlink in this network namespace; the socket opens with the first request."""

    def __init__(self) -> None:
        self._wire = Wire()
        self._names: t.Optional[dict[int, str]] = None

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket; the next request opens another."""
        self._wire.close()

    def links(self) -> dict[str, Link]:
        """Every interface by name."""
        world = _foresight.world()
        return self._read_links() if world is None else world.links(self._read_links)

    def addresses(self) -> list[Address]:
        """Every address of every interface, in the kernel's order."""
        world = _foresight.world()
        return self._read_addresses() if world is None else world.addresses(self._read_addresses)

    def routes(self) -> list[Route]:
        """Every unicast route of every table."""
        world = _foresight.world()
        return self._read_routes() if world is None else world.routes(self._read_routes)

    def _read_links(self) -> dict[str, Link]:
        request = _any_link(_RTEXT_FILTER_SKIP_STATS)
        found = [_rtnetlink.parse_link_header(reply) for reply in self._dump("links", _RTM_GETLINK, request)]
        names = {
            index: _rtnetlink.parse_text(attributes[_rtnetlink.IFLA_IFNAME]) for index, _flags, attributes in found
        }
        self._names = names
        links = (_rtnetlink.parse_link(index, flags, attributes, names) for index, flags, attributes in found)
        return {link.name: link for link in links}

    def _read_addresses(self) -> list[Address]:
        names = self._known_names()
        replies = self._dump("addresses", _RTM_GETADDR, _ANY_ADDRESS)
        return [address for reply in replies for address in _rtnetlink.parse_addresses(reply, names)]

    def _read_routes(self) -> list[Route]:
        names = self._known_names()
        replies = self._dump("routes", _RTM_GETROUTE, _ANY_ROUTE)
        return [route for reply in replies for route in _rtnetlink.parse_routes(reply, names)]

    def neighbours(self) -> list[Neighbour]:
        """Every neighbour whose MAC address the kernel knows, or knew until lately."""
        names = self._known_names()
        replies = self._dump("neighbours", _RTM_GETNEIGH, _ANY_NEIGHBOUR)
        return [neighbour for reply in replies for neighbour in _rtnetlink.parse_neighbours(reply, names)]

    def learnt(self) -> list[Learnt]:
        """What all bridges have learnt of who is behind their ports: their forwarding databases."""
        names = self._known_names()
        request = bytes([_AF_BRIDGE]) + _ANY_NEIGHBOUR[1:]
        replies = self._dump("forwarding databases", _RTM_GETNEIGH, request)
        return [entry for reply in replies for entry in _rtnetlink.parse_learnt(reply, names)]

    def vlans(self) -> dict[str, frozenset[Vlan]]:
        """The VLANs of every bridge and port; empty where the kernel has no bridge VLAN filtering."""
        world = _foresight.world()
        return self._read_vlans() if world is None else dict(world.dump("vlans", self._read_vlans))

    def _read_vlans(self) -> dict[str, frozenset[Vlan]]:
        names = self._known_names()
        request = _any_link(_RTEXT_FILTER_BRVLAN, family=_AF_BRIDGE)
        found: dict[str, frozenset[Vlan]] = {}
        for reply in self._dump("VLANs", _RTM_GETLINK, request):
            index, _flags, _attributes = _rtnetlink.parse_link_header(reply)
            vlans = _rtnetlink.parse_vlans(reply)
            if vlans and index in names:
                found[names[index]] = vlans
        return found

    def default_interface(self, family: int) -> t.Optional[str]:
        """The interface of the main table's default route with the lowest metric (C(AF_INET), C(AF_INET6))."""
        return _default_interface(self.routes(), family)

    def default_interfaces(self) -> dict[int, t.Optional[str]]:
        """The same by IP version, 4 and 6, read at once."""
        routes = self.routes()
        return {4: _default_interface(routes, AF_INET), 6: _default_interface(routes, AF_INET6)}

    def send(self, requests: t.Sequence[Request]) -> list[t.Optional[Refusal]]:
        """Send the requests with as few system calls as their acknowledgements allow; the answer to each, in order.

        The kernel goes on after a request that it refuses.
        """
        return self._wire.send([Message(request.kind, request.flags, _encode(request.message)) for request in requests])

    def _known_names(self) -> dict[int, str]:
        world = _foresight.world()
        if world is not None:
            return {link.index: link.name for link in world.dump("links", self._read_links).values()}
        if self._names is None:
            self._read_links()
        return self._names or {}

    def _dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        return self._wire.dump(what, kind, body)


def _default_interface(routes: t.Iterable[Route], family: int) -> t.Optional[str]:
    defaults = [
        route
        for route in routes
        if route.family == family and route.table == MAIN_TABLE and route.destination is None and route.interface
    ]
    return min(defaults, key=lambda route: route.metric).interface if defaults else None


def create_bridge(name: str, mac: str) -> Request:
    """A bridge, down and with the kernel's defaults but for its address; an interface of that name is an error.

    udev would give an address of its own to one that has the kernel's, if only for a moment.
    """
    kind = {"attrs": [("IFLA_INFO_KIND", "bridge")]}
    attrs = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_LINKINFO", kind)]
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _message("link", attrs=attrs))


def set_link(
    name: str,
    *,
    up: t.Optional[bool] = None,
    mtu: t.Optional[int] = None,
    mac: t.Optional[str] = None,
    alias: t.Optional[str] = None,
    group: t.Optional[int] = None,
    master: t.Optional[int] = None,
) -> Request:
    """Settings that every interface has; C(master) is the bridge's index, 0 for none."""
    wanted = {
        "IFLA_IFNAME": name,
        "IFLA_MTU": mtu,
        "IFLA_ADDRESS": mac,
        "IFLA_IFALIAS": alias,
        "IFLA_GROUP": group,
        "IFLA_MASTER": master,
    }
    attrs = [(attribute, value) for attribute, value in wanted.items() if value is not None]
    flags = {} if up is None else {"flags": _IFF_UP if up else 0, "change": _IFF_UP}
    return Request(_RTM_NEWLINK, 0, _message("link", attrs=attrs, **flags))


#: Setting of a bridge -> the attribute that carries it.
BRIDGE_ATTRIBUTES = {
    "forward_delay": "IFLA_BR_FORWARD_DELAY",
    "hello_time": "IFLA_BR_HELLO_TIME",
    "max_age": "IFLA_BR_MAX_AGE",
    "ageing_time": "IFLA_BR_AGEING_TIME",
    "stp": "IFLA_BR_STP_STATE",
    "priority": "IFLA_BR_PRIORITY",
    "vlan_filtering": "IFLA_BR_VLAN_FILTERING",
    "group_forward_mask": "IFLA_BR_GROUP_FWD_MASK",
    "multicast_snooping": "IFLA_BR_MCAST_SNOOPING",
    "multicast_querier": "IFLA_BR_MCAST_QUERIER",
    "vlan_default_pvid": "IFLA_BR_VLAN_DEFAULT_PVID",
}

#: Setting of a port -> the attribute that carries it.
PORT_ATTRIBUTES = {
    "hairpin": "IFLA_BRPORT_MODE",
    "bpdu_guard": "IFLA_BRPORT_GUARD",
    "learning": "IFLA_BRPORT_LEARNING",
    "flooding": "IFLA_BRPORT_UNICAST_FLOOD",
    "isolated": "IFLA_BRPORT_ISOLATED",
}


def set_bridge(name: str, settings: t.Mapping[str, int]) -> Request:
    """Settings of a bridge by the names of C(BRIDGE_ATTRIBUTES), in the kernel's units."""
    attrs = [(BRIDGE_ATTRIBUTES[setting], int(value)) for setting, value in settings.items()]
    info = [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": attrs})]
    message = _message("link", attrs=[("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})])
    return Request(_RTM_NEWLINK, 0, message)


def set_port(name: str, settings: t.Mapping[str, bool]) -> Request:
    """Settings of a bridge's port by the names of C(PORT_ATTRIBUTES); the interface must be a port already."""
    attrs = [(PORT_ATTRIBUTES[setting], int(value)) for setting, value in settings.items()]
    info = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": attrs})]
    message = _message("port", attrs=[("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})])
    return Request(_RTM_NEWLINK, 0, message)


def delete_link(name: str) -> Request:
    """The end of one interface, whoever holds it."""
    return Request(_RTM_DELLINK, 0, _message("link", attrs=[("IFLA_IFNAME", name)]))


def delete_group(group: int) -> Request:
    """The end of every interface of a group, of whatever kind: the kernel does not look at the type."""
    return Request(_RTM_DELLINK, 0, _message("link", attrs=[("IFLA_GROUP", group)]))


def add_address(address: Address, index: int) -> Request:
    """Put an address on the interface with this index; one that is there is brought to these lifetimes and flags."""
    attrs: list[tuple[str, t.Any]] = [*_address_attributes(address), ("IFA_FLAGS", address.flags & _IFA_F_KEPT)]
    if address.label:
        attrs.append(("IFA_LABEL", address.label))
    if address.broadcast:
        attrs.append(("IFA_BROADCAST", address.broadcast))
    if (address.valid, address.preferred) != (_FOREVER, _FOREVER):
        lifetimes = {"ifa_preferred": address.preferred, "ifa_valid": address.valid, "cstamp": 0, "tstamp": 0}
        attrs.append(("IFA_CACHEINFO", lifetimes))
    return Request(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address_message(address, index, attrs))


def remove_address(address: Address, index: int) -> Request:
    """Take an address off the interface with this index."""
    return Request(_RTM_DELADDR, 0, _address_message(address, index, _address_attributes(address)))


def new_address(interface: str, address: t.Any) -> Address:
    """An address as C(ip address add) makes it, except that an IPv6 address is usable at once.

    A bridge has no carrier before its first port is there, and without carrier duplicate address detection never ends:
    nothing could be bound to the address.
    """
    flags = 0x80 if address.version == 4 else 0x80 | _IFA_F_NODAD
    label = interface if address.version == 4 else None
    return Address(interface=interface, address=address, flags=flags, label=label)


def change_vlans(index: int, vlans: t.Iterable[Vlan], *, present: bool, on_bridge_itself: bool) -> list[Request]:
    """Add VLANs to a port or to the bridge itself, or take them away; one request for all."""
    attrs = [
        ("IFLA_BRIDGE_VLAN_INFO", {"flags": _VLAN_PVID * vlan.pvid | _VLAN_UNTAGGED * vlan.untagged, "vid": vlan.id})
        for vlan in sorted(vlans)
    ]
    if not attrs:
        return []
    target = [("IFLA_BRIDGE_FLAGS", _BRIDGE_FLAGS_SELF)] if on_bridge_itself else []
    message = _message("vlans", family=_AF_BRIDGE, index=index, attrs=[("IFLA_AF_SPEC", {"attrs": target + attrs})])
    return [Request(_RTM_SETLINK if present else _RTM_DELLINK, 0, message)]


def _address_attributes(address: Address) -> list[tuple[str, t.Any]]:
    local = str(address.address.ip)
    return [("IFA_LOCAL", local), ("IFA_ADDRESS", address.peer or local)]


def _address_message(address: Address, index: int, attrs: list[tuple[str, t.Any]]) -> t.Any:
    return _message(
        "address",
        family=address.family,
        prefixlen=address.address.network.prefixlen,
        flags=0,
        scope=address.scope,
        index=index,
        attrs=attrs,
    )


def _any_link(extended: int, *, family: int = 0) -> bytes:
    mask = pack_attributes([(_IFLA_EXT_MASK, extended.to_bytes(4, sys.byteorder))])
    return _rtnetlink.LINK_HEADER.pack(family, 0, 0, 0, 0) + mask


def _message(kind: str, attrs: t.Sequence[t.Any] = (), **fields: int) -> t.Any:
    message = _message_classes()[kind]()
    message.update(fields)
    message["attrs"] = list(attrs)
    return message


def _encode(message: t.Any) -> bytes:
    message.reset()
    message.encode()
    return bytes(message.data)[HEADER.size :]


@functools.cache
def _message_classes() -> dict[str, t.Any]:
    """pyroute2's message classes, with just the attributes that are written here."""
    netlink = _deps.pyroute2_netlink()

    def nested(name: str, *attributes: tuple[int, str, str], **inner: t.Any) -> t.Any:
        return type(
            name, (netlink.nla,), {"prefix": attributes[0][1].rsplit("_", 1)[0] + "_", "nla_map": attributes, **inner}
        )

    bridge = nested(
        "bridge",
        (1, "IFLA_BR_FORWARD_DELAY", "uint32"),
        (2, "IFLA_BR_HELLO_TIME", "uint32"),
        (3, "IFLA_BR_MAX_AGE", "uint32"),
        (4, "IFLA_BR_AGEING_TIME", "uint32"),
        (5, "IFLA_BR_STP_STATE", "uint32"),
        (6, "IFLA_BR_PRIORITY", "uint16"),
        (7, "IFLA_BR_VLAN_FILTERING", "uint8"),
        (9, "IFLA_BR_GROUP_FWD_MASK", "uint16"),
        (23, "IFLA_BR_MCAST_SNOOPING", "uint8"),
        (25, "IFLA_BR_MCAST_QUERIER", "uint8"),
        (39, "IFLA_BR_VLAN_DEFAULT_PVID", "uint16"),
    )
    port = nested(
        "port",
        (4, "IFLA_BRPORT_MODE", "uint8"),
        (5, "IFLA_BRPORT_GUARD", "uint8"),
        (8, "IFLA_BRPORT_LEARNING", "uint8"),
        (9, "IFLA_BRPORT_UNICAST_FLOOD", "uint8"),
        (33, "IFLA_BRPORT_ISOLATED", "uint8"),
    )
    bridge_info = nested("info", (1, "IFLA_INFO_KIND", "asciiz"), (2, "IFLA_INFO_DATA", "bridge"), bridge=bridge)
    port_info = nested("info", (4, "IFLA_INFO_SLAVE_KIND", "asciiz"), (5, "IFLA_INFO_SLAVE_DATA", "port"), port=port)
    vlan_info = type("vlan", (netlink.nla,), {"fields": (("flags", "H"), ("vid", "H"))})
    vlan_set = nested("spec", (0, "IFLA_BRIDGE_FLAGS", "uint16"), (2, "IFLA_BRIDGE_VLAN_INFO", "vlan"), vlan=vlan_info)
    cache_info = type(
        "cacheinfo",
        (netlink.nla,),
        {"fields": (("ifa_preferred", "I"), ("ifa_valid", "I"), ("cstamp", "I"), ("tstamp", "I"))},
    )
    link_fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    link_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (10, "IFLA_MASTER", "uint32"),
        (18, "IFLA_LINKINFO", "info"),
        (20, "IFLA_IFALIAS", "asciiz"),
        (26, "IFLA_AF_SPEC", "spec"),
        (27, "IFLA_GROUP", "uint32"),
    )
    link_message = {"prefix": "IFLA_", "fields": link_fields, "nla_map": link_map, "spec": vlan_set}
    address_message = {
        "prefix": "IFA_",
        "fields": (("family", "B"), ("prefixlen", "B"), ("flags", "B"), ("scope", "B"), ("index", "I")),
        "nla_map": (
            (1, "IFA_ADDRESS", "ipaddr"),
            (2, "IFA_LOCAL", "ipaddr"),
            (3, "IFA_LABEL", "asciiz"),
            (4, "IFA_BROADCAST", "ipaddr"),
            (6, "IFA_CACHEINFO", "cacheinfo"),
            (8, "IFA_FLAGS", "uint32"),
        ),
        "cacheinfo": cache_info,
    }
    return {
        "link": type("link_message", (netlink.nlmsg,), {**link_message, "info": bridge_info}),
        "port": type("port_message", (netlink.nlmsg,), {**link_message, "info": port_info}),
        "vlans": type("vlan_message", (netlink.nlmsg,), {**link_message, "info": bridge_info}),
        "address": type("address_message", (netlink.nlmsg,), address_message),
    }
