# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ports that guests are going to have, and the addresses that they must not take."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.filter.guest_ports import guest_ports, uplink_addresses
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import derived_tap

MAC = "52:54:00:00:00:01"


def ports(*nics: dict[str, t.Any], more: t.Sequence[dict[str, t.Any]] = ()) -> list[dict[str, t.Any]]:
    return guest_ports([{"name": "web", "nics": list(nics)}], "br0", more)


def test_a_nic_has_the_tap_and_mac_address_that_it_names() -> None:
    assert ports({"tap": "tap0", "mac": MAC}) == [{"tap": "tap0", "mac": MAC, "guest": "web", "nic": 0}]


def test_what_a_nic_does_not_name_is_what_its_guest_is_given() -> None:
    assert ports({"bridge": "br0"}) == [{"tap": derived_tap("web", 0), "guest": "web", "nic": 0}]
    assert ports({"bridge": "br0", "queues": 2})[0]["tap"] == derived_tap("web", 0, 2)
    assert guest_ports([{"name": "web"}], "br0") == ports({"bridge": "br0"})


def test_nics_elsewhere_are_not_on_this_bridge_and_count_all_the_same() -> None:
    made = ports({"user": True}, {"bridge": "other0"}, {"bridge": "other0", "tap": "tap1"}, {"bridge": "br0"})
    assert made == [{"tap": derived_tap("web", 3), "guest": "web", "nic": 3}]


def test_more_about_a_port_is_told_by_tap_or_by_guest() -> None:
    known = {"addresses": ["192.0.2.50"]}
    for told in ({"tap": "tap1"}, {"guest": "web", "nic": 1}):
        first, second = ports({"tap": "tap0"}, {"tap": "tap1"}, more=[{**told, **known}])
        assert "addresses" not in first
        assert second == {"tap": "tap1", "guest": "web", "nic": 1, **known}


def test_a_tap_of_no_guest_is_a_port_of_its_own() -> None:
    other = {"tap": "tap9", "mac": MAC}
    assert ports({"tap": "tap0"}, more=[other])[1] == other


def test_a_guest_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AnsibleFilterError, match=r"ports\[0\]: .* no guest that has a NIC number 1 on br0"):
        ports({"tap": "tap0"}, more=[{"guest": "web", "nic": 1}])


def test_no_guest_may_be_the_host_or_a_gateway() -> None:
    uplink = {
        "addresses": ["192.0.2.10/24", "2001:DB8:1::10/64 dynamic", "fe80::1/64"],
        "routes": ["default via 192.0.2.1 dev br0", "192.0.2.0/24 dev br0", "default via fe80::2 dev br0 metric 1024"],
    }
    assert uplink_addresses(uplink) == ["192.0.2.1", "192.0.2.10", "2001:db8:1::10", "fe80::1", "fe80::2"]
    assert uplink_addresses({}) == []
