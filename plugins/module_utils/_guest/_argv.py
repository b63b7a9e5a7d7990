# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of QEMU for a guest. Pure: the same guest gives the same words.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _firmware,
    _hugepages,
    _seed,
    _slots,
    _tpm,
    _vhost,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import (
    SYSTEMD,
    Disk,
    GuestSpec,
    Nic,
    is_q35,
)

_FIRST_DESCRIPTOR = 3

PAUSED = "-S"


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """The numbers under which QEMU finds what is opened for it when it is started by us.

    QEMU runs without privileges: it may neither open the taps, nor make sockets where root keeps its files. When
    systemd starts it, nobody can hand it anything: the taps belong to its account, and so does its runtime directory.
    """

    qmp: int
    console: t.Optional[int]
    taps: t.Mapping[str, tuple[int, ...]]
    agent: t.Optional[int] = None
    vhost: t.Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def descriptors(spec: GuestSpec) -> Descriptors:
    """Always the same numbers for the same guest."""
    number = _FIRST_DESCRIPTOR + 1
    console = None
    if spec.console:
        console, number = number, number + 1
    agent = None
    if spec.guest_agent:
        agent, number = number, number + 1
    taps = {}
    for nic in spec.nics:
        if nic.tap is not None:
            taps[nic.tap] = tuple(range(number, number + nic.queues))
            number += nic.queues
    vhost = {}
    for nic in spec.nics:
        if nic.tap is not None and nic.vhost == _vhost.TRUE:
            vhost[nic.tap] = tuple(range(number, number + nic.queues))
            number += nic.queues
    return Descriptors(_FIRST_DESCRIPTOR, console, taps, agent, vhost)


def title(name: str) -> str:
    """The word after C(-name) by which a guest is known among all processes."""
    return f"guest={name}"


def is_guest(argv: t.Sequence[str], name: str) -> bool:
    """Whether this is the command line of the guest's QEMU."""
    return any(word == "-name" and value == title(name) for word, value in zip(argv, argv[1:]))


@dataclasses.dataclass(frozen=True)
class Launch:
    """How what QEMU does not make itself is called on its command line: by number, or by name."""

    numbers: t.Optional[Descriptors]
    """None when systemd starts QEMU."""

    def socket(self, identity: str, path: str, **more: str) -> str:
        """A listening socket as a character device; C(identity) is also what its number is called in Descriptors."""
        where = {"path": path} if self.numbers is None else {"fd": str(getattr(self.numbers, identity))}
        return _options("socket", id=identity, **where, server="on", wait="off", **more)

    def tap(self, nic: Nic, identity: str) -> str:
        """The host's end of a NIC that is on a tap."""
        tap = str(nic.tap)
        if self.numbers is None:
            queues = {"queues": nic.queues} if nic.queues > 1 else {}
            words = _options("tap", id=identity, ifname=tap, script="no", downscript="no", **queues)
            return words + (_vhost.option(()) if nic.vhost == _vhost.TRUE else "")
        opened = self.numbers.taps[tap]
        vhost = _vhost.option(self.numbers.vhost[tap]) if nic.vhost == _vhost.TRUE else ""
        if nic.queues == 1:
            return _options("tap", id=identity, fd=opened[0]) + vhost
        return _options("tap", id=identity, fds=":".join(map(str, opened))) + vhost


def launch(spec: GuestSpec, manager: str) -> Launch:
    """The way that this manager of services starts the guest."""
    return Launch(None if manager == SYSTEMD else descriptors(spec))


