# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib
import shlex
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._seed import CloudInit
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec, Nic

GOLDEN = pathlib.Path(__file__).parent / "golden"

TAP = Nic("52:54:00:21:34:56", "virtio-net-pci", tap="QemuTap0")

SPECS: dict[str, tuple[GuestSpec, str]] = {
    "seed": (
        GuestSpec("vm1", console=False, guest_agent=True, nics=(TAP,), cloud_init=CloudInit("iso", "d", "s")),
        "tcg",
    ),
    "seed_by_serial_number": (
        GuestSpec("vm1", cloud_init=CloudInit("smbios", datasource="nocloud", seed_url="http://192.168.100.1:8000/")),
        "tcg",
    ),
    "bare": (GuestSpec("vm1", console=False, sandbox=False), "tcg"),
    "tiny": (
        GuestSpec("vm1", kernel="/boot/vmlinuz", initrd="/boot/initrd", cmdline="console=ttyS0 a=b,c", nics=(TAP,)),
        "kvm",
    ),
    "agent": (GuestSpec("vm1", guest_agent=True, nics=(TAP,)), "tcg"),
    "disks_on_q35": (
        GuestSpec(
            "vm1",
            boot_order=("network", "disk"),
            nics=(Nic("52:54:00:00:00:01", "e1000"), TAP),
            disks=(
                Disk("/d/a.qcow2", "qcow2", "virtio"),
                Disk("/d/b,c.raw", "raw", "ide"),
                Disk("/d/c.qcow2", "qcow2", "sata"),
                Disk("/d/d.qcow2", "qcow2", "scsi", read_only=True),
                Disk("/d/e.qcow2", "qcow2", "scsi"),
                Disk("/d/f.qcow2", "qcow2", "nvme"),
                Disk("/dev/vg/lv", "raw", "virtio"),
            ),
        ),
        "tcg",
    ),
    "disks_on_pc": (
        GuestSpec(
            "vm1",
            machine="pc",
            disks=tuple(Disk(f"/d/{bus}{n}", "qcow2", bus) for n in range(3) for bus in ("ide", "sata")),
        ),
        "tcg",
    ),
    "cd_drives": (
        GuestSpec(
            "vm1",
            boot_order=("cdrom", "disk"),
            disks=(
                Disk("/d/a.qcow2", "qcow2", "virtio"),
                Disk("", "raw", "sata", read_only=True, media="cdrom"),
                Disk("/d/b.iso", "raw", "scsi", read_only=True, media="cdrom"),
                Disk("/d/c.iso", "raw", "ide", read_only=True, media="cdrom"),
            ),
        ),
        "tcg",
    ),
    "queues_and_screen": (
        GuestSpec(
            "vm2",
            memory=2048,
            cpus=4,
            cpu_model="Haswell",
            display="vnc",
            nics=(Nic("52:54:00:00:00:02", "virtio-net-pci", tap="mq0", queues=4), TAP),
            extra_args=("-device", "virtio-rng-pci"),
        ),
        "kvm",
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_command_line_is_the_golden_one(name: str, request: pytest.FixtureRequest) -> None:
    spec, accelerator = SPECS[name]
    argv = _argv.command_line(spec, program="/usr/bin/qemu-system-x86_64", accelerator=accelerator)
    lines = "".join(f"{shlex.quote(word)}\n" for word in argv)
    assert lines == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_what_systemd_starts_is_told_names_because_nobody_can_hand_it_anything() -> None:
    spec, accelerator = SPECS["queues_and_screen"]
    program = "/usr/bin/qemu-system-x86_64"
    argv = _argv.command_line(spec, program=program, accelerator=accelerator, manager="systemd")
    lines = "".join(f"{shlex.quote(word)}\n" for word in argv)
    assert lines == (GOLDEN / "systemd.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SPECS)
def test_every_descriptor_has_one_number_of_its_own(name: str) -> None:
    numbers = _argv.descriptors(SPECS[name][0])
    used = [numbers.qmp, *(number for queues in numbers.taps.values() for number in queues)]
    used += [number for number in (numbers.console, numbers.agent) if number is not None]
    assert sorted(used) == list(range(3, 3 + len(used)))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["qemu", "-name", "guest=vm1", "-S"], True),
        (["qemu", "-name", "guest=vm10"], False),
        (["qemu", "-append", "guest=vm1"], False),
        (["vi", "guest=vm1"], False),
        ([], False),
    ],
)
def test_a_guest_is_known_by_its_name(argv: t.Sequence[str], expected: bool) -> None:
    assert _argv.is_guest(argv, "vm1") is expected
