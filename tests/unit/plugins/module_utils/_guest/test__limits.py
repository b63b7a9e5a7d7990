# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _limits, _spec
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._limits import Limits
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec
from hypothesis import given
from hypothesis import strategies as st

WEIGHT = st.none() | st.integers(1, 10000)
LIMITS = st.builds(
    Limits,
    st.none() | st.integers(1, 5000),
    WEIGHT,
    st.none() | st.integers(1 << 20, 1 << 40),
    WEIGHT,
    st.lists(st.integers(0, 64), unique=True).map(sorted).map(tuple),
)


def read(**options: t.Any) -> Limits:
    return _limits.read(options, _spec.disk_size)


def test_limits_are_read_as_they_are_meant() -> None:
    found = read(cpu_quota=150, memory_max="2G", cpu_affinity=[3, 1, 3], io_weight=None)
    assert found == Limits(cpu_quota=150, memory_max=2 << 30, cpu_affinity=(1, 3))
    assert str(found) == "cpu_quota 150, memory_max 2147483648, cpu_affinity [1, 3]"
    assert str(read()) == "none"


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"cpu_quota": 0}, "limits.cpu_quota"),
        ({"cpu_weight": 0}, "limits.cpu_weight"),
        ({"io_weight": 10001}, "limits.io_weight"),
        ({"memory_max": "much"}, "limits.memory_max"),
        ({"cpu_affinity": [0, -1]}, "limits.cpu_affinity"),
    ],
)
def test_what_is_no_limit_is_named(options: dict[str, t.Any], option: str) -> None:
    with pytest.raises(InvalidInput) as error:
        read(**options)
    assert error.value.details["option"] == option


def test_a_guest_must_fit_into_its_limits() -> None:
    tight = GuestSpec("g", memory=512, limits=Limits(memory_max=512 << 20))
    _limits.check(tight)
    with pytest.raises(InvalidInput, match="less than the memory of guest g"):
        _limits.check(dataclasses.replace(tight, memory=513))


@given(LIMITS)
def test_a_file_keeps_limits(limits: Limits) -> None:
    assert _limits.from_data(dataclasses.asdict(limits)) == limits


@given(LIMITS)
def test_each_limit_is_one_directive(limits: Limits) -> None:
    lines = dict(line.split("=") for line in _limits.directives(limits))
    assert len(lines) == len(limits.given())
    assert lines.get("CPUQuota") == (None if limits.cpu_quota is None else f"{limits.cpu_quota}%")
    for directive, value in (
        ("CPUWeight", limits.cpu_weight),
        ("MemoryMax", limits.memory_max),
        ("IOWeight", limits.io_weight),
    ):
        assert lines.get(directive) == (None if value is None else str(value))
    assert lines.get("CPUAffinity", "").split() == [str(cpu) for cpu in limits.cpu_affinity]


def test_without_systemd_only_processors_can_be_chosen() -> None:
    first = min(_limits.online())
    pinned = GuestSpec("g", limits=Limits(cpu_affinity=(first,)))
    assert _limits.problems(pinned, by_systemd=False) == []
    limited = GuestSpec("g", limits=Limits(cpu_quota=50, memory_max=1 << 30, cpu_affinity=(first,)))
    (problem,) = _limits.problems(limited, by_systemd=False)
    assert "cpu_quota and memory_max of guest g" in problem
    assert _limits.problems(limited, by_systemd=True) == []


def test_a_processor_that_the_host_lacks_is_named() -> None:
    spec = GuestSpec("g", limits=Limits(cpu_affinity=(max(_limits.online()) + 1,)))
    (problem,) = _limits.problems(spec, by_systemd=True)
    assert f"on processor {spec.limits.cpu_affinity[0]}, and this host has" in problem


@pytest.mark.parametrize(("text", "numbers"), [("0\n", {0}), ("0-3,8\n", {0, 1, 2, 3, 8}), ("2-2", {2})])
def test_ranges_of_the_kernel_are_read(text: str, numbers: set[int]) -> None:
    assert _limits.parse_ranges(text) == numbers


def test_a_process_is_pinned_with_all_its_threads() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("this machine has one processor")
    code = (
        "import threading, time; [threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(3)]; print()"
    )
    with subprocess.Popen(["python3", "-c", f"{code}; input()"], stdin=-1, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            process = _process.identify(child.pid)
            assert process is not None
            assert _limits.affinity_of(process) == tuple(cpus)
            _limits.pin(process, cpus[:1])
            threads = [int(number) for number in os.listdir(f"/proc/{child.pid}/task")]
            assert len(threads) == 4
            assert all(os.sched_getaffinity(thread) == {cpus[0]} for thread in threads)
            _limits.pin(process, ())
            assert _limits.affinity_of(process) == tuple(sorted(os.sched_getaffinity(1)))
        finally:
            child.kill()
