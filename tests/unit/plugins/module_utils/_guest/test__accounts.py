# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import os
import pathlib

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _accounts


@pytest.mark.parametrize(
    ("there", "expected", "account"),
    [
        ({"labspan-vm1", "labspan-qemu"}, False, "labspan-vm1"),
        ({"labspan-qemu"}, False, "labspan-qemu"),
        (set(), False, "labspan-qemu"),
        ({"labspan-vm1"}, True, "labspan-vm1"),
        ({"labspan-qemu"}, True, "labspan-qemu"),
        (set(), True, "labspan-vm1"),
    ],
)
def test_a_new_guest_has_its_own_account_where_that_is_or_is_expected(
    monkeypatch: pytest.MonkeyPatch, there: set[str], expected: bool, account: str
) -> None:
    monkeypatch.setattr(_accounts, "_find", lambda name: name if name in there else None)
    assert _accounts.default_for("vm1", expected=expected) == account


def test_only_a_part_of_an_account_is_made_anew_and_a_whole_one_is_left() -> None:
    accounts = _accounts.Accounts([{"name": "vm1", "state": "present"}, {"name": "vm2", "state": "present"}])
    have = {
        "vm1": _accounts.Entry(995, "guest vm1 of labspan.vmnet", whole=False),
        "vm2": _accounts.Entry(996, "guest vm2 of labspan.vmnet"),
    }
    changes = accounts.plan(have, {})
    assert [change.guest for change in changes] == ["vm1"]
    ahead = accounts.predict(have, changes)
    assert ahead["vm1"] == _accounts.Entry(995, "guest vm1 of labspan.vmnet")
    assert accounts.plan(ahead, {}) == []


def test_empty_locks_go_unless_somebody_works_on_the_accounts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_accounts, "_ETC", str(tmp_path))
    locks = [tmp_path / name for name in ("passwd.lock", "gshadow.lock")]
    for lock in locks:
        lock.touch()
    (tmp_path / "shadow.lock").write_text("1\0")

    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    reader, writer = os.pipe()
    go_on, over = os.pipe()
    child = os.fork()
    if child == 0:
        with (tmp_path / ".pwd.lock").open("ab") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            os.write(writer, b"held")
            os.read(go_on, 1)
        os._exit(0)
    os.read(reader, 4)
    _accounts._remove_dead_locks()
    assert names() == [".pwd.lock", "gshadow.lock", "passwd.lock", "shadow.lock"]
    os.write(over, b"x")
    os.waitpid(child, 0)

    _accounts._remove_dead_locks()

    assert names() == [".pwd.lock", "shadow.lock"]
