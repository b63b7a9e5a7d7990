# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lab hosts hold, as lines of text in aligned columns.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import datetime
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import columns, counted, fit, fold, pad
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Endpoint, Host, Network, Nic, Rules

NARROWEST = 40
GAP = "  "
INDENT = "    "
HEADINGS = ("PORT", "GUEST", "MAC", "ADDRESSES", "LEASE", "STATE")
ADDRESSES = HEADINGS.index("ADDRESSES")
#: What each column keeps where there is little room; a MAC address is of no use in part.
_LEAST = (6, 6, 17, 15, 5, 7)
_NETWORK_LEAST = (6, 7, 6, 15, 6)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class _Row(t.NamedTuple):
    cells: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    """What stands in the column of addresses, on as many lines as it takes."""


def table(hosts: t.Sequence[Host], width: int, now: str = "") -> list[str]:
    """The lines, none of them wider than the width."""
    if width < NARROWEST:
        raise ValueError(f"width is {width}, and has to be {NARROWEST} at least.")
    ports = {host.name: [[_port(*each, now) for each in _shown(host, net)] for net in host.networks] for host in hosts}
    every = [row for groups in ports.values() for rows in groups for row in rows]
    port_widths = _widths([_Row(HEADINGS), *every], _LEAST, width - len(INDENT), _empty(every))
    heads = [_network(network) for host in hosts for network in host.networks]
    head_widths = _widths(heads, _NETWORK_LEAST, width - 2, _empty(heads))
    lines: list[str] = []
    for host in hosts:
        lines += [""] if lines else []
        lines += _host(host, width)
        is_first = True
        for network, rows in zip(host.networks, ports[host.name]):
            lines += _lines(_network(network), head_widths, GAP)
            if rows and is_first:
                lines += _lines(_Row(HEADINGS), port_widths, INDENT)
                is_first = False
            for row in rows:
                lines += _lines(row, port_widths, INDENT)
            lines += _rules([each for each in host.rules if each.network == network.name], width)
        lines += _rest(host, width)
    if len(hosts) > 1:
        lines += ["", _fleet(hosts)]
    return [fit(line, width).rstrip() for line in lines]


def _host(host: Host, width: int) -> list[str]:
    if host.problem:
        word = "needs attention" if host.reachable else "unreachable"
        return [f"{host.name}{GAP}{word}", *_listed("", host.problem.split(), width)]
    words = [host.name, _guests(host), host.system]
    return [GAP.join(word for word in words if word), *(["  no networks"] if not host.networks else [])]


def _guests(host: Host) -> str:
    running = sum(guest.state == "running" for guest in host.guests)
    guests = counted(len(host.guests), "guest")
    return guests if running == len(host.guests) else f"{guests}, {running} running"


def _fleet(hosts: t.Sequence[Host]) -> str:
    guests = [guest for host in hosts for guest in host.guests]
    words = [
        counted(len(hosts), "host"),
        counted(sum(len(host.networks) for host in hosts), "network"),
        counted(len(guests), "guest"),
        f"{sum(guest.state == 'running' for guest in guests)} running",
    ]
    silent = sum(bool(host.problem) for host in hosts)
    return ", ".join([*words, *([f"{counted(silent, 'host')} without an answer"] if silent else [])])


def _network(network: Network) -> _Row:
    uplinks = f"out by {', '.join(network.uplinks)}" if network.uplinks else ""
    return _Row((network.name, network.word, network.bridge, "", uplinks), network.subnets)


# Ports


def _shown(host: Host, network: Network) -> list[tuple[Endpoint, Nic]]:
    """Who is on the network; guests that do not run are there as long as their ports are."""
    return [(endpoint, nic) for endpoint, nic in host.on(network) if endpoint.runs or nic.up is not None]


def _port(endpoint: Endpoint, nic: Nic, now: str) -> _Row:
    name = endpoint.name if endpoint.is_guest or endpoint.name != nic.port else ""
    state = f"{endpoint.state}, port down" if nic.up is False and endpoint.state != "down" else endpoint.state
    state += ", needs a restart" if endpoint.pending else ""
    return _Row((nic.port, name, nic.mac, "", lease_left(nic.lease, now), state), nic.addresses)


