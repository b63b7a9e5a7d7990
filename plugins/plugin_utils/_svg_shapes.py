# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a drawing of a host is made of. All measures are pixels from the upper left corner of the host's panel.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_style import Face
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Endpoint, Host, Network

Point = tuple[float, float]

#: On cards: the height of the name and where its middle is, and the height of each line below it.
NAME_HEIGHT, NAME_MIDDLE, LINE = 26.0, 17.0, 15.0


class Box(t.NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height


class Line(t.NamedTuple):
    """A line of a card's text; where a NIC begins, its network."""

    text: str
    face: Face
    network: t.Optional[int] = None
    nic: t.Optional[int] = None


class Card(t.NamedTuple):
    """A guest, or a port."""

    box: Box
    endpoint: Endpoint
    lines: tuple[Line, ...]

    @property
    def rows(self) -> list[tuple[float, Line]]:
        """The lines, each with where its middle is."""
        top = self.box.y + NAME_HEIGHT
        return [(top + LINE * (number + 0.5), line) for number, line in enumerate(self.lines)]


class Bar(t.NamedTuple):
    """A network."""

    box: Box
    network: Network


class Wire(t.NamedTuple):
    """A line through points, each above, below or beside the one before."""

    points: tuple[Point, ...]
    colour: str


class Dot(t.NamedTuple):
    """Where lines are joined, not only crossed."""

    at: Point
    colour: str


class Sign(t.NamedTuple):
    """At a bar: which way the network is open."""

    at: Point
    scenario: str


class Jack(t.NamedTuple):
    """A network card of the host, on the panel's upper edge."""

    box: Box
    name: str

    @property
    def plug(self) -> float:
        """Where its wire is."""
        return self.box.x + 10


class Note(t.NamedTuple):
    """A line of text below all else."""

    at: Point
    text: str
    is_alarm: bool
    is_first: bool


@dataclasses.dataclass
class Panel:
    """A host."""

    host: Host
    width: float = 0
    height: float = 0
    left: float = 0
    bars: list[Bar] = dataclasses.field(default_factory=list)
    cards: list[Card] = dataclasses.field(default_factory=list)
    wires: list[Wire] = dataclasses.field(default_factory=list)
    dots: list[Dot] = dataclasses.field(default_factory=list)
    signs: list[Sign] = dataclasses.field(default_factory=list)
    jacks: list[Jack] = dataclasses.field(default_factory=list)
    notes: list[Note] = dataclasses.field(default_factory=list)
