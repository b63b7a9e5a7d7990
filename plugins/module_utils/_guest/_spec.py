# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest is: its definition, complete and canonical, and what a task wishes of it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _cache,
    _firmware,
    _labels,
    _limits,
    _seed,
    _vhost,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._firmware import Uefi
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._labels import Labels
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._limits import Limits
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places

MEBIBYTE = 1 << 20

#: Machine type of a guest that names none, by architecture.
MACHINES = {"x86_64": "q35", "i386": "q35", "aarch64": "virt", "arm": "virt", "riscv64": "virt"}

MODELS = ("virtio-net-pci", "virtio-net", "e1000", "e1000e", "rtl8139", "vmxnet3")
BUSES = ("virtio", "ide", "sata", "scsi", "nvme")
FORMATS = ("qcow2", "raw")
CDROM = "cdrom"
MEDIA = ("disk", CDROM)
#: What a CD drive can be plugged into.
CDROM_BUSES = ("sata", "ide", "scsi")
WAIT_FOR = ("nothing", "qmp", "console", "address", "ssh", "cloud_init")

#: Who starts QEMU, and again after a boot: systemd, or nobody but us.
SYSTEMD = "systemd"
NONE = "none"
BASE_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc")

#: Disks that the built-in controllers take: two IDE channels on pc, six AHCI ports on q35 and on our own controller.
IDE_PLACES = 4
SATA_PLACES = 6

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT])(iB|B)?\Z", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*\Z")

Options = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of a guest. Size, base image and checksum tell how to make it; the rest how it is attached."""

    path: str
    format: str
    bus: str
    read_only: bool = False
    size: t.Optional[int] = None
    base_image: t.Optional[str] = None
    base_format: t.Optional[str] = None
    checksum: t.Optional[str] = None
    source: t.Optional[str] = None
    """Where the base image is downloaded from; C(base_image) is then where it is kept."""
    media: str = "disk"

    @property
    def is_cdrom(self) -> bool:
        return self.media == CDROM

    @property
    def is_empty(self) -> bool:
        """A CD drive without a CD."""
        return not self.path


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network interface of a guest: on a tap, or on QEMU's own user-mode network."""

    mac: str
    model: str
    tap: t.Optional[str] = None
    bridge: t.Optional[str] = None
    """Set when the tap is made for this NIC, as a port of this bridge."""
    network: t.Optional[str] = dataclasses.field(default=None, compare=False)
    """Whose that tap is, where it is not the guest's network's. The device is the same whosever its tap is."""
    queues: int = 1
    link: bool = True
    vhost: str = "auto"

    @property
    def user(self) -> bool:
        return self.tap is None

    @property
    def place(self) -> str:
        """Its other end, in words."""
        return "the user-mode network" if self.tap is None else f"tap {self.tap}"


@dataclasses.dataclass(frozen=True)
class GuestSpec:
    """The whole of a guest as QEMU needs it."""

    name: str
    memory: int = 512
    """MiB."""
    cpus: int = 1
    cpu_model: t.Optional[str] = None
    architecture: str = "x86_64"
    machine: str = "q35"
    accelerator: str = "auto"
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    kernel: t.Optional[str] = None
    initrd: t.Optional[str] = None
    cmdline: t.Optional[str] = None
    boot_order: tuple[str, ...] = ()
    console: bool = True
    guest_agent: bool = False
    cloud_init: t.Optional[_seed.CloudInit] = None
    balloon: bool = False
    display: str = "none"
    user: str = "labspan-qemu"
    sandbox: bool = True
    extra_args: tuple[str, ...] = ()
    network: t.Optional[str] = None
    """Whose the taps are that are made for the guest."""
    service_manager: str = "auto"
    autostart: bool = True
    """With systemd, whether it starts when the host boots."""
    firmware: str = "bios"
    secure_boot: bool = False
    firmware_code: t.Optional[str] = None
    firmware_variables: t.Optional[str] = None
    uefi: t.Optional[Uefi] = None
    """The images that were found for C(firmware=uefi)."""
    shutdown_timeout: float = 60.0
    """Seconds that it gets to power itself off where a task does not say, and from systemd."""
    tpm: bool = False
    limits: Limits = dataclasses.field(default_factory=Limits)
    hugepages: bool = False
    labels: Labels = dataclasses.field(default_factory=Labels)


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a task asks for one guest."""

    name: str
    state: str
    given: t.Mapping[str, t.Any]
    """Attributes of GuestSpec that the task gives; those it leaves out stay as they are."""
    disks: t.Optional[tuple[Options, ...]] = None
    """Disks as given: what they leave out depends on the files that are there."""
    cloud_init: t.Optional[_seed.Asked] = None
    """What it holds is not part of the guest's definition, which would show it."""
    restart: str = "never"
    shutdown_timeout: t.Optional[float] = None
    """None: what the guest's definition says."""
    live_timeout: float = 20.0
    force: bool = False
    remove_disks: bool = False
    wait_for: str = "qmp"
    console_pattern: t.Optional[str] = None
    wait_timeout: float = 120.0

    @property
    def wants_process(self) -> bool:
        return self.state in ("running", "paused", "restarted")


