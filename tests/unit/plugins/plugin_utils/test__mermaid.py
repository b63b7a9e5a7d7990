# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils._mermaid import draw, escape
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import read_hosts
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lab_views import fleets, sample

LABEL = r'"(?:[\w ._:/,+\-]|[#]\d+;|<br/>)*"'
#: Everything that a chart may consist of.
GRAMMAR = re.compile(
    rf"""flowchart[ ]TB
    |[ ]{{2}}lan\(\["LAN"\]\):::lan
    |[ ]{{2}}subgraph[ ]h\d+\[{LABEL}\]
    |[ ]{{4}}h\d+x\[{LABEL}\](:::away)?
    |[ ]{{4}}h\d+u\d+\(\[{LABEL}\]\):::lan
    |[ ]{{4}}h\d+n\d+\[\[{LABEL}\]\]:::(private|routed|nat|l2|other)
    |[ ]{{4}}h\d+g\d+\({LABEL}\)(:::(free|away))?
    |[ ]{{4}}h\d+n\d+[ ]---(\|{LABEL}\|)?[ ]h\d+g\d+
    |[ ]{{4}}h\d+[un]\d+[ ](---|===|-\.-)[ ]h\d+n\d+
    |[ ]{{2}}end
    |[ ]{{2}}lan[ ]---[ ]h\d+u\d+
    |[ ]{{2}}lan[ ]~~~[ ]h\d+([ng]0|x)
    |[ ]{{2}}classDef[ ]\w+[ ][a-z0-9#:,\-\ ]+""",
    re.VERBOSE,
)


def chart(hosts: t.Any) -> list[str]:
    return [line.strip() for line in draw(read_hosts(hosts)).splitlines()]


def strangers(text: str) -> list[str]:
    return [line for line in text.splitlines() if not GRAMMAR.fullmatch(line)]


def test_a_guest_with_several_nics_is_there_once_with_as_many_lines() -> None:
    lines = chart({"alder": sample()["alder"]})
    (node,) = (line for line in lines if line.startswith("h0g") and '"proxy"' in line)
    name = node.split("(")[0]
    assert [line for line in lines if line.endswith(f" {name}")] == [
        f'h0n0 ---|"192.0.2.52"| {name}',
        f'h0n1 ---|"10.97.0.10"| {name}',
    ]


def test_scenarios_and_the_way_out_are_to_be_seen() -> None:
    lines = chart({"alder": sample()["alder"]})
    assert any(re.fullmatch(r'h0n1\[\["shop<br/>nat<br/>10\.97\.0\.1/24<br/>.*"\]\]:::nat', line) for line in lines)
    assert "h0u0 === h0n0" in lines  # eth0 is a port of office
    assert "h0n0 -.- h0n1" in lines  # shop leaves the host by office
    assert not any(line.endswith(" h0n2") for line in lines)  # storage is private


def test_each_host_is_a_frame() -> None:
    lines = chart(sample())
    assert [line for line in lines if line.startswith("subgraph")] == [
        'subgraph h0["alder"]',
        'subgraph h1["birch"]',
        'subgraph h2["cedar"]',
        'subgraph h3["dogwood"]',
    ]
    assert "lan ~~~ h2n0" in lines  # cedar has no way out
    assert "lan ~~~ h3x" in lines
    assert any(line.startswith('h3x["unreachable<br/>Failed to connect') for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("web-1", "web-1"), ('a"b', "a#34;b"), ("#1;", "#35;1#59;"), ("<b>", "#60;b#62;"), ("日", "日")],
)
def test_letters_that_mean_something_are_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text())
def test_what_is_escaped_can_be_read_again(text: str) -> None:
    assert re.sub(r"#(\d+);", lambda code: chr(int(code[1])), escape(text)) == text


@settings(max_examples=40, deadline=None)
@given(fleets)
def test_nothing_of_the_hosts_stands_outside_of_labels(fleet: dict[str, t.Any]) -> None:
    assert strangers(draw(read_hosts(fleet))) == []


def test_a_name_outside_of_a_label_would_be_found() -> None:
    assert strangers('flowchart TB\n  subgraph h0["a"b"]') == ['  subgraph h0["a"b"]']
