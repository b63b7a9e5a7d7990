# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole Debian as a guest: what a distributor calls a cloud image, made here by tests/lab/vm_image.sh.

    def test_something(host, debian_guest):
        host.converge("qemu_guest", {"name": "vm1", "disks": [{"base_image": str(debian_guest.disk)}],
                                     **debian_guest.boot})

cloud-init (NoCloud), sshd, the guest agent, networkd and a console at ttyS0 are in it; its NICs are eth0 and so on, and
get their addresses by DHCP unless a seed says otherwise. The disk boots by itself, too, with a boot loader, in some
seconds more.

Without KVM, on a quiet machine, there is a login prompt after 15 and cloud-init is done after 20 seconds, with 512 MB
and one CPU; on a busy one it takes several times that. Tests that can do with the tiny guest use that one.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import subprocess
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILDER = ROOT / "tests" / "lab" / "vm_image.sh"
IMAGES = ROOT / ".build" / "vm_host"

#: Where system hosts see it: SystemHost(..., binds=debian_guest.binds), and debian_guest.inside has its paths.
PLACE = "/opt/debian_guest"


@dataclasses.dataclass(frozen=True)
class DebianGuest:
    """Where the image is."""

    directory: pathlib.Path

    @property
    def disk(self) -> pathlib.Path:
        """The base image, qcow2 of 2 GiB; its root file system grows with the disk."""
        return self.directory / "disk.qcow2"

    @property
    def boot(self) -> dict[str, str]:
        """The options of qemu_guest by which it boots without a boot loader."""
        return {
            "kernel": str(self.directory / "vmlinuz"),
            "initrd": str(self.directory / "initrd.img"),
            "cmdline": "root=LABEL=labspan-root rw console=ttyS0 no_timer_check net.ifnames=0 quiet",
        }

    @property
    def binds(self) -> dict[pathlib.Path, str]:
        """What makes it visible in a system host."""
        return {self.directory: PLACE}

    @property
    def inside(self) -> DebianGuest:
        """It, as a system host with these C(binds) sees it."""
        return DebianGuest(pathlib.Path(PLACE))


def missing() -> t.Optional[str]:
    """Why it cannot be made here, or None."""
    for program in ("mmdebstrap", "qemu-img", "mke2fs", "busybox", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    return None


#: For tests that use it.
needs_debian_guest = pytest.mark.skipif(missing() is not None, reason=f"no Debian guest can be made: {missing()}")


def make_debian_guest() -> DebianGuest:
    """Make it, unless it is there and current."""
    subprocess.run([str(BUILDER), "guest", str(IMAGES)], check=True)
    return DebianGuest((IMAGES / "guest").resolve())
