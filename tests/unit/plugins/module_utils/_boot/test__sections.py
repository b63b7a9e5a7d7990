# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _script, _sections, _unit
from hypothesis import given
from hypothesis import strategies as st

names = st.sampled_from(["br0", "br1", "tap0", "tap1", "veth0", "a.b-c_d"])
headings = st.builds("{} {}".format, st.sampled_from(["bridge", "port", "tap"]), names)
lines = st.lists(st.sampled_from(["link set dev br0 up", "link add name br0 type bridge", "x  y"]), min_size=1).map(
    tuple
)
files = st.dictionaries(headings, lines)
edits = st.dictionaries(headings, st.none() | lines)
PREFACE = "The interfaces of a network.\nMade by somebody."


@given(files)
def test_what_is_written_is_read_again(sections: _sections.Sections) -> None:
    text = _sections.render(PREFACE, sections)
    assert _sections.parse(text) == sections
    assert (text is None) == (not sections)


@given(files, edits)
def test_an_edit_touches_its_own_sections_only(sections: _sections.Sections, edit: t.Any) -> None:
    before = _sections.render(PREFACE, sections)
    after = _sections.edit(PREFACE, before, edit)
    wanted = {heading: text for heading, text in {**sections, **edit}.items() if text}
    assert _sections.parse(after) == wanted
    assert _sections.edit(PREFACE, after, edit) == after


@given(files, edits, edits)
def test_the_order_of_edits_of_different_sections_does_not_matter(
    sections: _sections.Sections, one: t.Any, other: t.Any
) -> None:
    other = {heading: text for heading, text in other.items() if heading not in one}
    text = _sections.render(PREFACE, sections)
    first = _sections.edit(PREFACE, _sections.edit(PREFACE, text, one), other)
    assert first == _sections.edit(PREFACE, _sections.edit(PREFACE, text, other), one)


@given(files)
def test_nothing_is_left_when_all_sections_go(sections: _sections.Sections) -> None:
    assert _sections.edit(PREFACE, _sections.render(PREFACE, sections), dict.fromkeys(sections)) is None


def test_bridges_come_first_and_what_nobody_here_knows_stays() -> None:
    text = "# preface\n\n# tap tap0\na\n\n# vxlan v0\nkept as it is\n\n# bridge br0\nb\n"
    assert _sections.edit("new preface here", text, {"tap tap0": ("c",)}) == (
        "# new preface here\n\n# bridge br0\nb\n\n# tap tap0\nc\n\n# vxlan v0\nkept as it is\n"
    )


def test_names_are_those_of_the_kinds_that_were_asked_for() -> None:
    assert _sections.names(["tap t1", "bridge b0", "port p0", "tap t0"], "tap", "bridge") == ["b0", "t0", "t1"]


def test_the_script_is_clean_for_every_shell(tmp_path: t.Any) -> None:
    path = tmp_path / "network"
    path.write_text(_script.SCRIPT, encoding="utf-8")
    assert _script.SCRIPT.startswith("#!/bin/sh\n")
    assert "python" not in _script.SCRIPT.lower()
    try:
        done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("the program shellcheck is not installed")
    assert done.stdout == ""


def test_stopping_the_unit_runs_nothing() -> None:
    assert "ExecStop" not in _unit.UNIT
    assert _unit.instance("lab") == "labspan-network@lab.service"
