# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes to a guest that runs, told to QEMU over its control socket.

What is plugged in is described by the very words of the command line, so that the next start makes the same device.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _tun
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _qmp, _vhost
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._change import GuestChange
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._live import (
    Device,
    Plug,
    SetLink,
    SetMedium,
    SetMemory,
    Unplug,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._slots import Part
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition

_ANSWER_TIMEOUT = 30.0
#: How often QEMU is asked about what it sends no event for.
_LOOK_AGAIN = 0.1
_MEBIBYTE = 1 << 20

# The types that QEMU wants in JSON, where the command line has only text.
_NUMBERS = ("vectors", "scsi-id", "unit", "bootindex", "queues", "num-queues")
_SWITCHES = ("mq", "read-only", "auto-read-only", "direct", "no-flush", "vhost", "ipv6", "ipv4", "iothread-vq-mapping")


class _ByName(_argv.Launch):
    """Names the taps that were handed over to a QEMU that runs."""

    def tap(self, nic: Nic, identity: str) -> str:
        names = handed_names(nic, identity)
        vhost = _vhost.option(handed_names(nic, f"{identity}-vhost")) if nic.vhost == _vhost.TRUE else ""
        return f"tap,id={identity},{'fd' if nic.queues == 1 else 'fds'}={':'.join(names)}{vhost}"


def handed_names(nic: Nic, identity: str) -> list[str]:
    """What the descriptors of a tap are called while they are handed over."""
    return [f"{identity}-queue{number}" for number in range(nic.queues)]


def arguments(words: str, *, head: str) -> dict[str, t.Any]:
    """The words of an option of the command line as QEMU wants them in JSON; C(head) is the first one's key."""
    found: dict[str, t.Any] = {}
    for number, word in enumerate(_split(words)):
        key, equals, value = word.partition("=")
        if number == 0 and not equals:
            key, value = head, word
        *path, last = key.split(".")
        inner = found
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = _typed(last, value)
    return found


def _split(words: str) -> list[str]:
    """At commas; two of them stand for one."""
    return [word.replace("\0", ",") for word in words.replace(",,", "\0").split(",")]


def _typed(key: str, value: str) -> t.Any:
    if key in _SWITCHES:
        return value == "on"
    return int(value) if key in _NUMBERS else value


def apply(change: GuestChange, definition: t.Optional[Definition]) -> None:
    """Carry out a live change."""
    if isinstance(change, Plug) and definition is not None:
        plug(definition.spec, change.after)
    elif isinstance(change, Unplug):
        unplug(change.guest, change.before, change.patience)
    elif isinstance(change, SetLink):
        set_link(change.guest, change.device, change.after)
    elif isinstance(change, SetMedium):
        set_medium(change)
    elif isinstance(change, SetMemory):
        set_memory(change.guest, change.after, change.patience)


def plug(spec: GuestSpec, device: Device) -> None:
    """Plug a NIC or a disk into the guest, or leave everything as it was."""
    with _connection(spec.name) as qmp:
        if device.part.id in qmp.devices():
            return
        try:
            _drop_rest(qmp, device)
            front = _add_backend(qmp, spec, device)
            try:
                qmp.execute("device_add", **arguments(front, head="driver"))
            except _qmp.QmpError:
                _drop_rest(qmp, device)
                raise
        except _qmp.QmpError as error:
            raise SystemFailure(
                f"{device} cannot be plugged into guest {spec.name}: {error.reason.rstrip('.')}."
            ) from error
        if isinstance(device.what, Nic) and not device.what.link:
            qmp.execute("set_link", name=device.part.id, up=False)


def _add_backend(qmp: _qmp.Qmp, spec: GuestSpec, device: Device) -> str:
    """Make the host's half; returns the words for the guest's."""
    if isinstance(device.what, Disk):
        *image, _option, front = _argv.disk_words(spec, device.what, device.part)
        if image:
            qmp.execute("blockdev-add", **arguments(image[1], head="driver"))
        return front
    part, nic = device.part, _vhost.settle_nic(device.what, None)
    _option, back, _option, front = _argv.nic_words(part.number, nic, _ByName(None), part.port, {})
    with contextlib.ExitStack() as ours:
        if nic.tap is not None:
            for name in handed_names(nic, f"net{part.number}"):
                descriptor = _tun.attach(nic.tap, multi_queue=nic.queues > 1)
                ours.callback(os.close, descriptor)
                qmp.hand_over(name, descriptor)
            for name in handed_names(nic, f"net{part.number}-vhost") if nic.vhost == _vhost.TRUE else ():
                descriptor = _vhost.open_device()
                ours.callback(os.close, descriptor)
                qmp.hand_over(name, descriptor)
        qmp.execute("netdev_add", **arguments(back, head="type"))
    return front


def _drop_rest(qmp: _qmp.Qmp, device: Device) -> None:
    """Remove the host's half, if it is there."""
    if isinstance(device.what, Disk):
        for node in _nodes(device.part):
            with contextlib.suppress(_qmp.QmpError):
                qmp.execute("blockdev-del", **{"node-name": node})
    else:
        with contextlib.suppress(_qmp.QmpError):
            qmp.execute("netdev_del", id=f"net{device.part.number}")


def _nodes(part: Part) -> tuple[str, str]:
    """What QEMU calls the image of a disk: by turns, where a CD takes the place of another."""
    node = f"image{part.number}"
    return node, f"{node}-next"


def unplug(name: str, device: Device, patience: float) -> None:
    """Have the guest give a NIC or a disk back, and take away the host's half when it has."""
    with _connection(name) as qmp:
        if device.part.id in qmp.devices():
            _ask_back(qmp, name, device, patience)
        if isinstance(device.what, Disk):
            for node in _nodes(device.part):
                _close_image(qmp, node)
        else:
            _drop_rest(qmp, device)


def _ask_back(qmp: _qmp.Qmp, name: str, device: Device, patience: float) -> None:
    deadline = time.monotonic() + patience
    try:
        qmp.execute("device_del", id=device.part.id)
    except _qmp.QmpError as error:
        if "in the process of unplug" not in error.reason:
            raise SystemFailure(f"guest {name} cannot give back {device}: {error.reason.rstrip('.')}.") from error
    while True:
        event = qmp.event(max(deadline - time.monotonic(), 0))
        told = (event or {}).get("data", {}).get("device")
        if event is None or (told == device.part.id and event["event"] == "DEVICE_DELETED"):
            break
        if told == device.part.id and event["event"] in ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"):
            raise SystemFailure(
                f"guest {name} refuses to give back {device}; its own log says why. It is still attached."
            )
    if device.part.id in qmp.devices():
        raise SystemFailure(
            f"guest {name} has not given back {device} within {patience:g} seconds (live_timeout): its system has not "
            "booted that far, does not know hot-plugging, or is using the device. It is still attached; the guest may "
            "give it back later, at its next reboot at the latest. Run the task again then, or stop the guest."
        )


def _close_image(qmp: _qmp.Qmp, node: str) -> None:
    """QEMU may hold on to an image for a moment, to write back what is on its way."""
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while True:
        try:
            qmp.execute("blockdev-del", **{"node-name": node})
        except _qmp.QmpError as error:
            if "in use" not in error.reason:
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_AGAIN)
        else:
            return


