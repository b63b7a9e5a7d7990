# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What docs/uplink.md tells an administrator to look at and to type on the console of a host."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.uplinks import begin, phase, state, uplink_host

DIRECTORY = "/run/labspan/uplink"


@pytest.fixture
def host(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    with uplink_host(python_path, interpreter) as made:
        yield made


@pytest.mark.one_interpreter
def test_the_dead_man_is_one_file_that_can_be_run_again_by_hand(host: Host) -> None:
    before = state(host)
    name = begin(host, confirm_timeout=15)["pending"]["transaction"]
    shown = json.loads(host.out("sh", "-c", f"cat {DIRECTORY}/*/phase"))
    assert shown["name"] == "moved"
    pid, _started = host.out("cat", f"{DIRECTORY}/{name}/armed").split()
    host.run("kill", "-KILL", pid)
    await_condition(lambda: "rollback.pyz" not in host.out("ps", "-eo", "args"), "the dead-man's end")
    assert state(host) != before

    host.run("python3", "-I", f"{DIRECTORY}/{name}/rollback.pyz", f"{DIRECTORY}/{name}")
    assert phase(host, name) == "rolled back"
    assert "not confirmed" in host.out("sh", "-c", f"cat {DIRECTORY}/*/phase")
    assert state(host) == before
