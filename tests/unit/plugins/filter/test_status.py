# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from support.lab_views import sample

pytest.importorskip("ansible", reason="filters run on the controller, which has Ansible")

from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.filter.status import FilterModule

FILTERS = FilterModule().filters()


def test_a_table_is_a_list_of_lines() -> None:
    lines = FILTERS["vmnet_table"](sample(), 100, "2026-11-21T14:50:00Z")
    assert any(line.endswith("8h 20m  running") for line in lines)


def test_a_width_may_be_a_text_as_variables_on_the_command_line_are() -> None:
    assert FILTERS["vmnet_table"](sample(), "100") == FILTERS["vmnet_table"](sample(), 100)


def test_drawings_are_text() -> None:
    assert FILTERS["vmnet_svg"](sample(), "Our lab").splitlines()[1] == '<title id="vmnet-title">Our lab</title>'
    assert FILTERS["vmnet_mermaid"](sample()).startswith("flowchart TB\n")


@pytest.mark.parametrize("name", FILTERS)
def test_a_mistake_names_the_filter(name: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"^{name}: needs a dictionary"):
        FILTERS[name]([])


@pytest.mark.parametrize("width", ["wide", 10])
def test_a_width_without_sense_is_refused(width: t.Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^vmnet_table: .*(wide|width)"):
        FILTERS["vmnet_table"](sample(), width)
