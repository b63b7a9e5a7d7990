# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where everything of one host stands in a drawing. Pure geometry.

Networks are bars, one below the other. Guests are cards that hang on a trunk below the bar of their uppermost
network, in columns. A NIC on a lower network leaves its card to the right, for a lane between the columns that ends on
that network's bar. So no line ever crosses a card, however many guests and NICs there are. What leads out of the host
runs along its left edge.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import math
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _svg_style as style
from ansible_collections.labspan.vmnet.plugins.plugin_utils._svg_shapes import (
    LINE,
    NAME_HEIGHT,
    NAME_MIDDLE,
    Bar,
    Box,
    Card,
    Dot,
    Jack,
    Line,
    Note,
    Panel,
    Sign,
    Wire,
)
from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import counted
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Endpoint, Host, Network, Nic

PADDING = 20.0
HEADER = 70.0
BAR_HEIGHT = 30.0
JACK_HEIGHT = 18.0
ABOVE_CARDS, BETWEEN_CARDS, BELOW_CARDS, BELOW_BARE_BAR = 14.0, 9.0, 24.0, 16.0
TRUNK, INDENT = 9.0, 24.0
LANE, BESIDE_LANES = 9.0, 12.0
RAIL, BESIDE_RAILS = 11.0, 26.0
CARD_BASE = 9.0
NOTE, ALARM = 17.0, 14.0
CARD_WIDTHS = 132.0, 236.0
MOST_ADDRESSES = 3
MOST_COLUMNS = 10


class _Seat(t.NamedTuple):
    card: Card
    band: int
    column: int


def card_lines(endpoint: Endpoint, networks: t.Sequence[Network]) -> tuple[Line, ...]:
    """What stands on the card of a guest below its name."""
    index = {network.bridge: number for number, network in enumerate(networks)}
    lines: list[Line] = []
    for number, nic in enumerate(endpoint.nics):
        words = list(_nic_words(nic))
        lines.append(Line(words[0], style.ADDRESS, index.get(nic.bridge), number))
        lines += [Line(word, style.ADDRESS) for word in words[1:]]
    if not endpoint.is_guest and endpoint.nics and endpoint.nics[0].port != endpoint.name:
        lines.append(Line(f"on {endpoint.nics[0].port}", style.SMALL))
    if endpoint.pending:
        lines.append(Line("needs a restart", style.SMALL))
    return tuple(lines)


def _nic_words(nic: Nic) -> t.Iterator[str]:
    if not nic.addresses:
        yield nic.mac or "nobody heard yet"
        return
    shown = nic.addresses if len(nic.addresses) <= MOST_ADDRESSES else nic.addresses[: MOST_ADDRESSES - 1]
    yield from shown
    if len(shown) < len(nic.addresses):
        yield f"+ {len(nic.addresses) - len(shown)} more"


def card_width(hosts: t.Iterable[Host]) -> float:
    """How wide the cards of all hosts are."""
    wanted = [CARD_WIDTHS[0]]
    for host in hosts:
        for endpoint in host.endpoints:
            state = 0 if endpoint.runs else style.text_width(endpoint.state, style.SMALL) + 10
            wanted.append(34 + style.text_width(endpoint.name, style.GUEST) + state)
            wanted += [34 + style.text_width(line.text, line.face) for line in card_lines(endpoint, host.networks)]
    return min(max(wanted), CARD_WIDTHS[1])


def compose(host: Host, cards: float, proportion: float, jacks: bool = True) -> Panel:
    """The panel of a host, with the number of columns that brings it next to the proportion of width and height."""
    if host.problem:
        return _problem(host)
    most = max((len(band) for band in _bands(host)), default=1)
    panels = (_compose(host, cards, number) for number in range(1, min(max(most, 1), MOST_COLUMNS) + 1))
    return min(panels, key=lambda panel: abs(math.log(panel.width / panel.height / proportion)))


def _problem(host: Host) -> Panel:
    panel = Panel(host, left=PADDING)
    word = "needs attention" if host.reachable else "unreachable"
    width = max(style.text_width(host.name, style.HOST), style.text_width(word, style.SMALL), 240.0)
    panel.width = min(width, 360.0) + 2 * PADDING
    panel.height = _write(panel, host.problem, HEADER + 4, 4) + 2
    return panel


def _write(panel: Panel, text: str, y: float, most: int, *, is_alarm: bool = False) -> float:
    """Add the text in as many lines as it takes, if these are not too many; answers where the next line would be."""
    room = panel.width - panel.left - PADDING - (ALARM if is_alarm else 0)
    for number in range(most):
        line = text if number == most - 1 else _line_of(text, room)
        panel.notes.append(Note((panel.left, y), line, is_alarm, number == 0))
        text, y = text[len(line) :].lstrip(), y + NOTE
        if not text:
            break
    return y


def _line_of(text: str, room: float) -> str:
    end = max(style.letters_within(text, room, style.SMALL), 1)
    space = text.rfind(" ", 0, end + 1) if end < len(text) else end
    return text[: space if space > 0 else end]


