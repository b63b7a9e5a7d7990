# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of the files for the next boot, and of what somebody else wrote into them."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _managers, _record, _uplinks, _wanted
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import WriteFile, keep

MAC = "02:00:00:00:00:01"
LINKS = {
    "eth0": Link(2, "eth0", None, True, True, 1500, MAC, "", "br0", 0),
    "br0": Link(3, "br0", "bridge", True, True, 1500, MAC, "labspan:br0", None, 0),
}
PARAMS = {
    "bridge": "br0",
    "interface": "eth0",
    "network": None,
    "state": "present",
    "address_mode": "move",
    "addresses": None,
    "gateway": None,
    "dns": None,
    "mac": "interface",
    "stp": False,
    "forward_delay": 15.0,
    "confirm_timeout": 90.0,
    "probe": ["gateway"],
    "persistent": True,
    "accept_risk": False,
    "force": False,
}


class Lines(Manager):
    """Writes the bridge below what the file says."""

    name = "none"

    def __init__(self, *paths: pathlib.Path, problem: t.Optional[str] = None) -> None:
        self.paths = paths
        self.problem = problem

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        return self.problem if persistent else None

    def leases(self, interface: str) -> bool:
        return False

    def files(self, move: Move) -> t.Sequence[WriteFile]:
        texts = [(path, path.read_text().partition("bridge")[0]) for path in self.paths]
        return [WriteFile(str(path), f"{text}bridge br0 {move.mac}\n") for path, text in texts]


@pytest.fixture(autouse=True)
def _directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_record, "DIRECTORY", str(tmp_path / "kept"))


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / "interfaces"
    made.write_text("address .10\n")
    return made


def run(*paths: pathlib.Path, created: t.Optional[bool] = None, **params: t.Any) -> list[str]:
    """Have the files as they are wanted; the warnings. Nothing is left to be done then."""
    want, manager, warnings = _wanted.wanted({**PARAMS, **params}), Lines(*paths), []
    for change in _uplinks.rest_of_plan(want, manager, _state(want, manager), warnings, created=created):
        if isinstance(change, _uplinks.FileChange):
            change.after.perform()
    if want.present:
        assert _uplinks.rest_of_plan(want, manager, _state(want, manager), []) == []
    return warnings


def _state(want: _wanted.WantedUplink, manager: Manager) -> _uplinks.UplinkState:
    state = _uplinks.UplinkState(LINKS, Layer3(), _record.read("br0"))
    files = tuple(keep(file.path) for file in _uplinks.wanted_files(want, manager, state))
    return _uplinks.UplinkState(LINKS, Layer3(), state.record, files)


def copies(tmp_path: pathlib.Path) -> dict[str, str]:
    """What is kept beside the record, by the part of the name that tells why."""
    found = (tmp_path / "kept").glob("br0-*")
    return {path.name.replace(str(tmp_path).replace("/", "-"), ""): path.read_text() for path in found}


