# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disks of a guest that runs, as QEMU has them: what went wrong on them, and making them larger.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _qmp
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places

#: QEMU's word for a guest that it paused because a disk failed it.
IO_ERROR = "io-error"

_NO_SPACE = "nospace"
_TIMEOUT = 30.0
#: Less than this is used up by the next few writes.
_ROOM = 1 << 20


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A disk that a guest could not write to."""

    path: str
    no_space: bool

    def __str__(self) -> str:
        if self.no_space:
            return f"the disk {self.path} could not be written: no space is left in {os.path.dirname(self.path)}"
        return f"the disk {self.path} could not be read or written"

    @property
    def goes_on(self) -> bool:
        """Whether it is seen already that the guest would meet the same at once."""
        if not self.no_space:
            return False
        try:
            found = os.statvfs(os.path.dirname(self.path))
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < _ROOM


def troubles(guest: str) -> tuple[Trouble, ...]:
    """Why QEMU paused the guest."""
    try:
        with _qmp.Qmp(Places(guest).qmp_socket, timeout=_TIMEOUT) as qmp:
            qmp.greet()
            devices = qmp.execute("query-block")
    except SystemFailure:
        return ()
    return tuple(
        Trouble(str(device["inserted"]["file"]), device["io-status"] == _NO_SPACE)
        for device in devices
        if device.get("io-status", "ok") != "ok" and "inserted" in device
    )


def grow(guest: str, path: str, size: int) -> None:
    """Make the disk larger under the guest, which is told."""
    with _qmp.Qmp(Places(guest).qmp_socket, timeout=_TIMEOUT) as qmp:
        qmp.greet()
        qmp.execute("block_resize", **{"node-name": _node(qmp, path), "size": size})


def _node(qmp: _qmp.Qmp, path: str) -> str:
    """The name of what a device hangs on that has this file: whatever it was called when it was plugged in."""
    devices: t.Sequence[t.Mapping[str, t.Any]] = qmp.execute("query-block")
    for device in devices:
        inserted = device.get("inserted", {})
        if inserted.get("file") == path and "node-name" in inserted:
            return str(inserted["node-name"])
    raise SystemFailure(f"QEMU has no disk {path}.")
