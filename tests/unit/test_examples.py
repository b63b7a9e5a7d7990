# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What users copy from the examples of modules and documents arrives as it is written, and is understood."""

from __future__ import annotations

import ast
import pathlib
import re
import typing as t

import pytest
import yaml

pytest.importorskip("ansible")

from ansible_collections.labspan.vmnet.plugins.filter.fleet import fleet_check

ROOT = pathlib.Path(__file__).parents[2]
MODULES = {module.stem: module for module in sorted((ROOT / "plugins" / "modules").glob("*.py"))}
ROLES = {role.parents[1].name: role for role in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml"))}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "roles").glob("*/README.md"))]
PREFIX = "labspan.vmnet."

Specification = t.Dict[str, t.Dict[str, t.Any]]


def text_of(module: str, name: str) -> t.Any:
    """One of the texts of a module, such as C(EXAMPLES)."""
    for statement in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return yaml.safe_load(ast.literal_eval(statement.value))
    raise AssertionError(f"{module} has no {name}")


def blocks(document: pathlib.Path) -> list[t.Any]:
    """The YAML of a document."""
    text = document.read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def dictionaries(value: t.Any) -> t.Iterator[dict[str, t.Any]]:
    """All that are in it."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from dictionaries(each)


def wrong(options: t.Mapping[str, t.Any], known: Specification, where: str) -> t.Iterator[str]:
    """Options that are not there or have another form, as far as an example tells; a template may become anything."""
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            yield f"{where}{name}"
            continue
        inner = option.get("suboptions") or option.get("options")
        values = value if option.get("type") == "list" and isinstance(value, list) else [value]
        for each in values:
            if inner and isinstance(each, dict):
                yield from wrong(each, inner, f"{where}{name}.")
            elif isinstance(each, str) and "{{" in each:
                continue
            elif inner or not _fits(each, option):
                yield f"{where}{name}: {each!r}"


def _fits(value: t.Any, option: t.Mapping[str, t.Any]) -> bool:
    if option.get("type") == "dict":
        return isinstance(value, dict)
    return "choices" not in option or str(value).lower() in [str(choice).lower() for choice in option["choices"]]


def misunderstood(example: t.Any) -> list[str]:
    """What modules, roles or the playbook site would not take."""
    found: list[str] = []
    for each in dictionaries(example):
        for name, value in each.items():
            module = str(name).removeprefix(PREFIX)
            if name != module and module in MODULES and isinstance(value, dict):
                found += wrong(value, text_of(module, "DOCUMENTATION")["options"], f"{module}: ")
        role = str(each.get("role", "")).removeprefix(PREFIX)
        if role in ROLES:
            known = yaml.safe_load(ROLES[role].read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
            found += wrong(each.get("vars", {}), known, f"{role}: ")
        listed = {name: value for name, value in each.items() if str(name).startswith("vmnet_") and value is not None}
        if any(isinstance(value, list) for value in listed.values()):
            evaluated = yaml.safe_load(re.sub("{{ .*? }}", "7", yaml.safe_dump(listed)))
            found += fleet_check({"host": evaluated}, ["host"])["problems"].get("host", [])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_options_in_the_examples_of_modules_are_there(module: str) -> None:
    assert misunderstood(text_of(module, "EXAMPLES")) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_the_examples_of_documents_are_there(document: pathlib.Path) -> None:
    assert misunderstood(blocks(document)) == []


@pytest.mark.parametrize(
    ("example", "what"),
    [
        ("- labspan.vmnet.linux_bridge: {nam: br0}", "linux_bridge: nam"),
        ("- labspan.vmnet.qemu_guest: {name: a, nics: [{brigde: br0}]}", "qemu_guest: nics.brigde"),
        ("- labspan.vmnet.qemu_guest: {name: a, state: up}", "qemu_guest: state: 'up'"),
        ("- labspan.vmnet.qemu_guest: {name: a, nics: [br0]}", "qemu_guest: nics: 'br0'"),
        ("- roles: [{role: labspan.vmnet.nat, vars: {nat_subnett: 10.0.0.0/24}}]", "nat: nat_subnett"),
        ("vmnet_networks: [{name: a, scenario: nat, subnett: 10.0.0.0/24}]", "vmnet_networks[0].subnett: "),
    ],
)
def test_what_is_not_there_is_found(example: str, what: str) -> None:
    (found,) = misunderstood(yaml.safe_load(example))
    assert found.startswith(what)


def mac_addresses(value: t.Any) -> list[t.Any]:
    return [each for one in dictionaries(value) for key, each in one.items() if key in ("mac", "mac_address")]


@pytest.mark.parametrize("module", MODULES)
def test_mac_addresses_are_not_numbers_to_yaml(module: str) -> None:
    assert [mac for mac in mac_addresses(text_of(module, "EXAMPLES")) if not isinstance(mac, str)] == []


def test_a_mac_address_without_quotes_is_found() -> None:
    assert mac_addresses(yaml.safe_load("- nics: [{mac: 52:54:00:12:34:56}]")) == [41135085296]