def memory_size(option: str, value: str) -> int:
    """MiB, from a number of MiB or a size with its unit."""
    if value.strip().isdigit():
        mebibytes = int(value)
    else:
        size = disk_size(option, value)
        mebibytes = size // MEBIBYTE
        if size % MEBIBYTE:
            raise InvalidInput(option, value, "is not a whole number of MiB.")
    if mebibytes < 1:
        raise InvalidInput(option, value, "is no memory at all; write MiB as a number, or a size such as 2G.")
    return mebibytes


def disk_size(option: str, value: str) -> int:
    """Bytes, from a size with its unit (powers of 1024)."""
    match = _SIZE.match(value.strip())
    if match is None or int(match[1]) == 0:
        raise InvalidInput(option, value, "is not a size; write a number and its unit, as in 512M or 20G.")
    return int(match[1]) * _UNITS[match[2].upper()]


def derived_tap(guest: str, index: int, queues: int = 1) -> str:
    """The name of the tap that is made for a NIC: always the same, and never over the kernel's 15 characters.

    A tap cannot change between one queue and several, so the one with several is another tap.
    """
    several = "\0multi_queue" if queues > 1 else ""
    return "vn" + hashlib.sha256(f"{guest}\0{index}{several}".encode()).hexdigest()[:8]


def derived_mac(identity: str, guest: str, index: int) -> str:
    """The MAC address of a NIC that names none; C(identity) is the host's."""
    return _values.derived_mac(identity, guest, str(index))


def is_q35(machine: str) -> bool:
    return "q35" in machine.partition(",")[0]


def is_pc(machine: str) -> bool:
    kind = machine.partition(",")[0]
    return kind == "pc" or kind.startswith("pc-i440fx")


def wish(options: Options, *, identity: str) -> Wish:
    """The options of one item, checked and made canonical. C(identity) is the host's, for derived MAC addresses."""
    name = _values.object_name("name", options["name"])
    given: dict[str, t.Any] = {}
    for option, reader in _READERS.items():
        if options.get(option) is not None:
            given[option] = reader(option, options[option])
    for option in (
        "cpus",
        "accelerator",
        "console",
        "guest_agent",
        "balloon",
        "display",
        "sandbox",
        "service_manager",
        "autostart",
        "firmware",
        "secure_boot",
        "tpm",
        "hugepages",
    ):
        if options.get(option) is not None:
            given[option] = options[option]
    patience = options.get("shutdown_timeout")
    patience = None if patience is None else _seconds("shutdown_timeout", patience)
    if patience is not None and options["state"] in ("running", "paused", "restarted"):
        given["shutdown_timeout"] = patience  # what a task that stops it allows, holds for that task
    if given.get("cpus", 1) < 1:
        raise InvalidInput("cpus", given["cpus"], "is no processor at all; give 1 or more.")
    if options.get("nics") is not None:
        given["nics"] = _nics(name, options["nics"], identity)
    disks = options.get("disks")
    return Wish(
        name=name,
        state=options["state"],
        given=given,
        disks=None if disks is None else _disks(name, disks),
        cloud_init=None if options.get("cloud_init") is None else _seed.ask(name, options["cloud_init"]),
        restart=options["restart"],
        shutdown_timeout=patience,
        live_timeout=_seconds("live_timeout", options["live_timeout"]),
        force=options["force"],
        remove_disks=_remove_disks(options),
        wait_for=options["wait_for"],
        console_pattern=_console_pattern(options),
        wait_timeout=_seconds("wait_timeout", options["wait_timeout"]),
    )


