# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Internal snapshots of qcow2 images: which there are, and taking, removing and going back to them.

Images of a stopped guest are read here and changed by C(qemu-img), as the guest's own account; those of a running guest
are QEMU's, and it is asked and told. A command is about all disks of a guest or none: what was done to the first ones
is taken back when a later one refuses.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import struct
import time
import typing as t
import uuid

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _qmp
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account

# docs/interop/qcow2.txt: the header's number of snapshots and where their table is, and an entry of that.
_HEADER = struct.Struct(">4sI52xIQ")
_MAGIC = b"QFI\xfb"
_ENTRY = struct.Struct(">QIHHIIQII")
_LARGE_STATE = struct.Struct(">Q")
#: As many as QEMU allows (block/qcow2.h), each with the longest names and extra data it writes, is not read at once.
_MOST = 65536
_LONGEST_TABLE = 64 << 20

_POLL = 0.05


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot in one image."""

    name: str
    created: t.Optional[str] = None
    memory: int = 0
    """Bytes of the guest's memory that are kept with it, in this image."""


@dataclasses.dataclass(frozen=True)
class Disk:
    """An image that the guest writes to."""

    path: str
    format: str
    node: t.Optional[str] = None
    """QEMU's name for it while the guest runs."""
    snapshots: tuple[Snapshot, ...] = ()

    def find(self, name: str) -> t.Optional[Snapshot]:
        return next((snapshot for snapshot in self.snapshots if snapshot.name == name), None)


def read_table(path: str) -> tuple[Snapshot, ...]:
    """The snapshots in a qcow2 image; none in an image of another format."""
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            return ()
        _magic, _version, count, offset = _HEADER.unpack(head)
        if not count:
            return ()
        file.seek(offset)
        table = file.read(_LONGEST_TABLE)
    try:
        return tuple(_parse_table(table, min(count, _MOST)))
    except struct.error:
        raise SystemFailure(f"the table of snapshots in {path} is cut short: the image is broken.") from None


def _parse_table(table: bytes, count: int) -> t.Iterator[Snapshot]:
    offset = 0
    for _number in range(count):
        _l1, _l1_size, id_length, name_length, seconds, _nanoseconds, _clock, memory, extra = _ENTRY.unpack_from(
            table, offset
        )
        at = offset + _ENTRY.size
        if extra >= _LARGE_STATE.size:
            (memory,) = _LARGE_STATE.unpack_from(table, at)
        at += extra + id_length
        name = table[at : at + name_length]
        if len(name) < name_length:
            raise struct.error
        yield Snapshot(name.decode("utf-8", "replace"), _iso(seconds), memory)
        offset = (at + name_length + 7) & ~7


def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Stopped:
    """The disks of a guest that does not run."""

    def __init__(self, guest: str, account: t.Optional[Account]) -> None:
        self._guest = guest
        self._account = account

    def take(self, name: str, disks: t.Sequence[Disk]) -> None:
        done: list[Disk] = []
        try:
            for disk in disks:
                self._snapshot("-c", name, disk, f"take the snapshot {name} of")
                done.append(disk)
        except LabspanError as error:
            raise SystemFailure(f"{error}{self._take_back(name, done)}") from error

    def remove(self, name: str, disks: t.Sequence[Disk]) -> None:
        for disk in disks:
            self._snapshot("-d", name, disk, f"remove the snapshot {name} of")

    def revert(self, name: str, disks: t.Sequence[Disk], before: str) -> None:
        """Go back on all disks; how they are now is kept under the name C(before) until all have gone."""
        self.take(before, disks)
        done: list[Disk] = []
        try:
            for disk in disks:
                done.append(disk)  # one that fails may have gone half the way
                self._snapshot("-a", name, disk, f"go back to the snapshot {name} on")
        except LabspanError as error:
            try:
                for disk in done:
                    self._snapshot("-a", before, disk, f"go back to the snapshot {before} on")
            except LabspanError as second:
                raise SystemFailure(
                    f"{error} {second} Its disks are in different states now. How they were is kept as the snapshot "
                    f"{before}: go back to that with state: reverted."
                ) from error
            self.remove(before, disks)
            raise SystemFailure(f"{error} All disks of guest {self._guest} are as they were.") from error
        self.remove(before, disks)

    def _take_back(self, name: str, done: t.Sequence[Disk]) -> str:
        try:
            self.remove(name, done)
        except LabspanError as error:
            return f" What was done before could not be taken back: {error}"
        return ""

    def _snapshot(self, action: str, name: str, disk: Disk, purpose: str) -> None:
        program = _deps.program("qemu-img", purpose="for snapshots")
        # The format is told and not guessed from what the guest may have written to the image.
        escaped = disk.path.replace(",", ",,")
        image = f"driver={disk.format},file.driver=file,file.filename={escaped}"
        identity: dict[str, t.Any] = {}
        if self._account is not None and self._account.uid != os.geteuid():
            identity = {
                "user": self._account.uid,
                "group": self._account.gid,
                "extra_groups": self._account.groups,
            }
        done = _commands.run([program, "snapshot", "-q", "--image-opts", action, name, image], cwd="/", **identity)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise SystemFailure(f"qemu-img could not {purpose} {disk.path} of guest {self._guest}: {said}.")


