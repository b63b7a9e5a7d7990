# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run tasks in a guest without a network to it: through its agent or its serial console."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guest
short_description: Run tasks in a guest without a network to it, through its agent or its serial console
description:
  - Reaches a guest that M(labspan.vmnet.qemu_guest) runs, over its lab host's own connection and from there through the
    QEMU guest agent or the serial console. The guest needs no address, and nothing is opened for it in any firewall.
  - On the lab host one Python is run for each command, which gets all that it needs on its standard input. Nothing is
    installed or left there, and neither commands nor passwords stand in a command line.
  - In the guest, commands by the agent run as root, and those by the console as whoever is logged in there.
  - Guests with Python can be managed by all modules; others, such as the tiny guest, by M(ansible.builtin.raw) and
    M(ansible.builtin.script), if they have C(sh), C(cat), C(head), C(tail) and C(sha256sum), and for the console
    C(stty), C(base64) and C(gzip), too.
  - Commands by the agent run at the same time; those by the console wait for each other, on the lab host.
author:
  - The labspan.vmnet authors (@labspan)
version_added: 0.1.0
requirements:
  - Python 3.9 or newer on the lab host.
options:
  guest:
    description:
      - The guest's name on its lab host.
    type: str
    vars:
      - name: inventory_hostname
      - name: vmnet_guest
  lab_host:
    description:
      - The inventory name of the guest's lab host. It is also its address, where O(lab_host_connection) has no
        C(ansible_host).
    type: str
    required: true
    vars:
      - name: vmnet_host
  lab_host_connection:
    description:
      - How the controller reaches the lab host. These are the lab host's own variables, such as C(ansible_connection),
        C(ansible_host), C(ansible_user) and C(ansible_python_interpreter).
      - The guest's sockets belong to root or to the guest's account. A login as another user needs C(ansible_become).
      - Command line options such as C(--user) and C(--become), and keywords of the play, are about the guest, and do
        not reach the lab host.
    type: dict
    default: {}
    vars:
      - name: vmnet_host_connection
  transport:
    description:
      - The way into the guest. V(auto) takes the agent where one listens in the guest, and else the console.
    type: str
    choices: [auto, agent, console]
    default: auto
    vars:
      - name: vmnet_guest_transport
    ini:
      - section: vmnet_guest
        key: transport
    env:
      - name: VMNET_GUEST_TRANSPORT
  timeout:
    description:
      - Seconds that the agent may take to answer, or the console to show a shell, before the guest is unreachable.
    type: float
    default: 30
    vars:
      - name: vmnet_guest_timeout
    ini:
      - section: vmnet_guest
        key: timeout
    env:
      - name: VMNET_GUEST_TIMEOUT
  command_timeout:
    description:
      - Seconds that one command may take, and that the console may be busy with those of others. One by the console is
        interrupted then; one by the agent goes on.
    type: float
    default: 3600
    vars:
      - name: vmnet_guest_command_timeout
    ini:
      - section: vmnet_guest
        key: command_timeout
    env:
      - name: VMNET_GUEST_COMMAND_TIMEOUT
  console_user:
    description:
      - Who logs in on the console. Without it, a shell has to be there already.
      - Somebody else's session on the console is refused.
      - The shell stays logged in for the next command, and ends by itself after ten minutes without one if it knows
        C(TMOUT), as bash does.
    type: str
    vars:
      - name: vmnet_console_user
    ini:
      - section: vmnet_guest
        key: console_user
    env:
      - name: VMNET_CONSOLE_USER
  console_password:
    description:
      - That user's password, if the console asks for one.
    type: str
    vars:
      - name: vmnet_console_password
    env:
      - name: VMNET_CONSOLE_PASSWORD
  pipelining:
    description:
      - Give modules to Python in the guest instead of copying them there first, which is several times faster.
    type: bool
    default: true
    vars:
      - name: ansible_pipelining
      - name: vmnet_guest_pipelining
