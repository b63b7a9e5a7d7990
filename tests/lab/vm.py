# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM host is made of: its disk, the files that it finds there at its first boot, and QEMU's command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing as t
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles" / "tiny_guest" / "files"))

import build_tiny_guest as tiny

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
IMAGES = ROOT / ".build" / "vm_host"
SYSTEM_TREE = ROOT / ".build" / "system_host"
TINY_GUEST_BUILDER = ROOT / "roles" / "tiny_guest" / "files" / "build_tiny_guest.py"
BUILDER = HERE / "vm_image.sh"

#: The card that it is reached by, and the tap at QEMU's end of it.
UPLINK, TAP = "uplink0", "vm0"
#: In a lab, the bridge between that tap and the cable to the LAN.
JOINT = "joint0"
#: Seconds in which it has booted, or never will: the machine may be busy.
PATIENCE = 600.0

#: As a lab starts it: the rest of the command line is QEMU's, whose own words go where errors do.
START = f"""
ip link add {JOINT} type bridge mcast_snooping 0 && ip link set {JOINT} up &&
ip tuntap add dev {TAP} mode tap && ip link set {TAP} master {JOINT} up && echo ready || exit 1
exec "$@" >&2
"""
#: A disk with what the machine shares with it: the label, and where the host mounts it.
SHARE_LABEL, SHARE = "LABSPAN", "/opt/labspan"

File = t.Union[str, t.Tuple[str, int]]
"""What a file holds, and its mode unless that is 0644."""

#: What takes long without KVM, and is of no use to a host without a desktop.
_MASKED = (
    "modprobe@configfs",
    "modprobe@dm_mod",
    "modprobe@drm",
    "modprobe@efi_pstore",
    "modprobe@fuse",
    "modprobe@loop",
)
_CMDLINE = " ".join(
    [
        "root=LABEL=labspan-root rw console=ttyS0 no_timer_check net.ifnames=0 quiet",
        # Without KVM, every other clock is a device that all processors queue for.
        "tsc=reliable nowatchdog mitigations=off",
        "systemd.wants=systemd-networkd.service",
        *(f"systemd.mask={unit}.service" for unit in _MASKED),
    ]
)
_FSTAB = f"LABEL=labspan-root / ext4 defaults 0 0\nLABEL={SHARE_LABEL} {SHARE} iso9660 ro 0 0\n"
_LINK = """\
[Match]
MACAddress={mac}

[Link]
Name={name}
"""


@dataclasses.dataclass(frozen=True)
class Size:
    """What a VM host gets of the machine."""

    memory: int
    """In MiB."""
    cpus: int


def image() -> Path:
    """The directory with the disk, the kernel and the initramfs; made if it is not there or not current."""
    subprocess.run([str(BUILDER), "host", str(IMAGES), str(SYSTEM_TREE)], check=True)
    return current()


def current() -> Path:
    """That directory, as it is."""
    return (IMAGES / "host").resolve()


def mac(address: str) -> str:
    """The MAC address of the card of the host that has this address on the LAN."""
    return "52:54:00:00:02:{:02x}".format(int(address.partition("/")[0].rpartition(".")[2]))


def card_file(mac: str) -> dict[str, File]:
    """The file that gives the card its name."""
    return {f"/etc/systemd/network/10-{UPLINK}.link": _LINK.format(mac=mac, name=UPLINK)}


def prepare(directory: Path, base: Path, files: t.Mapping[str, File]) -> None:
    """Make the disk, and the initramfs that puts these files onto it."""
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base / "disk.qcow2")]
    subprocess.run([*create, str(disk(directory))], check=True)
    everything = {"/etc/fstab": _FSTAB, **files}
    archive = tiny.Cpio()
    archive.directory("files")
    for place in sorted({str(parent) for path in everything for parent in Path(path).parents} - {"/"}):
        archive.directory(f"files{place}")
    for path, file in everything.items():
        text, mode = (file, 0o644) if isinstance(file, str) else file
        archive.file(f"files{path}", text, mode)
    # There are keys among them.
    initrd = directory / "initrd.img"
    initrd.touch(0o600)
    initrd.write_bytes((base / "initrd.img").read_bytes() + archive.bytes())


def share(directory: Path, places: t.Mapping[str, Path]) -> None:
    """Make the disk with what the machine shares with the host; the names of directories in it, and what is in them."""
    grafts = [f"{name}={path.resolve()}" for name, path in places.items()]
    command = ["genisoimage", "-quiet", "-R", "-V", SHARE_LABEL, "-graft-points", "-follow-links", "-m", "__pycache__"]
    subprocess.run([*command, "-o", str(directory / "share.iso"), *grafts], check=True)


def disk(directory: Path) -> Path:
    """The host's own disk."""
    return directory / "disk.qcow2"


def qemu(
    directory: Path, base: Path, mac: str, size: Size, *, once: bool = False, state: t.Optional[str] = None
) -> list[str]:
    """The command line of QEMU, in the network that the tap is in. With C(once), it ends when the host reboots.

    With C(state), it goes on from that snapshot of its disk and its memory instead of booting.

    Never with KVM, which hangs or works from machine to machine: a test is to take the same way everywhere.
    """
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35,accel=tcg", "-cpu", "max", "-m", str(size.memory), "-smp", str(size.cpus)),
        *("-kernel", str(base / "vmlinuz"), "-initrd", str(directory / "initrd.img")),
        *("-append", _CMDLINE),
        *("-chardev", f"file,id=console,path={directory}/console,append=on", "-serial", "chardev:console"),
        *("-qmp", f"unix:{directory}/qmp,server=on,wait=off"),
        *("-drive", f"file={disk(directory)},if=virtio,format=qcow2,cache=writeback"),
        *("-drive", f"file={directory}/share.iso,if=virtio,format=raw,readonly=on"),
        *("-netdev", f"tap,id=uplink,ifname={TAP},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=uplink,mac={mac},romfile="),
        *("-device", "virtio-rng-pci"),
        *(["-no-reboot"] if once else []),
        *(["-loadvm", state] if state is not None else []),
    ]
