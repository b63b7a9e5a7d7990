# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vmnet_info may be asked for, and which of the host's parts it reads for that.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

SUBSETS = ("host", "networks", "bridges", "taps", "guests", "rules", "forward_blockers", "leases", "foreign_bridges")

OPTIONS: dict[str, t.Any] = {
    "gather": {"type": "list", "elements": "str", "choices": ["all", *SUBSETS], "default": ["all"]},
    "networks": {"type": "list", "elements": "str"},
    "guests": {"type": "list", "elements": "str"},
    "agent": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 2.0},
}

Found = t.Dict[str, t.Any]


def gather(params: t.Mapping[str, t.Any], warnings: list[str]) -> Found:
    """The parts of the host that the parameters ask for; what could not be seen is a sentence in C(warnings)."""
    wanted = set(SUBSETS) if "all" in params["gather"] else set(params["gather"])
    return {subset: {} if subset == "host" else [] for subset in SUBSETS if subset in wanted}
