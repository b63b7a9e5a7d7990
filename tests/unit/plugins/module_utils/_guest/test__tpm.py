# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _tpm
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account, Process


@pytest.mark.parametrize(
    ("architecture", "device"), [("x86_64", "tpm-crb"), ("aarch64", "tpm-tis-device"), ("ppc64", "tpm-tis")]
)
def test_qemu_asks_the_tpm_by_its_socket(architecture: str, device: str) -> None:
    spec = GuestSpec("vm1", architecture=architecture, tpm=True)
    words = _argv.command_line(spec, program="qemu", accelerator="tcg")
    assert "socket,id=tpm,path=/run/labspan/guests/vm1/tpm.sock" in words
    assert f"{device},tpmdev=tpm0" in words
    assert not any("tpm" in word for word in _argv.command_line(GuestSpec("vm1"), program="qemu", accelerator="tcg"))


def test_both_ways_to_start_it_say_the_same() -> None:
    words = _tpm.command_line(Places("%i"), "path=/run/labspan/guests/%i/tpm.sock", "mode=0600")
    started = _tpm.TEMPLATE.partition("ExecStart=")[2].partition("\n\n")[0].replace("\\\n", " ").split()
    assert [word for word in started if word != "--daemon"] == words


def test_a_guest_with_a_tpm_is_bound_to_it() -> None:
    unit = "labspan-tpm@vm1.service"
    assert _tpm.unit_lines(GuestSpec("vm1", tpm=True)) == [f"Requires={unit}", f"After={unit}"]
    assert _tpm.unit_lines(GuestSpec("vm1")) == []
    assert "User=somebody\n" in _tpm.drop_in(GuestSpec("vm1", user="somebody"))


class Here(Places):
    """Places below a directory of the test's."""

    root: pathlib.Path

    @property
    def tpm_state(self) -> str:
        return str(self.root / "tpm")

    @property
    def runtime(self) -> str:
        return str(self.root)


@pytest.fixture
def places(tmp_path: pathlib.Path) -> Here:
    here = Here("vm1")
    Here.root = tmp_path
    return here


def test_what_the_tpm_keeps_is_known_and_all_else_stays(places: Here) -> None:
    directory = pathlib.Path(places.tpm_state)
    assert not _tpm.has_state(places)
    directory.mkdir()
    assert _tpm.has_state(places)
    (directory / "tpm2-00.permall").touch()
    (directory / "mine").touch()
    assert _tpm.has_state(places)
    _tpm.remove_state(places)
    assert [path.name for path in directory.iterdir()] == ["mine"]
    assert not _tpm.has_state(places)
    (directory / "mine").unlink()
    _tpm.remove_state(places)
    assert not directory.exists()


def test_no_link_leads_out_of_the_directory(places: Here, tmp_path: pathlib.Path) -> None:
    account = Account("root", 0, 0)
    directory = pathlib.Path(places.tpm_state)
    (tmp_path / "elsewhere").mkdir()
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemFailure):
        _tpm.prepare(places, account)


@pytest.fixture
def sleeper(places: Here) -> t.Iterator[Process]:
    """A process that the pid file names."""
    with subprocess.Popen(["sleep", "60"]) as child:
        process = _process.identify(child.pid)
        assert process is not None
        _process.write_pid_file(places.tpm_pid_file, process)
        yield process
        child.kill()


@pytest.mark.parametrize("ours", [True, False])
def test_only_a_tpm_of_this_guest_is_ended(
    places: Here, sleeper: Process, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    monkeypatch.setattr(_tpm, "_PATIENCE", 0.05)
    monkeypatch.setattr(Process, "argv", lambda _self: words(places if ours else Places("vm2")))
    _tpm.end(places)
    assert sleeper.alive is not ours
    assert not pathlib.Path(places.tpm_pid_file).exists()


def words(places: Places) -> list[str]:
    return _tpm.command_line(places, "fd=3")


def test_a_tpm_that_ends_has_no_command_line_and_is_waited_for(
    places: Here, sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count(1)

    def none(_self: Process) -> list[str]:
        if next(looks) == 3:
            os.kill(sleeper.pid, signal.SIGKILL)
        return []

    monkeypatch.setattr(_tpm, "_PATIENCE", 60.0)
    monkeypatch.setattr(Process, "argv", none)
    _tpm.end(places)
    assert not sleeper.alive
    assert not pathlib.Path(places.tpm_pid_file).exists()


def test_a_tpm_that_is_about_to_start_has_no_command_line_yet(
    places: Here, sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([[], [], words(places)])
    ended = []
    monkeypatch.setattr(_tpm, "_PATIENCE", 60.0)
    monkeypatch.setattr(Process, "argv", lambda _self: next(looks))
    monkeypatch.setattr(_process, "wait_gone", lambda processes, _timeout: processes)
    monkeypatch.setattr(_process, "end", lambda process, **_how: ended.append(process))
    _tpm.end(places)
    assert ended == [sleeper]


def test_what_never_has_a_command_line_is_a_stranger(
    places: Here, sleeper: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tpm, "_PATIENCE", 0.05)
    monkeypatch.setattr(Process, "argv", lambda _self: [])
    _tpm.end(places)
    assert sleeper.alive
    assert not pathlib.Path(places.tpm_pid_file).exists()


@pytest.mark.usefixtures("sleeper")
def test_a_thread_of_the_kernel_is_not_waited_for(places: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Process, "argv", lambda _self: [])
    monkeypatch.setattr(_process, "parent_of", lambda _pid: _tpm._KTHREADD)
    monkeypatch.setattr(_process, "wait_gone", lambda *_arguments: pytest.fail("it never ends"))
    _tpm.end(places)
    assert not pathlib.Path(places.tpm_pid_file).exists()
