# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _store


class Recorded(_process.Process):
    """What a pid file names: a process with this command line."""

    words: t.ClassVar[list[str]] = []

    def argv(self) -> list[str]:
        return self.words


@pytest.mark.parametrize(
    ("words", "waits"), [([], True), (["/usr/bin/qemu-system-x86_64", "-name", "guest=other"], False)]
)
def test_a_guest_that_was_killed_is_waited_for_and_a_stranger_is_not(
    monkeypatch: pytest.MonkeyPatch, words: list[str], waits: bool
) -> None:
    recorded = Recorded(2, 1)
    waited_for: list[_process.Process] = []

    def wait_gone(processes: list[_process.Process], timeout: float) -> list[_process.Process]:
        waited_for.extend(processes)
        return []

    monkeypatch.setattr(Recorded, "words", words)
    monkeypatch.setattr(_process, "read_pid_file", lambda path: recorded)
    monkeypatch.setattr(_process, "wait_gone", wait_gone)
    assert _store.Processes(list).find("web") is None
    assert waited_for == ([recorded] if waits else [])
