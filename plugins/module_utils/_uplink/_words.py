# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses, routes, rules and neighbours in the words of ip(8), for sentences, differences and results. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _entries
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import (
    FOREVER,
    Address,
    Entry,
    Neighbour,
    Route,
    Rule,
    Timed,
)

# linux/rtnetlink.h
_MAIN_TABLE = 254
_TYPES = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_FRA_DST, _FRA_SRC, _FRA_FWMARK, _FRA_TABLE = 1, 2, 10, 15

Names = t.Mapping[int, str]


def any_entry(one: Entry, names: Names) -> str:
    """Any of them, with what it is."""
    if isinstance(one, Address):
        return f"the address {_plain(one)} dev {names.get(one.index, str(one.index))}"
    if isinstance(one, Route):
        return f"the route {route(one, names)}"
    return f"the rule {rule(one)}" if isinstance(one, Rule) else f"the neighbour {neighbour(t.cast(Neighbour, one))}"


def _plain(one: Address) -> str:
    return f"{ipaddress.ip_address(one.local)}/{one.header[1]}"


def address(timed: Timed) -> str:
    """An address with its prefix length, and its end if it has one."""
    text = _plain(timed.address)
    return text if timed.lifetimes.valid == FOREVER else f"{text} dynamic"


def route(entry: Route, names: Names) -> str:
    """A route as C(ip route) shows the main part of it."""
    words = [_TYPES[entry.type]] if entry.type in _TYPES else []
    destination = entry.attributes.get(_entries.RTA_DST)
    words.append(f"{ipaddress.ip_address(destination)}/{entry.header[1]}" if destination else "default")
    hops = entry.gateways or tuple((index, b"") for index in sorted(entry.indices))
    for index, gateway in hops:
        words += ["via", str(ipaddress.ip_address(gateway))] if gateway else []
        words += ["dev", names.get(index, str(index))]
    if entry.table != _MAIN_TABLE:
        words += ["table", str(entry.table)]
    for kind, word in ((_entries.RTA_PREFSRC, "src"),):
        if kind in entry.attributes:
            words += [word, str(ipaddress.ip_address(entry.attributes[kind]))]
    metric = struct.unpack("=I", entry.attributes.get(_entries.RTA_PRIORITY, bytes(4)))[0]
    return " ".join([*words, "metric", str(metric)] if metric else words)


def rule(entry: Rule) -> str:
    """A rule as C(ip rule) shows the main part of it."""
    words = [f"{entry.priority}:"]
    for kind, word, length in ((_FRA_SRC, "from", entry.header[2]), (_FRA_DST, "to", entry.header[1])):
        if kind in entry.attributes:
            words += [word, f"{ipaddress.ip_address(entry.attributes[kind])}/{length}"]
    for kind, word in ((_entries.FRA_IIFNAME, "iif"), (_entries.FRA_OIFNAME, "oif")):
        if kind in entry.attributes:
            words += [word, entry.attributes[kind].rstrip(b"\0").decode("utf-8", "replace")]
    if _FRA_FWMARK in entry.attributes:
        words += ["fwmark", hex(struct.unpack("=I", entry.attributes[_FRA_FWMARK])[0])]
    table = struct.unpack("=I", entry.attributes.get(_FRA_TABLE, bytes(4)))[0] or entry.header[4]
    return " ".join([*words, "lookup", str(table)])


def neighbour(entry: Neighbour) -> str:
    """A neighbour that somebody wrote down."""
    words = (
        [str(ipaddress.ip_address(entry.attributes[_entries.NDA_DST]))] if _entries.NDA_DST in entry.attributes else []
    )
    if entry.header[3] & _entries.NTF_PROXY:
        return " ".join([*words, "proxy"])
    mac = entry.attributes.get(_entries.NDA_LLADDR, b"")
    return " ".join([*words, "lladdr", ":".join(f"{byte:02x}" for byte in mac)])
