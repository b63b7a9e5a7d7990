# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The flow: nothing is written in check mode, what failed is undone in reverse, what did not converge is told."""

from __future__ import annotations

import dataclasses
import os
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, NotConverged, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource, converge, host_lock
from support.hosts import await_condition

Shelf = t.Dict[str, int]


class Jars(Resource[Shelf]):
    """Jars on a shelf that is a plain dict: each wanted jar must hold so much."""

    plural = "jars"
    singular = "jar"

    def __init__(self, shelf: Shelf, want: Shelf, *, cracked: t.Container[str] = (), single: bool = False) -> None:
        super().__init__(single=single)
        self.shelf = shelf
        self.want = want
        self.cracked = cracked
        self.reads = 0

    def read(self) -> Shelf:
        self.reads += 1
        return dict(self.shelf)

    def plan(self, have: Shelf, ahead: t.Mapping[str, t.Any]) -> list[Change]:
        return [
            Change(f"jar {name}", f"Fill jar {name} to {level}", have.get(name), level)
            for name, level in self.want.items()
            if have.get(name) != level
        ]

    def predict(self, have: Shelf, changes: t.Sequence[Change]) -> Shelf:
        return {**have, **{change.subject[4:]: change.after for change in changes}}

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in changes:
            name = change.subject[4:]
            if name in self.cracked:
                raise LabspanError(f"jar {name} is cracked.")
            if change.after is None:
                del self.shelf[name]
            else:
                self.shelf[name] = change.after
            done.append(change)

    def render(self, state: Shelf) -> dict[str, dict[str, t.Any]]:
        return {name: {"level": state[name]} for name in self.want if name in state}


class Leaky(Jars):
    """Says that it filled the jars, and they stay empty."""

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        done.extend(changes)


def test_changes_are_applied_told_and_shown_as_they_are_read_back() -> None:
    shelf = {"salt": 1}
    result = converge(lambda: [Jars(shelf, {"salt": 2}, single=True)], check_mode=False, warnings=[])
    assert shelf == {"salt": 2}
    assert result["changed"] is True
    assert result["actions"] == ["Fill jar salt to 2"]
    assert result["diff"] == {"before": {"jars": {"salt": {"level": 1}}}, "after": {"jars": {"salt": {"level": 2}}}}
    assert result["jar"] == {"name": "salt", "level": 2}
    assert result["jars"] == [result["jar"]]


def test_a_converged_host_is_read_once_and_not_changed() -> None:
    jars = Jars({"salt": 2}, {"salt": 2})
    result = converge(lambda: [jars], check_mode=False, warnings=[])
    assert result["changed"] is False
    assert result["actions"] == []
    assert jars.reads == 1


def test_check_mode_predicts_what_a_run_does_and_writes_nothing() -> None:
    shelf = {"salt": 1}
    predicted = converge(lambda: [Jars(shelf, {"salt": 2, "oil": 5})], check_mode=True, warnings=[])
    assert shelf == {"salt": 1}
    assert predicted == converge(lambda: [Jars(shelf, {"salt": 2, "oil": 5})], check_mode=False, warnings=[])
    assert shelf == {"salt": 2, "oil": 5}


def test_a_failure_undoes_what_was_done_before_it_also_by_earlier_resources() -> None:
    shelf = {"salt": 1}
    cellar: Shelf = {}
    with pytest.raises(LabspanError, match="jar wine is cracked") as failure:
        converge(
            lambda: [Jars(shelf, {"salt": 2, "oil": 5}), Jars(cellar, {"beer": 1, "wine": 1}, cracked=["wine"])],
            check_mode=False,
            warnings=[],
        )
    assert shelf == {"salt": 1}
    assert cellar == {}
    assert failure.value.details["undone"] == ["Fill jar beer to 1", "Fill jar oil to 5", "Fill jar salt to 2"]
    assert "was undone" in str(failure.value)


def test_what_cannot_be_undone_is_told() -> None:
    @dataclasses.dataclass(frozen=True)
    class Gulp(Change):
        @property
        def reversible(self) -> bool:
            return False

    class Drinks(Jars):
        def plan(self, have: Shelf, ahead: t.Mapping[str, t.Any]) -> list[Change]:
            return [Gulp(change.subject, f"Drink {change.subject}", 1, 0) for change in super().plan(have, ahead)]

    shelf = {"water": 1}
    with pytest.raises(LabspanError, match="Could not be undone: Drink jar water") as failure:
        converge(lambda: [Drinks(shelf, {"water": 0, "wine": 0}, cracked=["wine"])], check_mode=False, warnings=[])
    assert failure.value.details["not_undone"] == ["Drink jar water"]
    assert shelf == {"water": 0}


def test_an_unexpected_error_is_undone_as_well() -> None:
    class Buggy(Jars):
        def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
            super().apply(changes[:1], done)
            raise ZeroDivisionError("oops")

    shelf: Shelf = {}
    with pytest.raises(LabspanError, match="oops"):
        converge(lambda: [Buggy(shelf, {"salt": 1, "oil": 1})], check_mode=False, warnings=[])
    assert shelf == {}


def test_what_reading_again_does_not_show_did_not_converge() -> None:
    with pytest.raises(NotConverged, match="Fill jar salt to 2"):
        converge(lambda: [Leaky({}, {"salt": 2})], check_mode=False, warnings=[])


def test_nothing_is_applied_when_a_later_resource_refuses() -> None:
    class Refusing(Jars):
        def plan(self, have: Shelf, ahead: t.Mapping[str, t.Any]) -> list[Change]:
            raise Refused("these jars are not ours.")

    shelf: Shelf = {}
    with pytest.raises(Refused):
        converge(lambda: [Jars(shelf, {"salt": 1}), Refusing({}, {"oil": 1})], check_mode=False, warnings=[])
    assert shelf == {}


def test_warnings_reach_the_user() -> None:
    class Worried(Jars):
        def plan(self, have: Shelf, ahead: t.Mapping[str, t.Any]) -> list[Change]:
            self.warnings.append("the shelf leans")
            return super().plan(have, ahead)

    warnings: list[str] = []
    converge(lambda: [Worried({}, {"salt": 1})], check_mode=False, warnings=warnings)
    assert warnings == ["the shelf leans"]


def test_the_lock_is_held_and_let_go() -> None:
    def try_it() -> bool:
        child = os.fork()
        if child == 0:
            import fcntl

            with open("/proc/self/ns/net", encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1] == 0

    with host_lock():
        assert not try_it()
    # Other tests of this machine take it for a moment, too.
    await_condition(try_it, "the lock to be let go")
