# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a port of this host is free, and who holds one that is not.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process, argv_of, identify
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Address

DHCP_PORT = 67
DNS_PORT = 53

IP = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_TABLES = {"udp": ("udp", "udp6"), "tcp": ("tcp", "tcp6")}
_TCP_LISTENING = "0A"


def dhcp_port_is_taken(bridge: str) -> bool:
    """Whether a socket that receives what arrives on the bridge is bound to the port of DHCP servers.

    Asked by binding a socket for a moment: /proc does not tell which interface a socket is bound to, and the kernel
    refuses exactly those that would share packets with it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode() + b"\0")
            probe.bind(("", DHCP_PORT))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def dns_port_is_taken(address: Address) -> t.Optional[str]:
    """The protocol whose DNS port at the address is taken; one that dnsmasq could share is not."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    for protocol, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
        with socket.socket(family, kind | socket.SOCK_CLOEXEC) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(address.ip), DNS_PORT))
                if protocol == "tcp":
                    probe.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return protocol
    return None


def holders(protocol: str, port: int, address: t.Optional[Address] = None) -> list[Process]:
    """The processes of this network namespace that hold the port, at this address or at any."""
    inodes = {
        inode
        for table in _TABLES[protocol]
        for local, inode in _sockets(table, port)
        if address is None or local == address.ip or local.is_unspecified
    }
    links = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for entry in os.listdir("/proc") if links else ():
        if not entry.isdigit() or not _holds(entry, links):
            continue
        process = identify(int(entry))
        if process is not None:
            found.append(process)
    return found


def name_process(process: Process) -> str:
    """The process as an administrator would call it."""
    argv = argv_of(process.pid)
    return f"{' '.join(argv) or 'a process that just ended'} (pid {process.pid})"


def _sockets(table: str, port: int) -> t.Iterator[tuple[IP, str]]:
    try:
        with open(f"/proc/net/{table}", encoding="ascii") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if table.startswith("tcp") and fields[3] != _TCP_LISTENING:
            continue
        words, _colon, number = fields[1].partition(":")
        if int(number, 16) == port:
            yield _decode(words), fields[9]


def _decode(words: str) -> IP:
    """An address as the kernel prints it: words of 32 bits in the byte order of the machine."""
    parts = [int(words[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(words), 8)]
    return ipaddress.ip_address(b"".join(parts))


def _holds(pid: str, links: t.Collection[str]) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in links:
                    return True
    return False
