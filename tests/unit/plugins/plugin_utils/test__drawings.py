# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils._drawings import drawings, to_write, write
from hypothesis import given, settings
from support.lab_views import fleets, sample


def test_there_is_a_pair_for_all_hosts_and_one_for_each() -> None:
    names = {f"{name}.{kind}" for name in ("fleet", "alder", "birch", "cedar", "dogwood") for kind in ("svg", "mmd")}
    made = drawings(sample(), "Our lab")
    assert set(made) == names
    assert ">Our lab<" in made["fleet.svg"]
    assert ">Our lab<" not in made["alder.svg"]


def test_hosts_whose_names_are_alike_as_files_have_one_each() -> None:
    assert {name for name in drawings({"fleet": {}, "a/b": {}, "a b": {}, "..": {}}) if name.endswith(".svg")} == {
        *("fleet.svg", "fleet_.svg", "a_b.svg", "a_b_.svg", "_.svg")
    }


@given(fleets)
@settings(max_examples=25, deadline=None)
def test_no_file_is_outside_of_its_directory(fleet: dict[str, t.Any]) -> None:
    made = drawings(fleet)
    assert all(pathlib.PurePath(name).name == name and not name.startswith(".") for name in made)
    assert len(made) == 2 * len(fleet) + 2


def test_only_what_differs_is_written(tmp_path: pathlib.Path) -> None:
    files = {"a.svg": "ä", "b.svg": "b"}
    assert to_write(tmp_path / "new", files) == [tmp_path / "new" / "a.svg", tmp_path / "new" / "b.svg"]
    for path in to_write(tmp_path / "new", files):
        write(path, files[path.name])
    assert to_write(tmp_path / "new", files) == []
    (tmp_path / "new" / "b.svg").write_text("c")
    assert to_write(tmp_path / "new", files) == [tmp_path / "new" / "b.svg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.svg", "b.svg"]
    assert (tmp_path / "new" / "a.svg").stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(OSError, match=r"a\.svg"):
        write(tmp_path / "a.svg", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
