# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drawings of lab hosts in the language of Mermaid, which pages of many programs draw by themselves.

Names stand in labels only, with every letter that could mean something escaped; nodes are known by numbers.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_style import DAY
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Endpoint, Host, Network

#: A thick line is the LAN itself, a plain one is routed, a dotted one is hidden behind the host's address.
_LINES = {"l2": "===", "nat": "-.-"}
_PLAIN = frozenset(" ._:/,+-")


def draw(hosts: t.Sequence[Host]) -> str:
    """The drawing of the hosts."""
    return "\n".join(_document(hosts)) + "\n"


def escape(text: str) -> str:
    """The text as it may stand in a label."""
    return "".join(each if each.isalnum() or each in _PLAIN else f"#{ord(each)};" for each in text)


def _document(hosts: t.Sequence[Host]) -> t.Iterator[str]:
    yield "flowchart TB"
    has_lan = any(_jacks(host) for host in hosts)
    if has_lan:
        yield '  lan(["LAN"]):::lan'
    for number, host in enumerate(hosts):
        yield from _host(f"h{number}", host)
        if has_lan and not _jacks(host):
            # A line that is not seen, by which the host stands below the LAN like the others.
            yield f"  lan ~~~ h{number}{'n0' if host.networks else 'g0' if host.endpoints else 'x'}"
    for name, (fill, ink) in DAY.scenarios.items():
        yield f"  classDef {name} fill:{fill},stroke:{fill},color:{ink}"
    yield f"  classDef lan fill:{DAY.lan},stroke:{DAY.lan},color:{DAY.on_lan}"
    yield f"  classDef away stroke:{DAY.alarm},stroke-dasharray:4 3"
    yield "  classDef free stroke-dasharray:4 3"


def _host(name: str, host: Host) -> t.Iterator[str]:
    yield f"  subgraph {name}[{_label(host.name)}]"
    if host.problem:
        word = "needs attention" if host.reachable else "unreachable"
        yield f"    {name}x[{_label(word, host.problem)}]:::away"
    elif _is_bare(host):
        yield f"    {name}x[{_label('no networks')}]"
    jacks = {jack: f"{name}u{number}" for number, jack in enumerate(_jacks(host))}
    for jack, node in jacks.items():
        yield f"    {node}([{_label(jack)}]):::lan"
    networks = {network.bridge: f"{name}n{number}" for number, network in enumerate(host.networks)}
    for network in host.networks:
        yield f"    {networks[network.bridge]}[[{_network(network)}]]:::{network.scenario}"
    for number, endpoint in enumerate(host.endpoints):
        node = f"{name}g{number}"
        look = "" if endpoint.runs else ":::away" if endpoint.state in ("broken", "unknown") else ":::free"
        yield f"    {node}({_endpoint(endpoint)}){look}"
        for nic in endpoint.nics:
            if nic.bridge in networks:
                yield f"    {networks[nic.bridge]} ---{_on_edge(endpoint, nic.addresses)} {node}"
    for network in host.networks:
        for uplink in network.uplinks:
            above = jacks.get(uplink) or networks[uplink]
            if above != networks[network.bridge]:
                yield f"    {above} {_LINES.get(network.scenario, '---')} {networks[network.bridge]}"
    yield "  end"
    for node in jacks.values():
        yield f"  lan --- {node}"


def _is_bare(host: Host) -> bool:
    return not host.networks and not host.endpoints


def _jacks(host: Host) -> list[str]:
    """The interfaces that lead out of the host."""
    bridges = {network.bridge for network in host.networks}
    return list(dict.fromkeys(each for network in host.networks for each in network.uplinks if each not in bridges))


def _network(network: Network) -> str:
    return _label(network.name, network.word, *network.subnets)


def _endpoint(endpoint: Endpoint) -> str:
    state = "" if endpoint.runs else endpoint.state
    one = endpoint.nics[0] if len(endpoint.nics) == 1 else None
    return _label(
        endpoint.name, state, *(one.addresses[:3] if one else ()), one.mac if one and not one.addresses else ""
    )


def _on_edge(endpoint: Endpoint, addresses: t.Sequence[str]) -> str:
    """With several NICs, the address of each stands at its line."""
    return f"|{_label(addresses[0])}|" if len(endpoint.nics) > 1 and addresses else ""


def _label(*lines: str) -> str:
    return f'"{"<br/>".join(escape(line) for line in lines if line) or " "}"'