def _bands(host: Host) -> list[list[Endpoint]]:
    """Who hangs below each bar, and at last those that hang on none."""
    bands: list[list[Endpoint]] = [[] for _place in range(len(host.networks) + 1)]
    for endpoint in host.endpoints:
        bands[min(_places(host, endpoint), default=len(host.networks))].append(endpoint)
    for band in bands:
        # Those with lanes next to each other, so that they share them.
        band.sort(key=lambda endpoint: [-place for place in sorted(set(_places(host, endpoint)))[1:]])
        band.sort(key=lambda endpoint: len(set(_places(host, endpoint))) < 2)
    return bands


def _places(host: Host, endpoint: Endpoint) -> list[int]:
    index = {network.bridge: number for number, network in enumerate(host.networks)}
    return [index[nic.bridge] for nic in endpoint.nics if nic.bridge in index]


def _compose(host: Host, card: float, columns: int) -> Panel:
    panel = Panel(host)
    ways = _ways_out(host)
    panel.left = PADDING + (len(ways) * RAIL + BESIDE_RAILS if ways else 0)
    bands = _bands(host)
    rows = [math.ceil(len(band) / columns) for band in bands]
    lanes = _lanes(host, bands, rows)
    used = max((math.ceil(len(band) / deep) for band, deep in zip(bands, rows) if deep), default=0)
    starts, end = [panel.left], panel.left
    for column in range(used):
        slots = max((slot + 1 for (at, _band, _place), slot in lanes.items() if at == column), default=0)
        end = starts[-1] + INDENT + card + (BESIDE_LANES + LANE * slots if slots else 0)
        starts.append(starts[-1] + INDENT + card + BESIDE_LANES + LANE * slots)
    inner = max(end - panel.left, _bars_width(host), _header_width(host))
    panel.width = panel.left + inner + PADDING
    seats = _place(panel, bands, rows, starts, card)
    _hang(panel, seats, lanes, starts, card)
    _lead_out(panel, ways)
    y = max([HEADER, *(each.box.bottom + BELOW_BARE_BAR for each in panel.bars)])
    y = max([y, *(seat.card.box.bottom + BELOW_CARDS for seat in seats)])
    for text in host.warnings:
        y = _write(panel, text, y + 8, 3, is_alarm=True)
    if not host.networks:
        panel.notes.append(Note((panel.left, y + 2), "no networks", False, True))
        y += NOTE
    panel.height = y + 6
    return panel


def _place(
    panel: Panel,
    bands: t.Sequence[t.Sequence[Endpoint]],
    rows: t.Sequence[int],
    starts: t.Sequence[float],
    width: float,
) -> list[_Seat]:
    seats: list[_Seat] = []
    y = HEADER
    for number, (band, deep) in enumerate(zip(bands, rows)):
        if number < len(panel.host.networks):
            box = Box(panel.left, y, panel.width - PADDING - panel.left, BAR_HEIGHT)
            panel.bars.append(Bar(box, panel.host.networks[number]))
            y = box.bottom + (ABOVE_CARDS if band else BELOW_BARE_BAR)
        bottom = y
        for place, endpoint in enumerate(band):
            column, row = divmod(place, deep)
            top = seats[-1].card.box.bottom + BETWEEN_CARDS if row else y
            lines = card_lines(endpoint, panel.host.networks)
            height = NAME_HEIGHT + CARD_BASE + LINE * len(lines)
            seat = _Seat(Card(Box(starts[column] + INDENT, top, width, height), endpoint, lines), number, column)
            seats.append(seat)
            panel.cards.append(seat.card)
            bottom = max(bottom, seat.card.box.bottom)
        y = bottom + BELOW_CARDS if band else y
    return seats


# Lanes: a column, the network below which the card is, and the one that its NIC is on

_Lanes = dict[tuple[int, int, int], int]


