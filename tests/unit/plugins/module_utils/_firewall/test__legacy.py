# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lock that all programs of iptables share: it is waited for, but not for ever."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _legacy

_HOLD = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[subprocess.Popen[str]]:
    """Another program that holds the lock until its input ends."""
    lock = tmp_path / "xtables.lock"
    lock.touch()
    monkeypatch.setattr(_legacy, "_LOCK", str(lock))
    command = [sys.executable, "-c", _HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "held\n":
            raise RuntimeError("the lock was not taken")
        yield process


def test_who_holds_the_lock_of_iptables_for_too_long_is_named(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_legacy, "_LOCK_TIMEOUT", 0.1)
    message = rf"\(pid {holder.pid}\) has held .*xtables\.lock"
    with pytest.raises(SystemFailure, match=message) as caught, _legacy._xtables_lock():
        pass
    assert sys.executable in str(caught.value)


def test_a_lock_that_is_let_go_in_time_is_taken(holder: subprocess.Popen[str]) -> None:
    if holder.stdin is None:
        raise RuntimeError("no pipe to the holder")
    holder.stdin.close()
    holder.stdin = None
    with _legacy._xtables_lock(), open(_legacy._LOCK, encoding="ascii") as file:
        assert f"(pid {os.getpid()})" in _legacy._lock_holder(file.fileno())
