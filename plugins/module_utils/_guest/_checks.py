# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands in the way of guests that are about to be made or started: found before anything is written.

Every function returns sentences; nothing here changes anything.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pwd
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _tun
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _disks, _images
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._images import Image
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import STATE_ROOT
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account

_ALTERNATIVE_PROGRAMS = ("kvm", "/usr/libexec/qemu-kvm")


class PlannedTap(t.NamedTuple):
    """A tap that an earlier part of the same run makes."""

    bridge: t.Optional[str]
    multi_queue: bool
    owner: t.Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Network:
    """The links that guests can hang on, and who hangs there."""

    links: t.Mapping[str, Link]
    planned: t.Mapping[str, PlannedTap]
    holders: t.Mapping[str, _tun.Holder]

    def segment(self, tap: str) -> t.Optional[str]:
        """The bridge that the tap is a port of, or will be."""
        if tap in self.planned:
            return self.planned[tap].bridge
        link = self.links.get(tap)
        return link.master if link is not None else None


def find_program(spec: GuestSpec) -> t.Optional[str]:
    """QEMU for the guest's architecture."""
    found = _deps.find_program(f"qemu-system-{spec.architecture}")
    if found is None and spec.architecture == os.uname().machine:
        found = next((path for path in map(_deps.find_program, _ALTERNATIVE_PROGRAMS) if path is not None), None)
    return found


def program_problems(spec: GuestSpec) -> list[str]:
    if find_program(spec) is not None:
        return []
    package = {"x86_64": "qemu-system-x86", "i386": "qemu-system-x86", "aarch64": "qemu-system-arm"}
    return [
        f"the program qemu-system-{spec.architecture} is not on the managed host. Install the package "
        f"{package.get(spec.architecture, 'qemu-system')} (its name in Debian)."
    ]


def account_problem(spec: GuestSpec) -> str:
    return (
        f"user: the account {spec.user} of guest {spec.name} does not exist on the managed host. Make one for it "
        f"(labspan.vmnet.guest_account with name: {spec.name}), or name another account with the option user."
    )


def tap_problems(spec: GuestSpec, network: Network, leaving: t.Collection[int]) -> list[str]:
    """Why the guest's NICs cannot be connected; taps that are not there are told apart by C(missing_taps).

    C(leaving) are the processes that end before the guest starts.
    """
    problems = []
    for index, nic in enumerate(spec.nics):
        if nic.tap is None or nic.tap in missing_taps(spec, network):
            continue
        where = f"nics[{index}] of guest {spec.name}:"
        planned, link = network.planned.get(nic.tap), network.links.get(nic.tap)
        tun = link.tun if link is not None else None
        if planned is None and (tun is None or tun.mode != "tap"):
            kind = link.kind if link is not None and link.kind else "interface of another kind"
            problems.append(f"{where} {nic.tap} is not a tap but a {kind}. Name a tap.")
            continue
        multi_queue = planned.multi_queue if planned is not None else bool(tun and tun.multi_queue)
        if multi_queue and nic.queues == 1:
            problems.append(
                f"{where} the tap {nic.tap} was made with multi_queue and the NIC has one queue, which QEMU refuses. "
                "Give queues: 2 or more, or make the tap without multi_queue."
            )
        elif nic.queues > 1 and not multi_queue:
            problems.append(
                f"{where} the NIC has {nic.queues} queues and the tap {nic.tap} has one. Make the tap with "
                "multi_queue: true, or leave queues out."
            )
        holder = network.holders.get(nic.tap)
        if holder is not None and holder.pid not in leaving:
            problems.append(f"{where} the tap {nic.tap} is in use by {holder}. Stop that process, or name another tap.")
    return problems


