# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run tasks in namespaces of the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
name: netns
short_description: Run tasks in namespaces of the controller
description:
  - Makes a host of a network namespace on the controller, or of all namespaces of one process there, so that a whole
    lab fits on one machine.
  - With O(name), commands run in a named network namespace as C(ip netns exec) runs them, with a C(/sys) of their own.
    Files are shared with the controller.
  - With O(pid_file), commands run in the network, mount, process, host name and IPC namespaces of the process that the
    file names.
  - Commands get the environment of a fresh login, not that of the controller.
  - The controller's own network namespace is refused, so that a mistake in the inventory does not reach the controller.
author:
  - The labspan.vmnet authors (@labspan)
version_added: 0.1.0
extends_documentation_fragment:
  - ansible.builtin.connection_pipelining
requirements:
  - The programs C(ip) (iproute2) and C(nsenter) (util-linux) on the controller.
  - Root on the controller.
options:
  name:
    description:
      - The name of the network namespace, as C(ip netns list) shows it.
    type: str
    vars:
      - name: inventory_hostname
      - name: ansible_host
      - name: ansible_netns_name
  pid_file:
    description:
      - A file that holds the number of a process, and optionally its start time (field 22 of C(/proc/PID/stat)),
        separated by a space. With a start time, a later process with the same number is not mistaken for it.
      - The process is looked up for every command, so the host may be remade meanwhile.
      - Goes before O(name).
    type: path
    vars:
      - name: ansible_netns_pid_file
notes:
  - C(become) works for methods that ask for no password.
"""

EXAMPLES = r"""
# inventory.yml: a named network namespace, and a process with namespaces of its own
labs:
  hosts:
    blue:  # made with: ip netns add blue
      ansible_connection: labspan.vmnet.netns
    green:
      ansible_connection: labspan.vmnet.netns
      ansible_netns_pid_file: /run/green.pid
      ansible_python_interpreter: /usr/bin/python3
"""

import os
import pwd
import subprocess
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display
from ansible_collections.labspan.vmnet.plugins.module_utils._deps import find_program
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process, identify

OWN_NETWORK = "/proc/self/ns/net"
NAMED_NETWORKS = "/run/netns"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

display = Display()


class Connection(ConnectionBase):
    """A set of namespaces on the controller."""

    transport = "labspan.vmnet.netns"
    has_pipelining = True

    def _connect(self) -> Connection:
        if not self._connected:
            if os.geteuid() != 0:
                raise AnsibleError(
                    "the connection labspan.vmnet.netns enters namespaces, which needs root on the controller."
                )
            self._entry()
            display.vvv(f"ENTER {self._where()}", host=self._host())
            self._connected = True
        return self

    def close(self) -> None:
        self._connected = False

    def reset(self) -> None:
        """Nothing is kept open between commands."""

    def exec_command(
        self, cmd: str, in_data: t.Optional[bytes] = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        display.vvv(f"EXEC {to_text(cmd)}", host=self._host())
        done = self._run(["/bin/sh", "-c", cmd], input=in_data or b"", stdout=subprocess.PIPE)
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        display.vvv(f"PUT {in_path} TO {out_path}", host=self._host())
        try:
            with open(to_bytes(in_path), "rb") as source:
                done = self._run(
                    ["dd", "bs=1M", "status=none", f"of={out_path}"], stdin=source, stdout=subprocess.DEVNULL
                )
        except FileNotFoundError as error:
            raise AnsibleFileNotFound(f"the file to transfer does not exist: {in_path}") from error
        if done.returncode:
            raise AnsibleError(f"{out_path} could not be written in {self._where()}: {to_text(done.stderr).strip()}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        display.vvv(f"FETCH {in_path} TO {out_path}", host=self._host())
        with open(to_bytes(out_path), "wb") as target:
            done = self._run(["dd", "bs=1M", "status=none", f"if={in_path}"], stdin=subprocess.DEVNULL, stdout=target)
        if done.returncode:
            raise AnsibleError(f"{in_path} could not be read in {self._where()}: {to_text(done.stderr).strip()}")

    def _run(self, command: list[str], **options: t.Any) -> subprocess.CompletedProcess[bytes]:
        self._connect()
        words = [to_bytes(word) for word in [*self._entry(), *command]]
        return subprocess.run(words, stderr=subprocess.PIPE, env=login_environment(), check=False, **options)

    def _entry(self) -> list[str]:
        """The words that go before a command to run it in the namespaces, looked up and checked anew."""
        pid_file = self._option("pid_file")
        if pid_file is None:
            name = self._option("name")
            self._refuse_own_network(os.path.join(NAMED_NETWORKS, name))
            return [_controller_program("ip"), "netns", "exec", name]
        process = read_pid_file(pid_file)
        if process is None:
            raise AnsibleConnectionFailure(f"the process that {pid_file} names does not run; is the host up?")
        self._refuse_own_network(f"/proc/{process.pid}/ns/net")
        namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc"]
        return [_controller_program("nsenter"), "--target", str(process.pid), *namespaces, "--"]

    def _refuse_own_network(self, path: str) -> None:
        try:
            own = os.path.samefile(path, OWN_NETWORK)
        except OSError as error:
            raise AnsibleConnectionFailure(
                f"{self._where()} is not there ({error.strerror}). Name a network namespace that 'ip netns list' shows."
            ) from None
        if own:
            raise AnsibleError(
                f"{self._where()} is the controller's own network namespace, where the connection labspan.vmnet.netns "
                "does not go. Use the connection local if that is what you want."
            )

    def _option(self, name: str) -> t.Any:
        return self.get_option(name)  # type: ignore[no-untyped-call]

    def _where(self) -> str:
        pid_file = self._option("pid_file")
        return f"the process of {pid_file}" if pid_file else f"the network namespace {self._option('name')}"

    def _host(self) -> str:
        return str(self._option("name"))


def read_pid_file(path: str) -> t.Optional[Process]:
    """The living process that the file names; one without start time is taken by its number alone."""
    try:
        with open(path, encoding="ascii") as file:
            words = file.read().split()
        process = identify(int(words[0]))
    except (OSError, ValueError, IndexError):
        return None
    if process is not None and len(words) > 1 and words[1] != str(process.started):
        return None
    return process


def login_environment() -> dict[str, str]:
    """What a fresh login of this user would see."""
    account = pwd.getpwuid(os.geteuid())
    kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
    return {**kept, "PATH": PATH, "HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}


def _controller_program(name: str) -> str:
    path = find_program(name)
    if path is None:
        raise AnsibleError(f"the connection labspan.vmnet.netns needs the program {name} on the controller.")
    return path
