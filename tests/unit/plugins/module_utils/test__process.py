# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import grp
import os
import pathlib
import signal
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]
# Its first thread ends, as that of a killed program may before the others do; the other one goes on until it is told.
LINGERING = [
    sys.executable,
    "-c",
    "import ctypes, os, signal, threading\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
    "def other():\n"
    "    print('up', flush=True)\n"
    "    signal.sigwait([signal.SIGUSR1])\n"
    "    os._exit(0)\n"
    "threading.Thread(target=other).start()\n"
    "ctypes.CDLL(None).pthread_exit(None)\n",
]


@pytest.fixture
def started(tmp_path: pathlib.Path) -> t.Iterator[t.Callable[..., _process.Process]]:
    processes: list[_process.Process] = []

    def start(argv: list[str], **options: t.Any) -> _process.Process:
        process = _process.spawn(argv, pid_file=str(tmp_path / "x.pid"), output=str(tmp_path / "x.log"), **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        _process.send(process, signal.SIGKILL)


def wait_for_output(path: pathlib.Path, text: str) -> None:
    subprocess.run(
        ["timeout", "60", "sh", "-c", 'until grep -q "$1" "$2"; do sleep 0.01; done', "sh", text, str(path)], check=True
    )


def test_a_started_program_is_recorded_and_found_again(started: t.Any, tmp_path: pathlib.Path) -> None:
    process = started(SLEEPER)
    assert _process.read_pid_file(str(tmp_path / "x.pid")) == process
    assert (tmp_path / "x.pid").read_text() == f"{process.pid} {process.started}\n"
    wait_for_output(tmp_path / "x.log", "up")
    assert process.argv() == SLEEPER
    assert (process, SLEEPER) in list(_process.here())


def test_a_started_program_has_its_own_session_and_no_descriptor_of_ours(
    started: t.Any, tmp_path: pathlib.Path
) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    process = started(SLEEPER)
    wait_for_output(tmp_path / "x.log", "up")
    os.close(writer)
    assert os.read(reader, 1) == b""  # the other end is closed everywhere
    os.close(reader)
    assert os.getsid(process.pid) != os.getsid(0)
    assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull


def test_descriptors_arrive_under_the_wanted_numbers_even_crosswise(started: t.Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    first = os.open(tmp_path / "one", os.O_RDONLY)
    second = os.open(tmp_path / "two", os.O_RDONLY)
    program = f"import os; print(os.read({second}, 9), os.read({first}, 9), flush=True)"
    started([sys.executable, "-c", program], descriptors={second: first, first: second})
    wait_for_output(tmp_path / "x.log", "b'one' b'two'")


def test_a_reused_number_is_another_process(started: t.Any, tmp_path: pathlib.Path) -> None:
    process = started(SLEEPER)
    earlier = dataclasses.replace(process, started=process.started - 1)
    _process.write_pid_file(str(tmp_path / "y.pid"), earlier)
    assert not earlier.alive
    assert _process.read_pid_file(str(tmp_path / "y.pid")) is None
    _process.send(earlier, signal.SIGKILL)
    assert process.alive
    assert _process.end(earlier, timeout=5)
    assert process.alive


def test_ending_waits_and_goes_no_further_than_allowed(started: t.Any, tmp_path: pathlib.Path) -> None:
    process = started(STUBBORN)
    wait_for_output(tmp_path / "x.log", "up")
    assert not _process.end(process, timeout=0.1)
    assert process.alive
    assert _process.end(process, timeout=0.1, force=True)
    assert not process.alive
    assert _process.read_pid_file(str(tmp_path / "x.pid")) is None


def test_a_program_is_there_until_its_last_thread_is_gone(started: t.Any, tmp_path: pathlib.Path) -> None:
    process = started(LINGERING)
    wait_for_output(tmp_path / "x.log", "up")
    wait_for_output(pathlib.Path(f"/proc/{process.pid}/stat"), ") Z ")
    assert process.alive
    assert process.argv() == []
    assert _process.read_pid_file(str(tmp_path / "x.pid")) == process
    assert _process.wait_gone([process], 0.1) == [process]
    _process.send(process, signal.SIGUSR1)
    assert _process.wait_gone([process], 10) == []


def test_ending_is_seen_without_polling_and_with_it(started: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _process.end(started(SLEEPER), timeout=10)

    def no_pidfd(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", no_pidfd, raising=False)
    assert _process.end(started(SLEEPER), timeout=10)


def test_a_program_that_cannot_be_executed_is_an_error_and_leaves_no_record(
    started: t.Any, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(SystemFailure, match=r"/nonexistent/qemu could not be started: FileNotFoundError"):
        started(["/nonexistent/qemu"])
    assert not (tmp_path / "x.pid").exists()


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemFailure, match="could not be started: FileNotFoundError"):
        _process.spawn(SLEEPER, pid_file=str(tmp_path / "x.pid"), output=str(tmp_path / "missing" / "x.log"))


@pytest.mark.parametrize("content", ["", "abc\n", "1\n", "99999999 1\n"])
def test_a_pid_file_that_names_nobody_is_read_as_nobody(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "z.pid").write_text(content)
    assert _process.read_pid_file(str(tmp_path / "z.pid")) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="EPERM: only root may become another account")
def test_a_program_runs_as_the_account_with_its_groups(started: t.Any, tmp_path: pathlib.Path) -> None:
    nobody = _process.find_account("nobody", extra_groups=["daemon", "no-such-group"])
    assert nobody is not None
    process = started(["/bin/sleep", "60"], account=nobody)
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(nobody.uid)] * 4
    assert status["Gid"].split() == [str(nobody.gid)] * 4
    assert str(grp.getgrnam("daemon").gr_gid) in status["Groups"].split()
    assert int(status["CapEff"], 16) == 0


def test_a_parent_is_known_whatever_the_program_is_called(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a) S 1 (b").symlink_to("/bin/sleep")
    with subprocess.Popen([str(tmp_path / "a) S 1 (b"), "60"]) as process:
        assert _process.parent_of(process.pid) == os.getpid()
        process.kill()
    assert _process.parent_of(process.pid) == 0


def test_an_unknown_account_is_nobody() -> None:
    assert _process.find_account("labspan-no-such-user") is None


def test_a_pipe_in_the_place_of_a_pid_file_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "z.pid")
    assert _process.read_pid_file(str(tmp_path / "z.pid")) is None
