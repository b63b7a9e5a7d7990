# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Labels of guests: kept, shown and changed, and never felt by the process."""

from __future__ import annotations

import pytest

from .conftest import Guests

pytestmark = pytest.mark.one_interpreter


def test_labels_change_under_a_guest_that_does_not_feel_it(guests: Guests) -> None:
    started = guests.converge("cg-lb", labels={"role": "web"})
    assert started["guest"]["labels"] == {"role": "web"}
    pid = guests.pid("cg-lb")

    foretold = guests.check("cg-lb", labels={"role": "db", "stage": "test"}, restart="if_needed")
    changed = guests.converge("cg-lb", labels={"role": "db", "stage": "test"}, restart="if_needed")
    sentence = "Change the definition of guest cg-lb: labels is role=web, wanted role=db, stage=test"
    assert foretold["actions"] == changed["actions"] == [sentence]
    assert changed["guest"]["labels"] == {"role": "db", "stage": "test"}
    assert changed["guest"]["pending_restart"] == []
    assert guests.pid("cg-lb") == pid
    assert guests.activity("cg-lb") == "running"

    for again in ({"labels": {"stage": "test", "role": "db"}}, {}):
        rested = guests.converge("cg-lb", **again)
        assert (rested["changed"], rested["guest"]["labels"]) == (False, {"role": "db", "stage": "test"})
    assert guests.converge("cg-lb", labels={})["guest"]["labels"] == {}
    assert guests.pid("cg-lb") == pid
