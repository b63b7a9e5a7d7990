# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _services, _units

NOBODY = 2**22 + 1  # no process has a number that is higher than the kernel's highest


def active(pid: int) -> dict[str, str]:
    return {"ActiveState": "active", "MainPID": str(pid)}


@pytest.mark.parametrize(
    ("answers", "returns"),
    [
        ([{"ActiveState": "inactive"}], False),
        ([{"ActiveState": "activating"}], True),
        ([active(os.getpid())], True),
        ([active(NOBODY), active(NOBODY), {"ActiveState": "activating"}], True),
        ([active(NOBODY), {"ActiveState": "failed"}], False),
    ],
    ids=["ended", "starting", "started meanwhile", "killed and started again", "killed for good"],
)
def test_a_guest_that_was_killed_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, str]], returns: bool
) -> None:
    said = iter(answers)

    def shows(units: t.Sequence[str], *_properties: str) -> dict[str, dict[str, str]]:
        return {unit: next(said) for unit in units}

    monkeypatch.setattr(_systemd, "is_running", lambda: True)
    monkeypatch.setattr(_systemd, "shows", shows)
    assert _services.coming_back(["web"]) == ({"web"} if returns else set())
    assert list(said) == []  # everything was heard before it was decided


def test_a_guest_that_does_not_end_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_services._store, "LAST_WRITE", 0.1)
    monkeypatch.setattr(_systemd, "is_running", lambda: True)
    monkeypatch.setattr(_systemd, "shows", lambda units, *_properties: {_units.unit("web"): active(NOBODY)})
    assert _services.coming_back(["web"]) == {"web"}