notes:
  - C(become) in the guest works for methods that ask for no password. By the agent, tasks are root's already.
  - QEMU writes what the guest says on its console into the guest's C(console.log) on the lab host, which only root and
    the guest's account can read. What commands print is in it, as base64; what they are given is not.
  - The console is a serial line and slow, without KVM more so, since each byte costs QEMU some work. Modules and large
    files are better off with the agent.
  - A command prints 16 MiB at most through the agent. Files may have any size.
  - RHEL and its kin forbid C(guest-exec) in the agent's settings; there it has to be allowed, or the console be used.
"""

EXAMPLES = r"""
# inventory.yml: a lab host, and two guests on it in a private network
all:
  children:
    lab_hosts:
      hosts:
        lab1:
          ansible_host: 192.0.2.10
          ansible_user: ada
    lab_guests:
      hosts:
        web:  # by its guest agent, as root
        tiny:  # no agent and no Python in it: raw and script
          vmnet_guest_transport: console
        old:  # asks who is there on its console
          vmnet_guest_transport: console
          vmnet_console_user: root
          vmnet_console_password: "{{ vault_password_of_old }}"
      vars:
        ansible_connection: labspan.vmnet.guest
        ansible_python_interpreter: /usr/bin/python3
        vmnet_host: lab1
        vmnet_host_connection:
          ansible_host: 192.0.2.10
          ansible_user: ada
          ansible_become: true
