# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What administrators write becomes a network, or a sentence about the option that is wrong."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._options import Surroundings
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Network
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import MAIN_TABLE, Address, Link, Route

INET, INET6 = 2, 10


def link(name: str, kind: t.Optional[str] = None) -> Link:
    return Link(1, name, kind, True, True, 1500, "52:54:00:00:00:01", "", None, 0)


def route(destination: t.Optional[str], interface: str, family: int = INET, **fields: int) -> Route:
    network = ipaddress.ip_network(destination) if destination else None
    values = {"metric": 0, "protocol": 2, "scope": 0, **fields}
    return Route(family, MAIN_TABLE, network, None, interface, **values)


HOST = Surroundings(
    {name: link(name, kind) for name, kind in (("br0", "bridge"), ("eth0", None), ("wlan0", None))},
    [Address("br0", ipaddress.ip_interface(text)) for text in ("10.0.0.1/24", "fd00::1/64", "fe80::1/64")],
    [
        route(None, "wlan0", metric=600),
        route(None, "eth0", metric=100),
        route("10.0.0.0/24", "br0"),
        route("192.0.2.0/24", "eth0"),
        route(None, "eth0", INET6, protocol=9),
    ],
)


def resolve(params: dict[str, t.Any], host: Surroundings = HOST) -> tuple[Network, list[str]]:
    warnings: list[str] = []
    asked = _options.asked({"state": "present", "name": "lab", "bridge": "br0", **params}, "")
    return _options.resolve(asked, host, warnings.append), warnings


def test_what_is_left_open_comes_from_the_host() -> None:
    network, warnings = resolve({})
    assert (network.uplink4, network.uplink6) == ("eth0", "eth0")
    assert network.sources == ("10.0.0.0/24", "fd00::/64")
    assert network.masquerade
    assert not network.lan_access
    assert warnings == []
    assert HOST.advertised() == ("eth0",)


def test_the_bridge_is_the_one_named_like_the_network() -> None:
    assert resolve({"name": "br0", "bridge": None})[0].bridge == "br0"


def test_a_routed_network_lets_the_lan_in_unless_told_otherwise() -> None:
    assert resolve({"masquerade": False})[0].lan_access
    assert not resolve({"masquerade": False, "lan_access": False})[0].lan_access


def test_the_bridge_as_out_interface_names_the_better_form() -> None:
    network, warnings = resolve({"out_interface": "br0"})
    assert network.towards_bridge
    assert "sources: [10.0.0.0/24], out_interface: eth0" in warnings[0]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"out_interface": "eth7"}, "eth7.*does not exist.*eth0, wlan0"),
        ({"sources": ["10.0.0.7/24"]}, "sources.*CIDR"),
        ({"sources": ["10.0.0.0/8", "10.1.0.0/16"]}, "overlaps"),
        ({"sources": ["192.0.0.0/8"]}, "192.0.2.0/24.*eth0"),
        ({"bridge": "eth0"}, "is no bridge but a network card"),
        ({"to_ports": "0"}, "to_ports"),
        ({"to_ports": "9-8"}, "lower"),
        ({"name": "../etc"}, "usable name"),
        ({"port_forwards": [{"host_port": "80", "guest_address": "10.9.0.5"}]}, "guest_address.*none of the subnets"),
        ({"port_forwards": [{"host_port": "80", "guest_address": "fd99::5"}]}, "guest_address.*none of the subnets"),
    ],
)
def test_what_cannot_be_right_is_told(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(LabspanError, match=words):
        resolve(params)


def test_without_a_default_route_the_uplink_has_to_be_named() -> None:
    lonely = Surroundings(HOST.links, HOST.addresses, [])
    with pytest.raises(LabspanError, match="no default route"):
        resolve({}, lonely)
    assert resolve({"out_interface": "eth0"}, lonely)[0].uplink4 == "eth0"


def test_a_port_has_one_guest() -> None:
    one = {"host_port": "80-90", "guest_address": "10.0.0.5"}
    other = {"host_port": "85", "guest_address": "10.0.0.6", "host_address": "192.0.2.1"}
    with pytest.raises(LabspanError, match="forwarded twice"):
        resolve({"port_forwards": [one, other]})
    resolve({"port_forwards": [one, {**other, "protocol": "udp"}]})


def test_a_port_has_one_guest_among_all_networks_of_a_task() -> None:
    def network(name: str, guest: str, protocol: str = "tcp") -> _options.Asked:
        forward = {"host_port": "8080", "guest_address": guest, "protocol": protocol}
        return _options.asked({"state": "present", "name": name, "bridge": name, "port_forwards": [forward]}, "")

    with pytest.raises(LabspanError, match=r"8080.*forwarded by both red and blue"):
        _options.check_together([network("red", "10.0.0.5"), network("blue", "10.1.0.5")])
    _options.check_together([network("red", "10.0.0.5"), network("blue", "10.1.0.5", "udp")])
    _options.check_together([network("red", "10.0.0.5"), network("blue", "fd00::5")])
