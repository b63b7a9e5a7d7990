# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection labspan.vmnet.netns: tasks arrive on the host that was meant, files arrive whole, and nowhere else."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from lab import hosts

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAME = f"c{os.getpid()}"


@pytest.fixture(scope="module")
def host() -> t.Iterator[hosts.Host]:
    yield hosts.up(NAME, ["h1"]).hosts[0]
    hosts.down(NAME)


def ansible(*arguments: str, pipelining: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """One ad-hoc task on the inventory host that the first argument names."""
    name, *rest = arguments
    command = [str(pathlib.Path(sys.executable).with_name("ansible")), "all", "--inventory", f"{name},"]
    for key, value in {"ansible_connection": "labspan.vmnet.netns", **variables}.items():
        command += ["--extra-vars", f"{key}={value}"]
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
        "ANSIBLE_PIPELINING": str(pipelining),
        "ANSIBLE_NOCOLOR": "true",
        "LABSPAN_SECRET_OF_THE_CONTROLLER": "1",
    }
    return subprocess.run([*command, *rest], capture_output=True, text=True, check=False, env=environment)


def on(host: hosts.Host) -> dict[str, str]:
    return {"ansible_netns_pid_file": str(host.pid_file), "ansible_python_interpreter": "/usr/bin/python3"}


@pytest.mark.parametrize("pipelining", [True, False])
def test_modules_run_in_all_namespaces_of_the_process(host: hosts.Host, pipelining: bool) -> None:
    script = "hostname; ls /sys/class/net; env"
    done = ansible("h1", "-m", "ansible.builtin.shell", "-a", script, pipelining=pipelining, **on(host))
    lines = done.stdout.splitlines()
    assert "h1" in lines, done
    assert "uplink0" in lines
    assert "LABSPAN_SECRET_OF_THE_CONTROLLER" not in done.stdout


def test_raw_commands_keep_their_status_and_output(host: hosts.Host) -> None:
    done = ansible("h1", "-m", "ansible.builtin.raw", "-a", "hostname; exit 3", **on(host))
    assert "rc=3" in done.stdout
    assert "h1" in done.stdout.splitlines()


@pytest.mark.parametrize("pipelining", [True, False])
def test_files_arrive_whole_in_both_directions(host: hosts.Host, tmp_path: pathlib.Path, pipelining: bool) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a file").write_bytes(content)
    task = f"src='{tmp_path}/a file' dest='/run/a copy'"
    done = ansible("h1", "-m", "ansible.builtin.copy", "-a", task, pipelining=pipelining, **on(host))
    assert done.returncode == 0, done
    assert not pathlib.Path("/run/a copy").exists()
    task = f"src='/run/a copy' dest='{tmp_path}/back' flat=true"
    done = ansible("h1", "-m", "ansible.builtin.fetch", "-a", task, pipelining=pipelining, **on(host))
    assert done.returncode == 0, done
    assert (tmp_path / "back").read_bytes() == content


def test_a_named_network_namespace_is_entered_with_a_sys_of_its_own(host: hosts.Host) -> None:
    done = ansible(host.netns, "-m", "ansible.builtin.raw", "-a", "ls /sys/class/net")
    assert "uplink0" in done.stdout.splitlines(), done


def test_become_works_without_a_password(host: hosts.Host) -> None:
    task = ("-m", "ansible.builtin.command", "-a", "id -u", "--become", "--become-method", "su")
    done = ansible("h1", *task, **on(host))
    assert done.stdout.splitlines()[-1] == "0", done


def test_the_controller_s_own_network_is_refused(tmp_path: pathlib.Path) -> None:
    pid_file = tmp_path / "own.pid"
    pid_file.write_text(str(os.getpid()))
    done = ansible("h1", "-m", "ansible.builtin.raw", "-a", "touch /run/never", ansible_netns_pid_file=str(pid_file))
    assert done.returncode
    assert "the controller's own network namespace" in done.stdout + done.stderr
    assert not pathlib.Path("/run/never").exists()


def test_a_host_that_is_gone_is_unreachable_even_if_its_number_is_in_use(
    host: hosts.Host, tmp_path: pathlib.Path
) -> None:
    pid, started = host.pid_file.read_text().split()
    recycled = tmp_path / "recycled.pid"
    recycled.write_text(f"{pid} {int(started) - 1}")
    for variables in ({"ansible_netns_pid_file": str(recycled)}, {"ansible_netns_name": f"{NAME}-nowhere"}):
        done = ansible("h1", "-m", "ansible.builtin.raw", "-a", "true", **variables)
        assert "UNREACHABLE" in done.stdout, done
