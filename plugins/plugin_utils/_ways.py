# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""How SSH gets from the controller to a guest behind its lab host. Pure.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import shlex
import typing as t

#: Connections of lab hosts that are SSH to the same port in the end.
SSH = ("ssh", "smart", "paramiko", "paramiko_ssh")
LOCAL = "local"
NETNS = "labspan.vmnet.netns"

#: What comes first in an argument list of ssh(1) holds: nothing is shared by who only passes bytes on.
_ALONE = ("-o", "ControlMaster=no", "-o", "ControlPath=none")


@dataclasses.dataclass(frozen=True)
class Door:
    """How the controller gets into a lab host, as far as that tells how to get through it."""

    connection: str
    """Without C(ansible.builtin.)."""
    host: str = ""
    port: t.Optional[int] = None
    user: t.Optional[str] = None
    key: t.Optional[str] = None
    args: tuple[str, ...] = ()
    """More words for ssh(1)."""
    check_host_key: bool = True
    password: bool = False
    """Whether it needs a password, which nobody could type on the way through."""
    executable: str = "ssh"
    netns: t.Optional[str] = None
    pid_file: t.Optional[str] = None

    @property
    def is_here(self) -> bool:
        """Whether the lab host is the controller."""
        return self.connection == LOCAL

    @property
    def leads_through(self) -> bool:
        """Whether a guest behind it can be reached by an SSH of the controller's own."""
        if self.connection in SSH:
            return not self.password
        return self.is_here or self.connection == NETNS

    def proxy(self, address: str) -> t.Optional[str]:
        """The C(ProxyCommand) that leads to this address, for ssh(1) to fill in; None where none is needed."""
        if self.is_here:
            return None
        if self.connection == NETNS:
            return self._from_namespace(ipaddress.ip_address(address).version)
        return shlex.join([*(word.replace("%", "%%") for word in self._ssh()), "-W", "[%h]:%p", _safe(self.host)])

    def _ssh(self) -> list[str]:
        words = [self.executable, *_ALONE, *self.args]
        if not self.check_host_key:
            words += ["-o", "StrictHostKeyChecking=no"]
        if self.key:
            words += ["-i", self.key]
        if self.port:
            words += ["-p", str(self.port)]
        if self.user:
            words += ["-l", self.user]
        return words

    def _from_namespace(self, version: int) -> str:
        there = "TCP6:[%h]:%p" if version == 6 else "TCP4:%h:%p"
        passing = shlex.join(["socat", "-", there])
        if self.pid_file:
            # The process is looked up by the shell that runs this, each time, as the connection does it.
            number = f'"$(cut -d " " -f 1 {shlex.quote(_safe(self.pid_file))})"'
            return f"nsenter --target {number} --net -- {passing}"
        return f"nsenter {shlex.quote(f'--net=/run/netns/{_safe(self.netns or self.host)}')} -- {passing}"


def _safe(text: str) -> str:
    """For a place where ssh(1) fills in what follows a percent sign."""
    return text.replace("%", "%%")


def arguments(door: Door, address: str, alias: str, *, jump: bool) -> str:
    """The value of C(ansible_ssh_common_args) for a guest.

    Its host key is known by the guest's name, since the same address may be in use behind every lab host.
    """
    words = ["-o", f"HostKeyAlias={alias}"]
    proxy = door.proxy(address) if jump else None
    if proxy is not None:
        words += ["-o", f"ProxyCommand={proxy}"]
    return shlex.join(words)


def control_path(*identity: str) -> str:
    """The value of C(ansible_control_path) for a guest.

    Ansible's own is made of address, port and user, so that guests with one address on two lab hosts would share a
    connection: the tasks of one would be carried out on the other.
    """
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:10]
    return f"%(directory)s/{digest}-%%p-%%r"