def define(
    asked: Wish, defined: t.Optional[GuestSpec], disks: t.Optional[tuple[Disk, ...]], *, user: str = "labspan-qemu"
) -> GuestSpec:
    """The guest that the wish leads to; what it leaves open stays as defined, or is the default of a new guest.

    C(user) is whom a new guest runs as when the wish does not say.
    """
    base = defined or GuestSpec(asked.name, user=user)
    given = dict(asked.given)
    if defined is None:
        architecture = given.setdefault("architecture", os.uname().machine)
        if "machine" not in given and architecture not in MACHINES:
            raise InvalidInput("machine", None, f"has no default for the architecture {architecture}; choose one.")
        given.setdefault("machine", MACHINES.get(architecture))
        given.setdefault("firmware", _firmware.default(architecture, given.get("kernel")))
    if given.get("firmware") == _firmware.BIOS:  # then what only UEFI has need not be taken away one by one
        given = {"secure_boot": False, "firmware_code": None, "firmware_variables": None, **given}
    # What is taken away with an empty text is away.
    for option in ("kernel", "initrd", "cmdline", "cpu_model", "firmware_code", "firmware_variables"):
        if given.get(option) == "":
            given[option] = None
    if disks is not None:
        given["disks"] = disks
    if asked.cloud_init is not None:
        given["cloud_init"] = _seed.record(asked.cloud_init, asked.name, base.cloud_init)
    spec = dataclasses.replace(base, **given)
    _check_whole(spec)
    _firmware.check(spec, asked.given)
    _limits.check(spec)
    return spec


def _check_whole(spec: GuestSpec) -> None:
    if spec.kernel is None:
        for option in ("initrd", "cmdline"):
            if getattr(spec, option) is not None:
                raise InvalidInput(
                    option, getattr(spec, option), f"of guest {spec.name} needs option kernel, which is not given."
                )
    used: dict[str, int] = {}
    for disk in spec.disks:
        if disk.read_only and disk.bus in ("ide", "sata") and not disk.is_cdrom:
            raise InvalidInput("disks[].bus", disk.bus, f"of {disk.path} has no read-only disks; use virtio or scsi.")
        used[disk.bus] = used.get(disk.bus, 0) + 1
    on_board = used.get("ide", 0) + (used.get("sata", 0) if is_q35(spec.machine) else 0)
    places = SATA_PLACES if is_q35(spec.machine) else IDE_PLACES
    if used.get("ide") and not (is_q35(spec.machine) or is_pc(spec.machine)):
        raise InvalidInput("disks[].bus", "ide", f"does not exist on the machine {spec.machine}; use virtio or scsi.")
    if on_board > places or used.get("sata", 0) > SATA_PLACES:
        raise InvalidInput(
            "disks[].bus",
            "ide" if used.get("ide") else "sata",
            f"of guest {spec.name}: the machine {spec.machine} has places for {places} such disks; use virtio or scsi.",
        )
    for what, values in (
        ("disks[].path", [disk.path for disk in spec.disks if not disk.is_empty]),
        ("nics[].mac", [nic.mac for nic in spec.nics]),
        ("nics[].tap", [nic.tap for nic in spec.nics if nic.tap is not None]),
    ):
        for value in values:
            if values.count(value) > 1:
                raise InvalidInput(what, value, f"is given twice for guest {spec.name}.")


def _seconds(option: str, value: float) -> float:
    if value < 0:
        raise InvalidInput(option, value, "is a time before now; give seconds, 0 or more.")
    return float(value)


def _word(option: str, value: str) -> str:
    if value and not _WORD.match(value):
        raise InvalidInput(option, value, "holds characters that have no place in a value for QEMU.")
    return value


