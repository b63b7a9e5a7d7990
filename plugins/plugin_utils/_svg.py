# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drawings of lab hosts as SVG: one file with nothing from elsewhere in it, for bright and for dark screens.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_page as pages
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_panel as panels
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_style as style
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_page import Entry, Page
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_shapes import (
    Bar,
    Box,
    Card,
    Jack,
    Note,
    Panel,
    Point,
    Sign,
    Wire,
)
from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import fit
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Endpoint, Host, Network, Nic

Lines = t.Iterator[str]


def draw(hosts: t.Sequence[Host], title: str = "") -> str:
    """The drawing of the hosts."""
    page = pages.compose(hosts, title or (hosts[0].name if len(hosts) == 1 else "Lab hosts"))
    return "\n".join(_document(page)) + "\n"


def _document(page: Page) -> Lines:
    width, height = _number(page.width), _number(page.height)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-labelledby="vmnet-title vmnet-description">'
    )
    yield f'<title id="vmnet-title">{escape(page.title)}</title>'
    yield f'<desc id="vmnet-description">{escape(_description(page))}</desc>'
    yield f"<style>\n{style.sheet()}\n</style>"
    yield f'<rect class="page" width="{width}" height="{height}" rx="12"/>'
    yield _text(pages.MARGIN, 38, style.cut(page.title, page.width - 2 * pages.MARGIN, style.TITLE), style.TITLE, "ink")
    yield _text(pages.MARGIN, 56, page.subtitle, style.SMALL, "soft")
    yield from _lan(page)
    for wire in page.wires:
        yield _wire(wire)
    for number, (box, panel) in enumerate(page.panels):
        yield from _panel(number, box, panel)
    for entry in page.legend:
        yield from _entry(entry)
    yield "</svg>"


def _entry(entry: Entry) -> Lines:
    x, y = entry.x, entry.y
    if entry.sign in pages.LEGEND:
        yield f'<rect class="{entry.sign}" x="{_number(x)}" y="{_number(y)}" width="16" height="12" rx="3"/>'
    else:
        kind = "dot" if entry.sign == "running" else "ring"
        yield f'<circle class="{kind}" cx="{_number(x + 10)}" cy="{_number(y + 6.5)}" r="3.5"/>'
    after = x + 24
    if entry.sign in pages.LEGEND:
        yield _text(after, y + 11, entry.sign, style.GUEST, "ink")
        after += 8 + style.text_width(entry.sign, style.GUEST)
        yield _text(after, y + 10.5, entry.text, style.SMALL, "soft")
    else:
        yield _text(after, y + 10.5, f"{entry.sign} {entry.text}".strip(), style.SMALL, "soft")


def _description(page: Page) -> str:
    """The drawing in words."""
    hosts = [panel.host for _box, panel in page.panels]
    sentences = []
    for host in hosts[:50]:
        if host.problem:
            sentences.append(f"{host.name}: {host.problem}.")
            continue
        networks = []
        for network in host.networks:
            names = ", ".join(endpoint.name for endpoint, _nic in host.on(network)[:50])
            networks.append(f"{network.name} ({network.word}) with {names or 'nobody'}")
        sentences.append(f"{host.name}: {'; '.join(networks) or 'no networks'}.")
    return " ".join(sentences) or "No hosts."


def _lan(page: Page) -> Lines:
    for box in page.lan:
        yield _rectangle(box, "lan", 3)
    if page.lan:
        box = page.lan[0]
        yield _text(box.x + 14, box.y + 17.5, "LAN", style.BAR, "on-lan")
        yield _text(box.x + 52, box.y + 17, "and whatever lies beyond", style.SMALL, "on-lan")


# One host


def _panel(number: int, box: Box, panel: Panel) -> Lines:
    host = panel.host
    yield f'<g id="vmnet-host-{number}" transform="translate({_number(box.x)} {_number(box.y)})">'
    away = " away" if host.problem else ""
    yield _rectangle(Box(0, 0, box.width, box.height), f"panel{away}", 10)
    for wire in panel.wires:
        yield _wire(wire)
    for dot in panel.dots:
        yield f'<circle class="{dot.colour}" cx="{_number(dot.at[0])}" cy="{_number(dot.at[1])}" r="3"/>'
    for sign in panel.signs:
        yield from _sign(sign)
    for jack in panel.jacks:
        yield from _jack(jack)
    room = box.width - panel.left - panels.PADDING
    yield _text(panel.left, 36, style.cut(host.name, room, style.HOST), style.HOST, "ink", full=host.name)
    if host.problem:
        word = "needs attention" if host.reachable else "unreachable"
        yield _text(panel.left, 54, word, style.SMALL, "alarm")
    else:
        yield _text(panel.left, 54, style.cut(panels.summary(host), room, style.SMALL), style.SMALL, "soft")
    wider = box.width - panel.width
    for each in panel.bars:
        yield from _bar(each._replace(box=each.box._replace(width=each.box.width + wider)))
    for place, card in enumerate(panel.cards):
        yield from _card(f"vmnet-host-{number}-card-{place}", card, host.networks)
    for note in panel.notes:
        yield from _note(note, box.width)
    yield "</g>"


def _note(note: Note, width: float) -> Lines:
    x, y = note.at
    if note.is_alarm and note.is_first:
        yield _text(x + 2, y, "!", style.GUEST, "alarm")
    x += panels.ALARM if note.is_alarm else 0
    text = style.cut(note.text, width - x - panels.PADDING, style.SMALL)
    yield _text(x, y, text, style.SMALL, "alarm" if note.is_alarm else "soft", full=note.text)


