# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tables that close the host off a bridge, through the functions that linux_bridge uses."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from .conftest import BRIDGE, GATEWAY4, GATEWAY6, GUEST4, OTHER4, Lab

pytestmark = pytest.mark.one_interpreter

_CLOSE = """
import sys
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _closed
wanted = _closed.want({"lab": sys.argv[1]}, _closed.read(["lab"]))
_closed.apply("lab", wanted["lab"] if sys.argv[2] == "close" else _closed.OPEN)
assert (_closed.read(["lab"]) == wanted) == (sys.argv[2] == "close")
"""


def test_the_host_answers_nothing_and_guests_still_meet(lab: Lab, python_path: pathlib.Path) -> None:
    lab.serve("host")
    lab.serve("other")
    before = lab.dump()
    for action, closed in (("close", True), ("open", False)):
        lab.on("guest", "ip", "neigh", "flush", "all")
        environment = f"PYTHONPATH={python_path}{os.pathsep}"
        lab.host.run("env", environment, sys.executable, "-c", _CLOSE, BRIDGE, action)
        assert lab.refused("guest", GATEWAY4, expected=closed) == closed
        assert lab.refused("guest", GATEWAY6, expected=closed) == closed
        answered = lab.on("guest", "ip", "neigh", "show", GATEWAY4).stdout
        assert ("lladdr" not in answered) == closed
        assert lab.seen("guest", OTHER4) == GUEST4
    assert lab.dump() == before
