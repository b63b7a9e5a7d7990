# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a removal leaves for the next run to find, until all that went with the guest is gone."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _former,
    _options,
    _places,
    _resource,
    _services,
    _state,
    _store,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Nic, Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import complete
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

NIC = Nic("52:54:00:00:00:01", "virtio-net-pci", tap="t0", bridge="br0", network="blue")
DEFINITION = Definition(GuestSpec("vm1", nics=(NIC,)), "tcg", ("qemu",))


@pytest.fixture(autouse=True)
def state(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory of a guest that is defined, and nothing else of it."""
    monkeypatch.setattr(_places, "STATE_ROOT", str(tmp_path / "state"))
    monkeypatch.setattr(_places, "RUNTIME_ROOT", str(tmp_path / "run"))
    monkeypatch.setattr(_services, "prune", lambda names: None)
    _store.write_definition("vm1", DEFINITION)
    return tmp_path / "state" / "vm1"


def rest(state: str = "absent") -> list[Change]:
    """What is planned and done about what is left of the guest."""
    resource = _former.FormerGuests([Wish("vm1", state, {})])
    have = resource.read()
    changes, done = resource.plan(have, {}), t.cast("list[Change]", [])
    assert resource.plan(resource.predict(have, changes), {}) == []
    resource.apply(changes, done)
    assert done == changes
    assert resource.plan(resource.read(), {}) == []
    return done


def going() -> list[str]:
    """The taps that a task removes which wants the guest absent."""
    options = complete(_options.OPTIONS, {"name": "vm1", "state": "absent"})
    return [tap["name"] for tap in _resource.parts([options], check_mode=False).going]


def test_a_guest_that_is_forgotten_is_known_until_the_rest_has_gone(state: pathlib.Path) -> None:
    assert rest() == []  # of a guest that is there, nothing is left
    assert state.exists()
    assert going() == ["t0"]
    _store.forget("vm1")
    assert _store.read_definition("vm1") is None
    assert going() == ["t0"]
    assert (_places.known_guests(), _places.defined_guests(), _places.former_guests()) == (["vm1"], [], ["vm1"])
    assert [change.sentence for change in rest()] == ["Remove what is left of guest vm1"]
    assert not state.exists()
    assert going() == []


def test_a_guest_that_comes_again_keeps_its_directory(state: pathlib.Path) -> None:
    _store.forget("vm1")
    _store.write_definition("vm1", DEFINITION)
    assert [change.sentence for change in rest("stopped")] == ["Remove what is left of guest vm1"]
    assert _store.read_definition("vm1") == DEFINITION
    assert [path.name for path in state.iterdir()] == ["guest.json"]


def test_the_directory_is_left_to_the_disks(state: pathlib.Path) -> None:
    (state / "disk0.qcow2").touch()
    _store.forget("vm1")
    assert len(rest()) == 1
    assert [path.name for path in state.iterdir()] == ["disk0.qcow2"]


def test_an_empty_directory_is_the_rest_of_a_guest_that_is_to_be_absent(state: pathlib.Path) -> None:
    _store.write_definition("vm1", None)
    assert rest("running") == []
    state.mkdir(exist_ok=True)
    assert len(rest()) == 1
    assert not state.exists()


def test_undoing_a_removal_leaves_nothing_to_be_ended(state: pathlib.Path) -> None:
    guests = _resource.Guests([])
    forget = _state.Forget("guest vm1", "Remove guest vm1", DEFINITION, None, "vm1")
    guests.apply([forget], [])
    assert Places("vm1").former in map(str, state.iterdir())
    guests.apply([forget.inverse()], [])
    assert _store.read_definition("vm1") == DEFINITION
    assert [path.name for path in state.iterdir()] == ["guest.json"]


def test_what_cannot_be_read_of_a_guest_is_no_reason_not_to_end_its_removal(state: pathlib.Path) -> None:
    (state / "guest.json").write_text("{")
    _store.forget("vm1")
    assert going() == []
    assert len(rest()) == 1
    assert not state.exists()