def set_link(name: str, device: str, up: bool) -> None:
    """Plug or pull the cable of a NIC."""
    with _connection(name) as qmp:
        qmp.execute("set_link", name=device, up=up)


def set_medium(change: SetMedium) -> None:
    """Put a CD into a drive, in place of what is in it."""
    disk = t.cast(Disk, change.after)
    part = Part(change.device)
    with _connection(change.guest) as qmp:
        old = _medium(qmp, part.id)
        unused = [node for node in _nodes(part) if node != old]
        new = unused[0]
        try:
            # A run that was killed may have left an image under its name.
            for node in unused:
                _close_image(qmp, node)
            # Opened first: what cannot be opened takes nothing out of the drive.
            for words in _argv.image_words(disk, part)[1:]:
                qmp.execute("blockdev-add", **{**arguments(words, head="driver"), "node-name": new})
            try:
                _open_tray(qmp, change)
                _exchange(qmp, part.id, old, new if disk.path else None)
            except SystemFailure:
                if disk.path:
                    _close_image(qmp, new)
                raise
            if old is not None:
                _close_image(qmp, old)
        except _qmp.QmpError as error:
            raise SystemFailure(
                f"the CD in drive {part.number} of guest {change.guest} cannot be changed: {error.reason.rstrip('.')}."
            ) from error


