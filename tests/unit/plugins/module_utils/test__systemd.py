# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told to systemctl, and what is read off its answers."""

from __future__ import annotations

import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure


class Systemctl:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self.answers: dict[str, tuple[int, str, str]] = {}
        monkeypatch.setattr(_systemd._deps, "program", lambda name, **_more: name)
        monkeypatch.setattr(_systemd._deps, "find_program", lambda name: name)
        monkeypatch.setattr(_systemd._commands, "run", self._run)

    def _run(self, argv: t.Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(argv))
        name = argv[1] if argv[0] == "systemctl" else argv[0]
        code, output, errors = self.answers.get(name, (0, "", ""))
        return subprocess.CompletedProcess(argv, code, output, errors)


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    return Systemctl(monkeypatch)


def test_units_are_shown_in_one_call_and_values_keep_their_equals_signs(systemctl: Systemctl) -> None:
    systemctl.answers["show"] = (0, "MainPID=7\nExecStart={ argv[]=a=b }\n\nMainPID=0\nExecStart=\n", "")
    found = _systemd.shows(["a.service", "b.service"], "MainPID", "ExecStart")
    assert found == {
        "a.service": {"MainPID": "7", "ExecStart": "{ argv[]=a=b }"},
        "b.service": {"MainPID": "0", "ExecStart": ""},
    }
    assert systemctl.calls == [["systemctl", "show", "--property=MainPID,ExecStart", "--", "a.service", "b.service"]]


def test_of_no_units_nothing_is_asked(systemctl: Systemctl) -> None:
    assert _systemd.shows([]) == {}
    _systemd.start()
    _systemd.enable()
    assert systemctl.calls == []


def test_a_unit_that_does_not_start_is_told_with_the_end_of_its_journal(systemctl: Systemctl) -> None:
    systemctl.answers["start"] = (1, "", "Job for a.service failed.\nSee more.\n")
    systemctl.answers["journalctl"] = (0, "cannot bind: in use\n", "")
    with pytest.raises(SystemFailure, match=r"failed: Job .* failed\. See more\. Its journal ends with: cannot"):
        _systemd.start("a.service")


def test_a_unit_that_is_not_there_need_not_be_stopped(systemctl: Systemctl) -> None:
    systemctl.answers["show"] = (0, "LoadState=not-found\n", "")
    _systemd.stop("a.service")
    assert [call[1] for call in systemctl.calls] == ["show"]


@pytest.mark.parametrize("stale", ["yes", "no"])
def test_files_that_systemd_was_not_told_of_are_heeded_before_a_start(systemctl: Systemctl, stale: str) -> None:
    systemctl.answers["show"] = (0, f"NeedDaemonReload={stale}\n", "")
    _systemd.start("a.service")
    told = [call[1] for call in systemctl.calls]
    assert told == (["show", "daemon-reload", "start"] if stale == "yes" else ["show", "start"])
