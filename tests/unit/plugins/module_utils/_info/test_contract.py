# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vmnet_info documents as its result is what C(vmnet_info.json) holds, from which others draw and read."""

from __future__ import annotations

import ast
import json
import pathlib
import typing as t

import pytest
import yaml

HERE = pathlib.Path(__file__).parent
MODULE = HERE.parents[4] / "plugins" / "modules" / "vmnet_info.py"

Returned = t.Dict[str, t.Any]


def documented() -> Returned:
    for statement in ast.parse(MODULE.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "RETURN":
            return t.cast(Returned, yaml.safe_load(ast.literal_eval(statement.value)))
    raise AssertionError("vmnet_info has no RETURN")


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "dict": (dict,), "list": (list,)}


def deviations(returned: Returned, found: t.Mapping[str, t.Any], where: str = "") -> t.Iterator[str]:
    """Keys that are missing or unknown, and values of another type, all the way down; null is of every type."""
    for name in {**returned, **found}:
        if name not in found or name not in returned:
            yield f"{where}{name}: {'missing' if name not in found else 'unknown'}"
            continue
        documentation, value = returned[name], found[name]
        if value is None:
            continue
        if type(value) not in _TYPES[documentation["type"]]:
            yield f"{where}{name}: {value!r} is no {documentation['type']}"
            continue
        entries = value if isinstance(value, list) else [value]
        for entry in entries if "contains" in documentation else ():
            yield from deviations(documentation["contains"], entry, f"{where}{name}.")


def sample() -> dict[str, t.Any]:
    found = json.loads((HERE / "vmnet_info.json").read_text(encoding="utf-8"))
    del found["changed"]
    return t.cast("dict[str, t.Any]", found)


def test_the_sample_is_as_documented() -> None:
    assert list(deviations(documented(), sample())) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("surprise", 1, "surprise: unknown"),
        ("rules", None, ""),
        ("leases", [{}], "leases.network: missing"),
        ("leases", "none", "leases: 'none' is no list"),
    ],
)
def test_a_deviation_is_found(path: str, value: t.Any, said: str) -> None:
    found = list(deviations(documented(), {**sample(), path: value}))
    assert (said in found) if said else not found


def test_every_null_in_the_sample_is_documented_as_possible() -> None:
    def nulls(returned: Returned, found: t.Mapping[str, t.Any]) -> t.Iterator[str]:
        for name, value in found.items():
            text = str(returned[name]["description"])
            if value is None and "null" not in text.lower():
                yield name
            for entry in value if isinstance(value, list) else [value]:
                if "contains" in returned[name] and entry is not None:
                    yield from nulls(returned[name]["contains"], entry)

    assert sorted(set(nulls(documented(), sample()))) == []