def _lanes(host: Host, bands: t.Sequence[t.Sequence[Endpoint]], rows: t.Sequence[int]) -> _Lanes:
    """The slot of each lane among those beside its column: no two that overlap share one."""
    wanted: dict[tuple[int, int, int], None] = {}
    for number, (band, deep) in enumerate(zip(bands, rows)):
        for place, endpoint in enumerate(band):
            for target in sorted(set(_places(host, endpoint)) - {number}):
                wanted[(place // deep, number, target)] = None
    slots: _Lanes = {}
    for lane in sorted(wanted, key=lambda lane: (lane[0], lane[1], lane[2])):
        column, start, end = lane
        taken = {
            slot for (other, first, last), slot in slots.items() if other == column and first < end and start < last
        }
        slots[lane] = next(slot for slot in range(len(taken) + 1) if slot not in taken)
    return slots


def _hang(panel: Panel, seats: t.Sequence[_Seat], lanes: _Lanes, starts: t.Sequence[float], width: float) -> None:
    """Wire the cards to the bars: by trunks at home, by lanes elsewhere."""
    networks = panel.host.networks
    trunks: dict[tuple[int, int], float] = {}
    tops: dict[tuple[int, int, int], float] = {}

    def lane_x(lane: tuple[int, int, int]) -> float:
        return starts[lane[0]] + INDENT + width + BESIDE_LANES + LANE * lanes[lane]

    for card, band, column in seats:
        trunk = starts[column] + TRUNK
        first = next((line.nic for line in card.lines if line.network == band), None)
        for y, line in card.rows:
            if line.network is None:
                continue
            colour = networks[line.network].scenario
            if line.network == band:
                y = card.box.y + NAME_MIDDLE if line.nic == first else y
                panel.wires.append(Wire(((trunk, y), (card.box.x, y)), colour))
                trunks[(band, column)] = max(y, trunks.get((band, column), 0))
            else:
                lane = (column, band, line.network)
                panel.wires.append(Wire(((card.box.right, y), (lane_x(lane), y)), colour))
                panel.dots.append(Dot((lane_x(lane), y), colour))
                tops.setdefault(lane, y)
    for (band, column), y in trunks.items():
        x = starts[column] + TRUNK
        panel.wires.append(Wire(((x, panel.bars[band].box.bottom), (x, y)), networks[band].scenario))
    for lane, y in tops.items():
        end = (lane_x(lane), panel.bars[lane[2]].box.y)
        panel.wires.append(Wire(((lane_x(lane), y), end), networks[lane[2]].scenario))


# Out of the host


def _ways_out(host: Host) -> dict[str, list[int]]:
    """The networks that leave by each interface, those that go furthest down first."""
    ways: dict[str, list[int]] = {}
    for number, network in enumerate(host.networks):
        for uplink in network.uplinks:
            ways.setdefault(uplink, []).append(number)
    return dict(sorted(ways.items(), key=lambda way: (_is_bridge(host, way[0]), -max(way[1]))))


def _is_bridge(host: Host, name: str) -> bool:
    return any(network.bridge == name for network in host.networks)


def _lead_out(panel: Panel, ways: t.Mapping[str, t.Sequence[int]]) -> None:
    index = {each.network.bridge: number for number, each in enumerate(panel.bars)}
    jacks = [name for name in ways if name not in index]
    right = PADDING - 8
    for slot, (name, numbers) in enumerate(ways.items()):
        x = PADDING + 2 + RAIL * slot
        ends = [_middle(panel.bars[number]) for number in numbers]
        if name in index:
            start = panel.bars[index[name]].box.bottom - 7
            ends = [end for number, end in zip(numbers, ends) if number != index[name]]
            panel.wires.append(Wire(((panel.left, start), (x, start)), "lan"))
            panel.wires.append(Wire(((x, min(start, *ends, start)), (x, max(start, *ends, start))), "lan"))
        else:
            label = style.cut(name, 140, style.SMALL)
            jack = Jack(Box(right, -JACK_HEIGHT / 2, style.text_width(label, style.SMALL) + 26, JACK_HEIGHT), name)
            panel.jacks.append(jack)
            right = jack.box.right + 8
            bend = jack.box.bottom + 5 * (len(jacks) - slot)
            panel.wires.append(
                Wire(((jack.plug, jack.box.bottom), (jack.plug, bend), (x, bend), (x, max(ends))), "lan")
            )
        for number, end in zip([each for each in numbers if each != index.get(name)], ends):
            box, network = panel.bars[number]
            panel.wires.append(Wire(((x, end), (box.x, end)), network.scenario))
            panel.dots.append(Dot((x, end), network.scenario))
            panel.signs.append(Sign((box.x - 12, end), network.scenario))
    if panel.jacks:
        panel.width = max(panel.width, panel.jacks[-1].box.right + PADDING)
        panel.bars = [
            each._replace(box=each.box._replace(width=panel.width - PADDING - panel.left)) for each in panel.bars
        ]


def _middle(drawn: Bar) -> float:
    return drawn.box.y + drawn.box.height / 2


# Texts that panels must have room for


def summary(host: Host) -> str:
    """The line below a host's name."""
    running = sum(guest.state == "running" for guest in host.guests)
    guests = counted(len(host.guests), "guest")
    if running < len(host.guests):
        guests += f", {running} running"
    return " · ".join(filter(None, (guests, host.system)))


def _header_width(host: Host) -> float:
    wanted = max(style.text_width(host.name, style.HOST), style.text_width(summary(host), style.SMALL))
    return min(max(wanted, 150.0), 420.0)


def _bars_width(host: Host) -> float:
    wanted = [0.0]
    for network in host.networks:
        badge = style.text_width(network.word, style.SMALL) + 16
        subnets = style.text_width(subnets_text(network), style.BAR_SMALL)
        wanted.append(12 + style.text_width(network.name, style.BAR) + 8 + badge + 16 + subnets + 12)
    return min(max(wanted), 520.0)


def subnets_text(network: Network) -> str:
    """The addresses at the right end of a bar."""
    return "\u00a0\u00a0".join(network.subnets)
