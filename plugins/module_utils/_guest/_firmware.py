# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""UEFI firmware: which image a guest boots, and the store of variables that is its own.

Images are found by the descriptors that their packages install (QEMU's docs/interop/firmware.json), so that no path of
any distribution stands here.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import re
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused, SystemFailure

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec

BIOS = "bios"
UEFI = "uefi"
NONE = "none"
CHOICES = (BIOS, UEFI)

#: Where descriptors are, from the lowest to the highest priority.
DIRECTORIES = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")

#: Architecture -> packages with the firmware, and in which distributions they are called so.
_PACKAGES = {
    "x86_64": "ovmf (Debian) or edk2-ovmf (Fedora, Arch)",
    "aarch64": "qemu-efi-aarch64 (Debian) or edk2-aarch64 (Fedora)",
    "arm": "qemu-efi-arm (Debian)",
    "riscv64": "qemu-efi-riscv64 (Debian) or edk2-riscv64 (Fedora)",
}
_X86 = ("x86_64", "i386")
_FORMATS = ("raw", "qcow2")

# Features of an image that stand for a kind of guest which nobody asked for here.
_SPECIAL = frozenset(["amd-sev-es", "amd-sev-snp", "intel-tdx"])

# The node names of the two halves of the flash.
_CODE = "firmware"
_VARIABLES = "variables"

_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Uefi:
    """The images that a guest's firmware is made of."""

    code: str
    code_format: str = "raw"
    template: t.Optional[str] = None
    """What a new variable store is a copy of; None for firmware that keeps nothing."""
    template_format: str = "raw"
    smm: bool = False
    """Whether the firmware protects its variables by system management mode, which the machine must have then."""


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """What a package says about an image, as far as it matters here."""

    uefi: Uefi
    features: frozenset[str]
    targets: tuple[tuple[str, tuple[str, ...]], ...]
    """Architectures, each with patterns of machine types."""

    def fits(self, architecture: str, machine: str) -> bool:
        return any(
            architecture == target and any(fnmatch.fnmatchcase(machine, pattern) for pattern in machines)
            for target, machines in self.targets
        )


def check(spec: GuestSpec, given: t.Mapping[str, t.Any]) -> None:
    """Whether the options about firmware go together; C(given) are those of the task."""
    if given.get("firmware") == BIOS and spec.architecture not in _X86:
        raise InvalidInput(
            "firmware", BIOS, f"of guest {spec.name} does not exist for the architecture {spec.architecture}; use uefi."
        )
    for option in ("secure_boot", "firmware_code", "firmware_variables"):
        value = getattr(spec, option)
        if value and spec.firmware != UEFI:
            raise InvalidInput(option, value, f"of guest {spec.name} needs firmware: uefi.")
    if spec.firmware_variables and not spec.firmware_code:
        raise InvalidInput(
            "firmware_variables",
            spec.firmware_variables,
            f"of guest {spec.name} belongs to an image that firmware_code names; give both.",
        )


def default(architecture: str, kernel: t.Optional[str]) -> str:
    """The firmware of a new guest that names none."""
    if architecture in _X86:
        return BIOS
    return NONE if kernel else UEFI


def settle(spec: GuestSpec, defined: t.Optional[GuestSpec], program: t.Optional[str]) -> GuestSpec:
    """The guest with its images: those that it has, or else those that are found for what it asks.

    A guest keeps its images, because its variables were written by them.
    """
    if spec.firmware != UEFI:
        return dataclasses.replace(spec, uefi=None)
    known = defined.uefi if defined is not None and _question(defined) == _question(spec) else None
    if known is None or not os.path.isfile(known.code):
        known = _find(spec, canonical_machine(spec.machine, _machine_list(program)))
    return dataclasses.replace(spec, uefi=known)


def _question(spec: GuestSpec) -> tuple[t.Any, ...]:
    return (
        spec.firmware,
        spec.secure_boot,
        spec.firmware_code,
        spec.firmware_variables,
        spec.architecture,
        spec.machine,
    )


def _find(spec: GuestSpec, machine: str) -> t.Optional[Uefi]:
    found = [descriptor for descriptor in descriptors() if descriptor.fits(spec.architecture, machine)]
    if spec.firmware_code is None:
        return choose(found, secure_boot=spec.secure_boot)
    return named(found, spec.firmware_code, spec.firmware_variables, smm=spec.secure_boot and spec.architecture in _X86)


def choose(found: t.Iterable[Descriptor], *, secure_boot: bool) -> t.Optional[Uefi]:
    """The image to use, of those that fit the machine, which are in the order of their priority."""
    usable = [descriptor for descriptor in found if not descriptor.features & _SPECIAL]
    if secure_boot:
        wanted = [descriptor for descriptor in usable if {"secure-boot", "enrolled-keys"} <= descriptor.features]
    else:
        # One that could do secure boot but has no keys is as good as one that cannot, and costs more.
        usable = [descriptor for descriptor in usable if "enrolled-keys" not in descriptor.features]
        wanted = [descriptor for descriptor in usable if "secure-boot" not in descriptor.features] or usable
    return wanted[0].uefi if wanted else None


def named(found: t.Iterable[Descriptor], code: str, template: t.Optional[str], *, smm: bool) -> Uefi:
    """The image at a path; what a descriptor knows about it is taken from there."""
    for descriptor in found:
        if descriptor.uefi.code == code and template in (None, descriptor.uefi.template):
            return descriptor.uefi
    return Uefi(code, _format_by_name(code), template, _format_by_name(template or ""), smm)


def _format_by_name(path: str) -> str:
    return "qcow2" if path.endswith(".qcow2") else "raw"


def descriptors(directories: t.Sequence[str] = DIRECTORIES) -> list[Descriptor]:
    """All descriptors, in the order in which they are to be tried.

    They are sorted by file name, wherever they are. Of two with the same name the one in the higher directory counts,
    also when it is empty, by which an administrator hides the other.
    """
    files: dict[str, str] = {}
    for directory in directories:
        with contextlib.suppress(OSError):
            files.update(
                (name, os.path.join(directory, name)) for name in os.listdir(directory) if name.endswith(".json")
            )
    found = [_read_descriptor(files[name]) for name in sorted(files)]
    return [descriptor for descriptor in found if descriptor is not None and os.path.isfile(descriptor.uefi.code)]


def _read_descriptor(path: str) -> t.Optional[Descriptor]:
    try:
        with open(path, encoding="utf-8") as file:
            return parse(json.load(file))
    except (OSError, ValueError):
        return None


def parse(data: t.Any) -> t.Optional[Descriptor]:
    """The descriptor of an image that can be used here; None for any other."""
    try:
        mapping = data["mapping"]
        if UEFI not in data["interface-types"] or mapping["device"] != "flash":
            return None
        if mapping.get("mode", "split") != "split":
            return None
        code, template = mapping["executable"], mapping["nvram-template"]
        features = frozenset(map(str, data["features"]))
        uefi = Uefi(
            str(code["filename"]),
            str(code["format"]),
            str(template["filename"]),
            str(template["format"]),
            "requires-smm" in features,
        )
        targets = tuple((str(each["architecture"]), tuple(map(str, each["machines"]))) for each in data["targets"])
    except (TypeError, KeyError, AttributeError):
        return None
    if uefi.code_format not in _FORMATS or uefi.template_format not in _FORMATS:
        return None
    return Descriptor(uefi, features, targets)


def canonical_machine(machine: str, listed: str) -> str:
    """The machine type that the name stands for, by what C(-machine help) lists: C(q35) is C(pc-q35-7.2)."""
    name = machine.partition(",")[0]
    match = re.search(rf"^{re.escape(name)}\s.*\(alias of (\S+?)\)", listed, re.MULTILINE)
    return match[1] if match else name


def _machine_list(program: t.Optional[str]) -> str:
    return _commands.run([program, "-machine", "help"]).stdout if program is not None else ""


def machine_properties(uefi: t.Optional[Uefi]) -> list[str]:
    """What the machine is told about its flash."""
    if uefi is None:
        return []
    properties = [f"pflash0={_CODE}"]
    if uefi.template is not None:
        properties.append(f"pflash1={_VARIABLES}")
    return [*properties, "smm=on"] if uefi.smm else properties


def flash(uefi: t.Optional[Uefi], store: str) -> list[dict[str, str]]:
    """The block devices that the flash consists of."""
    if uefi is None:
        return []
    devices = [_device(_CODE, uefi.code, uefi.code_format, read_only=True)]
    if uefi.template is not None:
        devices.append(_device(_VARIABLES, store, uefi.template_format, read_only=False))
    return devices


def _device(node: str, path: str, image_format: str, *, read_only: bool) -> dict[str, str]:
    return {
        "driver": image_format,
        "node-name": node,
        "read-only": "on" if read_only else "off",
        "file.driver": "file",
        "file.filename": path,
    }


def global_properties(uefi: t.Optional[Uefi]) -> list[str]:
    """With them only code in system management mode writes to the flash."""
    return ["driver=cfi.pflash01,property=secure,value=on"] if uefi is not None and uefi.smm else []


def render(spec: GuestSpec, store: str) -> dict[str, t.Any]:
    """What the result says about the firmware."""
    uefi = spec.uefi
    return {
        "firmware": spec.firmware,
        "secure_boot": spec.secure_boot,
        "firmware_code": uefi.code if uefi else None,
        "firmware_variables": store if uefi and uefi.template else None,
    }


def problems(spec: GuestSpec, store: str) -> list[str]:
    """Why the guest cannot start with this firmware."""
    if spec.firmware != UEFI:
        return []
    uefi = spec.uefi
    if uefi is None:
        what = "UEFI firmware with secure boot and enrolled keys" if spec.secure_boot else "UEFI firmware"
        package = _PACKAGES.get(spec.architecture, "with it")
        return [
            f"firmware: guest {spec.name} has no firmware to boot: {what} for {spec.architecture} on the machine "
            f"{spec.machine} is described neither in {DIRECTORIES[1]} nor in {DIRECTORIES[0]}. Install the package "
            f"{package}, or give firmware_code."
        ]
    needed = {"firmware_code": uefi.code}
    if uefi.template is not None and not os.path.lexists(store):
        needed["firmware_variables"] = uefi.template
    found = [
        f"{option}: {path} of guest {spec.name} does not exist on the managed host."
        for option, path in needed.items()
        if not os.path.isfile(path)
    ]
    if uefi.template is None:
        found.append(
            f"firmware_code: no descriptor in {DIRECTORIES[1]} and {DIRECTORIES[0]} knows {uefi.code} of guest "
            f"{spec.name}. Give firmware_variables, too: the template that comes with it."
        )
    return found or _store_problems(spec, uefi, store)


def _store_problems(spec: GuestSpec, uefi: Uefi, store: str) -> list[str]:
    """Why the variables that are there, or those that are to be copied, do not do."""
    path = store if os.path.lexists(store) else str(uefi.template)
    keep = "It is left as it is: move it away to have a new one made, without what the guest has stored in it."
    if path == store and uefi.template_format == "raw" and os.path.isfile(str(uefi.template)):
        size, needed = os.stat(store).st_size, os.stat(str(uefi.template)).st_size
        if size != needed:
            return [
                f"the variable store {store} of guest {spec.name} has {size} bytes, and the firmware {uefi.code} needs "
                f"{needed}. {keep}"
            ]
    if spec.secure_boot and uefi.template_format == "raw" and not has_platform_key(path):
        return [
            f"secure_boot: {path} of guest {spec.name} has no platform key, so that the firmware would boot anything."
            + (f" {keep}" if path == store else " Name a template with enrolled keys.")
        ]
    return []


# A variable as the firmware stores it (EDK2, VariableFormat.h: AUTHENTICATED_VARIABLE_HEADER).
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_START = 0x55AA
_ADDED = 0x3F


def has_platform_key(path: str) -> bool:
    """Whether a variable store holds a platform key, without which secure boot is off."""
    with open(path, "rb") as file:
        content = file.read()
    name = "PK\0".encode("utf-16-le")
    position = content.find(name)
    while position >= 0:
        start = position - _VARIABLE.size
        if start >= 0:
            magic, state, *_rest, name_size, data_size, vendor = _VARIABLE.unpack_from(content, start)
            there = magic == _START and state == _ADDED and vendor == _GLOBAL_VARIABLE
            if there and name_size == len(name) and data_size:
                return True
        position = content.find(name, position + 1)
    return False


def make_store(uefi: Uefi, store: str, record: t.Callable[[os.stat_result], None]) -> None:
    """Copy the template to the guest's store, which must not be there; whose it is, is seen to at every start.

    It is made under another name and linked to its own, which the kernel refuses when that is taken. C(record) is
    called with the file before it gets its name.
    """
    directory, name = os.path.split(store)
    temporary = os.path.join(directory, f".{name}.labspan")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as target, open(str(uefi.template), "rb") as source:
            _copy(source, target)
            record(os.fstat(target.fileno()))
        os.link(temporary, store)
    except FileExistsError:
        raise Refused(f"{store} appeared while this task ran; nothing was done to it.") from None
    except OSError as error:
        raise SystemFailure(f"the variable store {store} cannot be made ({error.strerror}).") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
            _whole_files.sync(directory)


def _copy(source: t.BinaryIO, target: t.BinaryIO) -> None:
    """Copy without the holes: the flash of some machines is 64 MiB of which next to nothing is used."""
    for block in iter(lambda: source.read(_BLOCK), b""):
        if block.count(0) == len(block):
            target.seek(len(block), os.SEEK_CUR)
        else:
            target.write(block)
    target.truncate()
    target.flush()
    os.fsync(target.fileno())


def hand_over(store: str, uid: int, gid: int) -> None:
    """Make the store the account's that the guest runs as; its directory is root's, so the name cannot be a trap."""
    with contextlib.suppress(FileNotFoundError):
        os.chown(store, uid, gid, follow_symlinks=False)