def absolute_path(option: str, value: str) -> str:
    """A path from the root, without the dots and double slashes that would let two texts name one file."""
    if not value.startswith("/") or "\0" in value:
        raise InvalidInput(option, value, "is not an absolute path; begin with /.")
    return os.path.normpath(value)


def _optional_path(option: str, value: str) -> str:
    return absolute_path(option, value) if value else value


def _account(option: str, value: str) -> str:
    if not value or not _WORD.match(value):
        raise InvalidInput(option, value, "is not the name of an account.")
    return value


def _console_pattern(options: Options) -> t.Optional[str]:
    pattern = options.get("console_pattern")
    if options["wait_for"] != "console":
        return t.cast("t.Optional[str]", pattern)
    if not pattern:
        raise InvalidInput("wait_for", "console", "needs console_pattern: what the guest writes when it is ready.")
    if options.get("console") is False:
        raise InvalidInput("wait_for", "console", "needs the console that console: false takes away.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidInput("console_pattern", pattern, f"is not a regular expression ({error}).") from None
    return t.cast(str, pattern)


def _remove_disks(options: Options) -> bool:
    if options["remove_disks"] and options["state"] != "absent":
        raise InvalidInput("remove_disks", True, "is allowed with state: absent only.")
    return bool(options["remove_disks"])


def _nics(guest: str, entries: t.Sequence[Options], identity: str) -> tuple[Nic, ...]:
    return tuple(_nic(guest, index, entry, identity) for index, entry in enumerate(entries))


def _nic(guest: str, index: int, entry: Options, identity: str) -> Nic:
    where = f"nics[{index}]"
    tap, bridge, user = entry.get("tap"), entry.get("bridge"), bool(entry.get("user"))
    given = {option: value for option, value in entry.items() if value is not None}
    if not (tap or bridge or user):
        raise InvalidInput(
            where, given, f"of guest {guest} leads nowhere: give tap (an existing one), bridge or user: true."
        )
    if user and (tap or bridge):
        raise InvalidInput(where, given, f"of guest {guest} has user: true and a tap or bridge; choose one.")
    model = entry.get("model") or "virtio-net-pci"
    queues = 1 if entry.get("queues") is None else entry["queues"]
    if queues < 1:
        raise InvalidInput(f"{where}.queues", queues, "is no queue at all; give 1 or more.")
    if queues > 1 and (user or not model.startswith("virtio-net")):
        raise InvalidInput(
            f"{where}.queues", queues, "needs a virtio-net-pci NIC on a tap made with multi_queue: true."
        )
    vhost = entry.get("vhost") or _vhost.AUTO
    if vhost == _vhost.TRUE and not _vhost.is_possible(model, None if user else "a tap"):
        raise InvalidInput(f"{where}.vhost", vhost, "needs a virtio-net-pci NIC on a tap.")
    mac = entry.get("mac")
    return Nic(
        mac=_values.mac_address(f"{where}.mac", mac) if mac else derived_mac(identity, guest, index),
        model="virtio-net-pci" if model == "virtio-net" else model,
        tap=None if user else _values.interface_name(f"{where}.tap", tap or derived_tap(guest, index, queues)),
        bridge=_values.interface_name(f"{where}.bridge", bridge) if bridge else None,
        network=_values.object_name(f"{where}.network", entry["network"]) if entry.get("network") else None,
        queues=queues,
        link=entry.get("link") is not False,
        vhost=vhost,
    )


def _disks(guest: str, entries: t.Sequence[Options]) -> tuple[Options, ...]:
    return tuple(_disk(guest, index, entry) for index, entry in enumerate(entries))


def _disk(guest: str, index: int, entry: Options) -> Options:
    where = f"disks[{index}]"
    image_format = entry.get("format")
    path = entry.get("path")
    base = entry.get("base_image")
    if entry.get("media") == CDROM:
        return _cdrom(where, entry)
    if base and image_format == "raw":
        raise InvalidInput(f"{where}.format", "raw", "cannot have a base image; an overlay is a qcow2 image.")
    for option in ("base_format", "checksum"):
        if entry.get(option) and not base:
            raise InvalidInput(f"{where}.{option}", entry[option], "tells about a base_image, which is not given.")
    checksum = _cache.checksum(f"{where}.checksum", entry["checksum"]) if entry.get("checksum") else None
    source = _cache.source(f"{where}.base_image", base, checksum) if base and _cache.is_url(base) else None
    if source:
        base = _cache.kept_at(source, checksum)
    elif checksum and _cache.is_listed(checksum):
        raise InvalidInput(f"{where}.checksum", checksum, "is for a base_image that is downloaded; give the digits.")
    return {
        "path": absolute_path(f"{where}.path", path) if path else Places(guest).disk(index, image_format or "qcow2"),
        "format": image_format,
        "bus": entry.get("bus") or "virtio",
        "read_only": bool(entry.get("read_only")),
        "size": disk_size(f"{where}.size", entry["size"]) if entry.get("size") else None,
        "base_image": absolute_path(f"{where}.base_image", base) if base else None,
        "base_format": entry.get("base_format"),
        "checksum": checksum,
        "source": source,
    }


def _cdrom(where: str, entry: Options) -> Options:
    """A CD drive; without a path it is empty."""
    for option in ("size", "base_image", "base_format", "checksum"):
        if entry.get(option):
            raise InvalidInput(f"{where}.{option}", entry[option], "is not for media: cdrom, which has an ISO at path.")
    if entry.get("format") == "qcow2":
        raise InvalidInput(f"{where}.format", "qcow2", "is not what a CD is; an ISO image is raw.")
    if entry.get("read_only") is False:
        raise InvalidInput(f"{where}.read_only", False, "is not what a CD is.")
    bus = entry.get("bus") or CDROM_BUSES[0]
    if bus not in CDROM_BUSES:
        raise InvalidInput(f"{where}.bus", bus, f"has no CD drives; use one of {', '.join(CDROM_BUSES)}.")
    path = entry.get("path")
    return {
        "path": absolute_path(f"{where}.path", path) if path else "",
        "format": "raw",
        "bus": bus,
        "read_only": True,
        "media": CDROM,
    }


def files_of(disk: t.Union[Disk, Options]) -> tuple[str, ...]:
    """What to look at for the disk: its image, and the base image if that may have to be fetched."""
    given = vars(disk) if isinstance(disk, Disk) else disk
    fetched = (given["base_image"],) if given.get("source") else ()
    return tuple(path for path in (given["path"], *fetched) if path)


def _texts(option: str, value: t.Sequence[str]) -> tuple[str, ...]:
    return tuple(str(text) for text in value)


def _one_line(option: str, value: str) -> str:
    if "\n" in value or "\0" in value:
        raise InvalidInput(option, value, "has more than one line.")
    return value


_READERS: t.Mapping[str, t.Callable[[str, t.Any], t.Any]] = {
    "memory": memory_size,
    "cpu_model": _word,
    "machine": _word,
    "architecture": _word,
    "kernel": _optional_path,
    "initrd": _optional_path,
    "labels": _labels.read,
    "limits": lambda _option, value: _limits.read(value, disk_size),
    "firmware_code": _optional_path,
    "firmware_variables": _optional_path,
    "cmdline": _one_line,
    "boot_order": _texts,
    "user": _account,
    "network": _values.object_name,
    "extra_args": _texts,
}


def to_data(spec: GuestSpec) -> dict[str, t.Any]:
    """The guest as plain data, for its file."""
    return dataclasses.asdict(spec)


def from_data(stored: Options) -> GuestSpec:
    """The guest from its file; raises TypeError, KeyError or ValueError when that is not one."""
    fields = dict(stored)
    fields["disks"] = tuple(Disk(**disk) for disk in fields["disks"])
    fields["nics"] = tuple(Nic(**nic) for nic in fields["nics"])
    for name in ("boot_order", "extra_args"):
        fields[name] = tuple(fields[name])
    if fields.get("uefi") is not None:
        fields["uefi"] = Uefi(**fields["uefi"])
    if "limits" in fields:
        fields["limits"] = _limits.from_data(fields["limits"])
    if "labels" in fields:
        fields["labels"] = _labels.from_data(fields["labels"])
    fields["cloud_init"] = _seed.from_data(fields.get("cloud_init"))
    return GuestSpec(**fields)
