# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text that must fit: how wide it is on a terminal, and what of it is shown where there is less room.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t
import unicodedata

ELLIPSIS = "…"

#: What a name that a guest gave itself could use to move the cursor, to turn the line round, or to end a document.
_UNFIT = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def clean(value: t.Any) -> str:
    """The value as one line that can be printed; what cannot is replaced."""
    text = " ".join(str(value).split())
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(each) in _UNFIT else each for each in text)


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if character < "\x7f":
        return 1
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, width: int) -> str:
    """The text, or as much of its beginning as the width has room for."""
    if columns(text) <= width:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) > width - 1:
            break
        kept += character
    return (kept.rstrip() + ELLIPSIS)[:width] if width > 0 else ""


def pad(text: str, width: int) -> str:
    """The text in exactly so many columns."""
    shown = fit(text, width)
    return shown + " " * (width - columns(shown))


def fold(words: t.Iterable[str], width: int, separator: str = " ") -> list[str]:
    """The words in as few lines as the width allows; a word that is wider than a line is cut."""
    lines: list[str] = []
    for word in words:
        if lines and columns(lines[-1]) + columns(separator) + columns(word) <= width:
            lines[-1] += separator + word
        else:
            lines.append(fit(word, width))
    return lines


def counted(number: int, one: str, many: str = "") -> str:
    """A number and its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"
