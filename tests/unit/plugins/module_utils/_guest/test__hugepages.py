# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _hugepages
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._hugepages import Pool
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec


def guest(name: str, memory: int, hugepages: bool = True) -> GuestSpec:
    return GuestSpec(name, memory=memory, hugepages=hugepages)


def test_qemu_takes_its_memory_from_the_huge_pages() -> None:
    words = _argv.command_line(guest("g", 64), program="qemu", accelerator="tcg")
    assert words[words.index("-machine") + 1] == "q35,memory-backend=memory"
    assert words[words.index("-object") + 1] == "memory-backend-memfd,id=memory,size=64M,hugetlb=on,prealloc=on"
    assert words[words.index("-m") + 1] == "64M"
    assert "-object" not in _argv.command_line(guest("g", 64, False), program="qemu", accelerator="tcg")


@pytest.mark.parametrize(
    ("starting", "leaving", "pool", "problem"),
    [
        ([guest("a", 64)], [], Pool(2048, 32), None),
        ([guest("a", 64)], [], Pool(2048, 31), "a would need 32 huge pages of 2048 kB, and 31 are free"),
        ([guest("a", 64), guest("b", 64)], [], Pool(2048, 63), "a, b would need 64"),
        ([guest("a", 64), guest("b", 64, False)], [], Pool(2048, 32), None),
        ([guest("a", 128)], [guest("a", 64)], Pool(2048, 32), None),
        ([guest("a", 128)], [guest("a", 64, False)], Pool(2048, 32), "would need 64"),
        ([guest("a", 64, False)], [], None, None),
        ([guest("a", 64)], [], None, "has no huge pages"),
        ([guest("a", 63)], [], Pool(2048, 99), "63 MiB of guest a are not a whole number of huge pages of 2048 kB"),
    ],
)
def test_huge_pages_must_be_there_for_all_that_start(
    starting: list[GuestSpec], leaving: list[GuestSpec], pool: t.Optional[Pool], problem: t.Optional[str]
) -> None:
    found = _hugepages.problems(starting, leaving, pool)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]
