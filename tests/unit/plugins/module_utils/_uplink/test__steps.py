# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program that is ended leaves nobody behind who still does its work; a daemon that is to run does, or it is told."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import threading

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _steps
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import EndProgram, KeepDaemon
from support.hosts import await_condition

INTERFACE = f"lab{os.getpid()}"


def test_what_a_daemon_has_started_finishes_before_its_end_is_over(tmp_path: pathlib.Path) -> None:
    gate, done, work = tmp_path / "gate", tmp_path / "done", tmp_path / "work"
    work.write_text(f"until [ -e {gate} ]; do sleep 0.02; done; echo > {done}\n", encoding="utf-8")
    argv = ("sh", "-c", f"sh {work} & wait")
    daemon = subprocess.Popen(argv, start_new_session=True)

    def works() -> bool:
        return any(process.argv() == ["sh", str(work)] for process in _process.of_session(daemon.pid))

    await_condition(works, "the daemon's script")
    threading.Timer(0.2, gate.touch).start()
    reaper = threading.Thread(target=daemon.wait)
    reaper.start()
    EndProgram(argv, "KILL").perform()
    assert done.exists()
    assert not _process.of_session(daemon.pid)
    reaper.join()


def daemons() -> list[_process.Process]:
    return [process for process, argv in _process.here() if argv[-1] == INTERFACE]


def test_a_daemon_is_started_once_however_often_the_way_back_is_gone(tmp_path: pathlib.Path) -> None:
    # Like a DHCP client it goes into the background by a fork alone: its command line is there from its first moment.
    work, never = tmp_path / "work", tmp_path / "never"
    os.mkfifo(never)
    work.write_text(f"(read word < {never}) > /dev/null 2>&1 &\n", encoding="utf-8")
    daemon = KeepDaemon(("sh", str(work), INTERFACE), "sh", INTERFACE)
    try:
        daemon.perform()
        (first,) = daemons()
        daemon.perform()
        assert daemons() == [first]
    finally:
        running = daemons()
        for process in running:
            _process.send(process, signal.SIGKILL)
        assert not _process.wait_gone(running, 60)
    assert _steps.from_json(_steps.to_json(daemon)) == daemon


@pytest.mark.parametrize(("script", "because"), [("true", "ended at once"), ("echo no lease; exit 2", "no lease")])
def test_a_daemon_that_does_not_run_afterwards_is_told(script: str, because: str) -> None:
    with pytest.raises(SystemFailure, match=f"sh does not run for {INTERFACE} any more: .*{because}"):
        KeepDaemon(("sh", "-c", script), "sh", INTERFACE).perform()
