# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Over which connection the controller is here, and which TCP connections a move of an interface puts at risk.

The dead-man carries this file, so it uses nothing but Python's standard library.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process

_VARIABLE = "SSH_CONNECTION"
_ESTABLISHED = "01"


class Connection(t.NamedTuple):
    """A TCP connection, told from every other one by these four. Two SSH sessions of one connection are equal."""

    client_address: str
    client_port: int
    server_address: str
    server_port: int

    def __str__(self) -> str:
        client, server = (_bracketed(address) for address in (self.client_address, self.server_address))
        return f"{client}:{self.client_port} to {server}:{self.server_port}"


class Established(t.NamedTuple):
    """A TCP connection as this host sees it, whoever began it."""

    local_address: str
    local_port: int
    remote_address: str
    remote_port: int

    def __str__(self) -> str:
        remote, local = (_bracketed(address) for address in (self.remote_address, self.local_address))
        return f"{remote}:{self.remote_port} to {local}:{self.local_port}"


def ssh_peer() -> t.Optional[Connection]:
    """The SSH connection that this process serves; None when it was not started over SSH.

    Programs that change the user strip the variable from the environment, so the ancestors' are looked at as well, the
    nearest first.
    """
    here = parse_ssh_connection(os.environ.get(_VARIABLE, ""))
    if here is not None:
        return here
    pid = os.getppid()
    while pid > 0:
        found = parse_ssh_connection(variable_of(_read(f"/proc/{pid}/environ"), _VARIABLE))
        if found is not None:
            return found
        pid = _process.parent_of(pid)
    return None


def established() -> list[Established]:
    """Every established TCP connection of this network namespace."""
    return [
        connection
        for path in ("/proc/net/tcp", "/proc/net/tcp6")
        for connection in parse_tcp(_read(path).decode("ascii", "replace"))
    ]


def at_risk(connections: t.Iterable[Established], addresses: t.Iterable[str]) -> list[Established]:
    """Those of the connections that use one of these addresses (with or without prefix length) of this host."""
    own = {_canonical(address.partition("/")[0]) for address in addresses}
    return [connection for connection in connections if connection.local_address in own]


def runs_over(connection: Connection, addresses: t.Iterable[str]) -> bool:
    """Whether the server's end of the connection is one of these addresses (with or without prefix length)."""
    return connection.server_address in {_canonical(address.partition("/")[0]) for address in addresses}


def parse_ssh_connection(value: str) -> t.Optional[Connection]:
    """What sshd leaves in C(SSH_CONNECTION); None for anything else, such as an empty value."""
    words = value.split()
    try:
        client, client_port, server, server_port = words
        return Connection(_canonical(client), int(client_port), _canonical(server), int(server_port))
    except ValueError:
        return None


def variable_of(environment: bytes, name: str) -> str:
    """One variable of a process's environment as /proc shows it; empty when it is not set."""
    prefix = f"{name}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return ""


def parse_tcp(text: str) -> t.Iterator[Established]:
    """The established connections of /proc/net/tcp or /proc/net/tcp6."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == _ESTABLISHED:
            yield Established(*_endpoint(fields[1]), *_endpoint(fields[2]))


def _endpoint(text: str) -> tuple[str, int]:
    address, _colon, port = text.partition(":")
    # The kernel prints each 32 bits of the address as a number of the machine's byte order.
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return _canonical(socket.inet_ntop(family, packed)), int(port, 16)


def _canonical(address: str) -> str:
    """One writing for each address; IPv4 in IPv6 is IPv4, and a link-local one goes without its interface."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
