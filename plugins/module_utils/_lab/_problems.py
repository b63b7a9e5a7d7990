# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is found to be wrong, all of it, instead of the first of it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, LabspanError


class InvalidLab(LabspanError):
    """What is asked of a host cannot be right; C(problems) are the sentences."""

    def __init__(self, problems: t.Sequence[str]) -> None:
        super().__init__(as_one(problems), problems=list(problems))


def as_one(problems: t.Sequence[str]) -> str:
    """All sentences as one text."""
    if len(problems) == 1:
        return problems[0]
    numbered = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return f"{len(problems)} things cannot be right in what is asked of this host. {numbered}"


class Problems:
    """Collects sentences, each once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, option: str, found: object, remedy: str) -> None:
        """One more, in the form of all errors: the place, what was found there, and what to do."""
        self.tell(str(InvalidInput(option, found, remedy)))

    def tell(self, sentence: str) -> None:
        """One more."""
        if sentence not in self.found:
            self.found.append(sentence)

    @contextlib.contextmanager
    def of(self, where: str = "") -> t.Iterator[None]:
        """Take down what the block raises; C(where) stands before the names of its options."""
        try:
            yield
        except LabspanError as error:
            self.tell(f"{where}{error}")

    def once(self, option: str, value: t.Any, seen: dict[t.Any, str], what: str) -> None:
        """Take down that C(value) is at a second place, as C(seen) has the first; C(what) is what to do."""
        first = seen.setdefault(value, option)
        if first != option:
            self.add(option, value, f"is also at {first}; {what}")
