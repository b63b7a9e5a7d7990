# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What users copy from the modules' examples arrives as it is written."""

from __future__ import annotations

import ast
import pathlib
import typing as t

import pytest
import yaml

MODULES = sorted((pathlib.Path(__file__).parents[2] / "plugins" / "modules").glob("*.py"))


def examples(module: pathlib.Path) -> t.Any:
    for statement in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "EXAMPLES":
            return yaml.safe_load(ast.literal_eval(statement.value))
    raise AssertionError(f"{module} has no EXAMPLES")


def mac_addresses(value: t.Any) -> t.Iterator[t.Any]:
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key in ("mac", "mac_address"))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from mac_addresses(each)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.stem))
def test_mac_addresses_are_not_numbers_to_yaml(module: pathlib.Path) -> None:
    assert [mac for mac in mac_addresses(examples(module)) if not isinstance(mac, str)] == []


def test_a_mac_address_without_quotes_is_found() -> None:
    assert list(mac_addresses(yaml.safe_load("- nics: [{mac: 52:54:00:12:34:56}]"))) == [41135085296]