def service_problems(spec: GuestSpec, network: Network, account: t.Optional[Account], *, running: bool) -> list[str]:
    """Why systemd cannot start the guest; C(running) is whether it can start anything here."""
    if not running:
        return [
            f"service_manager: systemd of guest {spec.name} is not to be had: systemd does not run this host, or "
            "another network namespace of it. Give service_manager: none, or leave it out."
        ]
    problems = []
    for index, nic in enumerate(spec.nics):
        planned, link = network.planned.get(nic.tap or ""), network.links.get(nic.tap or "")
        owner = planned.owner if planned is not None else link.tun.owner if link is not None and link.tun else None
        if account is None or owner is None or owner == account.uid or account.uid == 0:
            continue
        problems.append(
            f"nics[{index}] of guest {spec.name}: the tap {nic.tap} belongs to {_account_name(owner)}, and systemd "
            f"starts QEMU as {account.name}, which cannot open it. Make the tap with owner: {account.name}, or let the "
            "guest run as the tap's owner (user)."
        )
    return problems


def _account_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the account {uid}"


def missing_taps(spec: GuestSpec, network: Network) -> list[str]:
    taps = [nic.tap for nic in spec.nics if nic.tap is not None]
    return [tap for tap in taps if tap not in network.links and tap not in network.planned]


def missing_tap_problem(spec: GuestSpec, tap: str) -> str:
    return (
        f"nics of guest {spec.name}: the tap {tap} does not exist. Make it first (labspan.vmnet.tap_device), or give "
        "the NIC a bridge to have its tap made."
    )


def sharing_problems(specs: t.Sequence[GuestSpec], starting: t.Collection[str], network: Network) -> list[str]:
    """What two guests cannot both have. C(specs) are all guests that run then, C(starting) those of this task."""
    return [
        *_shared_taps(specs, starting),
        *_shared_macs(specs, starting, network),
        *_shared_disks(specs, starting),
    ]


def _shared_taps(specs: t.Sequence[GuestSpec], starting: t.Collection[str]) -> t.Iterator[str]:
    users: dict[str, list[str]] = collections.defaultdict(list)
    for spec in specs:
        for nic in spec.nics:
            if nic.tap is not None:
                users[nic.tap].append(spec.name)
    for tap, names in users.items():
        if len(names) > 1 and set(names) & set(starting):
            yield f"nics: the tap {tap} is given to the guests {' and '.join(names)}; one guest can hold it."


def _shared_macs(specs: t.Sequence[GuestSpec], starting: t.Collection[str], network: Network) -> t.Iterator[str]:
    users: dict[tuple[str, t.Optional[str]], list[str]] = collections.defaultdict(list)
    for spec in specs:
        for nic in spec.nics:
            if nic.tap is not None:
                users[nic.mac, network.segment(nic.tap) or nic.bridge].append(spec.name)
    for (mac, bridge), names in users.items():
        if len(names) > 1 and set(names) & set(starting):
            where = f"on bridge {bridge}" if bridge else "on taps without a bridge"
            yield (
                f"nics: the MAC address {mac} is given to the guests {' and '.join(names)} {where}; neither would "
                "work. Leave mac out to have one derived from host and guest."
            )


def _shared_disks(specs: t.Sequence[GuestSpec], starting: t.Collection[str]) -> t.Iterator[str]:
    writers: dict[str, list[str]] = collections.defaultdict(list)
    readers: dict[str, list[str]] = collections.defaultdict(list)
    for spec in specs:
        for disk in (disk for disk in spec.disks if not disk.is_empty):
            (readers if disk.read_only else writers)[os.path.realpath(disk.path)].append(spec.name)
    for path, names in writers.items():
        users = [*names, *(name for name in readers.get(path, []) if name not in names)]
        if len(users) > 1 and set(users) & set(starting):
            yield (
                f"disks: the image {path} would be written by guest {names[0]} while {' and '.join(users[1:])} reads "
                "or writes it, which destroys it. Give each guest an overlay of its own (base_image)."
            )


