# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts with a real systemd for the integration tests: units, managers of networks, firewalls, reboots and power cuts.

    def wire(host):  # at every start, before the host's first process: the NIC is there when it boots
        cable(lan, "port0", host, "eth0", mac="52:54:00:00:00:10")

    files = {"/etc/systemd/network/eth0.network": "[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\n"}
    with SystemHost(python_path, files=files, enable=["systemd-networkd"], wire=wire) as host:
        host.converge("linux_bridge", {"name": "br0"})  # all that a bare Host can
        host.reboot()

A host is a container of systemd-nspawn(1) on an overlay over the tree that tests/lab/system_tree.sh makes. Its network
namespace and its disk are made before it, and are there while it does not run. What it is not: it runs on the machine's
kernel, without udev (/sys is read-only, by which networkd and NetworkManager take every link as ready); what it has
written is never lost, since a power cut ends all processes but not the kernel that has their writes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import tempfile
import typing as t

import ansible
import pytest
from lab.processes import Process, systemd_of
from support.hosts import TIMEOUT, AnyHost, await_condition

ROOT = pathlib.Path(__file__).resolve().parents[2]
TREE = ROOT / ".build" / "system_host" / "tree"
STEPS = ROOT / "tests" / "lab" / "system_host.sh"
BUILDER = ROOT / "tests" / "lab" / "system_tree.sh"

#: Where a host has the collection and Ansible's package.
PYTHON_PATH = pathlib.Path("/opt/labspan")

_DISK = "/run/labspan-system/root"
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "USER": "root",
}

# They end when their standard input does, at the latest with the process that runs the tests.
_DISK_HOLDER = 'set -e; "$0" disk "$1"; echo ready; exec cat'
_NETWORK_HOLDER = "echo ready; exec cat"

_WRITE = 'set -e; mkdir -p "$(dirname "$0")"; rm -f "$0"; umask 077; cat > "$0"; chmod "$1" "$0"'

_numbers = itertools.count(1)

File = t.Union[str, t.Tuple[str, int]]
"""What a file holds, and its mode unless that is 0644."""


