# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program that is ended leaves nobody behind who still does its work."""

from __future__ import annotations

import pathlib
import subprocess
import threading

from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import EndProgram


def test_what_a_daemon_has_started_finishes_before_its_end_is_over(tmp_path: pathlib.Path) -> None:
    gate, done, work = tmp_path / "gate", tmp_path / "done", tmp_path / "work"
    work.write_text(f"until [ -e {gate} ]; do sleep 0.02; done; echo > {done}\n", encoding="utf-8")
    argv = ("sh", "-c", f"sh {work} & wait")
    daemon = subprocess.Popen(argv, start_new_session=True)
    while not any(process.argv() == ["sh", str(work)] for process in _process.of_session(daemon.pid)):
        pass
    threading.Timer(0.2, gate.touch).start()
    reaper = threading.Thread(target=daemon.wait)
    reaper.start()
    EndProgram(argv, "KILL").perform()
    assert done.exists()
    assert not _process.of_session(daemon.pid)
    reaper.join()
