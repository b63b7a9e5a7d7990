# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drawings: nothing lies on top of anything else, lines join what is joined and nothing else, and the file is sound."""

from __future__ import annotations

import itertools
import pathlib
import re
import typing as t
import xml.etree.ElementTree as ET

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_page, _svg_style
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg import draw
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_page import Page
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_shapes import Box, Panel, Wire
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import read_hosts
from hypothesis import given, settings
from support.lab_views import fleets, lab, sample

DRAWING = pathlib.Path(__file__).parents[4] / "docs" / "fleet.svg"
SVG = "{http://www.w3.org/2000/svg}"

#: One guest, a full host, a full host whose guests are on all networks, and a fleet.
LABS: dict[str, t.Any] = {
    "sample": sample(),
    "one guest": {"lab": lab(1, 1)},
    "60 guests on 4 networks": {"lab": lab(4, 60, 12)},
    "60 guests, each on several networks": {"lab": lab(4, 60, 60)},
    "20 hosts": {f"lab{number}": lab(1 + number % 4, number * 3 % 11, number % 2) for number in range(20)},
    "hosts without an answer": {f"lab{number}": {"unreachable": True, "msg": "No route " * 30} for number in range(5)},
    "nobody": {},
}


def page(hosts: t.Any) -> Page:
    return _svg_page.compose(read_hosts(hosts), "a lab")


# What lies on top of each other


def overlaps(boxes: t.Iterable[Box]) -> list[tuple[Box, Box]]:
    """The pairs of rectangles that have more than an edge in common."""
    return [
        (one, other)
        for one, other in itertools.combinations(boxes, 2)
        if one.x < other.right and other.x < one.right and one.y < other.bottom and other.y < one.bottom
    ]


def segments(wires: t.Iterable[Wire]) -> t.Iterator[tuple[tuple[float, float], tuple[float, float], str]]:
    for wire in wires:
        for one, other in zip(wire.points, wire.points[1:]):
            yield one, other, wire.colour


def crosses(wire: Wire, box: Box) -> bool:
    """Whether a line goes through the inside of the rectangle."""
    return any(
        min(a[0], b[0]) < box.right
        and max(a[0], b[0]) > box.x
        and min(a[1], b[1]) < box.bottom
        and max(a[1], b[1]) > box.y
        for a, b, _colour in segments([wire])
    )


def is_within(inner: Box, width: float, height: float) -> bool:
    return inner.x >= 0 and inner.right <= width + 0.01 and inner.y >= 0 and inner.bottom <= height + 0.01


def faults(drawn: Page) -> list[str]:
    found = []
    if overlaps([box for box, _panel in drawn.panels]):
        found.append("panels overlap")
    if any(overlaps([lan, box]) for lan in drawn.lan for box, _panel in drawn.panels):
        found.append("the LAN lies on a panel")
    if not all(is_within(box, drawn.width, drawn.height) for box, _panel in drawn.panels):
        found.append("a panel leaves the page")
    if any(crosses(wire, box) for wire in drawn.wires for box, _panel in drawn.panels):
        found.append("a wire of the LAN crosses a panel")
    for box, panel in drawn.panels:
        found += _faults_within(box, panel)
    return found


def _faults_within(box: Box, panel: Panel) -> t.Iterator[str]:
    bars = [each.box for each in panel.bars]
    cards = [card.box for card in panel.cards]
    if overlaps([*bars, *cards]):
        yield f"{panel.host.name}: bars or cards overlap"
    if overlaps([jack.box for jack in panel.jacks]):
        yield f"{panel.host.name}: network cards overlap"
    if not all(is_within(each, box.width, box.height) for each in (*bars, *cards)):
        yield f"{panel.host.name}: something leaves the panel"
    if any(note.at[1] <= each.bottom for note in panel.notes for each in (*bars, *cards)):
        yield f"{panel.host.name}: a note lies on a bar or a card"
    if any(note.at[1] > box.height for note in panel.notes):
        yield f"{panel.host.name}: a note leaves the panel"
    for wire in panel.wires:
        if any(crosses(wire, card) for card in cards):
            yield f"{panel.host.name}: a wire crosses a card"
        if (
            len(wire.points) == 2
            and wire.points[0][1] == wire.points[1][1]
            and any(crosses(wire, each) for each in bars)
        ):
            yield f"{panel.host.name}: a wire runs along a bar"


# What is joined