def command_line(spec: GuestSpec, *, program: str, accelerator: str, manager: str = "none") -> list[str]:
    """The words that start the guest."""
    ways = launch(spec, manager)
    places = Places(spec.name)
    argv = [program, "-name", title(spec.name), "-nodefaults", "-no-user-config", "-msg", "timestamp=on"]
    if spec.sandbox:
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    properties = [*_firmware.machine_properties(spec.uefi), *_hugepages.machine_properties(spec)]
    argv += ["-machine", ",".join([spec.machine, *properties]), "-accel", accelerator]
    argv += ["-cpu", spec.cpu_model or ("host" if accelerator == "kvm" else "max")]
    argv += ["-smp", str(spec.cpus), "-m", f"{spec.memory}M", *_hugepages.words(spec)]
    argv += ["-chardev", ways.socket("qmp", places.qmp_socket)]
    argv += ["-mon", "chardev=qmp,mode=control"]
    if ways.numbers is None:
        argv += ["-chardev", _options("pipe", id="power", path=places.power), "-mon", "chardev=power,mode=control"]
    if spec.console:
        log = {"logfile": places.console_log, "logappend": "on"}
        argv += ["-chardev", ways.socket("console", places.console_socket, **log)]
        argv += ["-serial", "chardev:console"]
    argv += _display(spec, places)
    argv += _flash(spec, places)
    argv += _kernel(spec)
    argv += _tpm.words(spec, places)
    boot_indexes = _boot_indexes(spec)
    argv += _slots.port_words(spec)
    argv += _disks(spec, boot_indexes)
    ports = _slots.ports(spec)
    for index, nic in enumerate(spec.nics):
        argv += nic_words(index, nic, ways, ports.get(f"nic{index}"), boot_indexes)
    if spec.guest_agent:
        argv += _agent(ways, places)  # last, so that with it no other device gets another place on the bus
    argv += _seed_disk(spec, places)
    if spec.balloon:
        argv += ["-device", "virtio-balloon-pci,id=balloon"]
    return [*argv, *spec.extra_args]


def _options(*head: str, **values: t.Union[str, int]) -> str:
    """C(head,key=value,...) with commas in values doubled, as QEMU wants them."""
    words = [*head, *(f"{key.replace('_', '-')}={value}" for key, value in values.items())]
    escaped = [word.replace(",", ",,") for word in words]
    return ",".join(escaped)


def _seed_disk(spec: GuestSpec, places: Places) -> list[str]:
    """On virtio, since kernels made for clouds lack drivers for the CD drives of old."""
    if spec.cloud_init is None:
        return []
    serial = _seed.serial(spec.cloud_init)
    if serial is not None:
        return ["-smbios", _options("type=1", serial=serial)]
    image = {"node-name": "seed", "read-only": "on", "file.driver": "file", "file.filename": places.seed}
    port = _slots.last_port_words(spec)
    place = {"bus": _slots.LAST_PORT} if port else {}
    device = _options("virtio-blk-pci", drive="seed", id="seed", **place)
    return [*port, "-blockdev", _options("driver=raw", **image), "-device", device]


def _agent(ways: Launch, places: Places) -> list[str]:
    """The port under whose name the agent in the guest looks for the host."""
    port = _options("virtserialport", bus="channels.0", chardev="agent", name="org.qemu.guest_agent.0", id="agent-port")
    argv = ["-chardev", ways.socket("agent", places.agent_socket)]
    return [*argv, "-device", "virtio-serial-pci,id=channels", "-device", port]


def _display(spec: GuestSpec, places: Places) -> list[str]:
    if spec.display == "vnc":
        return ["-vga", "std", "-display", "none", "-vnc", f"unix:{places.vnc_socket}"]
    return ["-display", "none"]


def _flash(spec: GuestSpec, places: Places) -> list[str]:
    words: list[str] = []
    for device in _firmware.flash(spec.uefi, places.variables):
        words += ["-blockdev", _options(**device)]
    for properties in _firmware.global_properties(spec.uefi):
        words += ["-global", properties]
    return words


def _kernel(spec: GuestSpec) -> list[str]:
    words: list[str] = []
    for option, value in (("-kernel", spec.kernel), ("-initrd", spec.initrd), ("-append", spec.cmdline)):
        if value is not None:
            words += [option, value]
    return words


def _boot_indexes(spec: GuestSpec) -> dict[str, int]:
    """Device id -> its turn at booting; nothing when the order is the machine's own."""
    devices = {
        "disk": [f"disk{index}" for index, disk in enumerate(spec.disks) if not disk.is_cdrom],
        "cdrom": [f"disk{index}" for index, disk in enumerate(spec.disks) if disk.is_cdrom],
        "network": [f"nic{index}" for index in range(len(spec.nics))],
    }
    ordered = [device for kind in spec.boot_order for device in devices[kind]]
    return {device: turn for turn, device in enumerate(ordered, 1)}


