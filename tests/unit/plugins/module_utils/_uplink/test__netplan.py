# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import dataclasses
import typing as t

import pytest
import yaml
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _netplan
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move

MOVE = Move("br0", "eth0", "02:00:00:00:00:01", 1500, "move")
BRIDGE = {"interfaces": ["eth0"], "macaddress": MOVE.mac, "parameters": {"stp": False, "forward-delay": 0}}
OFFICE = """
network:
  version: 2
  renderer: networkd
  ethernets:
    eth0:
      match: {macaddress: "02:00:00:00:00:01"}
      set-name: eth0
      mtu: 1400
      wakeonlan: true
      dhcp4: true
      dhcp4-overrides: {route-metric: 50}
      addresses: [192.0.2.10/24, "2001:db8::10/64"]
      gateway4: 192.0.2.1
      nameservers: {addresses: [192.0.2.53], search: [example.net]}
      routes:
        - {to: default, via: 192.0.2.1}
        - {to: 198.51.100.0/24, via: 192.0.2.2}
    eth1: {dhcp4: true}
  bridges:
    br9: {interfaces: [eth1]}
"""


def transform(text: str, **more: t.Any) -> dict[str, t.Any]:
    data = yaml.safe_load(text)
    before = copy.deepcopy(data)
    made = _netplan.transform(data, "eth0", dataclasses.replace(MOVE, **more))
    assert data == before
    return t.cast("dict[str, t.Any]", made["network"])


def test_the_bridge_gets_layer_3_and_the_card_keeps_the_rest() -> None:
    made = transform(OFFICE)
    had = yaml.safe_load(OFFICE)["network"]
    assert made["ethernets"]["eth0"] == {
        "match": {"macaddress": "02:00:00:00:00:01"},
        "set-name": "eth0",
        "mtu": 1400,
        "wakeonlan": True,
    }
    layer3 = ("dhcp4", "dhcp4-overrides", "addresses", "gateway4", "nameservers", "routes")
    kept = {key: had["ethernets"]["eth0"][key] for key in layer3}
    assert made["bridges"]["br0"] == {**BRIDGE, "mtu": 1400, **kept}
    assert made["ethernets"]["eth1"] == had["ethernets"]["eth1"]
    assert made["bridges"]["br9"] == had["bridges"]["br9"]
    assert (made["version"], made["renderer"]) == (2, "networkd")


def test_a_file_that_has_the_bridge_stays() -> None:
    data = {"network": transform(OFFICE)}
    assert _netplan.transform(data, "eth0", MOVE) is data


STATIC = {"mode": "static", "addresses": ("192.0.2.77/24",), "gateways": ("192.0.2.99",)}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({**STATIC, "addresses": ("192.0.2.78/24", "2001:db8::78/64")}, id="addresses"),
        pytest.param({**STATIC, "gateways": ("192.0.2.98",)}, id="gateway"),
        pytest.param({**STATIC, "dns": ("192.0.2.97",)}, id="dns"),
        pytest.param({"mode": "dhcp"}, id="dhcp"),
        pytest.param({"mode": "none"}, id="none"),
        pytest.param({**STATIC, "mac": "02:00:00:00:00:02"}, id="mac"),
        pytest.param({**STATIC, "stp": True, "forward_delay": 4.0}, id="stp"),
    ],
)
@pytest.mark.parametrize("first", [STATIC, {"mode": "none"}])
def test_what_the_task_says_otherwise_later_is_as_if_it_had_been_said_at_first(
    first: dict[str, t.Any], more: dict[str, t.Any]
) -> None:
    plain = "network: {ethernets: {eth0: {addresses: [192.0.2.10/24], gateway4: 192.0.2.1}}}"
    data = {"network": transform(plain, **first)}
    before = copy.deepcopy(data)
    move = dataclasses.replace(MOVE, **more)
    made = _netplan.transform(data, "eth0", move)
    assert made["network"] == transform(plain, **more)
    assert data == before
    assert _netplan.transform(made, "eth0", move) is made


def test_what_somebody_gave_the_bridge_since_stays() -> None:
    data = {"network": transform(OFFICE)}
    bridge = data["network"]["bridges"]["br0"]
    bridge["interfaces"].append("eth2")
    bridge["parameters"]["ageing-time"] = 10
    bridge["routes"].append({"to": "203.0.113.0/24", "via": "192.0.2.3"})
    made = _netplan.transform(data, "eth0", dataclasses.replace(MOVE, mac="02:00:00:00:00:02"))
    assert made["network"]["bridges"]["br0"] == {**bridge, "macaddress": "02:00:00:00:00:02"}


