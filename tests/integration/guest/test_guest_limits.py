# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest may take of the host, by taskset, the kernel's counters and QEMU's own words."""

from __future__ import annotations

import os
import pathlib

import pytest

from .conftest import Guests

pytestmark = pytest.mark.one_interpreter

CPUS = sorted(os.sched_getaffinity(0))

needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="this machine has one processor")


def cpus_of(guests: Guests, name: str) -> set[str]:
    """The lists of processors that QEMU's threads may run on, as the kernel writes them."""
    lines = guests.host.out("sh", "-c", f"cat /proc/{guests.pid(name)}/task/*/status").splitlines()
    return {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:")}


@needs_two
def test_a_guest_runs_on_its_processors_and_changes_them_without_a_restart(guests: Guests) -> None:
    guests.converge("cg-l", limits={"cpu_affinity": CPUS[:1]})
    assert cpus_of(guests, "cg-l") == {str(CPUS[0])}
    pid = guests.pid("cg-l")
    assert not guests.converge("cg-l", limits={"cpu_affinity": CPUS[:1]})["changed"]

    moved = guests.converge("cg-l", limits={"cpu_affinity": CPUS[1:2]})
    assert moved["actions"] == [
        f"Change the definition of guest cg-l: limits is cpu_affinity [{CPUS[0]}], wanted cpu_affinity [{CPUS[1]}]",
        f"Have guest cg-l run on processor {CPUS[1]}",
    ]
    assert (cpus_of(guests, "cg-l"), guests.pid("cg-l")) == ({str(CPUS[1])}, pid)
    assert moved["guest"]["pending_restart"] == []

    guests.host.run("taskset", "-a", "-p", "-c", str(CPUS[0]), str(pid))
    assert guests.converge("cg-l")["actions"] == [f"Have guest cg-l run on processor {CPUS[1]}"]
    assert cpus_of(guests, "cg-l") == {str(CPUS[1])}

    freed = guests.converge("cg-l", limits={})
    assert freed["actions"][-1] == "Have guest cg-l run on all processors"
    assert str(CPUS[1]) not in cpus_of(guests, "cg-l")
    assert guests.pid("cg-l") == pid
    assert not guests.converge("cg-l")["changed"]


def test_what_only_systemd_can_keep_is_refused_without_it(guests: Guests) -> None:
    assert "only systemd can keep cpu_quota of guest cg-l" in guests.refuse("cg-l", limits={"cpu_quota": 50})
    assert "and this host has" in guests.refuse("cg-l", limits={"cpu_affinity": [4095]})
    assert "is less than the memory" not in guests.refuse("cg-l", limits={"memory_max": "1G"})
    assert "less than the memory of guest cg-l" in guests.refuse("cg-l", limits={"memory_max": "1M"})
    guests.converge("cg-l", limits={})


def free_huge_pages() -> int:
    return int(pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text(encoding="ascii"))


@pytest.mark.skipif(not pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB").exists(), reason="no huge pages")
def test_huge_pages_are_checked_before_the_start_and_taken_at_once(guests: Guests) -> None:
    free = free_huge_pages()
    refused = guests.refuse("cg-l", hugepages=True, memory=str(2 * free + 32))
    assert f"cg-l would need {free + 16} huge pages of 2048 kB, and {free} are free" in refused
    guests.converge("cg-l", memory=str(2 * free + 32))
    guests.converge("cg-l", state="absent")
    if free < 16:
        pytest.skip("this machine has no huge pages reserved (vm.nr_hugepages)")
    guests.converge("cg-l", hugepages=True)
    assert free_huge_pages() == free - 16


def test_vhost_is_used_where_it_works_and_is_an_error_where_it_does_not(guests: Guests) -> None:
    guests.host.converge("tap_device", {"name": "cgtap0", "owner": "nobody"})
    nic = {"tap": "cgtap0"}
    works = os.path.exists("/dev/vhost-net")
    guests.converge("cg-v", nics=[nic])
    files = guests.host.out("ls", "-l", f"/proc/{guests.pid('cg-v')}/fd")
    assert ("/dev/vhost-net" in files) == works
    guests.converge("cg-v", state="absent")
    if works:
        guests.converge("cg-v", nics=[{**nic, "vhost": False}])
        assert "/dev/vhost-net" not in guests.host.out("ls", "-l", f"/proc/{guests.pid('cg-v')}/fd")
    else:
        refused = guests.refuse("cg-v", nics=[{**nic, "vhost": True}])
        assert "nics[0].vhost of guest cg-v: /dev/vhost-net does not exist" in refused
