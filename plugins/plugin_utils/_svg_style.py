# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How drawings look: colours by day and by night, sizes of letters, and how much room a text needs.

Colours mean something: each scenario has one, red is trouble, everything else is ink on paper. Nothing is told by
colour alone, and all texts have a contrast of at least 4.5.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import ELLIPSIS, columns


class Face(t.NamedTuple):
    """A size and kind of letters."""

    name: str
    size: float
    mono: bool = False
    bold: bool = False


TITLE = Face("title", 20, bold=True)
HOST = Face("host", 15, bold=True)
BAR = Face("bar-name", 13, bold=True)
BAR_SMALL = Face("bar-small", 11, mono=True)
GUEST = Face("guest", 13, bold=True)
ADDRESS = Face("address", 11, mono=True)
SMALL = Face("small", 11)
FACES = (TITLE, HOST, BAR, BAR_SMALL, GUEST, ADDRESS, SMALL)

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

#: Widths of letters as parts of their size, of the widest among usual fonts, since nobody knows which one is there.
_NARROW = 0.40
_USUAL = 0.645
_BROAD = 0.95
_MONO = 0.615


def text_width(text: str, face: Face) -> float:
    """No less than the room that the text takes."""
    if face.mono:
        return columns(text) * _MONO * face.size
    bold = 1.08 if face.bold else 1.0
    return sum(map(_letter, text)) * face.size * bold


def _letter(letter: str) -> float:
    width = columns(letter)
    if width != 1:
        return width * 0.55
    if letter in "fijlrtI.,:;|!'()[]/- ·":
        return _NARROW
    return _BROAD if letter in "mwMW@%&—…" or letter > "\u2000" else _USUAL + 0.06 * letter.isupper()


def cut(text: str, room: float, face: Face) -> str:
    """As much of the text as there is room for."""
    if text_width(text, face) <= room + 0.5:
        return text
    kept = text[: letters_within(text, room - text_width(ELLIPSIS, face), face)].rstrip()
    return kept + ELLIPSIS if kept else ""


def letters_within(text: str, room: float, face: Face) -> int:
    """How many letters of the text there is room for."""
    used = 0.0
    for number, letter in enumerate(text):
        used += text_width(letter, face)
        if used > room:
            return number
    return len(text)


class Colours(t.NamedTuple):
    """Paper and ink, and for each scenario the colour of its bar and the one of the text on it."""

    page: str
    panel: str
    card: str
    edge: str
    ink: str
    soft: str
    alarm: str
    lan: str
    on_lan: str
    scenarios: t.Mapping[str, tuple[str, str]]


DAY = Colours(
    page="#f6f7f9",
    panel="#ffffff",
    card="#f8fafc",
    edge="#cbd5e1",
    ink="#0f172a",
    soft="#526077",
    alarm="#b91c1c",
    lan="#334155",
    on_lan="#ffffff",
    scenarios={
        "private": ("#6d28d9", "#ffffff"),
        "routed": ("#047857", "#ffffff"),
        "nat": ("#b45309", "#ffffff"),
        "l2": ("#1d4ed8", "#ffffff"),
        "other": ("#4b5563", "#ffffff"),
    },
)
NIGHT = Colours(
    page="#0b1018",
    panel="#131a25",
    card="#1a2331",
    edge="#334155",
    ink="#e6ebf2",
    soft="#9aa8bc",
    alarm="#f87171",
    lan="#64748b",
    on_lan="#ffffff",
    scenarios={
        "private": ("#a78bfa", "#140a2e"),
        "routed": ("#34d399", "#04251a"),
        "nat": ("#f59e0b", "#2b1a02"),
        "l2": ("#60a5fa", "#06183a"),
        "other": ("#9ca3af", "#11151c"),
    },
)


def sheet() -> str:
    """The style sheet, without anything from elsewhere."""
    fonts = [
        f".{face.name}{{font:{'600' if face.bold else '400'} {face.size}px {MONO if face.mono else SANS}}}"
        for face in FACES
    ]
    shapes = [
        "text{white-space:pre}",
        ".wire{fill:none;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}",
        ".panel,.card{stroke-width:1}",
        ".away{stroke-dasharray:4 3}",
        ".ring{fill:none;stroke-width:1.5}",
    ]
    return "\n".join([*fonts, *shapes, *_colours(DAY), "@media (prefers-color-scheme:dark){", *_colours(NIGHT), "}"])


def _colours(colours: Colours) -> t.Iterator[str]:
    yield f".page{{fill:{colours.page}}}.panel{{fill:{colours.panel};stroke:{colours.edge}}}"
    yield f".card{{fill:{colours.card};stroke:{colours.edge}}}.ink{{fill:{colours.ink}}}.soft{{fill:{colours.soft}}}"
    yield f".ring{{stroke:{colours.soft}}}.dot{{fill:{colours.ink}}}"
    yield f".alarm{{fill:{colours.alarm}}}.alarmed{{stroke:{colours.alarm}}}"
    yield f".lan{{fill:{colours.lan}}}.on-lan{{fill:{colours.on_lan}}}.lan-wire{{stroke:{colours.lan}}}"
    for name, (fill, text) in colours.scenarios.items():
        yield f".{name}{{fill:{fill}}}.on-{name}{{fill:{text}}}.{name}-wire{{stroke:{fill}}}"
