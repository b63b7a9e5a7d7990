# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's TPM: swtpm, a process of its own beside QEMU that ends with it, and the directory with what the TPM keeps.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _process, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account, Process
from ansible_collections.labspan.vmnet.plugins.module_utils._systemd import UNITS

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec

PROGRAM = "swtpm"

#: What swtpm makes in its directory; with anything else in it, the directory is not removed.
_FILES = ("tpm2-00.permall", "tpm2-00.volatilestate", ".lock")

#: swtpm ends as soon as QEMU hangs up.
_PATIENCE = 5.0

_LISTENER = 3

#: The number of the kernel's thread that starts its others.
_KTHREADD = 2

# The kinds of TPM that QEMU has, by architecture: memory-mapped ones, since there need be no ISA bus.
_DEVICES = {"x86_64": "tpm-crb", "i386": "tpm-crb", "aarch64": "tpm-tis-device", "arm": "tpm-tis-device"}


def words(spec: GuestSpec, places: Places) -> list[str]:
    """What QEMU is told."""
    if not spec.tpm:
        return []
    device = _DEVICES.get(spec.architecture, "tpm-tis")
    return [
        "-chardev",
        f"socket,id=tpm,path={places.tpm_socket}",
        "-tpmdev",
        "emulator,id=tpm0,chardev=tpm",
        "-device",
        f"{device},tpmdev=tpm0",
    ]


def problems(spec: GuestSpec) -> list[str]:
    """Why the guest cannot have its TPM."""
    if not spec.tpm or _deps.find_program(PROGRAM) is not None:
        return []
    return [
        f"tpm: guest {spec.name} needs the program {PROGRAM}, which is not on the managed host. Install the package "
        f"{_deps.PACKAGES[PROGRAM]} (its name in Debian)."
    ]


def command_line(places: Places, *control: str) -> list[str]:
    """The words that start swtpm; it ends when QEMU hangs up."""
    argv = [PROGRAM, "socket", "--tpm2", "--terminate"]
    return [*argv, "--tpmstate", _state_words(places), "--ctrl", f"type=unixio,{','.join(control)}"]


def _state_words(places: Places) -> str:
    return f"dir={places.tpm_state},mode=0600"


def begin(spec: GuestSpec, places: Places, account: Account, listener: int) -> None:
    """Start swtpm with an open socket, where QEMU will ask it."""
    program = _deps.program(PROGRAM, purpose=f"for the TPM of guest {spec.name}")
    argv = [program, *command_line(places, f"fd={_LISTENER}")[1:]]
    _process.spawn(
        argv,
        pid_file=places.tpm_pid_file,
        output=places.tpm_output,
        account=account,
        descriptors={_LISTENER: listener},
    )


def end(places: Places) -> None:
    """See swtpm gone after QEMU, so that the next one finds the directory free."""
    process = _process.read_pid_file(places.tpm_pid_file)
    # Under systemd the directory is the account's, which could name any process there.
    if process is not None and _state_words(places) not in _words_of(process):
        process = None
    if process is not None and _process.wait_gone([process], _PATIENCE):
        _process.end(process, timeout=_PATIENCE, force=True)
    for path in (places.tpm_socket, places.tpm_pid_file):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)


def _words_of(process: Process) -> list[str]:
    """Its command line; empty when it is gone, or has none for as long as swtpm may take to end."""
    deadline = time.monotonic() + _PATIENCE
    argv = process.argv()
    # Without one it is about to start, or ends: its memory goes first, and its files are open and locked until later.
    while not argv and not _is_of_kernel(process) and time.monotonic() < deadline:
        if not _process.wait_gone([process], 0.05):
            break
        argv = process.argv()
    return argv


def _is_of_kernel(process: Process) -> bool:
    """Whether it is a thread of the kernel, which never has a command line."""
    return _process.parent_of(process.pid) == _KTHREADD


def prepare(places: Places, account: Account) -> None:
    """Make the directory, or make it this account's."""
    with contextlib.suppress(FileExistsError):
        _whole_files.make_directory(places.tpm_state, 0o700)
    try:
        directory = os.open(places.tpm_state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailure(f"{places.tpm_state} is no directory for a TPM ({error.strerror}).") from error
    try:
        if os.fstat(directory).st_uid == account.uid:
            return
        # What is in it was written by the account that it had: names are not followed anywhere.
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                    os.chown(name, account.uid, account.gid, dir_fd=directory, follow_symlinks=False)
        os.fchown(directory, account.uid, account.gid)
    finally:
        os.close(directory)


def has_state(places: Places) -> bool:
    """Whether there is something that C(remove_state) would take away."""
    try:
        found = os.listdir(places.tpm_state)
    except OSError:
        return False
    return not found or any(name in _FILES for name in found)


def remove_state(places: Places) -> None:
    """Remove what the TPM keeps, and its directory when nothing else is in it."""
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(places.tpm_state, name))
    with contextlib.suppress(OSError):
        os.rmdir(places.tpm_state)


# With systemd

TEMPLATE_PATH = f"{UNITS}/labspan-tpm@.service"

TEMPLATE = """\
# The TPM of a guest of labspan.vmnet. Whom it runs as stands in labspan-tpm@NAME.service.d/guest.conf.
# Written by the module qemu_guest.
[Unit]
Description=TPM of the QEMU guest %i
PartOf=labspan-guest@%i.service
RequiresMountsFor=/var/lib/labspan/guests/%i

[Service]
# It goes into the background when its socket is there, so QEMU, which comes after it, finds that.
Type=forking
# The directory is the guest's, which takes it away.
RuntimeDirectory=labspan/guests/%i
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
UMask=0077
ExecStart=swtpm socket --tpm2 --daemon --terminate \\
    --tpmstate dir=/var/lib/labspan/guests/%i/tpm,mode=0600 \\
    --ctrl type=unixio,path=/run/labspan/guests/%i/tpm.sock,mode=0600

NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths=/var/lib/labspan/guests/%i/tpm
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
"""


def unit(name: str) -> str:
    """The unit of a guest's TPM."""
    return f"labspan-tpm@{name}.service"


def drop_in_path(name: str) -> str:
    return f"{UNITS}/{unit(name)}.d/guest.conf"


def drop_in(spec: GuestSpec) -> str:
    """What is particular to a guest's TPM."""
    return (
        f"# The TPM of the guest {spec.name} of labspan.vmnet. Written by the module qemu_guest.\n"
        f"[Service]\nUser={spec.user}\n"
    )


def unit_lines(spec: GuestSpec) -> list[str]:
    """What the guest's own unit says about its TPM in the section [Unit]."""
    return [f"Requires={unit(spec.name)}", f"After={unit(spec.name)}"] if spec.tpm else []
