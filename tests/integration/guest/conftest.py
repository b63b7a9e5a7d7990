# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests for the tests of qemu_guest: an idle one whose firmware finds nothing to boot, and the tiny guest."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import typing as t

import pytest
from lab.hosts import build_tiny_guest
from support import fake_agent
from support.hosts import Host, Result, await_condition

#: An account without rights that every system has.
ACCOUNT = "nobody"

STATE = "/var/lib/labspan/guests"
RUNTIME = "/run/labspan/guests"


class Guests:
    """The guests of one host, as seen from outside the module."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def params(self, name: t.Optional[str], **options: t.Any) -> dict[str, t.Any]:
        defaults = {"user": ACCOUNT, "memory": "32", "accelerator": "tcg", "shutdown_timeout": 0}
        return {**({"name": name} if name else {}), **defaults, **options}

    def converge(self, name: t.Optional[str], **options: t.Any) -> Result:
        return self.host.converge("qemu_guest", self.params(name, **options))

    def check(self, name: t.Optional[str], **options: t.Any) -> Result:
        return self.host.converge("qemu_guest", self.params(name, **options), check=True)

    def refuse(self, name: t.Optional[str], **options: t.Any) -> str:
        before = self.processes()
        message = self.host.refuse("qemu_guest", self.params(name, **options))
        assert self.processes() == before
        return message

    def processes(self) -> dict[int, str]:
        """Number on the host -> name of the guest."""
        found = {}
        for line in self.host.out("ps", "-e", "-o", "pid=,stat=,args=").splitlines():
            pid, state, *argv = line.split()
            if "-name" in argv and "qemu" in argv[0] and not state.startswith("Z"):
                found[int(pid)] = argv[argv.index("-name") + 1].removeprefix("guest=")
        return found

    def pid(self, name: str) -> int:
        (pid,) = (pid for pid, guest in self.processes().items() if guest == name)
        return pid

    def status(self, pid: int) -> dict[str, str]:
        """/proc/PID/status."""
        lines = self.host.out("cat", f"/proc/{pid}/status").splitlines()
        return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}

    def activity(self, name: str) -> str:
        """C(running), C(paused) or C(stopped), by QEMU's own words over a connection of the test's own."""
        if name not in self.processes().values():
            return "stopped"
        return "running" if self.qmp(name, "query-status")["running"] else "paused"

    def qmp(self, name: str, command: str) -> t.Any:
        words = "".join(json.dumps({"execute": word}) + "\n" for word in ("qmp_capabilities", command))
        answer = self.host.run("socat", "-t", "60", "-", f"UNIX-CONNECT:{RUNTIME}/{name}/qmp.sock", stdin=words).stdout
        returned = [message["return"] for message in map(json.loads, answer.splitlines()) if "return" in message]
        return returned[1]

    def mode(self, path: str) -> str:
        """Mode and owner of a file."""
        return self.host.out("stat", "-c", "%a %U", path).strip()

    def exists(self, path: str) -> bool:
        return self.host.run("test", "-e", path, check=False).returncode == 0

    @contextlib.contextmanager
    def agent(self, name: str, *manners: str, stdout: t.Any = None) -> t.Iterator[None]:
        """A stand-in for the agent, in the place of the socket of a guest in which nothing runs."""
        path = f"{RUNTIME}/{name}/agent.sock"

        def listening() -> int:
            return self.host.out("ss", "-lxH").count(f"{path} ")

        before = listening()  # QEMU goes on listening on what has no name any more
        self.host.run("rm", path)
        process = self.host.start(self.host.interpreter, str(fake_agent.__file__), path, *manners, stdout=stdout)
        try:
            await_condition(lambda: listening() > before, f"the stand-in on {path}")
            yield
        finally:
            os.kill(self.host.child(process), signal.SIGKILL)
            process.wait()

    def kill(self, name: str) -> None:
        """Kill QEMU, and wait until it is gone with all its threads: the last one that writes holds the disks."""
        pid = str(self.pid(name))
        self.host.run("kill", f"-{signal.SIGKILL.value}", pid)
        await_condition(lambda: self.host.run("test", "-e", f"/proc/{pid}", check=False).returncode == 1, "its end")


@pytest.fixture
def guests(host: Host) -> Guests:
    return Guests(host)


@pytest.fixture(scope="session")
def public_directory() -> t.Iterator[pathlib.Path]:
    """A directory that every account can read; pytest's own temporary directories are not."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="labspan-guest-test-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def tiny(public_directory: pathlib.Path) -> dict[str, t.Any]:
    """Options that boot the tiny guest and wait until it is ready."""
    built = build_tiny_guest()
    images = {option: public_directory / file for option, file in (("kernel", "vmlinux"), ("initrd", "initrd.img"))}
    for path in images.values():
        with contextlib.suppress(FileExistsError):
            shutil.copy(built / path.name, path)
        path.chmod(0o644)
    return {
        **{option: str(path) for option, path in images.items()},
        "memory": "192",
        "cmdline": "console=ttyS0 no_timer_check quiet panic=1 labspan.dhcp=no",
        "wait_for": "console",
        "console_pattern": "labspan: .* ready",
        "shutdown_timeout": 30,
    }


def image_info(host: Host, path: str) -> dict[str, t.Any]:
    """What qemu-img says about an image, even while it is in use."""
    return t.cast("dict[str, t.Any]", host.json("qemu-img", "info", "-U", "--output=json", path))


def make_image(path: pathlib.Path, *arguments: str, image_format: str = "qcow2") -> pathlib.Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *arguments[:-1], path, *arguments[-1:]], check=True)
    path.chmod(0o644)
    return path
