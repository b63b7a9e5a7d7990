# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lease file becomes a list that a playbook can use."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.filter.dhcp_leases import FilterModule, dhcp_leases


def test_leases_are_plain_data() -> None:
    assert FilterModule().filters() == {"dhcp_leases": dhcp_leases}
    assert dhcp_leases("1900000000 52:54:00:00:00:01 10.9.0.7 web 01:52:54:00:00:00:01\n") == [
        {"mac": "52:54:00:00:00:01", "address": "10.9.0.7", "name": "web", "expires": "2030-03-17T17:46:40Z"}
    ]


def test_anything_but_text_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="not list"):
        dhcp_leases([])  # type: ignore[arg-type]