def missing() -> t.Optional[str]:
    """Why there can be no system host here, or None."""
    for program in ("systemd-nspawn", "mmdebstrap", "unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    return None


#: For tests that use one.
needs_system_host = pytest.mark.skipif(missing() is not None, reason=f"no system host can be made: {missing()}")


class SystemHost(AnyHost):
    """One host with systemd; use as a context manager, which leaves it running unless C(boot) says otherwise.

    C(binds) says which directories of the machine it can read, and where.
    """

    interpreter = "/usr/bin/python3"

    def __init__(
        self,
        python_path: pathlib.Path,
        *,
        hostname: str = "labhost",
        files: t.Optional[t.Mapping[str, File]] = None,
        enable: t.Sequence[str] = (),
        mask: t.Sequence[str] = (),
        binds: t.Optional[t.Mapping[pathlib.Path, str]] = None,
        wire: t.Optional[t.Callable[[SystemHost], None]] = None,
        boot: bool = True,
    ) -> None:
        self.python_path = PYTHON_PATH
        self.hostname = hostname
        self.name = f"labspan-{os.getpid()}-{next(_numbers)}"
        self._machine_python_path = python_path
        self._files = dict(files or {})
        self._enable, self._mask = list(enable), list(mask)
        self._binds = dict(binds or {})
        self._wire = wire
        self._boots = boot
        self._disk: t.Optional[subprocess.Popen[str]] = None
        self._network: t.Optional[subprocess.Popen[str]] = None
        self._container: t.Optional[subprocess.Popen[str]] = None
        self._init: t.Optional[Process] = None

    def __enter__(self) -> SystemHost:
        subprocess.run([str(BUILDER), str(TREE.parent)], check=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="labspan-host-"))
        try:
            self._disk = _hold("--mount", "--propagation", "private", "sh", "-c", _DISK_HOLDER, str(STEPS), str(TREE))
            # The id is where DHCP identities come from: it lasts as long as the disk.
            self.write("/etc/machine-id", f"{os.urandom(16).hex()}\n", 0o444)
            self.write("/etc/hostname", f"{self.hostname}\n")
            self.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.hostname}\n")
            for path, file in self._files.items():
                self.write(path, *((file,) if isinstance(file, str) else file))
            for action, units in (("enable", self._enable), ("mask", self._mask)):
                if units:
                    self.run("systemctl", action, *units)
            if self._boots:
                self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        with contextlib.ExitStack() as ends:
            ends.callback(shutil.rmtree, self.directory)
            ends.callback(_release, self._disk)
            ends.callback(self._unplug)
            ends.callback(self._await_end)
            ends.callback(self._kill)

    @property
    def pid(self) -> int:  # type: ignore[override]
        """Process 1 of the host; while it does not run, a process that keeps its network."""
        if self._init is not None:
            return self._init.pid
        if self._network is None:
            raise AssertionError("the host has no network yet; boot it")
        return self._network.pid

    @property
    def pid_file(self) -> pathlib.Path:
        """Names process 1 for the connection labspan.vmnet.netns, after each start anew."""
        return self.directory / "pid"

    @property
    def variables(self) -> dict[str, str]:
        """The variables of an inventory host that Ansible reaches without any network. See support.ssh for SSH."""
        return {
            "ansible_connection": "labspan.vmnet.netns",
            "ansible_netns_pid_file": str(self.pid_file),
            "ansible_python_interpreter": self.interpreter,
        }

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command on the host; on its disk alone, while it does not run."""
        if self._init is not None:
            return ["nsenter", "--target", str(self._init.pid), *_NAMESPACES, "--", *command]
        return ["nsenter", f"--mount={self._mounts()}", "--", "chroot", _DISK, *command]

    def environment(self) -> dict[str, str]:
        """That of a fresh login."""
        return dict(_ENVIRONMENT)

    def module_environment(self) -> dict[str, str]:
        """The login's, and where Ansible's package and this collection are."""
        return {**_ENVIRONMENT, "PYTHONPATH": str(PYTHON_PATH), "PYTHONPYCACHEPREFIX": f"{PYTHON_PATH}/cache"}

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file on the host's disk, whether it runs or not."""
        self.run("sh", "-c", _WRITE, path, f"{mode:o}", stdin=text)

    def boot(self, *, degraded: bool = False) -> None:
        """Start the host on its disk, in a network namespace that only its wiring has seen, and wait until it is up.

        With C(degraded), units may have failed.
        """
        self._network = _hold("--net", "sh", "-c", _NETWORK_HOLDER)
        if os.path.samefile(f"/proc/{self._network.pid}/ns/net", "/proc/self/ns/net"):
            raise AssertionError("the system host would be in the machine's own network namespace")
        if self._wire is not None:
            self._wire(self)
        libraries = pathlib.Path(ansible.__file__).resolve().parent
        binds = [f"--bind={self._machine_python_path}:{PYTHON_PATH}", f"--bind-ro={ROOT}", f"--bind-ro={libraries}"]
        binds += [f"--bind-ro={path.resolve()}:{place}" for path, place in self._binds.items()]
        start = [str(STEPS), "boot", self.name, self.hostname, *binds]
        namespaces = [f"--mount={self._mounts()}", f"--net=/proc/{self._network.pid}/ns/net"]
        with self.console.open("a", encoding="utf-8") as console:
            self._container = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "nsenter", *namespaces, "--", *start],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                text=True,
                cwd="/",
            )
        await_condition(self._started, "process 1 of the system host")
        if self._init is None:
            raise AssertionError(f"the system host did not start: {self.console.read_text(encoding='utf-8')}")
        self.pid_file.write_text(f"{self._init.pid} {self._init.started}\n", encoding="ascii")
        await_condition(lambda: self.state() not in ("", "offline", "initializing", "starting"), f"the boot: {self}")
        if self.state() != "running" and not degraded:
            raise AssertionError(f"the system host is {self.state()}: {self.failures()}")

    def state(self) -> str:
        """As C(systemctl is-system-running) has it; empty while nobody answers."""
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def reboot(self, *, degraded: bool = False) -> None:
        """Shut the host down as an administrator would, and start it again: same disk, everything else is fresh."""
        # It may be gone before it has answered.
        self.run("systemctl", "--no-block", "reboot", check=False)
        self._await_end()
        self._unplug()
        self.boot(degraded=degraded)

    def power_cut(self, *, boot: bool = True, degraded: bool = False) -> None:
        """End everything at once, and start it again: same disk, everything else is fresh."""
        self._kill()
        self._await_end()
        self._unplug()
        if boot:
            self.boot(degraded=degraded)

    def journal(self, *options: str) -> str:
        """What was logged since the last start; give C(-b -1) for the one before, C(-u UNIT) for a unit."""
        self.run("journalctl", "--sync", check=False)  # what was said a moment ago may still be on its way
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", *(options or ("-b",)), check=False).stdout

    def failures(self) -> str:
        """The units that failed, and what they said: for the message of a test that fails."""
        units = self.run("systemctl", "--plain", "--no-legend", "--failed", check=False).stdout
        names = [line.split()[0] for line in units.splitlines() if line.split()]
        return "\n".join([units, *(self.journal("-b", "-u", name) for name in names)])

    @property
    def console(self) -> pathlib.Path:
        """The file with what nspawn and process 1 said, of all starts."""
        return self.directory / "console"

    def __repr__(self) -> str:
        return f"<system host {self.hostname}, {self.name}>"

    def _mounts(self) -> str:
        if self._disk is None:
            raise AssertionError("the host has no disk; use it as a context manager")
        return f"/proc/{self._disk.pid}/ns/mnt"

    def _started(self) -> bool:
        """Whether process 1 is there, or will not come."""
        if self._container is None or self._container.poll() is not None:
            return True
        # The container's process is unshare(1), whose child is nspawn.
        for nspawn in Process.of(self._container.pid).children():
            self._init = systemd_of(nspawn)
        return self._init is not None

    def _kill(self) -> None:
        """All processes of the host end with its first; nspawn, left alone, cleans up."""
        if self._init is not None:
            self._init.kill()
        elif self._container is not None:
            self._container.kill()

    def _await_end(self) -> None:
        if self._container is None:
            return
        try:
            self._container.wait(TIMEOUT)
        finally:
            self._container.kill()
            self._container.wait()
            self._container, self._init = None, None
            self.pid_file.unlink(missing_ok=True)
            subprocess.run([str(STEPS), "forget", self.name], check=True)

    def _unplug(self) -> None:
        """A network namespace ends some time after its last process; its cables are pulled now, at both ends."""
        if self._network is None:
            return
        inside = ["nsenter", f"--net=/proc/{self._network.pid}/ns/net", "ip"]
        cables = [*inside, "-o", "link", "show", "type", "veth"]
        for line in subprocess.run(cables, capture_output=True, text=True, check=False).stdout.splitlines():
            name = line.split()[1].rstrip(":").partition("@")[0]
            subprocess.run([*inside, "link", "del", name], capture_output=True, check=False)
        _release(self._network)
        self._network = None


def _hold(*arguments: str) -> subprocess.Popen[str]:
    """A process that keeps namespaces."""
    process = subprocess.Popen(
        ["unshare", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    if process.stdout is None or process.stdout.readline() != "ready\n":
        _release(process)
        raise AssertionError("the namespaces of a system host could not be made (are the tests run as root?)")
    return process


def _release(process: t.Optional[subprocess.Popen[str]]) -> None:
    if process is not None:
        process.kill()
        process.communicate()
