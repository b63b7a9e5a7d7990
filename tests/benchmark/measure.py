# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Contenders timed side by side: each round runs all of them once, and what counts is the ratio within a round.

Ratios within a round are robust against a machine that is slower at one moment than at another; times are not.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import typing as t

#: What all else is compared with.
PING = "playbook of one ping"

Step = t.Callable[[], None]


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do a thing. Only C(run) is timed."""

    name: str
    run: Step
    prepare: Step = _nothing
    finish: Step = _nothing


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The seconds of each contender, round by round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """The contender's median time."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """The median of how many times as long as C(base) the contender took in the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[base]))


def race(
    contenders: t.Sequence[Contender],
    rounds: int,
    announce: t.Callable[[str], None],
    clock: t.Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Run all contenders C(rounds) times, in an order that turns by one each round."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            contender.prepare()
            begin = clock()
            contender.run()
            seconds[contender.name].append(clock() - begin)
            contender.finish()
        announce(f"round {number + 1} of {rounds}")
    return Rounds(seconds)


@dataclasses.dataclass(frozen=True)
class Goal:
    """A ratio or a count that is wanted."""

    text: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured ratio is within the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def row(self) -> list[str]:
        """Cells of a table."""
        sign = "at least" if self.at_least else "at most"
        measured = str(self.measured) if isinstance(self.measured, int) else f"{self.measured:.2f}"
        return [self.text, f"{sign} {self.limit:g}", measured, "yes" if self.met else "**no**"]


def table(header: t.Sequence[str], rows: t.Iterable[t.Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
