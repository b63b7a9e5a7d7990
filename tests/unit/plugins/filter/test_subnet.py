# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bridge's address in its subnet, for any prefix length and both families."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.filter.subnet import bridge_address


@pytest.mark.parametrize(
    ("subnet", "gateway", "expected"),
    [
        ("192.168.223.0/24", None, "192.168.223.1/24"),
        ("192.168.223.0/24", "", "192.168.223.1/24"),
        ("192.168.6.0/24", "192.168.6.10", "192.168.6.10/24"),
        ("10.4.6.128/25", None, "10.4.6.129/25"),
        ("172.16.0.0/30", None, "172.16.0.1/30"),
        ("fd00:77::/64", None, "fd00:77::1/64"),
        ("fd00:77::/64", "fd00:77::a", "fd00:77::a/64"),
    ],
)
def test_the_address_has_the_prefix_length_of_the_subnet(subnet: str, gateway: str | None, expected: str) -> None:
    assert bridge_address(subnet, gateway) == expected


@pytest.mark.parametrize(
    ("subnet", "gateway", "complaint"),
    [
        ("192.168.223.1/24", None, "host bits set"),
        ("nonsense", None, "not a network in CIDR form"),
        ("192.168.6.0/24", "192.168.7.1", "not in the subnet"),
        ("192.168.6.0/24", "ten", "not an address"),
        ("192.168.6.0/31", None, "no room"),
    ],
)
def test_what_cannot_be_is_said(subnet: str, gateway: str | None, complaint: str) -> None:
    with pytest.raises(AnsibleFilterError, match=complaint):
        bridge_address(subnet, gateway)
