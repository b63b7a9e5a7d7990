# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One item or many: how the options of a task become the list of items it asks for.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput

Options = t.Dict[str, t.Any]


def bulk_spec(options: Options, bulk: str) -> Options:
    """The keywords for AnsibleModule: C(options) once for one item, and once as the entries of the list C(bulk).

    Entries have no defaults of their own: what they leave out comes from the top level.
    """
    entry = {name: {key: value for key, value in spec.items() if key != "default"} for name, spec in options.items()}
    entry["name"] = {**entry["name"], "required": True}
    return {
        "argument_spec": {**options, bulk: {"type": "list", "elements": "dict", "options": entry}},
        "mutually_exclusive": [("name", bulk)],
        "required_one_of": [("name", bulk)],
        "supports_check_mode": True,
    }


def is_single(params: Options, bulk: str) -> bool:
    """Whether the task names one item instead of listing many."""
    return params.get(bulk) is None


def items(params: Options, bulk: str) -> list[Options]:
    """The options of every item that the task asks for, each complete; a name may be given once only."""
    defaults = {name: value for name, value in params.items() if name != bulk}
    if is_single(params, bulk):
        return [defaults]
    entries = [
        {**defaults, **{name: value for name, value in entry.items() if value is not None}} for entry in params[bulk]
    ]
    seen: set[str] = set()
    for entry in entries:
        if entry["name"] in seen:
            raise InvalidInput(f"{bulk}[].name", entry["name"], "is listed twice; give each name once.")
        seen.add(entry["name"])
    return entries
