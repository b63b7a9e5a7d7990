# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests whose memory is made of huge pages.

They are taken when QEMU starts, all of them, since a page that is missing later would end the guest.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec

_POOLS = "/sys/kernel/mm/hugepages"


@dataclasses.dataclass(frozen=True)
class Pool:
    """The huge pages of the host's usual size."""

    size: int
    """kB."""
    free: int
    """Pages that nobody has or has been promised."""


def machine_properties(spec: GuestSpec) -> list[str]:
    """What the machine is told about its memory."""
    return ["memory-backend=memory"] if spec.hugepages else []


def words(spec: GuestSpec) -> list[str]:
    """The memory itself."""
    if not spec.hugepages:
        return []
    return ["-object", f"memory-backend-memfd,id=memory,size={spec.memory}M,hugetlb=on,prealloc=on"]


def pool() -> t.Optional[Pool]:
    """What the host has; None when its kernel has no huge pages."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            size = next(int(line.split()[1]) for line in file if line.startswith("Hugepagesize:"))
    except (OSError, StopIteration):
        return None
    counts = {}
    for name in ("free_hugepages", "resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages"):
        try:
            with open(os.path.join(_POOLS, f"hugepages-{size}kB", name), encoding="ascii") as file:
                counts[name] = int(file.read())
        except (OSError, ValueError):
            return None
    more = counts["nr_overcommit_hugepages"] - counts["surplus_hugepages"]
    return Pool(size, counts["free_hugepages"] - counts["resv_hugepages"] + max(more, 0))


def problems(starting: t.Iterable[GuestSpec], leaving: t.Iterable[GuestSpec], there: t.Optional[Pool]) -> list[str]:
    """Why the guests that start cannot have their huge pages; C(leaving) are guests that end before."""
    asking = [spec for spec in starting if spec.hugepages]
    if not asking:
        return []
    names = ", ".join(spec.name for spec in asking)
    if there is None:
        return [f"hugepages: the kernel of this host has no huge pages, which were asked for {names}."]
    uneven = [spec for spec in asking if spec.memory * 1024 % there.size]
    if uneven:
        return [
            f"memory: {spec.memory} MiB of guest {spec.name} are not a whole number of huge pages of {there.size} kB."
            for spec in uneven
        ]
    needed = sum(spec.memory * 1024 // there.size for spec in asking)
    free = there.free + sum(spec.memory * 1024 // there.size for spec in leaving if spec.hugepages)
    if needed <= free:
        return []
    return [
        f"hugepages: {names} would need {needed} huge pages of {there.size} kB, and {free} are free. Reserve more "
        "(vm.nr_hugepages, best when the host boots), or leave hugepages out."
    ]
