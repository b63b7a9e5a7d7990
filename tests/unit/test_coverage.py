# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/coverage.md names only what exists, or says "not yet"."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import typing as t

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "coverage.md"
#: What DESIGN plans and nothing has yet: may be named only where the row says so.
PLANNED = {"vmnet_probe"}

_CODE = re.compile(r"`([^`]+)`")


class Row(t.NamedTuple):
    """A line of a table: what a note says, where it went, what shows it."""

    note: str
    place: str
    tests: str


def rows(text: str) -> list[Row]:
    """The lines of all tables with three columns."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] not in ("---", "the note"):
            found.append(Row(*cells))
    return found


@functools.lru_cache
def _functions() -> dict[str, set[str]]:
    """Test functions by the name of their file."""
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("tests/unit/**/test_*.py"), *ROOT.glob("tests/integration/**/test_*.py")]:
        names = {
            node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
        }
        found.setdefault(path.name, set()).update(names)
    return found


@functools.lru_cache
def _options() -> dict[str, set[str]]:
    """Options, and those of their entries, by module."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "plugins" / "modules").glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DOCUMENTATION":
                options = yaml.safe_load(ast.literal_eval(node.value))["options"]
                found[path.stem] = set(options)
                for option in options.values():
                    found[path.stem] |= set(option.get("suboptions", {}))
    return found


@functools.lru_cache
def _arguments() -> set[str]:
    """Arguments of all roles."""
    return {
        name
        for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")
        for entry in yaml.safe_load(path.read_text("utf-8"))["argument_specs"].values()
        for name in entry.get("options", {})
    }


def missing_tests(cell: str) -> list[str]:
    """The tests of a cell that do not exist."""
    missing = []
    for name in _CODE.findall(cell):
        file, _colons, function = name.partition("::")
        if function:
            known = function in _functions().get(file, set())
        elif "molecule" in cell:
            known = (ROOT / "extensions" / "molecule" / name / "molecule.yml").is_file()
        else:
            known = False
        if not known:
            missing.append(name)
    return missing


def missing_places(cell: str) -> list[str]:
    """The options, roles and variables of a cell that do not exist; what follows "not yet" is not looked at."""
    told = re.split(r"not yet", cell, flags=re.IGNORECASE)[0]
    missing = []
    for module, option in re.findall(r"`([a-z_]+): ([a-z_0-9]+)", told):
        if module in _options() and option not in _options()[module]:
            missing.append(f"{module}: {option}")
    missing += [
        name
        for name in _CODE.findall(told)
        if re.fullmatch(r"(nat|routed|private|l2|dhcp|guests)_\w+", name)
        and name not in _arguments()
        and name not in _options()
    ]
    missing += [role for role in re.findall(r"roles? `(\w+)`", told) if not (ROOT / "roles" / role).is_dir()]
    return missing + [name for name in _CODE.findall(told) if name.partition(":")[0] in PLANNED]


@pytest.mark.parametrize("row", rows(PAGE.read_text("utf-8")), ids=lambda row: row.note[:40])
def test_a_row_names_what_exists(row: Row) -> None:
    assert row.place
    assert not missing_tests(row.tests)
    assert not missing_places(row.place)
    if not row.tests:
        assert re.search(r"not yet|ansible-doc|beside", row.place, re.IGNORECASE), "nothing shows it"


def test_the_check_sees_what_is_not_there() -> None:
    assert missing_tests("`test_bridge.py::test_nothing`, molecule `nowhere`") == [
        "test_bridge.py::test_nothing",
        "nowhere",
    ]
    assert missing_places("`linux_bridge: nothing`") == ["linux_bridge: nothing"]
    assert missing_places("role `nothing`") == ["nothing"]
    assert missing_places("`vmnet_probe`") == ["vmnet_probe"]
    assert not missing_places("**Not yet**: `vmnet_probe`")


def test_the_page_has_a_row_for_each_line_of_the_notes() -> None:
    assert len(rows(PAGE.read_text("utf-8"))) >= 95
