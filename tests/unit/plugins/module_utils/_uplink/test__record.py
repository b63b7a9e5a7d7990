# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of the files of before, and which of those of now hold what is nowhere else."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _record
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._record import Kept, Record
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import WriteFile

PATH = "/etc/network/interfaces"


@pytest.mark.parametrize(
    ("now", "is_edited"),
    [
        pytest.param("written", False, id="as it was written"),
        pytest.param("before", False, id="brought back already"),
        pytest.param(None, False, id="taken away"),
        pytest.param("written, and a line", True, id="changed"),
    ],
)
def test_a_file_is_edited_when_it_is_neither_what_was_written_nor_what_was_there(
    now: t.Optional[str], is_edited: bool
) -> None:
    kept = Kept(WriteFile(PATH, "before"), _record.digest("written"))
    files = [WriteFile(PATH, now), WriteFile("/etc/fstab", "of nobody here")]
    record = Record("br0", "eth0", "br0", True, (kept,))
    assert record.edited(files) == (files[:1] if is_edited else [])


def test_leases_are_written_by_the_client_all_the_time() -> None:
    path = "/var/lib/dhcp/dhclient.br0.leases"
    record = Record("br0", "eth0", "br0", True, (Kept(WriteFile(path, None), _record.digest("written")),))
    assert record.edited([WriteFile(path, "renewed")]) == []


def test_a_file_that_came_where_one_was_taken_away_is_edited() -> None:
    record = Record("br0", "eth0", "br0", True, (Kept(WriteFile(PATH, "before"), None),))
    assert record.edited([WriteFile(PATH, "new")]) == [WriteFile(PATH, "new")]