def test_what_was_there_before_comes_back(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert run(path, created=True) == []
    assert path.read_text() == f"address .10\nbridge br0 {MAC}\n"
    assert run(path, mac="02:00:00:00:00:02") == []
    assert run(path, state="absent") == []
    assert path.read_text() == "address .10\n"
    assert copies(tmp_path) == {}


@pytest.mark.parametrize("created", [True, False, None])
def test_a_file_that_was_put_in_the_place_of_ours_is_what_comes_back(
    path: pathlib.Path, tmp_path: pathlib.Path, created: t.Optional[bool]
) -> None:
    run(path, created=True)
    path.write_text("address .20\n")
    assert run(path, created=created) == []
    assert path.read_text() == f"address .20\nbridge br0 {MAC}\n"
    run(path, state="absent")
    assert path.read_text() == "address .20\n"
    assert copies(tmp_path) == {"br0-before-interfaces": "address .10\n"}


def test_a_file_that_is_gone_when_the_uplink_is_made_again_does_not_come_back(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run(path, created=True)
    path.unlink()
    other = tmp_path / "eth0"
    other.write_text("address .20\n")
    run(other, created=True)
    run(other, state="absent")
    assert other.read_text() == "address .20\n"
    assert not path.exists()
    assert copies(tmp_path) == {"br0-before-interfaces": "address .10\n"}


@pytest.mark.parametrize("created", [True, None])
def test_what_somebody_wrote_into_ours_is_kept_when_it_is_written_anew(
    path: pathlib.Path, tmp_path: pathlib.Path, created: t.Optional[bool]
) -> None:
    run(path, created=True)
    wanted = {}
    for number, mac in enumerate(("02:00:00:00:00:02", "02:00:00:00:00:03")):
        name = "br0-edited-interfaces" + ("-2" if number else "")
        path.write_text(f"{path.read_text()}edit {number}\n")
        wanted[name] = path.read_text()
        (warning,) = run(path, mac=mac, created=created)
        assert f"{path} was changed by somebody else" in warning
        assert name in warning.replace(str(tmp_path).replace("/", "-"), "")
    assert copies(tmp_path) == wanted
    run(path, state="absent")
    assert path.read_text() == "address .10\n"


def test_an_edit_that_stays_in_its_file_is_known_as_one_after_the_uplink_is_made_again(path: pathlib.Path) -> None:
    run(path, created=True)
    path.write_text(f"route\n{path.read_text()}")
    assert run(path, created=True) == []
    record = _record.read("br0")
    assert record is not None
    assert record.edited([keep(str(path))]) == [keep(str(path))]


def test_the_bridge_goes_that_was_made_when_the_one_of_before_was_gone(path: pathlib.Path) -> None:
    for created in (False, True):
        run(path, created=created)
        record = _record.read("br0")
        assert record is not None
        assert record.created is created


def at_rest(monkeypatch: pytest.MonkeyPatch, manager: Manager, **params: t.Any) -> tuple[list[str], list[str]]:
    """What the task does where the card is a port already, and of what it warns."""
    monkeypatch.setattr(_managers, "find", lambda _interface: manager)
    uplink = _uplinks.Uplink(_wanted.wanted({**PARAMS, **params}), Transaction("0" * 16), check_mode=False)
    changes = uplink.plan(_state(uplink.want, manager), {})
    return [change.sentence for change in changes], uplink.warnings


def test_what_cannot_be_kept_is_refused_where_the_card_is_a_port_already(monkeypatch: pytest.MonkeyPatch) -> None:
    run(created=True, persistent=False)
    nowhere = Lines(problem="persistent: there is no place.")
    assert at_rest(monkeypatch, nowhere, persistent=False) == ([], [])
    with pytest.raises(Refused, match=r"eth0 is a port of br0, and .* next boot: persistent: there is no place\.$"):
        at_rest(monkeypatch, nowhere)
    assert at_rest(monkeypatch, Lines()) == ([], [])


def test_a_file_that_the_manager_does_not_take_is_not_written(
    monkeypatch: pytest.MonkeyPatch, path: pathlib.Path
) -> None:
    run(path, created=True)
    manager = Lines(path, problem="persistent: no.")
    assert at_rest(monkeypatch, manager) == ([], [])
    with pytest.raises(Refused, match="persistent: no"):
        at_rest(monkeypatch, manager, mac="02:00:00:00:00:02")


@pytest.mark.parametrize("written", [True, False])
def test_a_bridge_that_others_or_earlier_runs_wrote_down_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, path: pathlib.Path, written: bool
) -> None:
    if written:
        run(path, created=True)
    monkeypatch.setattr(_uplinks._links, "owner_of", lambda _alias: None)
    changes, warnings = at_rest(monkeypatch, Lines(problem="persistent: lines in two files."))
    assert changes == []
    assert len(warnings) == 1
    assert "lines in two files" in warnings[0]
