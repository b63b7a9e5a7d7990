# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _store

OURS = ["/usr/bin/qemu-system-x86_64", "-name", "guest=web"]
OTHER = ["/usr/bin/qemu-system-x86_64", "-name", "guest=other"]


class Recorded(_process.Process):
    """What a pid file names: a process that has these command lines one after the other, and then is gone."""

    words: t.ClassVar[list[list[str]]] = []

    @property
    def alive(self) -> bool:
        return bool(self.words)

    def argv(self) -> list[str]:
        return self.words[0] if self.words else []


@pytest.mark.parametrize(
    ("words", "patience", "found"),
    [
        ([OURS], 60.0, True),
        ([OTHER], 60.0, False),
        ([[], [], OURS], 60.0, True),
        ([[], []], 60.0, False),
        ([[]], 0.0, True),
    ],
    ids=["its own", "a stranger", "starting", "killed", "killed and not gone"],
)
def test_what_a_pid_file_names_is_the_guests_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, words: list[list[str]], patience: float, found: bool
) -> None:
    recorded = Recorded(2, 1)

    def wait_gone(processes: list[_process.Process], _timeout: float) -> list[_process.Process]:
        Recorded.words.pop(0)
        return processes

    monkeypatch.setattr(Recorded, "words", words)
    monkeypatch.setattr(_process, "read_pid_file", lambda path: recorded)
    monkeypatch.setattr(_process, "wait_gone", wait_gone)
    processes = _store.Processes(list, patience=patience)
    assert processes.find("web") is (recorded if found else None)
