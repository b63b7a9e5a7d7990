# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files with a section for each interface: text in, text out. Whoever edits one touches only the sections of its items.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import typing as t

_HEADING = re.compile(r"# ([a-z]+ \S+)\Z")

#: In this order; what nobody here knows comes last.
_KINDS = ("bridge", "port", "tap")

Sections = t.Dict[str, t.Tuple[str, ...]]
"""The lines of each section by its heading, such as C(bridge br0)."""


def parse(text: t.Optional[str]) -> Sections:
    """The sections of a file; what stands before the first one is the file's preface, and ours."""
    sections: dict[str, list[str]] = {}
    current: t.Optional[list[str]] = None
    for line in (text or "").splitlines():
        heading = _HEADING.match(line)
        if heading:
            current = sections.setdefault(heading.group(1), [])
        elif current is not None and line.strip():
            current.append(line)
    return {heading: tuple(lines) for heading, lines in sections.items()}


def render(preface: str, sections: t.Mapping[str, t.Sequence[str]]) -> t.Optional[str]:
    """The file with these sections; None when there is none."""
    written = {heading: lines for heading, lines in sections.items() if lines}
    if not written:
        return None
    blocks = ["\n".join((f"# {heading}", *written[heading])) for heading in sorted(written, key=_order)]
    comment = "".join(f"# {line}\n" for line in preface.splitlines())
    return comment + "".join(f"\n{block}\n" for block in blocks)


def edit(preface: str, text: t.Optional[str], changes: t.Mapping[str, t.Optional[t.Sequence[str]]]) -> t.Optional[str]:
    """The file with these sections put in the place of what they were; None takes one out."""
    sections = {**parse(text), **{heading: tuple(lines or ()) for heading, lines in changes.items()}}
    return render(preface, sections)


def names(sections: t.Iterable[str], *kinds: str) -> list[str]:
    """The interfaces that have a section of these kinds."""
    found = (heading.split(" ", 1) for heading in sections)
    return sorted(name for kind, name in found if kind in kinds)


def _order(heading: str) -> tuple[int, str]:
    kind = heading.split(" ", 1)[0]
    return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), heading)
