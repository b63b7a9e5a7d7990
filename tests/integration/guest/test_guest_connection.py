# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection labspan.vmnet.guest: tasks arrive in the guest that was meant, whole, and say why when they do not.

Most tests have stand-ins for QEMU's sockets, behind which is this machine. The tiny guest and a Debian are real.
"""

from __future__ import annotations

import base64
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from support import fake_agent, fake_console
from support.debian_guest import DebianGuest, needs_debian_guest
from support.guest_tasks import Tasks
from support.hosts import Host, await_condition
from support.users import Task

from .conftest import RUNTIME, STATE, Guests

pytestmark = [pytest.mark.one_interpreter, pytest.mark.long]

GETTY = ("sh", "-c", fake_console.GETTY)
#: Seconds for a Debian to boot on a machine that has other things to do.
PATIENCE = 1200
LOGIN = {"vmnet_console_user": "root", "vmnet_console_password": "right"}


@pytest.fixture
def tasks(host: Host, tmp_path: pathlib.Path) -> Tasks:
    return Tasks(host, tmp_path)


def agent(host: Host, guest: str, *manners: str) -> None:
    """A stand-in for the agent of a guest."""
    _stand_in(host, f"{RUNTIME}/{guest}/agent.sock", fake_agent.__file__, *manners)


def console(host: Host, guest: str, *command: str) -> None:
    """A stand-in for the console of a guest."""
    _stand_in(host, f"{RUNTIME}/{guest}/console.sock", fake_console.__file__, *command)


def _stand_in(host: Host, path: str, program: t.Optional[str], *arguments: str) -> None:
    host.run("mkdir", "-p", os.path.dirname(path))
    host.start(sys.executable, str(program), path, *arguments, stdout=subprocess.DEVNULL)
    await_condition(lambda: f"{path} " in host.out("ss", "-lxH"), f"the stand-in on {path}")


def of(results: t.Sequence[Task], guest: str, action: str) -> t.Any:
    (found,) = [one["result"] for one in results if one["host"] == guest and one["action"] == action]
    return found


def everything(directory: pathlib.Path) -> list[dict[str, t.Any]]:
    """Tasks of all kinds; what a guest has goes into a directory of its own."""
    for name, size in (("big", 5_000_000), ("small", 20_000)):
        (directory / name).write_bytes(os.urandom(size))
    (directory / "hello.j2").write_text("Grüße an {{ inventory_hostname }}\n", encoding="utf-8")
    (directory / "script.sh").write_text("#!/bin/sh\necho $1; echo bad >&2; exit 4\n", encoding="utf-8")
    here = there = f"{directory}/{{{{ inventory_hostname }}}}"
    return [
        {"ansible.builtin.ping": {}},
        {"ansible.builtin.setup": {"gather_subset": "!all,!min,platform"}},
        {"ansible.builtin.raw": f"mkdir -p {there}"},
        {"ansible.builtin.copy": {"src": f"{directory}/{{{{ file }}}}", "dest": f"{there}/a copy", "mode": "0600"}},
        {"ansible.builtin.fetch": {"src": f"{there}/a copy", "dest": f"{here}/back", "flat": True}},
        {"ansible.builtin.template": {"src": f"{directory}/hello.j2", "dest": f"{there}/hello", "mode": "0644"}},
        {"ansible.builtin.command": {"argv": ["sh", "-c", "cat; echo $0 >&2; exit 3", "ä b"], "stdin": "ö\nü"},
         "failed_when": False},
        {"ansible.builtin.shell": "printf 'ab'; id -un; exit 7", "failed_when": False},
        {"ansible.builtin.script": f"{directory}/script.sh 'a b'", "failed_when": False},
    ]  # fmt: skip


def check_everything(results: t.Sequence[Task], directory: pathlib.Path, guest: str, file: str) -> None:
    assert of(results, guest, "setup")["ansible_facts"]["ansible_system"] == "Linux"
    command = of(results, guest, "command")
    assert (command["rc"], command["stdout"], command["stderr"]) == (3, "ö\nü", "ä b")
    shell = of(results, guest, "shell")
    assert shell["rc"] == 7
    assert shell["stdout"].endswith("broot")
    script = of(results, guest, "script")
    assert (script["rc"], script["stdout"], script["stderr"]) == (4, "a b\n", "bad\n")
    assert (directory / guest / "back").read_bytes() == (directory / file).read_bytes()


def test_modules_and_files_by_agent_and_by_console(host: Host, tasks: Tasks, tmp_path: pathlib.Path) -> None:
    agent(host, "web")
    console(host, "old", *GETTY)
    guests = {"web": {"file": "big"}, "old": {**LOGIN, "file": "small"}}
    results = tasks.must(everything(tmp_path), guests)
    for guest in guests:
        check_everything(results, tmp_path, guest, guests[guest]["file"])
        assert (tmp_path / guest / "hello").read_text(encoding="utf-8") == f"Grüße an {guest}\n"
        assert (tmp_path / guest / "a copy").stat().st_mode & 0o777 == 0o600
    assert "right" not in tasks.printed


def test_without_python_or_pipelining_raw_script_and_copies_work(
    host: Host, tasks: Tasks, tmp_path: pathlib.Path
) -> None:
    console(host, "tiny", "busybox", "ash")
    (tmp_path / "script.sh").write_text("#!/bin/sh\necho $1\n", encoding="utf-8")
    guest = {"tiny": {"ansible_pipelining": False}}
    wanted = [
        {"ansible.builtin.raw": "echo here"},
        {"ansible.builtin.script": f"{tmp_path}/script.sh there"},
        {"ansible.builtin.ping": {}},
    ]
    results = tasks.must(wanted, guest)
    assert of(results, "tiny", "raw")["stdout"] == "here\n"
    assert of(results, "tiny", "script")["stdout"] == "there\n"


def test_tasks_in_one_guest_at_the_same_time_wait_for_each_other(host: Host, tasks: Tasks) -> None:
    agent(host, "web")
    console(host, "tiny", "busybox", "ash")
    names = {f"{guest}-{number}": {"vmnet_guest": guest} for guest in ("web", "tiny") for number in range(4)}
    task = {"ansible.builtin.raw": "sleep 0.2; echo {{ inventory_hostname }}"}
    results = tasks.must([task], names, "--forks", "8")
    assert {one["host"]: one["result"]["stdout"].strip() for one in results} == {name: name for name in names}


def test_become_in_the_guest(host: Host, tasks: Tasks) -> None:
    agent(host, "web")
    become = {"become": True, "become_method": "su", "become_user": "nobody", "become_flags": "-s /bin/sh"}
    (done,) = tasks.must([{"ansible.builtin.raw": "id -un", **become}], {"web": {}})
    assert done["result"]["stdout"] == "nobody\n"
    asks = {"ansible.builtin.raw": "true", "become": True, "become_method": "sudo"}
    (refused,) = tasks.play([asks], {"web": {"ansible_become_password": "secret"}})
    assert "has a password, which cannot be given to sudo there" in refused["result"]["msg"]
    assert "secret" not in tasks.printed


def test_why_a_guest_is_out_of_reach_is_a_sentence(host: Host, tasks: Tasks) -> None:
    agent(host, "mute", "silent")
    agent(host, "forbidden", "forbidden-guest-exec")
    console(host, "closed", *GETTY)
    console(host, "stuck", "sh", "-c", "sleep 1000")
    host.run("mkdir", "-p", f"{STATE}/stopped")
    host.run("touch", f"{STATE}/stopped/guest.json")
    wrong = {**LOGIN, "vmnet_console_password": "wrong-one"}
    guests: dict[str, dict[str, t.Any]] = {
        "nobody": {},
        "stopped": {},
        "mute": {"vmnet_guest_timeout": 0.5},
        "forbidden": {},
        "only-agent": {"vmnet_guest": "mute", "vmnet_guest_transport": "console"},
        "only-console": {"vmnet_guest": "closed", "vmnet_guest_transport": "agent"},
        "no-user": {"vmnet_guest": "closed", "vmnet_guest_timeout": 10},
        "no-password": {"vmnet_guest": "closed", "vmnet_guest_timeout": 10, "vmnet_console_user": "root"},
        "wrong": {"vmnet_guest": "closed", "vmnet_guest_timeout": 10, **wrong},
        "stuck": {"vmnet_guest_timeout": 2},
        "no-host": {"vmnet_host_connection": {"ansible_connection": "labspan.vmnet.netns", "ansible_netns_name": "no"}},
        "no-python": {"vmnet_host_connection": {**tasks.lab_host, "ansible_python_interpreter": "/no/python"}},
        "no-variables": {"vmnet_host_connection": {}},
        "../x": {},
    }
    results = tasks.play([{"ansible.builtin.raw": "echo secret-of-the-task"}], guests, "-vv")
    told = {one["host"]: (one["end"], one["result"]["msg"]) for one in results}
    wanted = {
        "nobody": ("unreachable", "guest nobody is not defined on this lab host"),
        "stopped": ("unreachable", "guest stopped does not run"),
        "mute": ("unreachable", "has not answered for 0.5 seconds: it is not installed"),
        "forbidden": ("failed", "Distributions forbid it in the agent's settings"),
        "only-agent": ("unreachable", "has no serial console"),
        "only-console": ("unreachable", "has no line to an agent"),
        "no-user": ("unreachable", "asks for a login"),
        "no-password": ("unreachable", "asks for the password of 'root'"),
        "wrong": ("unreachable", "does not let 'root' log in on its console"),
        "stuck": ("unreachable", "did not answer within 2 seconds"),
        "no-host": ("unreachable", "lab host lab1: "),
        "no-python": ("unreachable", "Python did not run there"),
        "no-variables": ("failed", "vmnet_host_connection of guest no-variables is empty"),
        "../x": ("failed", "is not a usable name"),
    }
    assert set(told) == set(wanted)
    for guest, (end, sentence) in wanted.items():
        assert told[guest][0] == end, told[guest]
        assert sentence in told[guest][1], told[guest]
    assert "wrong-one" not in tasks.printed


def test_a_command_that_takes_too_long_is_told(host: Host, tasks: Tasks) -> None:
    agent(host, "web", "endless-exec")
    console(host, "tiny", "busybox", "ash")
    patience = {"vmnet_guest_command_timeout": 1}
    results = tasks.play([{"ansible.builtin.raw": "sleep 3"}], {"web": patience, "tiny": patience})
    told = {one["host"]: one["result"]["msg"] for one in results}
    assert "has not ended in guest web within 1 seconds. It goes on there" in told["web"]
    assert "did not answer within 1 seconds" in told["tiny"]
    # The one by the console was interrupted, and the shell is there again.
    (again,) = tasks.must([{"ansible.builtin.raw": "echo back"}], {"tiny": {}})
    assert again["result"]["stdout"] == "back\n"


def test_the_tiny_guest_by_its_console(
    guests: Guests, tasks: Tasks, tiny: dict[str, t.Any], tmp_path: pathlib.Path
) -> None:
    guests.converge("gc-tiny", **tiny)
    content = os.urandom(20_000)
    (tmp_path / "data").write_bytes(content)
    (tmp_path / "script.sh").write_text(
        f"#!/bin/sh\nwc -c </tmp/data; echo bad >&2; exit $1 # {'x' * 5000}\n", encoding="utf-8"
    )
    wanted: list[dict[str, t.Any]] = [
        {"ansible.builtin.raw": "echo 'seldom word'; uname -s >&2; exit 3", "failed_when": False},
        {"ansible.builtin.script": f"{tmp_path}/script.sh 4", "failed_when": False},
    ]
    # Files, without the modules that need Python.
    moves: list[dict[str, t.Any]] = [
        {"transfer": {"way": "put", "src": f"{tmp_path}/data", "dest": "/tmp/a file"}},
        {"transfer": {"way": "fetch", "src": "/tmp/a file", "dest": f"{tmp_path}/back"}},
        {"transfer": {"run": "stat -c '%a %s' '/tmp/a file'; cat", "stdin": base64.b64encode(b"\0\r\n\xff").decode()}},
        {"transfer": {"way": "fetch", "src": "/tmp/none", "dest": f"{tmp_path}/none"}, "ignore_errors": True},
    ]
    played = tasks.play([*wanted, *moves], {"gc-tiny": {"vmnet_guest_timeout": 120}})
    assert [one["end"] for one in played] == ["ok"] * 5 + ["failed"], tasks.printed
    *results, _put, _fetched, told, missing = played
    assert (tmp_path / "back").read_bytes() == content
    assert base64.b64decode(told["result"]["stdout"]) == b"644 20000\n\0\r\n\xff"
    assert "/tmp/none could not be read in guest gc-tiny on lab host lab1: " in missing["result"]["msg"]
    raw = of(results, "gc-tiny", "raw")
    assert (raw["rc"], raw["stdout"], raw["stderr"]) == (3, "seldom word\n", "Linux\n")
    script = of(results, "gc-tiny", "script")
    assert script["rc"] == 4
    # Nothing is left there, and no command is on its screen.
    (left,) = tasks.must([{"ansible.builtin.raw": "ls -A /tmp"}], {"gc-tiny": {"vmnet_guest_timeout": 120}})
    assert left["result"]["stdout"].count("labspan-") == 1  # its own
    assert "seldom" not in guests.host.out("cat", f"{STATE}/gc-tiny/console.log")


@pytest.mark.slow
@needs_debian_guest
def test_a_debian_without_a_network_by_its_agent_and_by_its_console(
    guests: Guests, tasks: Tasks, debian_guest: DebianGuest, tmp_path: pathlib.Path
) -> None:
    secret = "long-and-secret"
    boot = {**debian_guest.boot, "cmdline": f"{debian_guest.boot['cmdline']} cloud-init=disabled"}
    disk = {"base_image": str(debian_guest.disk)}
    guests.converge("gc-deb", **{**boot, "memory": "512", "disks": [disk], "guest_agent": True})
    agent = {"vmnet_guest": "gc-deb", "vmnet_guest_transport": "agent", "vmnet_guest_timeout": 60}
    console = {**agent, "vmnet_guest_transport": "console", "vmnet_guest_timeout": 200}
    login = {"vmnet_console_user": "root", "vmnet_console_password": secret}
    ways: dict[str, dict[str, t.Any]] = {
        "agent": {**agent, "file": "big"},
        "console": {**console, **login, "file": "small"},
    }
    prepare: list[dict[str, t.Any]] = [
        {"ansible.builtin.wait_for_connection": {"timeout": PATIENCE, "connect_timeout": 30}},
        # What cloud-init would have done for SSH, and systemd in time on a faster machine.
        {"ansible.builtin.shell": "systemctl mask --now ssh; systemctl start serial-getty@ttyS0"},
        {"ansible.builtin.user": {"name": "ada"}},
        {"ansible.builtin.raw": f"echo root:{secret} | chpasswd", "no_log": True},
        {"ansible.builtin.command": "id -un", "become": True, "become_user": "ada"},
    ]
    prepared = tasks.must(prepare, {"agent": ways["agent"]})
    assert of(prepared, "agent", "command")["stdout"] == "ada"
    # What a guest is given lies in it; what is fetched from it, and what it is made from, here.
    wanted = everything(tmp_path)
    for way, variables in ways.items():
        (tmp_path / way).mkdir()
        results = tasks.must(wanted, {way: variables})
        check_everything(results, tmp_path, way, variables["file"])
        assert secret not in tasks.printed
    # root is still logged in on the console, and nobody else gets that session.
    other = {**console, **login, "vmnet_console_user": "ada"}
    (refused,) = tasks.play([{"ansible.builtin.raw": "true"}], {"other": other})
    assert "'root' is logged in, and not 'ada'" in refused["result"]["msg"]
    assert secret not in guests.host.out("cat", f"{STATE}/gc-deb/console.log")
