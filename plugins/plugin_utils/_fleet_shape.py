# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with the shape of what an inventory asks of a host, each thing by the place where it was written.

Ansible's own words for it name no place, and an inventory has many entries. No value is told that may be secret.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import difflib
import typing as t

from ansible.module_utils.common.validation import (
    check_type_bool,
    check_type_dict,
    check_type_float,
    check_type_int,
    check_type_list,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

_SCALARS: t.Mapping[str, tuple[t.Callable[..., t.Any], str]] = {
    "bool": (check_type_bool, "neither true nor false"),
    "int": (check_type_int, "no whole number"),
    "float": (check_type_float, "no number"),
}


def wrong(where: str, value: t.Any, specification: Options, names: t.Optional[t.Collection[str]] = None) -> list[str]:
    """What is wrong with a value; C(names) are the options of a dictionary that make sense, if not all do."""
    if value is None:
        return []
    kind = specification.get("type", "str")
    if kind == "list":
        return _wrong_list(where, value, specification)
    if kind == "dict" and "options" in specification:
        return _wrong_dict(where, value, specification["options"], names)
    choices = specification.get("choices")
    # Ansible takes true for 'true'.
    if choices and not isinstance(value, bool) and str(value) not in map(str, choices):
        return [f"{where}: {_short(value)} is none of its values, which are {', '.join(map(str, choices))}."]
    if kind in _SCALARS:
        convert, remark = _SCALARS[kind]
        if not _converts(convert, value):
            return [f"{where}: {_short(value)} is {remark}."]
    return []


def _wrong_list(where: str, value: t.Any, specification: Options) -> list[str]:
    entries = specification.get("elements") == "dict"
    if not isinstance(value, list):
        if entries or not _converts(check_type_list, value):
            return [f"{where}: is {_kind(value)} and must be a list{', each entry after a dash' if entries else ''}."]
        return []
    element = {**specification, "type": specification.get("elements", "str")}
    return [each for number, entry in enumerate(value) for each in wrong(f"{where}[{number}]", entry, element)]


def _wrong_dict(where: str, value: t.Any, options: Options, names: t.Optional[t.Collection[str]]) -> list[str]:
    if not isinstance(value, dict):
        if not _converts(check_type_dict, value):
            required = [name for name, option in options.items() if option.get("required")]
            form = f", as in {{{required[0]}: ...}}" if required else ""
            return [f"{where}: is {_kind(value)} and must be a dictionary{form}."]
        value = check_type_dict(value)
    found = []
    for name, each in value.items():
        if name in options:
            found += wrong(f"{where}.{name}", each, options[name])
        else:
            found.append(f"{where}.{name}: there is no such option; {_meant(str(name), names or options)}")
    for name, option in options.items():
        if option.get("required") and value.get(name) is None:
            choices = f", one of {', '.join(option['choices'])}" if "choices" in option else ""
            found.append(f"{where}.{name}: is missing{choices}.")
    return found


def _meant(name: str, names: t.Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"perhaps {near[0]} is meant." if near else f"there are {', '.join(sorted(names))}."


def _converts(convert: t.Callable[..., t.Any], value: t.Any) -> bool:
    try:
        convert(value)
    except (TypeError, ValueError):
        return False
    return True


def _kind(value: t.Any) -> str:
    if isinstance(value, dict):
        return "a dictionary"
    if isinstance(value, list):
        return "a list"
    return "a text" if isinstance(value, str) else f"the value {value}"


def _short(value: t.Any) -> str:
    if isinstance(value, (dict, list)):
        return _kind(value)
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
