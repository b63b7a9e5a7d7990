# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vhost: the kernel moves the packets of a NIC itself, where it can.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import stat
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Nic

DEVICE = "/dev/vhost-net"

AUTO = "auto"
TRUE = "true"
FALSE = "false"
CHOICES = (AUTO, TRUE, FALSE)

# _IO(VHOST_VIRTIO, 0x01) of linux/vhost.h
_SET_OWNER = 0xAF01


def is_possible(model: str, tap: t.Optional[str]) -> bool:
    """Whether the kernel can move the packets of such a NIC at all."""
    return tap is not None and model.startswith("virtio-net")


@functools.cache
def trouble() -> t.Optional[str]:
    """Why vhost does not work on this host; None when it does, which is tried."""
    try:
        descriptor = open_device()
    except FileNotFoundError:
        return f"{DEVICE} does not exist, which the kernel's module vhost_net brings"
    except OSError as error:
        return f"{DEVICE} cannot be opened: {error.strerror}"
    try:
        fcntl.ioctl(descriptor, _SET_OWNER)
    except OSError as error:
        return f"{DEVICE} does not work: {error.strerror}"
    finally:
        os.close(descriptor)
    return None


def open_device() -> int:
    """One queue's end of the kernel's half."""
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)


def trouble_for(account: t.Optional[Account]) -> t.Optional[str]:
    """Why QEMU cannot have vhost when it opens the device itself as this account; None is root, who opens it for it."""
    reason = trouble()
    if reason is not None or account is None or account.uid == 0:
        return reason
    found = os.stat(DEVICE)
    if found.st_uid == account.uid:
        needed = stat.S_IRUSR | stat.S_IWUSR
    elif found.st_gid in account.groups or found.st_gid == account.gid:
        needed = stat.S_IRGRP | stat.S_IWGRP
    else:
        needed = stat.S_IROTH | stat.S_IWOTH
    return None if found.st_mode & needed == needed else f"{account.name} may not open {DEVICE}"


def settle(spec: GuestSpec, account: t.Optional[Account]) -> GuestSpec:
    """The guest with C(auto) decided; see C(trouble_for) about the account."""
    return dataclasses.replace(spec, nics=tuple(settle_nic(nic, account) for nic in spec.nics))


def settle_nic(nic: Nic, account: t.Optional[Account]) -> Nic:
    if nic.vhost != AUTO:
        return nic
    works = is_possible(nic.model, nic.tap) and trouble_for(account) is None
    return dataclasses.replace(nic, vhost=TRUE if works else FALSE)


def problems(spec: GuestSpec, account: t.Optional[Account]) -> list[str]:
    """Why NICs cannot have the vhost that they were given."""
    reason = trouble_for(account) if any(nic.vhost == TRUE for nic in spec.nics) else None
    if reason is None:
        return []
    return [
        f"nics[{index}].vhost of guest {spec.name}: {reason}. Mend that, or leave vhost out."
        for index, nic in enumerate(spec.nics)
        if nic.vhost == TRUE
    ]


def option(names: t.Sequence[t.Union[int, str]]) -> str:
    """What QEMU is told beside its tap; C(names) are those of descriptors, and none when QEMU opens the device."""
    if not names:
        return ",vhost=on"
    return f",vhost=on,{'vhostfd' if len(names) == 1 else 'vhostfds'}={':'.join(map(str, names))}"