def _exchange(qmp: _qmp.Qmp, drive: str, old: t.Optional[str], new: t.Optional[str]) -> None:
    """Have another image in a drive that is open, or the old one again if QEMU refuses that; and close it."""
    if old is not None:
        qmp.execute("blockdev-remove-medium", id=drive)
    try:
        if new is not None:
            # Locks of the file, which another program may hold, are taken here.
            qmp.execute("blockdev-insert-medium", **{"id": drive, "node-name": new})
    except _qmp.QmpError:
        if old is not None:
            qmp.execute("blockdev-insert-medium", **{"id": drive, "node-name": old})
        raise
    finally:
        qmp.execute("blockdev-close-tray", id=drive)


def _medium(qmp: _qmp.Qmp, drive: str) -> t.Optional[str]:
    """What QEMU calls the image in a drive."""
    inserted = _drive(qmp, drive).get("inserted")
    return None if inserted is None else str(inserted["node-name"])


def _drive(qmp: _qmp.Qmp, drive: str) -> dict[str, t.Any]:
    return next((block for block in qmp.execute("query-block") if block.get("qdev") == drive), {})


def _open_tray(qmp: _qmp.Qmp, change: SetMedium) -> None:
    """As the button on the drive does: a guest that uses the CD is asked, and has some seconds to let go of it."""
    deadline = time.monotonic() + change.patience
    while True:
        # QEMU's answer is the same whether it has opened the tray or only asked the guest (qmp_blockdev_open_tray).
        qmp.execute("blockdev-open-tray", id=change.device)
        if _drive(qmp, change.device).get("tray_open"):
            return
        if time.monotonic() > deadline:
            raise SystemFailure(
                f"guest {change.guest} has not let go of the CD in drive {Part(change.device).number} within "
                f"{change.patience:g} seconds (live_timeout). Unmount it in the guest, and run the task again."
            )
        time.sleep(_LOOK_AGAIN)


def set_memory(name: str, mebibytes: int, patience: float) -> None:
    """Have the guest give memory back until it has this much, or let it have it again."""
    with _connection(name) as qmp:
        wanted = mebibytes * _MEBIBYTE
        before = qmp.execute("query-balloon")["actual"]
        qmp.execute("balloon", value=wanted)
        deadline = time.monotonic() + patience
        while True:
            actual = qmp.execute("query-balloon")["actual"]
            if actual == wanted:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_AGAIN)
        qmp.execute("balloon", value=before)
    raise SystemFailure(
        f"guest {name} has {actual // _MEBIBYTE} MiB of memory after {patience:g} seconds (live_timeout), not "
        f"{mebibytes}: its system has not booted that far, has no driver for the balloon, or needs its memory. The "
        "request was taken back."
    )


@contextlib.contextmanager
def _connection(name: str) -> t.Iterator[_qmp.Qmp]:
    with _qmp.Qmp(Places(name).qmp_socket, timeout=_ANSWER_TIMEOUT) as qmp:
        qmp.greet()
        yield qmp