def _bar(drawn: Bar) -> Lines:
    box, network = drawn
    ink = f"on-{network.scenario}"
    yield _rectangle(box, network.scenario, 6, full=_network_words(network))
    badge = style.text_width(network.word, style.SMALL) + 16
    name = style.cut(network.name, box.width - 36 - badge, style.BAR)
    baseline = box.y + 19.5
    yield _text(box.x + 12, baseline, name, style.BAR, ink)
    x = box.x + 12 + style.text_width(name, style.BAR) + 8
    yield (
        f'<rect class="{ink}" fill-opacity="0.18" x="{_number(x)}" y="{_number(box.y + 7)}" '
        f'width="{_number(badge)}" height="16" rx="8"/>'
    )
    yield _text(x + badge / 2, box.y + 18.5, network.word, style.SMALL, ink, anchor="middle")
    x += badge + 14
    subnets = style.cut(panels.subnets_text(network), box.right - 12 - x, style.BAR_SMALL)
    yield _text(box.right - 12, baseline, subnets, style.BAR_SMALL, ink, anchor="end")


def _network_words(network: Network) -> str:
    uplinks = f", out by {', '.join(network.uplinks)}" if network.uplinks else ""
    return f"{network.name} ({network.word}), bridge {network.bridge}{uplinks} {' '.join(network.subnets)}".strip()


def _card(name: str, card: Card, networks: t.Sequence[Network]) -> Lines:
    box, endpoint, _lines = card
    yield f'<g id="{name}">'
    yield _rectangle(box, "card" if endpoint.runs else "card away", 6, full=_endpoint_words(endpoint))
    yield from _lamp((box.x + 15, box.y + 17), endpoint)
    state = "" if endpoint.runs else endpoint.state
    room = box.width - 38 - (style.text_width(state, style.SMALL) + 8 if state else 0)
    ink = "ink" if endpoint.is_guest else "soft"
    yield _text(box.x + 26, box.y + 21.5, style.cut(endpoint.name, room, style.GUEST), style.GUEST, ink)
    if state:
        colour = "alarm" if state in ("broken", "unknown") else "soft"
        yield _text(box.right - 10, box.y + 21, state, style.SMALL, colour, anchor="end")
    for y, line in card.rows:
        if line.network is not None and len(endpoint.nics) > 1:
            mark = f'x="{_number(box.x + 12)}" y="{_number(y - 3)}" width="6" height="6" rx="1.5"'
            yield f'<rect class="{networks[line.network].scenario}" {mark}/>'
        yield _text(box.x + 26, y + 4, style.cut(line.text, box.width - 34, line.face), line.face, "soft")
    yield "</g>"


def _lamp(at: Point, endpoint: Endpoint) -> Lines:
    x, y = _number(at[0]), _number(at[1])
    if endpoint.runs and endpoint.is_guest:
        yield f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>'
    else:
        alarm = " alarmed" if endpoint.state in ("broken", "unknown") else ""
        yield f'<circle class="ring{alarm}" cx="{x}" cy="{y}" r="3.5"/>'


def _endpoint_words(endpoint: Endpoint) -> str:
    return "; ".join([f"{endpoint.name}, {endpoint.state}", *map(_nic_words, endpoint.nics)])


def _nic_words(nic: Nic) -> str:
    return " ".join(filter(None, (nic.port, f"on {nic.bridge}" if nic.bridge else "", nic.mac, *nic.addresses)))


def _jack(jack: Jack) -> Lines:
    yield _rectangle(jack.box, "lan", 9, full=f"network card {jack.name}")
    label = style.cut(jack.name, jack.box.width - 22, style.SMALL)
    yield f'<circle class="on-lan" cx="{_number(jack.plug)}" cy="{_number(jack.box.y + 9)}" r="2.5"/>'
    yield _text(jack.plug + 8, jack.box.y + 13, label, style.SMALL, "on-lan")


def _sign(sign: Sign) -> Lines:
    """Arrows the ways that connections can begin."""
    x, y = sign.at
    if sign.scenario in ("nat", "routed"):
        yield _triangle(sign.scenario, (x - 6, y), (x + 1, y - 5), (x + 1, y + 5))
    if sign.scenario == "routed":
        yield _triangle(sign.scenario, (x + 11, y), (x + 4, y - 5), (x + 4, y + 5))


# Pieces of SVG


def _triangle(colour: str, *points: Point) -> str:
    corners = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return f'<polygon class="{colour}" points="{corners}"/>'


def _wire(wire: Wire) -> str:
    x, y = wire.points[0]
    path = f"M{_number(x)} {_number(y)}"
    for before, after in zip(wire.points, wire.points[1:]):
        path += f"V{_number(after[1])}" if before[0] == after[0] else f"H{_number(after[0])}"
    return f'<path class="wire {wire.colour}-wire" d="{path}"/>'


def _rectangle(box: Box, name: str, radius: int, full: str = "") -> str:
    x, y, width, height = map(_number, box)
    shape = f'<rect class="{name}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"'
    return f"{shape}><title>{escape(fit(full, 600))}</title></rect>" if full else f"{shape}/>"


def _text(x: float, y: float, text: str, face: style.Face, colour: str, anchor: str = "", full: str = "") -> str:
    if not text:
        return ""
    at = f"text-anchor={quoteattr(anchor)} " if anchor else ""
    tip = f"<title>{escape(full)}</title>" if full and full != text else ""
    return f'<text class="{face.name} {colour}" {at}x="{_number(x)}" y="{_number(y)}">{escape(text)}{tip}</text>'


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
