# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What containers have on the host's network card: interfaces in other network namespaces whose lower one it is.

From the host's own namespace they are not to be seen, and a card that carries a macvlan cannot become a port.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import json
import os
import socket
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _child

_CLONE_NEWNET = 0x40000000
_RTM_GETNSID = 90
_RTM_NEWNSID = 88
_NLM_F_REQUEST = 1
_NETNSA_NSID = 1
_NETNSA_FD = 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_FAMILY = struct.Struct("=Bxxx")


class Child(t.NamedTuple):
    """An interface of another namespace that is made on one of this namespace."""

    name: str
    kind: str
    place: str
    """Words for the namespace: one of its processes, or its name."""


def children(interface: str) -> list[Child]:
    """Those on this interface, in every other namespace that a process or a name keeps; reads only."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return []
    found: list[Child] = []
    for path, place in _others():
        # One that is gone meanwhile has nothing on the card any more.
        with contextlib.suppress(OSError, LabspanError):
            listed = _child.call(functools.partial(_look, path), purpose=f"look into {place}")
            found += [Child(name, kind, place) for name, kind in parse(listed["links"], index, listed["us"])]
    return found


def parse(text: str, index: int, us: t.Optional[int]) -> list[tuple[str, str]]:
    """Names and kinds of the interfaces, as C(ip -d -j link show) lists them, whose lower one is C(index) of C(us).

    C(us) is the number that the listed namespace has for the other one; None when it has none, and so nothing of it.
    """
    return [
        (entry["ifname"], entry.get("linkinfo", {}).get("info_kind", ""))
        for entry in json.loads(text or "[]")
        if us is not None and entry.get("link_netnsid") == us and entry.get("link_index") == index
    ]


def _others() -> t.Iterator[tuple[str, str]]:
    """A path for each other namespace, and words for it."""
    seen = {os.stat("/proc/self/ns/net").st_ino}
    numbers = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    candidates = [(f"/proc/{pid}/ns/net", pid) for pid in numbers]
    for path, pid in [*candidates, *((name, None) for name in sorted(glob.glob("/run/netns/*")))]:
        try:
            inode = os.stat(path).st_ino
        except OSError:
            continue
        if inode not in seen:
            seen.add(inode)
            yield path, f"network namespace {os.path.basename(path)}" if pid is None else _words_for(pid)


def _words_for(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"the network namespace of process {pid}, {file.read().strip()}"
    except OSError:
        return f"the network namespace of process {pid}"


def _look(path: str) -> dict[str, t.Any]:
    """In a process of its own: its links, and the number that it has for where we come from."""
    ip = _deps.program("ip", purpose="to look at the interfaces of containers")
    with open("/proc/self/ns/net", "rb") as ours, open(path, "rb") as theirs:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(theirs.fileno(), _CLONE_NEWNET) != 0:
            raise SystemFailure(f"{path} cannot be entered ({os.strerror(ctypes.get_errno())}).")
        return {"links": _commands.run([ip, "-d", "-j", "link", "show"]).stdout, "us": _number_of(ours.fileno())}


def _number_of(namespace: int) -> t.Optional[int]:
    """The number that the current namespace has for another one."""
    body = _FAMILY.pack(0) + _ATTRIBUTE.pack(8, _NETNSA_FD) + struct.pack("=I", namespace)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETNSID, _NLM_F_REQUEST, 1, 0) + body)
        answer = netlink.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _RTM_NEWNSID:
        return None
    offset = _HEADER.size + _FAMILY.size
    while offset + _ATTRIBUTE.size < len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, offset)
        if kind == _NETNSA_NSID:
            (number,) = struct.unpack_from("=i", answer, offset + _ATTRIBUTE.size)
            return number if number >= 0 else None
        offset += (length + 3) & ~3
    return None