def lease_left(expires: str, now: str) -> str:
    """How long a lease lasts from now on; without a now, when it ends."""
    if not expires or expires == "unlimited":
        return "no end" if expires else ""
    try:
        end = datetime.datetime.strptime(expires, _TIME)
        left = int((end - datetime.datetime.strptime(now, _TIME)).total_seconds()) if now else None
    except ValueError:
        return expires
    if left is None:
        return f"{end:%m-%d %H:%M}"
    if left <= 0:
        return "over"
    minutes = left // 60
    days, hours = minutes // 1440, minutes % 1440 // 60
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes % 60:02}m" if hours else f"{minutes}m" if minutes else "< 1m"


# Below the ports


def _rules(rules: t.Sequence[Rules], width: int) -> list[str]:
    words = [f"{each.world} {each.number} ({amount(each)})" for each in rules]
    return _listed("rules", words, width, INDENT, ", ")


def amount(rules: Rules) -> str:
    """What the rules have counted."""
    if not rules.packets:
        return "nothing counted"
    value, unit = float(rules.octets), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    number = f"{value:.0f}" if unit == "B" or value >= 100 else f"{value:.1f}"
    return f"{counted(rules.packets, 'packet')}, {number} {unit}"


def _rest(host: Host, width: int) -> list[str]:
    ours = {network.name for network in host.networks}
    away = [f"{guest.name} ({guest.state})" for guest in host.guests if not guest.runs]
    bridges = {network.bridge for network in host.networks}
    loose = [guest.name for guest in host.guests if guest.runs and not bridges & {nic.bridge for nic in guest.nics}]
    lines = _rules([each for each in host.rules if each.network not in ours], width)
    lines += _listed("do not run:", away, width, separator=", ")
    lines += _listed("on no network:", loose, width, separator=", ")
    for warning in host.warnings:
        lines += _listed("!", warning.split(), width)
    return lines


def _listed(label: str, words: t.Sequence[str], width: int, indent: str = "  ", separator: str = " ") -> list[str]:
    if not words:
        return []
    head = f"{indent}{label} " if label else indent
    folded = fold(words, width - columns(head), separator)
    return [(head if number == 0 else " " * columns(head)) + line for number, line in enumerate(folded)]


# Columns


def _empty(rows: t.Sequence[_Row]) -> set[int]:
    """The columns in which nothing stands."""
    return {
        number
        for number in range(len(rows[0].cells) if rows else 0)
        if not any(row.cells[number] or (number == ADDRESSES and row.addresses) for row in rows)
    }


def _widths(rows: t.Sequence[_Row], least: t.Sequence[int], room: int, empty: set[int]) -> list[int]:
    """As wide as what stands in them, or as there is room for: the widest gives way first."""
    widths = [
        0 if number in empty else max((columns(row.cells[number]) for row in rows), default=0)
        for number in range(len(least))
    ]
    widths[ADDRESSES] = max([widths[ADDRESSES], *(columns(GAP.join(row.addresses)) for row in rows)]) if rows else 0
    while sum(widths) + len(GAP) * (sum(map(bool, widths)) - 1) > room:
        spare = [(width - low, number) for number, (width, low) in enumerate(zip(widths, least)) if width > low]
        if not spare:
            break
        widths[max(spare)[1]] -= 1
    return widths


def _lines(row: _Row, widths: t.Sequence[int], indent: str) -> list[str]:
    addresses = fold(row.addresses, widths[ADDRESSES], GAP) if row.addresses else [row.cells[ADDRESSES]]
    lines = []
    for number, text in enumerate(addresses):
        cells = [text if at == ADDRESSES else cell if number == 0 else "" for at, cell in enumerate(row.cells)]
        lines.append(indent + GAP.join(pad(cell, width) for cell, width in zip(cells, widths) if width))
    return lines
