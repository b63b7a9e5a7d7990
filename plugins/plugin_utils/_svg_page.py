# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the hosts stand in a drawing, and the LAN that they hang on. Pure geometry.

Hosts stand in rows in the order in which they were given. Above each row runs the LAN; the rows' pieces of it are
joined at the left. A host that is not wired to the LAN may stand below the one before it.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_panel as panels
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_style as style
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_shapes import Box, Panel, Wire
from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import counted
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Host

MARGIN = 28.0
HEADER = 66.0
LAN_HEIGHT, LAN_THIN = 26.0, 6.0
ABOVE_PANELS, BETWEEN, BELOW_ROW = 30.0, 24.0, 30.0
LEGEND_LINE = 26.0
NARROWEST = 460.0
#: Width to height of a page, of the panel of a host that has a page for itself, and of one among others.
PAGE, ALONE, AMONG = 1.5, 1.5, 1.15
#: How much wider a panel may become for a row that is as wide as the others.
STRETCH = 1.3

LEGEND = {
    "nat": "guests reach out, behind the host's address",
    "routed": "both ways, where the LAN has a route",
    "l2": "guests are part of the LAN",
    "private": "guests among themselves",
    "other": "not known, or somebody else's",
}
GUESTS_LEGEND = [("running", ""), ("not", "running")]


class Entry(t.NamedTuple):
    """A line of the legend."""

    x: float
    y: float
    sign: str
    text: str


@dataclasses.dataclass
class Page:
    """A drawing."""

    title: str
    subtitle: str
    width: float
    height: float
    panels: list[tuple[Box, Panel]]
    lan: list[Box]
    wires: list[Wire]
    legend: list[Entry]


def compose(hosts: t.Sequence[Host], title: str) -> Page:
    """A drawing of the hosts."""
    width = panels.card_width(hosts)
    made = [panels.compose(host, width, ALONE if len(hosts) == 1 else AMONG) for host in hosts]
    slots = _slots(made)
    pages = [_page(slots, title, room) for room in _row_widths(slots)]
    return min(pages, key=lambda page: abs(math.log(page.width / page.height / PAGE)))


class Slot(t.NamedTuple):
    """Panels that stand one below the other."""

    panels: tuple[Panel, ...]

    @property
    def width(self) -> float:
        """As wide as the widest."""
        return max(panel.width for panel in self.panels)

    @property
    def height(self) -> float:
        """All of them, with what is between."""
        return sum(panel.height + BETWEEN for panel in self.panels) - BETWEEN


def _slots(made: t.Sequence[Panel]) -> list[Slot]:
    slots: list[Slot] = []
    for number, panel in enumerate(made):
        room = max(each.height for each in made[max(0, number - 3) : number + 4])
        if slots and not panel.jacks and slots[-1].height + BETWEEN + panel.height <= room:
            slots[-1] = Slot((*slots[-1].panels, panel))
        else:
            slots.append(Slot((panel,)))
    return slots


def _row_widths(slots: t.Sequence[Slot]) -> list[float]:
    widest = max((slot.width for slot in slots), default=NARROWEST)
    together = sum(slot.width + BETWEEN for slot in slots) - BETWEEN
    steps = 24 if len(slots) > 1 else 0
    return [widest + (max(together, widest) - widest) * step / max(steps, 1) for step in range(steps + 1)]


def _rows(slots: t.Sequence[Slot], room: float) -> list[list[Slot]]:
    rows: list[list[Slot]] = []
    used = 0.0
    for slot in slots:
        if rows and used + BETWEEN + slot.width <= room + 0.01:
            rows[-1].append(slot)
            used += BETWEEN + slot.width
        else:
            rows.append([slot])
            used = slot.width
    return rows


def _page(slots: t.Sequence[Slot], title: str, room: float) -> Page:
    rows = _rows(slots, room)
    wired = [number for number, row in enumerate(rows) if any(slot.panels[0].jacks for slot in row)]
    inner = max((sum(slot.width + BETWEEN for slot in row) - BETWEEN for row in rows), default=0)
    inner = max(inner, NARROWEST)
    left = MARGIN + (LAN_THIN + 18 if wired and wired[-1] > 0 else 0)
    hosts = [panel.host for slot in slots for panel in slot.panels]
    page = Page(title, _subtitle(hosts), left + inner + MARGIN, 0, [], [], [], [])
    y = HEADER
    for number, row in enumerate(rows):
        bus = _lan(page, y, number == wired[0]) if number in wired else None
        top = bus.bottom + ABOVE_PANELS if bus else y
        height = max(slot.height for slot in row)
        x = left
        for slot, width in zip(row, _stretched(row, inner, is_alone=len(rows) == 1)):
            page.panels += _stand(slot, Box(x, top, width, height))
            if bus:
                page.wires += [
                    Wire(((x + jack.plug, bus.bottom), (x + jack.plug, top + jack.box.y)), "lan")
                    for jack in slot.panels[0].jacks
                ]
            x += width + BETWEEN
        y = top + height + BELOW_ROW
    if len(page.lan) > 1:
        page.lan.append(Box(MARGIN, page.lan[0].y, LAN_THIN, page.lan[-1].bottom - page.lan[0].y))
    page.height = _legend(page, hosts, y) + MARGIN - 8
    return page


def _stand(slot: Slot, box: Box) -> t.Iterator[tuple[Box, Panel]]:
    """The panels of a slot; the last one reaches down to the bottom, if it has anything to show."""
    y = box.y
    for panel in slot.panels:
        is_last = panel is slot.panels[-1] and not panel.host.problem
        height = box.bottom - y if is_last else panel.height
        yield Box(box.x, y, box.width, height), panel
        y += height + BETWEEN


def _lan(page: Page, y: float, is_first: bool) -> Box:
    page.lan.append(Box(MARGIN, y, page.width - 2 * MARGIN, LAN_HEIGHT if is_first else LAN_THIN))
    return page.lan[-1]


def _stretched(row: t.Sequence[Slot], inner: float, *, is_alone: bool) -> list[float]:
    room = inner - BETWEEN * (len(row) - 1)
    factor = room / sum(slot.width for slot in row)
    return [slot.width * (factor if factor <= STRETCH or is_alone else 1) for slot in row]


def _subtitle(hosts: t.Sequence[Host]) -> str:
    words = [counted(len(hosts), "host")] if len(hosts) != 1 else []
    words += [
        counted(sum(len(host.networks) for host in hosts), "network"),
        counted(sum(len(host.guests) for host in hosts), "guest"),
    ]
    silent = sum(bool(host.problem) for host in hosts)
    return " · ".join([*words, *([f"{silent} without an answer"] if silent else [])])


def _legend(page: Page, hosts: t.Sequence[Host], y: float) -> float:
    there = {network.scenario for host in hosts for network in host.networks}
    shown = [(scenario, text) for scenario, text in LEGEND.items() if scenario in there]
    if any(host.guests for host in hosts):
        shown += GUESTS_LEGEND
    x = MARGIN
    for sign, text in shown:
        width = 24 + style.text_width(sign, style.GUEST) + 8 + style.text_width(text, style.SMALL) + 22
        if x > MARGIN and x + width > page.width - MARGIN + 22:
            x, y = MARGIN, y + LEGEND_LINE
        page.legend.append(Entry(x, y, sign, text))
        x += width
    return y + (LEGEND_LINE if shown else 0)
