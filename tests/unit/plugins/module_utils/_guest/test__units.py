# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _units
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec


@pytest.mark.parametrize(
    ("path", "lines"), [("/srv/iso/a.iso", ["RequiresMountsFor=/srv/iso"]), ("", [])], ids=["with a CD", "empty"]
)
def test_a_guest_waits_for_the_file_systems_of_what_is_in_its_drives(path: str, lines: list[str]) -> None:
    spec = GuestSpec("vm1", disks=(Disk(path, "raw", bus="sata", media="cdrom", read_only=True),))
    text = _units.drop_in(spec, ["qemu"])
    assert [line for line in text.splitlines() if line.startswith("RequiresMountsFor=")] == lines
