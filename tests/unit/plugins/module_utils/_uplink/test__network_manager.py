# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What NetworkManager and the kernel say of an interface, read from their words."""

from __future__ import annotations

import ipaddress

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _network_manager
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._network_manager import Device

INET6 = """\
20010db8000100000000000000000007 02 40 00 00     eth0
20010db8000200000000000000000008 02 40 00 80     eth0
20010db8000300000000000000000009 02 40 00 80     eth0
20010db8000400000000000000000009 02 40 00 80     eth0
20010db800010000aaaabbbbccccdddd 02 40 00 01     eth0
20010db800010000000000000000000a 02 80 00 00     eth0
fe800000000000000000000000000009 02 40 20 80     eth0
20010db8000100000000000000000077 03 40 00 00     eth1
"""
ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t102\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t101\t00FFFFFF\t0\t0\t0
eth1\t000300C0\t00000000\t0001\t0\t0\t7\t00FFFFFF\t0\t0\t0
"""


def route6(network: str, length: str, metric: str) -> str:
    zeros = "0" * 32
    return f"{network:0<32} {length} {zeros} 00 {zeros} {metric:0>8} 00000001 00000000 00000001     eth0\n"


ROUTE6 = "".join(
    (
        route6("20010db80001", "40", "65"),
        route6("fe80", "40", "7"),
        route6("20010db8000100000000000000000007", "80", "0"),
        route6("", "00", "400"),
    )
)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("eth0:connected:", ["eth0", "connected", ""]),
        ("a\\:b:c\\\\d", ["a:b", "c\\d"]),
        ("::x", ["", "", "x"]),
        ("", [""]),
    ],
)
def test_a_line_of_nmcli(line: str, fields: list[str]) -> None:
    assert _network_manager.split(line) == fields


@pytest.mark.parametrize(
    ("state", "uuid", "is_run"),
    [
        ("connected", "x", True),
        ("connecting (getting IP configuration)", "x", True),
        ("connected (externally)", "x", False),
        ("connected", "", False),
        ("unmanaged", "", False),
        ("disconnected", "", False),
    ],
)
def test_who_configures_an_interface(state: str, uuid: str, is_run: bool) -> None:
    assert Device("eth0", state, uuid).is_run is is_run


def test_the_addresses_that_the_host_chose() -> None:
    networks = [ipaddress.IPv6Network("2001:db8:2::/64"), ipaddress.IPv6Network("2001:db8:3::/64")]
    profile = "[ipv6]\naddress1=2001:db8:3::9/64,2001:db8:3::1\n"
    found = _network_manager.addresses_of(INET6, "eth0", networks, profile)
    assert found == (("2001:db8:1::7", "2001:db8:2::8"), "fe80::9")
    assert _network_manager.addresses_of(INET6, "eth2", networks, profile) == ((), None)


def test_the_metric_of_what_is_on_the_link() -> None:
    assert _network_manager.metric_of(ROUTE, "eth0") == 101
    assert _network_manager.metric_of(ROUTE, "eth2") is None
    assert _network_manager.metric6_of(ROUTE6, "eth0") == 101
    assert _network_manager.metric6_of(ROUTE6, "eth1") is None


def test_where_networkmanager_does_not_run_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_network_manager, "_RUNTIME", "/nowhere")
    assert _network_manager.find("eth0") is None
