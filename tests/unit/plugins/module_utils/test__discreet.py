# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest

pytest.importorskip("ansible", reason="Ansible's own module_utils are not in this environment")

from ansible_collections.labspan.vmnet.plugins.module_utils._discreet import NOT_SHOWN, shown

SEED = {"type": "dict", "options": {"text": {"type": "raw"}, "way": {"type": "str"}}}
OPTIONS = {"name": {"type": "str"}, "seed": SEED}
SPECIFICATION = {**OPTIONS, "items": {"type": "list", "elements": "dict", "options": OPTIONS}}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "vm1"}, {"name": "vm1"}),
        ({"seed": None}, {"seed": None}),
        ({"seed": {"text": "secret", "way": "iso"}}, {"seed": {"text": NOT_SHOWN, "way": "iso"}}),
        ({"seed": {"text": ["secret"]}}, {"seed": {"text": NOT_SHOWN}}),
        ({"seed": {"txt": "secret"}}, {"seed": {"txt": NOT_SHOWN}}),
        ({"seed": "text=secret"}, {"seed": NOT_SHOWN}),
        ({"text": "secret"}, {"text": NOT_SHOWN}),
        ({"txt": {"name": "secret"}}, {"txt": NOT_SHOWN}),
        (
            {"items": [{"name": "vm1", "seed": {"text": "secret"}}]},
            {"items": [{"name": "vm1", "seed": {"text": NOT_SHOWN}}]},
        ),
        ({"items": '[{"seed": {"text": "secret"}}]'}, {"items": NOT_SHOWN}),
        ({"items": ["secret"]}, {"items": [NOT_SHOWN]}),
    ],
)
def test_what_is_hidden_or_unknown_is_not_shown(params: dict[str, t.Any], expected: dict[str, t.Any]) -> None:
    assert shown(params, SPECIFICATION, {"text"}) == expected
