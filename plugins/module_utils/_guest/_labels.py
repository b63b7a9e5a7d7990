# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Words by which people sort guests; neither QEMU nor systemd hears of them.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_LONGEST = 255


@dataclasses.dataclass(frozen=True)
class Labels:
    """In the order of their keys; a value may be empty."""

    pairs: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" if value else key for key, value in self.pairs) or "none"

    def given(self) -> dict[str, str]:
        """As a dictionary."""
        return dict(self.pairs)


def read(option: str, value: t.Mapping[t.Any, t.Any]) -> Labels:
    """The labels of a task."""
    found: dict[str, str] = {}
    for key, given in value.items():
        name = str(key)
        if not _KEY.match(name):
            raise InvalidInput(
                option, name, "is not a usable key: up to 63 letters, digits, '_', '.' or '-', the first no sign."
            )
        found[name] = _text(f"{option}.{name}", given)
    return Labels(tuple(sorted(found.items())))


def _text(option: str, value: t.Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise InvalidInput(option, value, "is not a text; a label has one value.")
    text = str(value)
    if len(text) > _LONGEST or not text.isprintable():
        raise InvalidInput(option, value, f"is not a text of one line with at most {_LONGEST} characters.")
    return text


def from_data(stored: t.Mapping[str, t.Any]) -> Labels:
    """The labels from a guest's file."""
    return Labels(tuple((str(key), str(value)) for key, value in stored.get("pairs", ())))
