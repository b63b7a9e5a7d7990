# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tun driver's character device: making taps, and finding out who holds one.

A tap is first held, then configured, and made persistent last: whatever dies in between, the kernel removes it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused, SystemFailure

_DEVICE = "/dev/net/tun"

# linux/if_tun.h; the numbers of these requests differ on MIPS, PowerPC and SPARC, where _IOW has another bit.
_WRITE = 0x80000000 if os.uname().machine.startswith(("mips", "ppc", "powerpc", "sparc")) else 0x40000000
_TUNSETIFF = _WRITE | 0x000454CA
_TUNSETPERSIST = _WRITE | 0x000454CB
_TUNSETOWNER = _WRITE | 0x000454CC
_TUNSETGROUP = _WRITE | 0x000454CE
_TUNGETIFF = (0xC0000000 ^ _WRITE) | 0x000454D2
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_PERSIST = 0x0800
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000


class Holder(t.NamedTuple):
    """A process that has a tap open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def create(
    name: str, *, owner: t.Optional[int], group: t.Optional[int], multi_queue: bool = False, vnet_hdr: bool = False
) -> int:
    """Make a tap that lives as long as the returned descriptor, or C(persist)."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL | _IFF_MULTI_QUEUE * multi_queue | _IFF_VNET_HDR * vnet_hdr
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailure(f"{_DEVICE} cannot be opened ({error.strerror}).{_open_remedy(error)}") from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if owner is not None:
            fcntl.ioctl(descriptor, _TUNSETOWNER, owner)
        if group is not None:
            fcntl.ioctl(descriptor, _TUNSETGROUP, group)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise Refused(f"an interface {name} appeared while this task ran; somebody else made it.") from error
        raise SystemFailure(
            f"the kernel does not make the tap {name}: {error.strerror}.{_open_remedy(error)}"
        ) from error
    return descriptor


def persist(descriptor: int) -> None:
    """Let the tap outlive its descriptor."""
    fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)


def attach(name: str, *, multi_queue: bool = False) -> int:
    """Open one queue of an existing tap for a virtual machine, whoever owns the tap."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE * multi_queue
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SystemFailure(f"{_DEVICE} cannot be opened ({error.strerror}).{_open_remedy(error)}") from error
    request = struct.pack("16sH22x", name.encode(), flags)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        attached = struct.unpack_from("16sH", fcntl.ioctl(descriptor, _TUNGETIFF, request))[1]
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            raise Refused(f"the tap {name} was taken by another process while this task ran.") from error
        raise SystemFailure(f"the tap {name} cannot be opened: {error.strerror}.{_open_remedy(error)}") from error
    if not attached & _IFF_PERSIST:  # there was none, and the kernel made one that goes with this descriptor
        os.close(descriptor)
        raise Refused(f"the tap {name} does not exist any more; it was removed while this task ran.")
    return descriptor


def holders(names: t.Collection[str], in_use: t.Collection[str]) -> dict[str, Holder]:
    """Who holds which of these taps.

    C(in_use) are the taps that have a carrier, which a tap has only while a process holds it. It decides about
    processes in other network namespaces, which may hold another tap of the same name.
    """
    found: dict[str, Holder] = {}
    own = _namespace("self")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in _held_by(pid):
            if name in names and name not in found and (name in in_use or _namespace(pid) == own):
                found[name] = Holder(int(pid), _process_name(pid))
    unseen = {name: Holder(0, "a process that this task cannot see") for name in in_use if name in names}
    return {**unseen, **found}


def _held_by(pid: str) -> t.Iterator[str]:
    with contextlib.suppress(OSError):  # processes end while they are looked at
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") != _DEVICE:
                    continue
                with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii", errors="replace") as file:
                    yield from (line.split(":", 1)[1].strip() for line in file if line.startswith("iff:"))


def _namespace(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _process_name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a process"


def _open_remedy(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return " Making taps needs the capability CAP_NET_ADMIN: run the task as root (become: true)."
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return " Load the kernel module tun (modprobe tun)."
    return ""
