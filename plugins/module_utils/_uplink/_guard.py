# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Arms the dead-man: packs it into one file, starts it where nothing can take it along, and sees that it watches.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import typing as t
import zipfile

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _deadman
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Transaction

_PACKAGE = "ansible_collections.labspan.vmnet.plugins.module_utils"
#: What the dead-man is made of; each of these files uses nothing but the others and the standard library.
CARRIED = (
    "_errors",
    "_foresight",
    "_process",
    "_rtnetlink",
    "_values",
    "_whole_files",
    "_wire",
    "_uplink._deadman",
    "_uplink._entries",
    "_uplink._journal",
    "_uplink._kernel",
    "_uplink._moves",
    "_uplink._putback",
    "_uplink._reach",
    "_uplink._routers",
    "_uplink._steps",
)
_MAIN = f"from {_PACKAGE}._uplink._deadman import main\nmain()\n"
# Seconds within which the dead-man must say that it watches.
_PATIENCE = 15.0


def arm(transaction: Transaction) -> None:
    """Start the dead-man of the transaction and wait until it watches; raises when it does not."""
    program = transaction.file("rollback.pyz")
    pack(program)
    argv = [sys.executable, "-I", program, transaction.path]
    log = transaction.file("log")
    if runs_systemd():
        _start_unit(transaction, argv)
    else:
        _process.spawn(argv, pid_file=transaction.file("pid"), output=log)
    deadline = time.monotonic() + _PATIENCE
    while not watches(transaction):
        if time.monotonic() > deadline:
            raise SystemFailure(
                "the dead-man that would take the host back did not start, so nothing was begun."
                f"{_last_words(log)} Look into the journal of the host, and run the task again."
            )
        time.sleep(0.01)


def watches(transaction: Transaction) -> bool:
    """Whether the transaction's dead-man is there."""
    return _process.read_pid_file(transaction.file(_deadman.ARMED)) is not None


def pack(path: str) -> None:
    """Write the dead-man as one file that Python runs, of the very code that runs now."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", _MAIN)
        packages = {f"{_PACKAGE}.{name}".rpartition(".")[0] for name in CARRIED}
        for package in sorted(packages):
            parts = package.split(".")
            for depth in range(1, len(parts) + 1):
                directory = "/".join(parts[:depth])
                if f"{directory}/__init__.py" not in archive.namelist():
                    archive.writestr(f"{directory}/__init__.py", "")
        for name in CARRIED:
            full = f"{_PACKAGE}.{name}"
            archive.writestr(f"{full.replace('.', '/')}.py", _source(full))


def _source(name: str) -> str:
    specification = importlib.util.find_spec(name)
    loader: t.Any = specification.loader if specification is not None else None
    source = loader.get_source(name) if loader is not None else None
    if source is None:
        raise SystemFailure(f"the source of {name} is not there, of which the dead-man would be made.")
    return str(source)


def runs_systemd() -> bool:
    """Whether systemd runs this host, and not one that shares its /run with us (a network namespace of it)."""
    try:
        same = os.path.samefile("/proc/1/ns/net", "/proc/self/ns/net")
    except OSError:
        return False
    return same and os.path.isdir("/run/systemd/system") and _deps.find_program("systemd-run") is not None


def _start_unit(transaction: Transaction, argv: t.Sequence[str]) -> None:
    """A service rather than a timer: it sees the mover die, and systemd starts it again should it die itself.

    Told to end, it goes back first, and with it what it runs for that is told nothing.
    """
    identity = transaction.identity
    command = [
        _deps.program("systemd-run", purpose="to watch over the move"),
        "--quiet",
        "--collect",
        f"--unit=labspan-uplink-{identity}",
        f"--description=Takes the host's uplink back unless the move {identity} is confirmed",
        "--property=Restart=on-failure",
        "--property=RestartSec=200ms",
        "--property=StartLimitIntervalSec=0",
        "--property=KillMode=mixed",
        # All that it needs goes with the end of the move: then there is nothing to start again.
        f"--property=ConditionPathExists={transaction.file('journal')}",
        "--",
        *argv,
    ]
    done = _commands.run(command)
    if done.returncode:
        raise SystemFailure(
            f"systemd did not start the dead-man that would take the host back ({done.stderr.strip()}), so nothing was "
            "begun."
        )


def _last_words(log: str) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read().strip().splitlines()
    except OSError:
        return ""
    return f" Its last words: {lines[-1]}." if lines else ""
