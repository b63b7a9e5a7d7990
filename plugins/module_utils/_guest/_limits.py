# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest may take of the host: shares and limits, which systemd keeps, and the processors that it runs on.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec

_MEBIBYTE = 1 << 20
_WEIGHTS = (1, 10000)

#: Option -> the directive of systemd, and the controller of cgroups that carries it out, by its new and its old name.
_DIRECTIVES = {
    "cpu_quota": ("CPUQuota", "cpu", "cpu"),
    "cpu_weight": ("CPUWeight", "cpu", "cpu"),
    "memory_max": ("MemoryMax", "memory", "memory"),
    "io_weight": ("IOWeight", "io", "blkio"),
}
OPTIONS = (*_DIRECTIVES, "cpu_affinity")

_CGROUPS = "/sys/fs/cgroup"
_ONLINE = "/sys/devices/system/cpu/online"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is None, or empty, is not limited."""

    cpu_quota: t.Optional[int] = None
    """Percent of one processor."""
    cpu_weight: t.Optional[int] = None
    memory_max: t.Optional[int] = None
    """Bytes."""
    io_weight: t.Optional[int] = None
    cpu_affinity: tuple[int, ...] = ()

    def __str__(self) -> str:
        found = [f"{name} {value}" for name, value in self.given().items()]
        return ", ".join(found) or "none"

    def given(self) -> dict[str, t.Any]:
        """Those that are there."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and value != ()
        }


def read(options: t.Mapping[str, t.Any], size: t.Callable[[str, str], int]) -> Limits:
    """The limits of a task; C(size) reads a size in bytes."""
    found: dict[str, t.Any] = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    if found.get("cpu_quota", 1) < 1:
        raise InvalidInput("limits.cpu_quota", found["cpu_quota"], "is no time at all; give percent of one processor.")
    for name in ("cpu_weight", "io_weight"):
        if name in found and not _WEIGHTS[0] <= found[name] <= _WEIGHTS[1]:
            raise InvalidInput(f"limits.{name}", found[name], "is no weight; give 1 to 10000, where 100 is usual.")
    if "memory_max" in found:
        found["memory_max"] = size("limits.memory_max", found["memory_max"])
    affinity = found.pop("cpu_affinity", ())
    if any(number < 0 for number in affinity):
        raise InvalidInput("limits.cpu_affinity", affinity, "holds what is no processor; they are numbered from 0 on.")
    return Limits(**found, cpu_affinity=tuple(sorted(set(affinity))))


def check(spec: GuestSpec) -> None:
    """Whether the guest fits into its limits."""
    most = spec.limits.memory_max
    if most is not None and most < spec.memory * _MEBIBYTE:
        raise InvalidInput(
            "limits.memory_max",
            most,
            f"bytes are less than the memory of guest {spec.name} ({spec.memory} MiB), so that the host would kill it. "
            "Give more than its memory, since QEMU itself needs some, too.",
        )


def from_data(stored: t.Mapping[str, t.Any]) -> Limits:
    """The limits from a guest's file."""
    return Limits(**{**stored, "cpu_affinity": tuple(stored.get("cpu_affinity", ()))})


def directives(limits: Limits) -> list[str]:
    """The lines for the section [Service] of the guest's unit. Those that limit come into force when systemd reads
    them, in a guest that runs, too."""
    given = limits.given()
    lines = [
        f"{directive}={given[name]}{'%' if name == 'cpu_quota' else ''}"
        for name, (directive, _controller, _old) in _DIRECTIVES.items()
        if name in given
    ]
    if limits.cpu_affinity:
        lines.append(f"CPUAffinity={' '.join(map(str, limits.cpu_affinity))}")
    return lines


def problems(spec: GuestSpec, *, by_systemd: bool) -> list[str]:
    """Why the limits of a guest cannot be kept."""
    found = []
    alone = [name for name in _DIRECTIVES if name in spec.limits.given()]
    if alone and not by_systemd:
        found.append(
            f"limits: only systemd can keep {' and '.join(alone)} of guest {spec.name}, and it does not start this "
            "guest (service_manager). Leave that out, or let systemd start the guest; cpu_affinity works without."
        )
    missing = sorted(set(spec.limits.cpu_affinity) - online())
    if missing:
        found.append(
            f"limits.cpu_affinity: guest {spec.name} shall run on processor {', '.join(map(str, missing))}, and this "
            f"host has {_ranges(online())}."
        )
    return found


def warnings(spec: GuestSpec) -> list[str]:
    """What of the limits this host's kernel does not keep, and what of the guest it does not have."""
    found = []
    controllers = _controllers()
    for name in spec.limits.given():
        if name in _DIRECTIVES:
            _directive, controller, old = _DIRECTIVES[name]
            if controller not in controllers and old not in controllers:
                found.append(
                    f"limits.{name} of guest {spec.name} has no effect, because systemd on this host has no control "
                    f"group controller {controller}."
                )
    if spec.cpus > len(online()):
        found.append(
            f"guest {spec.name} has {spec.cpus} processors and this host {len(online())}; the guest is slower so than "
            "with as many."
        )
    return found


def memory_warnings(specs: t.Sequence[GuestSpec]) -> list[str]:
    """Guests that the host has no room for, were they to use what they are given."""
    available = _available_memory()
    asked = sum(spec.memory for spec in specs if not spec.hugepages)
    if available is None or asked <= available:
        return []
    names = ", ".join(spec.name for spec in specs if not spec.hugepages)
    return [f"the guests that start ({names}) have {asked} MiB of memory, and the host has {available} MiB to give."]


def _available_memory() -> t.Optional[int]:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    return None


def _controllers() -> set[str]:
    """The controllers that processes can be held by here."""
    with contextlib.suppress(OSError), open(os.path.join(_CGROUPS, "cgroup.controllers"), encoding="ascii") as file:
        return set(file.read().split())
    with contextlib.suppress(OSError):
        return {part for name in os.listdir(_CGROUPS) for part in name.split(",")}
    return set()


def online() -> set[int]:
    """The numbers of the host's processors."""
    try:
        with open(_ONLINE, encoding="ascii") as file:
            return parse_ranges(file.read())
    except (OSError, ValueError):
        return set(range(os.cpu_count() or 1))


def parse_ranges(text: str) -> set[int]:
    """Numbers as the kernel lists them: C(0-3,8)."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _dash, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _ranges(numbers: t.AbstractSet[int]) -> str:
    ordered = sorted(numbers)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))


def affinity_of(process: Process) -> t.Optional[tuple[int, ...]]:
    """The processors that the process may run on; None when it is gone."""
    try:
        return tuple(sorted(os.sched_getaffinity(process.pid)))
    except OSError:
        return None


def pin(process: Process, cpus: t.Sequence[int]) -> None:
    """Have the process run on these processors only; on all that process 1 may use, when there are none."""
    wanted = set(cpus) or os.sched_getaffinity(1)
    done: set[str] = set()
    while True:  # a thread has the processors of the one that made it, which may not have been pinned yet
        threads = set(_threads(process)) - done
        if not threads:
            return
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), wanted)
        done |= threads


def _threads(process: Process) -> list[str]:
    try:
        return os.listdir(f"/proc/{process.pid}/task") if process.alive else []
    except OSError:
        return []
