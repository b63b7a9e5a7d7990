# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which process a pid file names, and what its tasks see of the controller."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.labspan.vmnet.plugins.connection import netns
from ansible_collections.labspan.vmnet.plugins.module_utils._process import identify


def test_a_pid_file_names_a_process_by_number_and_by_start_time(tmp_path: pathlib.Path) -> None:
    own = identify(os.getpid())
    assert own
    path = tmp_path / "pid"
    for content in (f"{own.pid}", f"{own.pid}\n", f"{own.pid} {own.started}\n"):
        path.write_text(content, encoding="ascii")
        assert netns.read_pid_file(str(path)) == own


@pytest.mark.parametrize("content", ["", "none", "0", "-1", "{pid} 1", "99999999999"])
def test_a_pid_file_of_nobody_names_nobody(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "pid"
    path.write_text(content.format(pid=os.getpid()), encoding="ascii")
    assert netns.read_pid_file(str(path)) is None
    assert netns.read_pid_file(str(tmp_path / "none")) is None


def test_tasks_see_a_login_and_not_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/controller")
    monkeypatch.setenv("PATH", "/controller/bin")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = netns.login_environment()
    assert "PYTHONPATH" not in environment
    assert "/controller/bin" not in environment["PATH"]
    assert "/usr/sbin" in environment["PATH"].split(":")
    assert environment["LANG"] == "C.UTF-8"
    assert os.path.isabs(environment["HOME"])
