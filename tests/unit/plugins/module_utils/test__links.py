# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _adoption, _links
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Record
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Refusal, Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from hypothesis import given
from hypothesis import strategies as st


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True), st.sampled_from(["", "a note", "x"]))
def test_an_alias_tells_owner_and_note_back(network: str, note: str) -> None:
    alias = _links.alias_of(network, note)
    assert (_links.owner_of(alias), _links.note_of(alias)) == (network, note)


@pytest.mark.parametrize("alias", ["", "uplink", "labspan", "other.vmnet:lab"])
def test_an_alias_of_others_has_no_owner(alias: str) -> None:
    assert (_links.owner_of(alias), _links.note_of(alias)) == (None, "")


def test_a_note_must_fit_and_be_shown_in_a_line() -> None:
    _links.check_alias("alias", "lab", "x" * 237)
    for note in ("x" * 238, "two\nlines", " padded"):
        with pytest.raises(InvalidInput, match="alias"):
            _links.check_alias("alias", "lab", note)


@pytest.mark.parametrize("mtu", [67, 65536, 0, -1])
def test_an_impossible_mtu_is_refused(mtu: int) -> None:
    with pytest.raises(InvalidInput, match="mtu"):
        _links.check_mtu("mtu", mtu)
    assert [_links.check_mtu("mtu", good) for good in (68, 65535, None)] == [68, 65535, None]


def test_vlans_are_numbers_and_ranges() -> None:
    entries: list[dict[str, t.Any]] = [{"id": "1", "pvid": True, "untagged": True}, {"id": "10-12"}]
    numbers = (Vlan(number, False, False) for number in (10, 11, 12))
    assert _links.wanted_vlans("vlans", entries) == frozenset([Vlan(1, True, True), *numbers])
    assert _links.wanted_vlans("vlans", None) is None
    assert _links.wanted_vlans("vlans", []) == frozenset()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"id": "0"}], "not a VLAN"),
        ([{"id": "4095"}], "not a VLAN"),
        ([{"id": "20-10"}], "not a VLAN"),
        ([{"id": "ten"}], "not a VLAN"),
        ([{"id": "10-"}, {"id": "10"}], "twice"),
        ([{"id": "1-3"}, {"id": "3"}], "the VLAN 3 twice"),
        ([{"id": "1-3", "pvid": True}], "one PVID"),
        ([{"id": "1", "pvid": True}, {"id": "2", "pvid": True}], "one PVID"),
    ],
)
def test_vlans_that_contradict_themselves_are_refused(entries: list[dict[str, t.Any]], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        _links.wanted_vlans("vlans", entries)


@pytest.mark.parametrize(
    ("sentence", "code", "words"),
    [
        ("Create bridge br0", 1, "EPERM.*become: true"),
        ("Attach tap t0 to bridge br0", 54, "EXFULL.*1023 ports"),
        ("Turn vlan filtering on on bridge br0", 95, "EOPNOTSUPP.*CONFIG_BRIDGE_VLAN_FILTERING"),
        ("Attach interface br1 to bridge br0", 40, "ELOOP.*cannot be the port of a bridge"),
        ("Bring tap t0 up", 12, "ENOMEM, Cannot allocate memory"),
    ],
)
def test_a_refusal_of_the_kernel_says_what_to_do(sentence: str, code: int, words: str) -> None:
    failure = _links.failure(Change("", sentence, None, None), Refusal(code, ""))
    assert str(failure).startswith(f"{sentence}: ")
    with pytest.raises(SystemFailure, match=words):
        raise failure


def test_another_networks_interface_is_refused_unless_forced() -> None:
    with pytest.raises(Refused, match="'other'"):
        _links.check_owner("tap t0", "labspan.vmnet:other", "lab", force=False)
    for alias, force in (("labspan.vmnet:other", True), ("labspan.vmnet:lab", False), ("by hand", False)):
        _links.check_owner("tap t0", alias, "lab", force=force)


RECORD = Record("t0", "lab", 5, "this boot", {"mtu": 1500})


@pytest.mark.parametrize(
    ("record", "index", "alias", "holds"),
    [
        (RECORD, 5, "", True),
        (RECORD, 6, "", False),
        (RECORD, 6, "labspan.vmnet:lab", True),
        (RECORD, 6, "labspan.vmnet:other", False),
        (Record("t0", "lab", 5, "an earlier boot", {}), 5, "", False),
        (None, 5, "", False),
    ],
)
def test_a_record_holds_for_the_interface_that_was_found(
    record: t.Optional[Record], index: int, alias: str, holds: bool
) -> None:
    assert _adoption.holds(record, index, alias, "this boot") is holds


def test_records_are_written_read_and_forgotten(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_adoption, "DIRECTORY", str(tmp_path / "adopted"))
    assert _adoption.read(["t0"]) == {}
    change = _adoption.adopt("tap t0", RECORD)
    _adoption.apply(change)
    assert _adoption.read(["t0", "t1"]) == {"t0": RECORD}
    assert [path.name for path in (tmp_path / "adopted").iterdir()] == ["t0.json"]
    for undone in (change.inverse(), change.inverse()):  # undoing twice does no harm
        _adoption.apply(t.cast(_adoption.Adoption, undone))
    assert _adoption.read(["t0"]) == {}


def test_a_record_that_cannot_be_read_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_adoption, "DIRECTORY", str(tmp_path))
    (tmp_path / "t0.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemFailure, match=r"t0\.json"):
        _adoption.read(["t0"])
    assert _adoption.read(["t1"]) == {}