def _disks(spec: GuestSpec, boot_indexes: t.Mapping[str, int]) -> list[str]:
    argv: list[str] = []
    buses = {disk.bus for disk in spec.disks}
    if "scsi" in buses:
        argv += ["-device", "virtio-scsi-pci,id=scsi"]
    if "sata" in buses and not is_q35(spec.machine):
        argv += ["-device", "ich9-ahci,id=sata"]
    used: dict[str, int] = {}
    ports = _slots.ports(spec)
    for index, disk in enumerate(spec.disks):
        identity = f"disk{index}"
        image = {} if disk.is_empty else {"drive": f"image{index}"}
        if image:
            argv += ["-blockdev", _blockdev(disk, identity)]
        bus, place = _place(spec, disk.bus, used)
        port = {"bus": ports[identity]} if identity in ports else {}
        turn = {"bootindex": boot_indexes[identity]} if identity in boot_indexes else {}
        argv += ["-device", _options(_driver(bus, disk), **image, id=identity, **place, **port, **turn)]
    return argv


def disk_words(spec: GuestSpec, disk: Disk, part: _slots.Part) -> list[str]:
    """A disk alone, as it is plugged into a guest that runs."""
    driver, place = _place(spec, disk.bus, {disk.bus: part.number if part.unit is None else part.unit})
    port = {} if part.port is None else {"bus": part.port}
    drive = {} if disk.is_empty else {"drive": f"image{part.number}"}
    device = _options(_driver(driver, disk), **drive, id=part.id, **place, **port)
    return [*image_words(disk, part), "-device", device]


def image_words(disk: Disk, part: _slots.Part) -> list[str]:
    """What is in a disk; nothing in an empty drive."""
    return [] if disk.is_empty else ["-blockdev", _blockdev(disk, part.id)]


def _driver(driver: str, disk: Disk) -> str:
    return driver.replace("-hd", "-cd") if disk.is_cdrom else driver


def _blockdev(disk: Disk, identity: str) -> str:
    options: dict[str, t.Union[str, int]] = {
        "node-name": identity.replace("disk", "image"),
        "read-only": "on" if disk.read_only else "off",
        "discard": "unmap",
        "file.driver": "host_device" if disk.path.startswith("/dev/") else "file",
        "file.filename": disk.path,
    }
    return _options(f"driver={disk.format}", **options)


def _place(spec: GuestSpec, bus: str, used: dict[str, int]) -> tuple[str, dict[str, t.Union[str, int]]]:
    """The device of a disk on this bus, and the next free place for it."""
    on_board_sata = bus in ("ide", "sata") and is_q35(spec.machine)
    controller = "on-board" if on_board_sata else bus
    number = used.get(controller, 0)
    used[controller] = number + 1
    if bus == "virtio":
        return "virtio-blk-pci", {}
    if bus == "nvme":
        return "nvme", {"serial": f"{spec.name}-{number}"[-20:]}
    if bus == "scsi":
        return "scsi-hd", {"bus": "scsi.0", "scsi-id": number}
    if on_board_sata:
        return "ide-hd", {"bus": f"ide.{number}"}
    if bus == "sata":
        return "ide-hd", {"bus": f"sata.{number}"}
    return "ide-hd", {"bus": f"ide.{number // 2}", "unit": number % 2}


def nic_words(
    index: int, nic: Nic, ways: Launch, port: t.Optional[str], boot_indexes: t.Mapping[str, int]
) -> list[str]:
    netdev, device = f"net{index}", f"nic{index}"
    backend = _options("user", id=netdev) if nic.tap is None else ways.tap(nic, netdev)
    options: dict[str, t.Union[str, int]] = {"netdev": netdev, "id": device, "mac": nic.mac}
    if port is not None:
        options["bus"] = port
    if nic.queues > 1:
        options.update(mq="on", vectors=2 * nic.queues + 2)
    if device in boot_indexes:
        options["bootindex"] = boot_indexes[device]
    else:
        options["romfile"] = ""  # without it every start loads a boot program that nobody runs
    return ["-netdev", backend, "-device", _options(nic.model, **options)]
