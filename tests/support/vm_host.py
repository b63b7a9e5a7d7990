# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab host that is a machine of its own, under QEMU: Debian's kernel, true reboots, and power cuts that lose writes.

    with VmHost() as host:
        host.run("bridge", "-j", "vlan")
        host.converge("linux_bridge", {...})
        host.power_cut()
        host.keep()
        ...
        host.revert()  # as it was, in seconds

Its disk is an overlay on the image that tests/lab/vm_image.sh makes. It has one network card, C(uplink0), on the LAN of
a namespace of its own, C(lan), by which it is reached by SSH. The tiny guest is at C(TINY_GUEST). What it is not: fast.
Without KVM it boots in half a minute on a quiet machine, everything takes five to ten times as long as on this machine,
and guests inside it twenty times as long.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import typing as t

import ansible
import pytest
from lab import vm
from support.hosts import TIMEOUT, AnyHost, Host, await_condition
from support.ssh import Ssh

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY_GUEST = f"{vm.SHARE}/tiny_guest"

GATEWAY, ADDRESS = "192.0.2.1", "192.0.2.10"
MAC = vm.mac(ADDRESS)
GATEWAY6, ADDRESS6 = "2001:db8:1::1", "2001:db8:1::10"

_NETWORK = f"""\
[Match]
Name={vm.UPLINK}

[Network]
Address={ADDRESS}/24
Address={ADDRESS6}/64
Gateway={GATEWAY}
Gateway={GATEWAY6}
LLMNR=no
"""
_LAN = f"""\
link add name lan0 type bridge mcast_snooping 0
address add {GATEWAY}/24 dev lan0
address add {GATEWAY6}/64 dev lan0 nodad
link set dev lan0 up
tuntap add dev {vm.TAP} mode tap
link set dev {vm.TAP} master lan0 up
"""
_PYTHON = {"PYTHONPATH": vm.SHARE, "PYTHONPYCACHEPREFIX": "/var/cache/labspan-python", "LC_ALL": "C.UTF-8"}
#: The snapshot of disk and memory.
_KEPT = "kept"
_WRITE = 'set -e; mkdir -p "$(dirname "$0")"; rm -f "$0"; umask 077; cat > "$0"; chmod "$1" "$0"'


def missing() -> t.Optional[str]:
    """Why there can be no VM host here, or None."""
    for program in ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "genisoimage", "busybox", "ssh", "socat"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    return None


#: For tests that use one, which are all slow.
needs_vm_host = pytest.mark.skipif(missing() is not None, reason=f"no VM host can be made: {missing()}")