def test_a_bridge_of_somebody_elses_keeps_its_settings_and_gets_the_addresses() -> None:
    bridge = {"interfaces": ["eth0"], "addresses": ["192.0.2.10/24"], "parameters": {"stp": True}}
    data = {"network": {"ethernets": {"eth0": {}}, "bridges": {"br0": bridge}}}
    assert _netplan.transform(data, "eth0", MOVE, ours=False) is data
    move = dataclasses.replace(MOVE, mode="static", addresses=("192.0.2.77/24",))
    made = _netplan.transform(data, "eth0", move, ours=False)
    assert made["network"]["bridges"]["br0"] == {**bridge, "addresses": ["192.0.2.77/24"]}


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("{renderer: NetworkManager, ethernets: {renderer: networkd, eth0: {}}}", "networkd"),
        ("{ethernets: {eth0: {}}, bridges: {renderer: NetworkManager}}", "networkd"),
        ("{ethernets: {renderer: networkd, eth0: {}}, bridges: {renderer: networkd}}", None),
        ("{renderer: NetworkManager, ethernets: {eth0: {renderer: networkd}}}", "networkd"),
        ("{renderer: networkd, ethernets: {eth0: {}}}", None),
    ],
)
def test_the_bridge_is_run_by_who_runs_the_card(network: str, expected: t.Optional[str]) -> None:
    made = transform(f"network: {network}")
    assert made["bridges"]["br0"].get("renderer") == expected
    made["bridges"]["br0"].pop("renderer", None)
    again = _netplan.transform({"network": made}, "eth0", MOVE)
    assert again["network"]["bridges"]["br0"].get("renderer") == expected


def test_an_empty_definition_is_one() -> None:
    made = transform("network: {version: 2, ethernets: {eth0: null}}")
    assert made == {"version": 2, "ethernets": {"eth0": {}}, "bridges": {"br0": BRIDGE}}


def test_static_takes_the_place_of_all_addresses_and_the_default_route() -> None:
    made = transform(
        OFFICE, mode="static", addresses=("192.0.2.77/24",), gateways=("192.0.2.99", "fe80::1"), dns=("192.0.2.98",)
    )["bridges"]["br0"]
    assert made == {
        **BRIDGE,
        "mtu": 1400,
        "addresses": ["192.0.2.77/24"],
        "nameservers": {"addresses": ["192.0.2.98"], "search": ["example.net"]},
        "routes": [
            {"to": "198.51.100.0/24", "via": "192.0.2.2"},
            {"to": "0.0.0.0/0", "via": "192.0.2.99"},
            {"to": "::/0", "via": "fe80::1"},
        ],
    }


def test_dhcp_is_on() -> None:
    made = transform(OFFICE.replace("dhcp4: true\n      dhcp4-o", "dhcp4: false\n      dhcp4-o"), mode="dhcp")
    assert made["bridges"]["br0"]["dhcp4"] is True
    assert "addresses" not in made["bridges"]["br0"]


def test_none_is_none() -> None:
    made = transform("network: {ethernets: {eth0: {dhcp4: true}}}", mode="none")
    assert made["bridges"]["br0"] == {**BRIDGE, "link-local": [], "accept-ra": False}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("  vlans: {v5: {id: 5, link: eth0}}\n", "v5 is built on eth0"),
        ("  bonds: {bond0: {interfaces: [eth0]}}\n", "bond0 is built on eth0"),
        ("  bridges: {br0: {interfaces: [eth1]}}\n", "has a bridge br0 already"),
        ("  bridges: {br1: {interfaces: [eth0]}}\n", "br1 is built on eth0"),
    ],
)
def test_what_cannot_be_followed_is_refused(more: str, expected: str) -> None:
    with pytest.raises(Refused, match=expected):
        transform(f"network:\n  ethernets: {{eth0: {{dhcp4: true}}, eth1: {{}}}}\n{more}")


@pytest.mark.parametrize("card", ['match: {name: "e*"}', "match: {driver: virtio_net}", "auth: {password: x}"])
def test_a_card_that_cannot_be_a_port_alone_is_refused(card: str) -> None:
    with pytest.raises(Refused):
        transform(f"network: {{ethernets: {{eth0: {{{card}}}}}}}")


@pytest.mark.parametrize(
    ("identifier", "card", "expected"),
    [
        ("eth0", {}, True),
        ("eth1", {}, False),
        ("lan", {"match": {"name": "eth*"}}, True),
        ("lan", {"match": {"name": ["en*", "eth0"]}}, True),
        ("lan", {"match": {"macaddress": "x"}, "set-name": "eth0"}, True),
        ("eth0", {"match": {"macaddress": "x"}, "set-name": "lan0"}, False),
        ("eth0", {"match": {"macaddress": "x"}}, False),
    ],
)
def test_definitions_are_known_by_their_names(identifier: str, card: dict[str, t.Any], expected: bool) -> None:
    assert _netplan.is_for(identifier, card, "eth0") == expected


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("{ethernets: {eth0: {}}}", "networkd"),
        ("{renderer: NetworkManager, ethernets: {eth0: {}}}", "NetworkManager"),
        ("{renderer: NetworkManager, ethernets: {renderer: networkd, eth0: {}}}", "networkd"),
        ("{ethernets: {eth0: {renderer: NetworkManager}}}", "NetworkManager"),
    ],
)
def test_who_runs_the_card_is_said_at_three_places(network: str, expected: str) -> None:
    data = yaml.safe_load(f"network: {network}")
    assert _netplan.Definition("x", "eth0", "", data).renderer == expected
