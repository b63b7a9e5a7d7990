# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import clean, columns, counted, fit, fold, pad
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(("text", "expected"), [("", 0), ("web", 3), ("日本", 4), ("e\u0301", 1), ("né", 2), ("…", 1)])
def test_a_text_is_as_wide_as_a_terminal_shows_it(text: str, expected: int) -> None:
    assert columns(text) == expected


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("web", 3, "web"), ("webs", 3, "we…"), ("日本語", 4, "日…"), ("日本", 4, "日本"), ("web", 1, "…"), ("web", 0, "")],
)
def test_a_text_that_is_too_wide_is_cut(text: str, width: int, expected: str) -> None:
    assert fit(text, width) == expected


def test_a_text_is_filled_up_by_columns_not_by_letters() -> None:
    assert pad("日本", 6) == "日本  "
    assert pad("日本", 3) == "日…"
    assert pad("日本語", 4) == "日… "


def test_words_take_as_many_lines_as_there_is_room_for_each() -> None:
    assert fold(["10.0.0.1", "10.0.0.2", "fd00::1234:5678"], 18) == ["10.0.0.1 10.0.0.2", "fd00::1234:5678"]
    assert fold(["fd00::1234:5678"], 8) == ["fd00::1…"]
    assert fold([], 8) == []


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u202eb", "\ud800", "a\x00b"])
def test_what_would_act_on_the_terminal_is_replaced(text: str) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in clean(text)


def test_lines_become_one() -> None:
    assert clean(" two\n lines\t") == "two lines"


def test_numbers_have_their_nouns() -> None:
    assert [counted(number, "guest") for number in (0, 1, 2)] == ["0 guests", "1 guest", "2 guests"]


@given(st.text(), st.integers(0, 30))
def test_nothing_is_ever_wider_than_it_may_be(text: str, width: int) -> None:
    shown = clean(text)
    assert columns(fit(shown, width)) <= width
    assert columns(pad(shown, width)) == width