def disk_problems(spec: GuestSpec, disk: Disk, image: t.Optional[Image], *, running: bool) -> list[str]:
    """Why a disk cannot be made or used."""
    if disk.is_cdrom and image is None:
        return []
    if image is not None:
        problems = _disks.existing_problems(disk, image)
        if not problems and not running and not disk.read_only and _images.is_open(disk.path):
            problems.append(
                f"the disk {disk.path} of guest {spec.name} is open in another QEMU: {_images.holder(disk.path)}. Stop "
                "that one first, or name another disk."
            )
        if not problems and not running:
            try:
                _images.chain(disk.path, _images.bounds(disk, spec.name))
            except LabspanError as error:
                problems.append(str(error))
        return problems
    if disk.size is None and disk.base_image is None:
        return [
            f"the disk {disk.path} of guest {spec.name} does not exist. Give its size, or a base_image, to have it "
            "made, or correct the path."
        ]
    problems = _disks.base_problems(disk, spec.name)
    if disk.format != "raw" and _deps.find_program("qemu-img") is None:
        problems.append(
            f"the program qemu-img is needed to make the disk {disk.path} and is not on the managed host. Install the "
            "package qemu-utils (its name in Debian)."
        )
    if not problems and disk.source is None:
        wrong = _disks.checksum_problem(disk)
        problems += [wrong] if wrong else []
    return problems


def missing_for_disk(spec: GuestSpec, disk: Disk) -> list[str]:
    """What has to be there before a disk can be made."""
    if disk.is_cdrom:
        return [f"the CD image {disk.path} of guest {spec.name} does not exist on the managed host."]
    problems = []
    directory = os.path.dirname(disk.path)
    if not os.path.isdir(directory) and directory != os.path.join(STATE_ROOT, spec.name):
        problems.append(f"the directory {directory} of the disk {disk.path} does not exist. Make it first.")
    if disk.base_image is not None and disk.source is None and not os.path.exists(disk.base_image):
        problems.append(f"the base image {disk.base_image} of guest {spec.name} does not exist on the managed host.")
    return problems


def boot_file_problems(spec: GuestSpec) -> list[str]:
    return [
        f"{option}: {path} of guest {spec.name} does not exist on the managed host."
        for option, path in (("kernel", spec.kernel), ("initrd", spec.initrd))
        if path is not None and not os.path.isfile(path)
    ]


def access_problems(spec: GuestSpec, images: t.Mapping[str, Image], account: Account) -> list[str]:
    """What the account that QEMU runs as cannot open."""
    needed: dict[str, int] = {}
    for path in (spec.kernel, spec.initrd, spec.uefi.code if spec.uefi else None):
        if path is not None and os.path.isfile(path):
            needed[path] = os.R_OK
    for disk in spec.disks:
        if disk.path in images:
            needed[disk.path] = os.R_OK if disk.read_only else os.R_OK | os.W_OK
        for image in _readable_chain(disk, spec.name, existing=disk.path in images):
            needed.setdefault(image, os.R_OK)
    problems = []
    for path, blocked in _try_as(account, needed).items():
        mode = "read and written" if needed[path] & os.W_OK else "read"
        through = f": it may not pass {blocked}" if blocked != path else ""
        problems.append(
            f"{path} cannot be {mode} by {account.name}, the account that guest {spec.name} runs as{through}. Change "
            "the owner or the mode, or name another account with the option user."
        )
    return problems


def _readable_chain(disk: Disk, guest: str, *, existing: bool) -> list[str]:
    path = disk.path if existing else disk.base_image
    if path is None:
        return []
    try:
        return [image.path for image in _images.chain(path, _images.bounds(disk, guest))]
    except LabspanError:
        return []


def _try_as(account: Account, needed: t.Mapping[str, int]) -> dict[str, str]:
    """Path -> what stops the account on the way to it; asked of the kernel, which knows about groups and ACLs."""
    if not needed or account.uid == 0:
        return {}
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            account.assume()
            found = {path: _blocked_at(path, mode) for path, mode in needed.items()}
            with os.fdopen(writer, "w", encoding="utf-8") as pipe:
                json.dump({path: blocked for path, blocked in found.items() if blocked}, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return t.cast("dict[str, str]", json.loads(answer)) if answer else {}


def _blocked_at(path: str, mode: int) -> t.Optional[str]:
    parents = []
    directory = os.path.dirname(path)
    while directory not in ("", "/"):
        parents.append(directory)
        directory = os.path.dirname(directory)
    for directory in reversed(parents):
        if not os.access(directory, os.X_OK):
            return directory
    return None if os.access(path, mode) else path
