# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the files of a guest are.

The directory in C(/var/lib) belongs to root: what is read back from it decides what root ends and removes, so the
account that QEMU runs as must not be able to put anything there; files that it writes to are made for it. The one in
C(/run) is root's, too, where QEMU gets its sockets as open descriptors. Under systemd it is the account's, so what is
found there counts only when it has been looked at otherwise: a process by its command line, a socket by its owner.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os

STATE_ROOT = "/var/lib/labspan/guests"
RUNTIME_ROOT = "/run/labspan/guests"
#: Images that were downloaded, once for all guests of the host.
IMAGE_ROOT = "/var/lib/labspan/images"
#: Root's alone, and in memory: what a cloud-init seed is made of, while it is made.
PARTS_ROOT = "/run/labspan/seeds"
ACCELERATOR_MEMORY = "/run/labspan/accelerator.json"


@dataclasses.dataclass(frozen=True)
class Places:
    """The paths of one guest."""

    name: str

    @property
    def state(self) -> str:
        return os.path.join(STATE_ROOT, self.name)

    @property
    def runtime(self) -> str:
        return os.path.join(RUNTIME_ROOT, self.name)

    @property
    def definition(self) -> str:
        return os.path.join(self.state, "guest.json")

    @property
    def former(self) -> str:
        """The definition while the guest is being removed."""
        return os.path.join(self.state, "former.json")

    @property
    def made_disks(self) -> str:
        return os.path.join(self.state, "made_disks.json")

    @property
    def console_log(self) -> str:
        return os.path.join(self.state, "console.log")

    @property
    def output(self) -> str:
        """What QEMU itself says."""
        return os.path.join(self.state, "qemu.log")

    @property
    def variables(self) -> str:
        """What the UEFI firmware keeps for the guest."""
        return os.path.join(self.state, "uefi_vars.fd")

    @property
    def tpm_state(self) -> str:
        """What the TPM keeps: a directory of the account's."""
        return os.path.join(self.state, "tpm")

    @property
    def tpm_output(self) -> str:
        """What swtpm itself says."""
        return os.path.join(self.state, "tpm.log")

    @property
    def tpm_socket(self) -> str:
        return os.path.join(self.runtime, "tpm.sock")

    @property
    def tpm_pid_file(self) -> str:
        return os.path.join(self.runtime, "tpm.pid")

    @property
    def pid_file(self) -> str:
        return os.path.join(self.runtime, "qemu.pid")

    @property
    def qmp_socket(self) -> str:
        return os.path.join(self.runtime, "qmp.sock")

    @property
    def console_socket(self) -> str:
        return os.path.join(self.runtime, "console.sock")

    @property
    def agent_socket(self) -> str:
        """The host's end of the line to the agent in the guest."""
        return os.path.join(self.runtime, "agent.sock")

    @property
    def power(self) -> str:
        """The pipes C(power.in) and C(power.out) by which a shell presses the power button; with systemd only."""
        return os.path.join(self.runtime, "power")

    @property
    def display(self) -> str:
        """QEMU makes the socket of VNC itself: the one directory that its account can write to."""
        return os.path.join(self.runtime, "display")

    @property
    def vnc_socket(self) -> str:
        return os.path.join(self.display, "vnc.sock")

    @property
    def seed(self) -> str:
        """What cloud-init in the guest is told, as an image."""
        return os.path.join(self.state, "seed.iso")

    @property
    def seed_record(self) -> str:
        return os.path.join(self.state, "seed.json")

    @property
    def seed_parts(self) -> str:
        return os.path.join(PARTS_ROOT, self.name)

    def disk(self, number: int, image_format: str) -> str:
        """The path of a disk for which the task names none."""
        return os.path.join(self.state, f"disk{number}.{image_format}")


def known_guests() -> list[str]:
    """The names of all guests that have a directory, be it only for the disks that they left."""
    try:
        return sorted(os.listdir(STATE_ROOT))
    except OSError:
        return []


def defined_guests() -> list[str]:
    """The names of all guests that this host has a definition of."""
    try:
        return sorted(name for name in os.listdir(STATE_ROOT) if os.path.exists(Places(name).definition))
    except OSError:
        return []


def former_guests() -> list[str]:
    """The names of all guests whose removal has begun and not ended."""
    return [name for name in known_guests() if is_former(name)]


def is_former(name: str) -> bool:
    """Whether the removal of a guest has begun and not ended; its last two steps are the file and the directory."""
    try:
        left = os.listdir(Places(name).state)
    except OSError:
        return False
    return not left or os.path.basename(Places(name).former) in left
