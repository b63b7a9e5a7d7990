# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _life, _resource, _services
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import RUNNING, STOPPED, Stop
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change


class FakeProcess(t.NamedTuple):
    pid: int
    alive: bool


def stop(name: str) -> Stop:
    return Stop(f"guest {name}", f"Stop guest {name}", RUNNING, STOPPED, name, 0.0, False)


def test_guests_that_ended_before_one_would_not_are_told_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_pairs: t.Any) -> dict[str, str]:
        raise SystemFailure("did not end")

    monkeypatch.setattr(_life, "end", end)
    monkeypatch.setattr(_services, "ended", lambda _names: None)
    guests = _resource.Guests([])
    guests._processes = t.cast(t.Any, {"gone": FakeProcess(1, False), "stays": FakeProcess(2, True)})
    done: list[Change] = []
    with pytest.raises(SystemFailure, match="did not end"):
        guests.apply([stop("gone"), stop("stays")], done)
    assert [change.sentence for change in done] == ["Stop guest gone"]
