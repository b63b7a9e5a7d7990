# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the NICs and disks of a guest are plugged in, and by what names QEMU knows them. Pure.

Nothing can be plugged into the root bus of PCI Express, or pulled out of it, while the guest runs. So on such machines
each NIC and disk has a root port of its own, and some ports are spare.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, is_pc, is_q35
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

#: What can be plugged into a guest while it runs, beside what was pulled out of it before.
SPARE_PORTS = 4

# Eight ports share a slot of the root bus, from this one on; QEMU gives the slots below to whatever names none.
_FIRST_SLOT = 0x10
_PORTS_IN_A_SLOT = 8
_MOST_PORTS = 64
_LAST_SLOT = 0x1E
LAST_PORT = "last-port"

#: Buses whose disks are PCI devices themselves.
PCI_BUSES = ("virtio", "nvme")


@dataclasses.dataclass(frozen=True)
class Part:
    """A NIC or a disk as QEMU knows it; a hot-plugged one keeps its name until the guest is started anew."""

    id: str
    port: t.Optional[str] = None
    """The root port that it has for itself."""
    unit: t.Optional[int] = None
    """Its number on the SCSI bus."""

    @property
    def number(self) -> int:
        """By which its other half is called, too: nic3 hangs on net3, and disk3 is filled with image3."""
        return int(self.id.lstrip("abcdefghijklmnopqrstuvwxyz"))


@dataclasses.dataclass(frozen=True)
class Live:
    """What one process has become since it was started; of no worth for any other."""

    process: Process
    argv: tuple[str, ...]
    """The words by which it was started."""
    nics: tuple[Part, ...]
    """In the order of the definition's, and as many."""
    disks: tuple[Part, ...]
    memory: int
    """MiB that it was started with."""


def has_ports(machine: str) -> bool:
    """Whether the machine's bus is PCI Express."""
    kind = machine.partition(",")[0]
    return is_q35(machine) or kind == "virt" or kind.startswith("virt-")


def parts(spec: GuestSpec) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The NICs and the disks of a guest as its command line makes them.

    NICs have the first ports, so that another disk does not change their names in the guest.
    """
    ports = map(_port, range(_MOST_PORTS) if has_ports(spec.machine) else ())
    nics = tuple(Part(f"nic{index}", next(ports, None)) for index in range(len(spec.nics)))
    units = itertools.count()
    disks = tuple(
        Part(
            f"disk{index}",
            next(ports, None) if disk.bus in PCI_BUSES else None,
            next(units) if disk.bus == "scsi" else None,
        )
        for index, disk in enumerate(spec.disks)
    )
    return nics, disks


def ports(spec: GuestSpec) -> dict[str, str]:
    """Device id -> the root port that it has for itself."""
    return {part.id: part.port for kind in parts(spec) for part in kind if part.port is not None}


def port_words(spec: GuestSpec) -> list[str]:
    """The root ports on the command line."""
    if not has_ports(spec.machine):
        return []
    argv: list[str] = []
    for number in range(min(len(ports(spec)) + SPARE_PORTS, _MOST_PORTS)):
        slot, function = divmod(number, _PORTS_IN_A_SLOT)
        where = f"bus=pcie.0,addr={_FIRST_SLOT + slot:#x}.{function},multifunction=on"
        argv += ["-device", f"pcie-root-port,id={_port(number)},chassis={number + 1},{where}"]
    return argv


def last_port_words(spec: GuestSpec) -> list[str]:
    """A root port behind all others, for what shall not become the first disk that firmware and guest find.

    Its words begin otherwise than those of C(port_words), so that C(ports_of) takes it for none that can be spared.
    """
    if not has_ports(spec.machine):
        return []
    return ["-device", f"pcie-root-port,chassis={_MOST_PORTS + 1},id={LAST_PORT},bus=pcie.0,addr={_LAST_SLOT:#x}"]


def ports_of(argv: t.Iterable[str]) -> list[str]:
    """The ids of the root ports that such a command line makes."""
    return [word.split(",")[1].partition("=")[2] for word in argv if word.startswith("pcie-root-port,id=")]


def begin(spec: GuestSpec, argv: tuple[str, ...], process: Process) -> Live:
    """A process in which nothing has been changed yet."""
    there = set(ports_of(argv))
    nics, disks = (
        tuple(part if part.port in there else dataclasses.replace(part, port=None) for part in kind)
        for kind in parts(spec)
    )
    return Live(process, argv, nics, disks, spec.memory)


def from_data(stored: t.Optional[t.Mapping[str, t.Any]]) -> t.Optional[Live]:
    """What became of a process, from a guest's file; raises TypeError or KeyError when that is not one."""
    if stored is None:
        return None
    nics, disks = (tuple(Part(**part) for part in stored[kind]) for kind in ("nics", "disks"))
    return Live(Process(**stored["process"]), tuple(stored["argv"]), nics, disks, int(stored["memory"]))


def hot_bus(machine: str) -> bool:
    """Whether the machine takes PCI devices on its root bus while it runs."""
    return is_pc(machine)


def _port(number: int) -> str:
    return f"port{number}"
