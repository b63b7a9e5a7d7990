# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the command that asks lab hosts is told, and what is read of what it prints."""

from __future__ import annotations

import json
import typing as t

import pytest

pytest.importorskip("ansible")

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _ask

TOLD = {"changed": False, "guests": [{"name": "vm1", "text": 'lab2 | SUCCESS => {"guests": []}\nlab2 | FAILED! => {'}]}


def printed(host: str, state: str, result: t.Mapping[str, t.Any], indent: t.Optional[int] = 4) -> str:
    return f"{host} | {state} => {json.dumps(result, indent=indent)}\n"


@pytest.mark.parametrize("indent", [4, None])
def test_each_host_is_heard_by_itself(indent: t.Optional[int]) -> None:
    output = "".join(
        [
            printed("lab1", "SUCCESS", TOLD, indent),
            "a line that somebody else prints\n",
            printed("lab2", "UNREACHABLE!", {"unreachable": True, "msg": "Task failed: no route"}, indent),
            printed("lab3", "FAILED!", {"failed": True, "msg": "No json.", "module_stderr": "x\npython3: not found\n"}),
            printed("stranger", "SUCCESS", TOLD, indent),
        ]
    )
    answers = _ask.read(["lab1", "lab2", "lab3", "lab4"], output, "[WARNING]: x\nERROR! it broke\n")
    assert answers.told == {"lab1": TOLD}
    assert answers.problems == {
        "lab2": "it is unreachable: no route",
        "lab3": "No json: python3: not found",
        "lab4": "ansible told nothing of it: ERROR! it broke",
    }


def test_a_result_that_is_cut_off_is_none() -> None:
    answers = _ask.read(["lab1"], printed("lab1", "SUCCESS", TOLD)[:-5], "")
    assert not answers.told
    assert "told nothing" in answers.problems["lab1"]


def test_nobody_is_asked_where_nobody_is() -> None:
    assert _ask.ask([], _ask.Request({})) == _ask.Answers({}, {})


def test_nothing_secret_is_in_the_command_line() -> None:
    words = _ask.command("/tmp/inventory", _ask.Request({"gather": ["guests"]}, forks=7, timeout=9))
    rest = " ".join(words[1:])
    assert rest.startswith("-m ansible adhoc all --inventory /tmp/inventory")
    assert rest.endswith('--args {"gather": ["guests"]} --forks 7 --task-timeout 9')


def test_what_people_have_set_for_their_screens_does_not_shape_the_answer() -> None:
    own = {"ANSIBLE_STDOUT_CALLBACK": "dense", "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml", "ANSIBLE_FORKS": "3"}
    found = _ask.environment(own, ["/a", "/b"])
    assert (found["ANSIBLE_STDOUT_CALLBACK"], found["ANSIBLE_CALLBACK_RESULT_FORMAT"]) == ("minimal", "json")
    assert (found["ANSIBLE_FORKS"], found["ANSIBLE_COLLECTIONS_PATH"]) == ("3", "/a:/b")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("a{{b", {"__ansible_unsafe": "a{{b"}),
        ("a{%b", {"__ansible_unsafe": "a{%b"}),
        (22, 22),
        (None, None),
        (True, True),
        ({"a": ["{#"]}, {"a": [{"__ansible_unsafe": "{#"}]}),
    ],
)
def test_values_are_no_templates_any_more(value: t.Any, written: t.Any) -> None:
    assert _ask._untouched(value) == written