"""

import hashlib
import os
import shlex
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display
from ansible_collections.labspan.vmnet.plugins.plugin_utils._lab_python import LabHost

#: As much of a file as travels at once; below the 16 MiB that the agent keeps of what a command prints.
PIECE = 4 << 20
#: A file that is written while it is fetched is fetched again as often.
ATTEMPTS = 3

display = Display()


class Connection(ConnectionBase):
    """A guest, by its lab host."""

    transport = "labspan.vmnet.guest"
    has_pipelining = True
    has_tty = False

    _lab_host: t.Optional[LabHost] = None

    def _connect(self) -> Connection:
        """Nothing stays open to the guest; each command finds out by itself whether it is there."""
        self._connected = True
        return self

    def close(self) -> None:
        if self._lab_host is not None:
            self._lab_host.close()
            self._lab_host = None
        self._connected = False

    def reset(self) -> None:
        self.close()

    def exec_command(
        self, cmd: str, in_data: t.Optional[bytes] = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        if sudoable and self.become is not None and self.become.expect_prompt():
            raise AnsibleError(
                f"become in guest {self._guest()} has a password, which cannot be given to {self.become.name} there: a "
                "command has no terminal. Leave the password out and allow it without one, or use the agent or a "
                "root's console, which need no become."
            )
        display.vvv(f"EXEC {to_text(cmd)}", host=self._guest())
        return self._ask(to_text(cmd), in_data)

    def put_file(self, in_path: str, out_path: str) -> None:
        """In place: an existing file keeps its mode, a new one has that of ours, but others may not write to it."""
        display.vvv(f"PUT {in_path} TO {out_path}", host=self._guest())
        checksum = hashlib.sha256()
        try:
            with open(to_bytes(in_path), "rb") as source:
                mode = os.fstat(source.fileno()).st_mode & 0o755
                piece = source.read(PIECE)
                first = True
                while piece or first:
                    checksum.update(piece)
                    told = self._transfer(_put_script(out_path, mode, first), piece)
                    if told.returncode:
                        raise AnsibleError(f"{out_path} could not be written in {self._where()}: {told.last_line}")
                    piece, first = source.read(PIECE), False
        except FileNotFoundError as error:
            raise AnsibleFileNotFound(f"the file to transfer does not exist: {in_path}") from error
        if told.stdout.split()[:1] != [checksum.hexdigest().encode()]:
            raise AnsibleError(
                f"{out_path} is not in {self._where()} as it was sent: its checksum is another one. Somebody else "
                "writes to it, or there is no space left."
            )

    def fetch_file(self, in_path: str, out_path: str) -> None:
        display.vvv(f"FETCH {in_path} TO {out_path}", host=self._guest())
        for _attempt in range(ATTEMPTS):
            if self._fetch(in_path, out_path):
                return
        raise AnsibleError(f"{in_path} in {self._where()} changed each of the {ATTEMPTS} times that it was fetched.")

    def _fetch(self, in_path: str, out_path: str) -> bool:
        """Whether what has arrived is what was there at the beginning."""
        checksum, wanted = hashlib.sha256(), [b""]
        received = 0
        with open(to_bytes(out_path), "wb") as target:
            while True:
                told = self._transfer(_fetch_script(in_path, received), None)
                if told.returncode:
                    raise AnsibleError(f"{in_path} could not be read in {self._where()}: {told.last_line}")
                if not received:
                    wanted = told.stderr.split()[:1]
                target.write(told.stdout)
                checksum.update(told.stdout)
                received += len(told.stdout)
                if len(told.stdout) < PIECE:
                    return wanted == [checksum.hexdigest().encode()]

    def _transfer(self, script: str, stdin: t.Optional[bytes]) -> _Done:
        """A transfer is the login's own: become is for commands, as with ssh."""
        return _Done(*self._ask(script, stdin))

    def _ask(self, command: str, stdin: t.Optional[bytes]) -> tuple[int, bytes, bytes]:
        request = {
            "guest": self._guest(),
            "transport": self._option("transport"),
            "timeout": self._option("timeout"),
            "command_timeout": self._option("command_timeout"),
            "user": self._option("console_user"),
            "password": self._option("console_password"),
            "command": command,
        }
        header, content = self._host().ask(request, stdin)
        if "error" in header:
            kind = AnsibleConnectionFailure if header["unreachable"] else AnsibleError
            raise kind(f"{self._where()}: {header['error']}")
        display.vvvv(f"by its {header['transport']}: exit status {header['rc']}", host=self._guest())
        return int(header["rc"]), content[: header["stdout"]], content[header["stdout"] :]

    def _host(self) -> LabHost:
        if self._lab_host is None:
            variables = self._option("lab_host_connection")
            if not variables:
                raise AnsibleError(
                    f"vmnet_host_connection of guest {self._guest()} is empty. Give it the variables by which the lab "
                    f"host {self._option('lab_host')} is reached, such as ansible_host; for the controller itself that "
                    "is ansible_connection: local."
                )
            self._lab_host = LabHost(str(self._option("lab_host")), variables, self._play_context)
        return self._lab_host

    def _option(self, name: str) -> t.Any:
        return self.get_option(name)  # type: ignore[no-untyped-call]

    def _guest(self) -> str:
        return str(self._option("guest"))

    def _where(self) -> str:
        return f"guest {self._guest()} on lab host {self._option('lab_host')}"


class _Done(t.NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in to_text(self.stderr).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.returncode}"


def _put_script(path: str, mode: int, first: bool) -> str:
    """Write what comes on the standard input, or append it, and print the file's checksum."""
    name = shlex.quote(path)
    if not first:
        return f"cat >>{name} && sha256sum <{name}"
    new = f'umask 077; cat >"$f" && chmod {mode:o} "$f"'
    return f'f={name}; if [ -e "$f" ]; then cat >"$f"; else {new}; fi && sha256sum <"$f"'


def _fetch_script(path: str, start: int) -> str:
    """Print a piece of the file, and before the first one its checksum on the standard error."""
    name = shlex.quote(path)
    piece = f"tail -c +{start + 1} <{name} 2>/dev/null | head -c {PIECE}"
    return (
        piece
        if start
        else f"[ ! -d {name} ] || {{ echo 'it is a directory' >&2; exit 1; }}; sha256sum <{name} >&2 && {piece}"
    )
