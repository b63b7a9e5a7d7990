# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real SSH into a test host: over its own network card, from another host's network, with OpenSSH at both ends.

    with Ssh() as ssh:
        ssh.serve(host)  # a system host has its own: SystemHost(..., files=ssh.files(), enable=["ssh"])
        door = ssh.door("192.0.2.10", via=lan)  # lan: a host, or the name of a network namespace
        door.run("ip", "-br", "addr")  # a new TCP connection each time
        door.variables  # what Ansible needs to get in by the same way

Nothing of the user's own SSH configuration is read or written; the host's key is known, and checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import typing as t

from support.hosts import TIMEOUT, await_condition

if t.TYPE_CHECKING:
    from support.hosts import AnyHost, Host

#: Where the keys and the configuration are on a system host.
_SSHD = "/etc/ssh/labspan"

# Seconds in which a TCP connection is made, or the host counts as unreachable.
CONNECT_TIMEOUT = 5

_CONFIG = """\
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/login_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM yes
UseDNS no
PrintMotd no
"""
_ALONE = """\
PidFile none
Subsystem sftp internal-sftp
"""

Network = t.Union[str, "AnyHost"]
"""A host, or the name of a network namespace."""


def make_keys(directory: pathlib.Path) -> None:
    """Make the keys of hosts and of who logs in."""
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
    for name in ("host_key", "login_key"):
        subprocess.run([*keygen, "-C", name, "-f", str(directory / name)], check=True)
    kind, key, _comment = (directory / "host_key.pub").read_text(encoding="ascii").split()
    (directory / "known_hosts").write_text(f"labspan {kind} {key}\n", encoding="ascii")


def system_files(directory: pathlib.Path) -> dict[str, t.Union[str, tuple[str, int]]]:
    """What goes into a system host before it starts, so that its own sshd, enabled as C(ssh), lets us in."""
    return {
        f"{_SSHD}/host_key": ((directory / "host_key").read_text(encoding="ascii"), 0o600),
        f"{_SSHD}/login_key.pub": (directory / "login_key.pub").read_text(encoding="ascii"),
        "/etc/ssh/sshd_config.d/labspan.conf": _CONFIG.format(directory=_SSHD),
    }


def end_shared_connections(directory: pathlib.Path) -> None:
    """End what Ansible left open for the tasks to come."""
    for socket in directory.glob("cp-*"):
        command = ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "labspan"]
        subprocess.run(command, capture_output=True, check=False)


class Ssh:
    """Keys for hosts and for who logs in; use as a context manager."""

    def __enter__(self) -> Ssh:
        # Sockets of shared connections lie in it, and their paths may not be long.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="labspan-ssh-"))
        make_keys(self.directory)
        (self.directory / "sshd_config").write_text(_CONFIG.format(directory=self.directory) + _ALONE, encoding="ascii")
        return self

    def __exit__(self, *_exception: object) -> None:
        end_shared_connections(self.directory)
        shutil.rmtree(self.directory)

    def serve(self, host: Host) -> subprocess.Popen[str]:
        """Start the machine's sshd on a bare host, on all its addresses; it ends with the host at the latest."""
        # The directory is /run's, which is the host's own.
        host.run("mkdir", "-p", "/run/sshd")
        with (self.directory / "sshd.log").open("w", encoding="utf-8") as log:
            process = host.start(
                "/usr/sbin/sshd",
                "-D",
                "-e",
                "-f",
                str(self.directory / "sshd_config"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await_condition(
            lambda: process.poll() is not None or ":22 " in host.out("ss", "-Hltn"), "sshd to listen on the host"
        )
        if process.poll() is not None:
            raise AssertionError(f"sshd ended with {process.returncode}: {self.log()}")
        return process

    def log(self) -> str:
        """What sshd of a bare host said."""
        return (self.directory / "sshd.log").read_text(encoding="utf-8")

    def files(self) -> dict[str, t.Union[str, tuple[str, int]]]:
        """As C(system_files)."""
        return system_files(self.directory)

    def door(self, address: str, *, via: Network, port: int = 22) -> Door:
        """The way to an address of a host from another network namespace."""
        network = f"/run/netns/{via}" if isinstance(via, str) else f"/proc/{via.pid}/ns/net"
        return Door(self.directory, address, network, port)


@dataclasses.dataclass(frozen=True)
class Door:
    """One way into a host: an address of it, and the network namespace that it is reached from."""

    directory: pathlib.Path
    address: str
    network: str
    port: int = 22

    @property
    def options(self) -> list[str]:
        """The words that make any ssh(1) go this way."""
        settings = {
            "ProxyCommand": " ".join(self._proxy()),
            "IdentityFile": str(self.directory / "login_key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.directory / "known_hosts"),
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": "labspan",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        words = ["-F", "none"]
        for name, value in settings.items():
            words += ["-o", f"{name}={value}"]
        return words

    @property
    def variables(self) -> dict[str, t.Any]:
        """The variables of an inventory host that is reached this way, by the connection C(ssh).

        Ansible shares one connection among tasks, as it does for everybody; it ends with the context.
        """
        return {
            "ansible_connection": "ssh",
            "ansible_host": self.address,
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_timeout": 2 * CONNECT_TIMEOUT,
            "ansible_control_path": f"{self.directory}/cp-%%C",
            "ansible_ssh_common_args": shlex.join(self.options),
        }

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command on the host, over a TCP connection of its own."""
        ssh = ["ssh", *self.options, "-o", f"ConnectTimeout={2 * CONNECT_TIMEOUT}", "-o", "ControlPath=none"]
        return [*ssh, "-p", str(self.port), f"root@{self.address}", "--", shlex.join(command)]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, over a TCP connection of its own; status 255 is ssh's that did not get in."""
        done = subprocess.run(
            self.argv(*command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"ssh {' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done

    def open(self) -> bool:
        """Whether one gets in, now."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.run("true", check=False).returncode == 0
        return False

    def _proxy(self) -> list[str]:
        target = f"TCP6:[{self.address}]" if ":" in self.address else f"TCP4:{self.address}"
        return [
            "nsenter",
            f"--net={self.network}",
            "socat",
            "-",
            f"{target}:{self.port},connect-timeout={CONNECT_TIMEOUT}",
        ]