def _touches(point: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> bool:
    return min(a[0], b[0]) <= point[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= point[1] <= max(a[1], b[1])


def joined(panel: Panel) -> list[tuple[str, set[str]]]:
    """For each card the bridges that its lines lead to; lines that only cross are not joined."""
    lines = list(segments(panel.wires))
    found = []
    for card in panel.cards:
        ends = {card.box.x, card.box.right}
        todo = [
            line
            for line in lines
            if any(point[0] in ends and card.box.y < point[1] < card.box.bottom for point in line[:2])
        ]
        reached = []
        while todo:
            line = todo.pop()
            if line in reached:
                continue
            reached.append(line)
            for other in lines:
                is_joined = any(_touches(point, *other[:2]) for point in line[:2])
                # A trunk is joined by the branches of others, which must not lead on to their cards' other networks.
                if is_joined and other[0][0] == other[1][0] and other[2] == line[2]:
                    todo.append(other)
        bridges = {
            each.network.bridge
            for each in panel.bars
            for line in reached
            for point in line[:2]
            if point[1] in (each.box.y, each.box.bottom) and each.box.x <= point[0] <= each.box.right
        }
        found.append((card.endpoint.name, bridges))
    return found


def meant(panel: Panel) -> list[tuple[str, set[str]]]:
    bridges = {network.bridge for network in panel.host.networks}
    return [(card.endpoint.name, {nic.bridge for nic in card.endpoint.nics} & bridges) for card in panel.cards]


@pytest.mark.parametrize("name", LABS)
def test_nothing_lies_on_anything_else(name: str) -> None:
    assert faults(page(LABS[name])) == []


@pytest.mark.parametrize("name", LABS)
def test_every_guest_is_drawn_once_and_joined_to_its_networks_alone(name: str) -> None:
    for _box, panel in page(LABS[name]).panels:
        assert sorted(card.endpoint.name for card in panel.cards) == sorted(each.name for each in panel.host.endpoints)
        assert joined(panel) == meant(panel)


@given(fleets)
@settings(max_examples=40, deadline=None)
def test_whatever_a_fleet_holds_is_drawn_that_way(fleet: dict[str, t.Any]) -> None:
    drawn = page(fleet)
    assert faults(drawn) == []
    for _box, panel in drawn.panels:
        assert len(panel.cards) == len(panel.host.endpoints)
        assert joined(panel) == meant(panel)


def test_overlaps_and_crossings_would_be_found() -> None:
    assert overlaps([Box(0, 0, 10, 10), Box(9, 9, 10, 10)])
    assert not overlaps([Box(0, 0, 10, 10), Box(10, 0, 10, 10)])
    assert crosses(Wire(((5, -5), (5, 5)), "lan"), Box(0, 0, 10, 10))
    assert not crosses(Wire(((0, -5), (0, 15)), "lan"), Box(0, 0, 10, 10))
    drawn = page(LABS["60 guests on 4 networks"])
    panel = drawn.panels[0][1]
    panel.cards[1] = panel.cards[1]._replace(box=panel.cards[0].box)
    assert "lab: bars or cards overlap" in faults(drawn)


def test_a_line_that_leads_elsewhere_would_be_found() -> None:
    panel = page(LABS["60 guests on 4 networks"]).panels[0][1]
    panel.wires = [wire for wire in panel.wires if wire.points[1][0] != panel.cards[0].box.x]
    assert joined(panel) != meant(panel)


# Legibility


@pytest.mark.parametrize("name", LABS)
def test_a_page_is_no_ribbon(name: str) -> None:
    drawn = page(LABS[name])
    assert 0.4 < drawn.width / drawn.height <= 6


def _luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colours", [_svg_style.DAY, _svg_style.NIGHT], ids=["day", "night"])
def test_texts_stand_out_from_what_is_below_them(colours: _svg_style.Colours) -> None:
    pairs = [*colours.scenarios.values(), (colours.lan, colours.on_lan)]
    pairs += [
        (ink, paper) for ink in (colours.ink, colours.soft, colours.alarm) for paper in (colours.panel, colours.card)
    ]
    for pair in pairs:
        dark, bright = sorted(map(_luminance, pair))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, pair


# The file


@given(fleets)
@settings(max_examples=40, deadline=None)
def test_whatever_a_fleet_holds_is_sound_xml_with_nothing_from_elsewhere(fleet: dict[str, t.Any]) -> None:
    text = draw(read_hosts(fleet))
    root = ET.fromstring(text)
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "desc", "style", "rect", "text", "g", "path", "circle", "polygon"),
    }
    assert not re.search(
        r"https?:(?!//www\.w3\.org/2000/svg)|url\(|@import|\son\w+=|href", re.sub(r">[^<]*<", "><", text)
    )


def test_it_has_a_title_and_tells_itself_in_words() -> None:
    root = ET.fromstring(draw(read_hosts(sample())))
    labels = str(root.get("aria-labelledby")).split()
    assert [root.find(f"*[@id='{label}']") is not None for label in labels] == [True, True]
    assert root.findtext(f"{SVG}title") == "Lab hosts"
    assert "shop (nat) with proxy, web-1, web-2, database" in str(root.findtext(f"{SVG}desc"))


def test_a_host_alone_gives_the_drawing_its_name() -> None:
    alder = {"alder": sample()["alder"]}
    assert '<title id="vmnet-title">alder</title>' in draw(read_hosts(alder))
    assert '<title id="vmnet-title">My &lt;lab&gt;</title>' in draw(read_hosts(alder), "My <lab>")


def test_what_a_guest_calls_itself_cannot_become_a_part_of_the_document() -> None:
    name = '</text><script>alert("x")</script>'
    root = ET.fromstring(draw(read_hosts({"lab": {"guests": [{"name": name, "state": "running"}]}})))
    assert not [element for element in root.iter() if "script" in element.tag]
    assert any(name in str(element.text) for element in root.iter(f"{SVG}title"))


def test_the_documented_drawing_is_the_one_that_is_drawn() -> None:
    assert DRAWING.read_text(encoding="utf-8") == draw(read_hosts(sample())), (
        "docs/fleet.svg is not what the sample gives; write it again, look at it, and keep it."
    )