class VmHost(AnyHost):
    """One VM host; use as a context manager."""

    interpreter = "/usr/bin/python3"
    timeout = vm.PATIENCE

    def __init__(
        self,
        *,
        hostname: str = "labhost",
        memory: int = 1024,
        cpus: int = 2,
        files: t.Optional[t.Mapping[str, vm.File]] = None,
    ) -> None:
        self.python_path = pathlib.Path(vm.SHARE)
        self.hostname = hostname
        self._size = vm.Size(memory, cpus)
        self._files = dict(files or {})
        self._ends = contextlib.ExitStack()
        self._qemu: t.Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> VmHost:
        with contextlib.ExitStack() as ends:
            self._base = vm.image()
            self.directory = pathlib.Path(tempfile.mkdtemp(prefix="labspan-vm-"))
            ends.callback(shutil.rmtree, self.directory)
            self.ssh = ends.enter_context(Ssh())
            self.lan = ends.enter_context(Host(pathlib.Path(sys.prefix)))
            self.lan.run("ip", "-batch", "-", stdin=_LAN)
            self.door = self.ssh.door(ADDRESS, via=self.lan)
            files: dict[str, vm.File] = {
                **self.ssh.files(),
                **vm.card_file(MAC),
                f"/etc/systemd/network/{vm.UPLINK}.network": _NETWORK,
                "/etc/hostname": f"{self.hostname}\n",
                "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.hostname}\n",
                "/etc/machine-id": (f"{os.urandom(16).hex()}\n", 0o444),
                **self._files,
            }
            vm.prepare(self.directory, self._base, files)
            vm.share(self.directory, _shared())
            ends.callback(self._end)
            self.boot()
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ends.close()

    @property
    def pid(self) -> int:  # type: ignore[override]
        """A process in its LAN: what is inside has no number here."""
        return self.lan.pid

    @property
    def variables(self) -> dict[str, t.Any]:
        """The variables of an inventory host that Ansible reaches by SSH."""
        return {**self.door.variables, "ansible_python_interpreter": self.interpreter}

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command on the host, over a connection that all commands share."""
        shared = {"ControlMaster": "auto", "ControlPath": self._control, "ControlPersist": "300"}
        words = [word for name, value in shared.items() for word in ("-o", f"{name}={value}")]
        ssh, *others = self.door.argv(*command)
        return [ssh, *words, *others]

    def module_environment(self) -> dict[str, str]:
        """That of ssh(1): what the module gets is in its command line."""
        return dict(os.environ)

    def start_module(self, name: str, params: t.Mapping[str, t.Any], **options: t.Any) -> subprocess.Popen[str]:
        """Start a module of the collection on the host."""
        settings = {**_PYTHON, **(options.pop("environment", None) or {})}
        wrapper = ("env", *(f"{key}={value}" for key, value in settings.items()), *options.pop("wrapper", ()))
        return super().start_module(name, params, wrapper=wrapper, **options)

    def wait(self, condition: t.Callable[[], bool], what: str) -> None:
        """Wait until something is so, as long as the host may take for it."""
        await_condition(condition, what, self.timeout)

    def start_python(self, script: str, **options: t.Any) -> subprocess.Popen[str]:
        """Start a script that finds Ansible's package and this collection."""
        return self.start(
            "env", *(f"{key}={value}" for key, value in _PYTHON.items()), "python3", "-c", script, **options
        )

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file on the host's disk."""
        self.run("sh", "-c", _WRITE, path, f"{mode:o}", stdin=text)

    def boot(self, *, degraded: bool = False) -> None:
        """Switch it on, and wait until it is up. With C(degraded), units may have failed."""
        self._switch_on()
        self._await_boot(degraded)

    def keep(self) -> None:
        """Keep it as it is, with all that runs, for C(revert)."""
        self.run("sync")
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.directory / "qmp"))
            with monitor.makefile("rw", encoding="utf-8") as lines:
                for command in (
                    {"execute": "qmp_capabilities"},
                    {"execute": "human-monitor-command", "arguments": {"command-line": f"savevm {_KEPT}"}},
                ):
                    lines.write(json.dumps(command) + "\n")
                    lines.flush()
                    answer: dict[str, t.Any] = {}
                    while not {"return", "error"} & set(answer):
                        answer = json.loads(lines.readline())
        if answer.get("return") != "":
            raise AssertionError(f"QEMU could not keep the VM host: {answer}")

    def revert(self) -> None:
        """Have it again as it was kept, whatever has become of it since."""
        self._end()
        self._switch_on(_KEPT)
        self._await_boot(degraded=False)

    def _switch_on(self, state: t.Optional[str] = None) -> None:
        command = vm.qemu(self.directory, self._base, MAC, self._size, once=True, state=state)
        # It ends with the process that runs the tests.
        inside = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self.lan.pid}/ns/net", "--", *command]
        with (self.directory / "qemu").open("ab") as log:
            self._qemu = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def boot_id(self) -> str:
        """What tells one boot from the next; empty while nobody answers."""
        done = self.run("cat", "/proc/sys/kernel/random/boot_id", check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def reboot(self, *, degraded: bool = False) -> None:
        """Reboot it as an administrator would. QEMU starts anew, too, which takes it half the time."""
        self.run("systemctl", "--no-block", "reboot", check=False)
        self.await_end()
        self.boot(degraded=degraded)

    def reset(self, *, preparation: str = "true", boot: bool = True, degraded: bool = False) -> None:
        """Have its kernel start anew at once (sysrq b): what was not on the disk yet is lost.

        C(preparation) is what a shell does immediately before. Without C(boot), it is off until it is booted.
        """
        command = self.start("sh", "-c", f"{preparation}; echo b >/proc/sysrq-trigger", stdin=subprocess.DEVNULL)
        self.await_end()
        # ssh(1) may not have noticed.
        command.kill()
        command.wait()
        if boot:
            self.boot(degraded=degraded)

    def power_cut(self, *, boot: bool = True, degraded: bool = False) -> None:
        """End it at once, whatever it does: what was not on the disk yet is lost."""
        self._end()
        if boot:
            self.boot(degraded=degraded)

    def state(self) -> str:
        """As C(systemctl is-system-running) has it; empty while nobody answers."""
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

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
        """The file with what it said on its serial console, of all starts."""
        return self.directory / "console"

    @property
    def _control(self) -> str:
        return str(self.ssh.directory / "cp-host")

    def _await_boot(self, degraded: bool) -> None:
        def booted() -> bool:
            if self._qemu is None or self._qemu.poll() is not None:
                raise AssertionError(f"QEMU ended: {(self.directory / 'qemu').read_text(errors='replace')}")
            if not self.boot_id():
                self._disconnect()
                return False
            return self.state() not in ("", "offline", "initializing", "starting", "stopping")

        try:
            await_condition(booted, "the boot", vm.PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}; the end of its console:\n{self._console_end()}") from None
        if self.state() != "running" and not degraded:
            raise AssertionError(f"the VM host is {self.state()}: {self.failures()}")

    def _console_end(self) -> str:
        return self.console.read_text(encoding="utf-8", errors="replace")[-2000:] if self.console.exists() else ""

    def _disconnect(self) -> None:
        """End the shared connection, which may not have noticed that its other end is gone."""
        command = ["ssh", "-F", "none", "-o", f"ControlPath={self._control}", "-O", "exit", "labspan"]
        subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT)

    def await_end(self) -> None:
        """Wait until it has gone off by itself."""
        if self._qemu is not None:
            await_condition(lambda: self._qemu is None or self._qemu.poll() is not None, "the host's end", vm.PATIENCE)
        self._end()

    def _end(self) -> None:
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        self._disconnect()


def _shared() -> dict[str, pathlib.Path]:
    """The collection, the part of Ansible that modules need, and the tiny guest."""
    subprocess.run(
        [sys.executable, str(vm.TINY_GUEST_BUILDER), "--output", str(ROOT / ".build" / "tiny_guest")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    libraries = pathlib.Path(ansible.__file__).parent
    collection = "ansible_collections/labspan/vmnet"
    return {
        "ansible/__init__.py": libraries / "__init__.py",
        "ansible/release.py": libraries / "release.py",
        "ansible/_vendor": libraries / "_vendor",
        "ansible/module_utils": libraries / "module_utils",
        f"{collection}/plugins": ROOT / "plugins",
        "tiny_guest": ROOT / ".build" / "tiny_guest",
    }