class Running:
    """The disks of a guest that runs, as its QEMU has them; use as a context manager."""

    def __init__(self, guest: str, path: str, *, timeout: float) -> None:
        self._guest = guest
        self._timeout = timeout
        self._qmp = _qmp.Qmp(path, timeout=timeout)

    def __enter__(self) -> Running:
        try:
            self._qmp.greet()
        except BaseException:
            self._qmp.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._qmp.close()

    def disks(self) -> list[Disk]:
        """What the guest can write to."""
        found = []
        for device in self._qmp.execute("query-block"):
            inserted = device.get("inserted") or {}
            if not inserted or inserted.get("ro"):
                continue
            image = inserted.get("image", {})
            snapshots = tuple(
                Snapshot(str(one["name"]), _iso(int(one["date-sec"])), int(one["vm-state-size"]))
                for one in image.get("snapshots", ())
            )
            path = str(image.get("filename", inserted.get("file", "")))
            found.append(Disk(path, str(inserted.get("drv")), str(inserted.get("node-name")), snapshots))
        return found

    def take(self, name: str, disks: t.Sequence[Disk], *, memory: bool) -> None:
        if not memory:
            actions = [
                {"type": "blockdev-snapshot-internal-sync", "data": {"device": disk.node, "name": name}}
                for disk in disks
            ]
            self._qmp.execute("transaction", actions=actions)
            return
        try:
            self._job("snapshot-save", tag=name, vmstate=disks[0].node, devices=[disk.node for disk in disks])
        except LabspanError:
            with contextlib.suppress(LabspanError):
                self.remove(name, [disk for disk in self.disks() if disk.find(name)])
            raise

    def remove(self, name: str, disks: t.Sequence[Disk]) -> None:
        if disks:
            self._job("snapshot-delete", tag=name, devices=[disk.node for disk in disks])

    def revert(self, name: str, disks: t.Sequence[Disk], before: str) -> None:
        """Go back with the memory; how the disks are now is kept under the name C(before) until that has worked."""
        self.take(before, disks, memory=False)
        with_memory = next(disk for disk in disks if (disk.find(name) or Snapshot(name)).memory)
        try:
            self._job("snapshot-load", tag=name, vmstate=with_memory.node, devices=[disk.node for disk in disks])
        except LabspanError as error:
            raise SystemFailure(
                f"{error} Guest {self._guest} stands still now, and its disks may have gone back. How they were is "
                f"kept as the snapshot {before}: stop the guest, and go back to that with state: reverted."
            ) from error
        self.remove(before, disks)

    def _job(self, command: str, **arguments: t.Any) -> None:
        """Run one of QEMU's jobs to its end."""
        identity = f"labspan-{uuid.uuid4().hex[:12]}"
        deadline = time.monotonic() + self._timeout
        self._qmp.execute(command, **{"job-id": identity}, **arguments)
        while True:
            job = next((one for one in self._qmp.execute("query-jobs") if one.get("id") == identity), None)
            if job is None:
                raise SystemFailure(f"QEMU of guest {self._guest} forgot what became of the command {command}.")
            if job.get("status") == "concluded":
                break
            if time.monotonic() > deadline:
                raise SystemFailure(
                    f"QEMU of guest {self._guest} has not come to the end of {command} within {self._timeout:g} "
                    "seconds, and goes on with it."
                )
            time.sleep(_POLL)
        self._qmp.execute("job-dismiss", id=identity)
        if job.get("error"):
            raise SystemFailure(f"QEMU refuses the command {command} for guest {self._guest}: {job['error']}.")
