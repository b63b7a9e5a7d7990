# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import stat
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _accelerator
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._accelerator import Verdict
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account

ME = Account("me", os.geteuid(), os.getegid(), tuple(os.getgroups()))


@pytest.fixture(autouse=True)
def _own_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(_accelerator, "_DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(_accelerator, "ACCELERATOR_MEMORY", str(tmp_path / "run" / "accelerator.json"))


@pytest.fixture
def qemu(tmp_path: pathlib.Path) -> t.Callable[[str], str]:
    def write(script: str) -> str:
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(stat.S_IRWXU)
        return str(path)

    return write


def test_only_the_sign_of_life_counts(qemu: t.Callable[[str], str]) -> None:
    assert _accelerator.try_kvm(qemu("exit 85"), "x86_64", ME) == Verdict(True, "a trial guest ran")
    assert _accelerator.try_kvm(qemu("exit 0"), "x86_64", ME) == Verdict(False, "a trial guest failed: exit status 0")
    crash = qemu("echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$")
    assert _accelerator.try_kvm(crash, "x86_64", ME) == Verdict(False, "a trial guest failed: failed to set MSR 0x10a")


def test_a_trial_that_hangs_is_cut_short(qemu: t.Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_accelerator, "_PATIENCE", 0.1)
    verdict = _accelerator.try_kvm(qemu("exec sleep 60"), "x86_64", ME)
    assert verdict == Verdict(False, "a trial guest hung for 0.1 seconds")


def test_without_the_device_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_accelerator, "_DEVICE", "/no/such/kvm")
    assert not _accelerator.try_kvm("/no/such/qemu", "x86_64", ME).works


def test_a_verdict_is_remembered_for_this_qemu_and_account(qemu: t.Callable[[str], str]) -> None:
    program = qemu("exit 85")
    verdict = Verdict(False, "because")
    assert _accelerator.remembered(program, ME) is None
    _accelerator.remember(program, ME, verdict)
    assert _accelerator.remembered(program, ME) == verdict
    assert _accelerator.remembered(program, Account("other", ME.uid + 1, ME.gid)) is None
    os.utime(program, ns=(1, 1))  # another version was installed
    assert _accelerator.remembered(program, ME) is None


def test_a_spoilt_memory_is_no_memory(qemu: t.Callable[[str], str], tmp_path: pathlib.Path) -> None:
    program = qemu("exit 85")
    _accelerator.remember(program, ME, Verdict(True, ""))
    (tmp_path / "run" / "accelerator.json").write_text("[", encoding="ascii")
    assert _accelerator.remembered(program, ME) is None


def test_other_architectures_are_not_native() -> None:
    assert _accelerator.is_native(os.uname().machine)
    assert not _accelerator.is_native("no-such-architecture")


def test_the_trial_runs_in_emulation() -> None:
    """The same guest under TCG gives the sign: a KVM that does not is not to blame on the trial."""
    import subprocess
    import tempfile

    from ansible_collections.labspan.vmnet.plugins.module_utils import _deps

    program = _deps.find_program("qemu-system-x86_64")
    if program is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(_accelerator._BOOT_SECTOR.ljust(_accelerator._BOOT_DISK_SIZE, b"\0"))
        disk.flush()
        argv = _accelerator._trial(program, "x86_64", disk.name)
        argv[argv.index("kvm")], argv[argv.index("host")] = "tcg", "max"
        done = subprocess.run(argv, capture_output=True, timeout=300, check=False)
    assert done.returncode == _accelerator._SIGN_OF_LIFE
