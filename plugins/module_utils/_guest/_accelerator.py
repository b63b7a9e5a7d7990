# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether guests can use KVM here: found out by trying it, because /dev/kvm may be there and not work.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import ACCELERATOR_MEMORY
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account

_DEVICE = "/dev/kvm"

#: A working KVM needs a tenth of a second for the trial; one that hangs never ends it.
_PATIENCE = 5.0

# mov dx, 0xf4; mov al, 0x2a; out dx, al; halt: QEMU's isa-debug-exit ends QEMU with 2 * value + 1. To get here the
# firmware has run, which is where a KVM that does not work hangs.
_BOOT_SECTOR = b"\xba\xf4\x00\xb0\x2a\xee\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
_BOOT_DISK_SIZE = 1 << 20
_SIGN_OF_LIFE = 2 * 0x2A + 1


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of the trial."""

    works: bool
    reason: str


def is_native(architecture: str) -> bool:
    """Whether guests of this architecture could run on this processor at all."""
    machine = os.uname().machine
    return architecture == machine or (architecture, machine) == ("i386", "x86_64")


def remembered(program: str, account: Account) -> t.Optional[Verdict]:
    """What was found with this QEMU and account since the host booted."""
    stored = _memory().get(_key(program, account))
    return Verdict(bool(stored["works"]), str(stored["reason"])) if stored else None


def remember(program: str, account: Account, verdict: Verdict) -> None:
    """Spare later tasks the trial, until the host boots again or gets another QEMU."""
    memory = _memory()
    memory[_key(program, account)] = dataclasses.asdict(verdict)
    _whole_files.make_directories(os.path.dirname(ACCELERATOR_MEMORY))
    _whole_files.replace(ACCELERATOR_MEMORY, json.dumps(memory, indent=1))


def try_kvm(program: str, architecture: str, account: Account) -> Verdict:
    """Run a guest of nine bytes, as the account that guests run as."""
    if not os.path.exists(_DEVICE):
        return Verdict(False, f"{_DEVICE} does not exist")
    with tempfile.TemporaryDirectory(prefix="labspan-") as directory:
        os.chmod(directory, 0o755)
        disk = os.path.join(directory, "boot.img")
        with open(disk, "wb") as file:
            file.write(_BOOT_SECTOR.ljust(_BOOT_DISK_SIZE, b"\0"))
        os.chmod(disk, 0o644)
        return _run(_trial(program, architecture, disk), architecture, account)


def _trial(program: str, architecture: str, disk: str) -> list[str]:
    argv = [program, "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config", "-display", "none", "-m", "16"]
    if not _is_x86(architecture):
        # No payload for these processors: making the virtual machine has to do.
        return [*argv, "-machine", "virt", "-S", "-qmp", "stdio"]
    argv += ["-machine", "q35", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    return [*argv, "-drive", f"file={disk},format=raw,if=virtio,readonly=on"]


def _is_x86(architecture: str) -> bool:
    return architecture in ("x86_64", "i386")


def _run(argv: t.Sequence[str], architecture: str, account: Account) -> Verdict:
    try:
        done = _commands.run(
            argv,
            stdin='{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n',
            timeout=_PATIENCE,
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"a trial guest hung for {_PATIENCE:g} seconds")
    except OSError as error:
        return Verdict(False, f"the trial could not be started ({error.strerror})")
    said = done.stderr.strip().splitlines()
    expected = _SIGN_OF_LIFE if _is_x86(architecture) else 0
    if done.returncode == expected:
        return Verdict(True, "a trial guest ran")
    return Verdict(False, f"a trial guest failed: {said[0] if said else f'exit status {done.returncode}'}")


def _key(program: str, account: Account) -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = "unknown"
    path = os.path.realpath(program)
    return f"{boot} {path} {os.stat(path).st_mtime_ns} {account.uid} {','.join(map(str, account.groups))}"


def _memory() -> dict[str, t.Any]:
    try:
        with open(ACCELERATOR_MEMORY, encoding="utf-8") as file:
            memory = json.load(file)
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}
