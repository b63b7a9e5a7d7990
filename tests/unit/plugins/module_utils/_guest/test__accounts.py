# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

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
