# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Accounts of guests, and what a power cut in the middle of useradd(8) leaves of one."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

ACCOUNT = {"name": "vm1"}
FILES = ("passwd", "shadow", "group", "gshadow")


@pytest.fixture(scope="module")
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with SystemHost(python_path) as made:
        yield made


def lines(host: SystemHost) -> list[str]:
    return host.out("sh", "-c", f"cd /etc; grep -H ^labspan-vm1: {' '.join(FILES)}").splitlines()


@pytest.mark.parametrize("lost", [("gshadow",), ("gshadow", "group"), ("gshadow", "group", "shadow")], ids=len)
def test_an_account_of_which_there_is_a_part_is_made_anew_with_its_number(
    host: SystemHost, lost: tuple[str, ...]
) -> None:
    host.converge("guest_account", ACCOUNT)
    before = lines(host)
    assert len(before) == len(FILES)
    for name in lost:
        host.run("sed", "-i", "/^labspan-vm1:/d", f"/etc/{name}")

    predicted = host.converge("guest_account", ACCOUNT, check=True)
    mended = host.converge("guest_account", ACCOUNT)

    assert (
        mended["actions"]
        == predicted["actions"]
        == ["Make the account labspan-vm1 anew, of which there is only a part"]
    )
    assert lines(host) == before
    assert not host.converge("guest_account", ACCOUNT)["changed"]


def test_a_group_without_its_account_becomes_the_accounts_own(host: SystemHost) -> None:
    host.converge("guest_account", {**ACCOUNT, "state": "absent"})
    host.run("groupadd", "--system", "labspan-vm1")
    made = host.converge("guest_account", ACCOUNT)
    assert made["changed"]
    assert host.out("id", "-gn", "labspan-vm1").strip() == "labspan-vm1"
    assert not host.converge("guest_account", ACCOUNT)["changed"]


def test_locks_that_a_power_cut_left_empty_stop_nobody_and_those_of_the_living_do(host: SystemHost) -> None:
    host.converge("guest_account", {**ACCOUNT, "state": "absent"})
    host.run("sh", "-c", "cd /etc; touch passwd.lock group.lock; echo -n 1 >shadow.lock")
    # The twin: useradd itself believes them for ever.
    assert "without a PID" in host.run("useradd", "--system", "somebody", check=False).stderr
    refused = host.module("guest_account", ACCOUNT)
    assert refused["failed"]
    assert "/etc/shadow" in refused["msg"]

    host.run("rm", "/etc/shadow.lock")
    host.run("touch", "/etc/passwd.lock", "/etc/group.lock")

    assert host.converge("guest_account", ACCOUNT)["changed"]
    assert host.run("sh", "-c", "ls /etc/*.lock", check=False).stdout.split() == []
