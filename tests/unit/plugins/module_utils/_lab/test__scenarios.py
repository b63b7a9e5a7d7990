# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is told by what its inventory says."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _bridge_options
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _options as _guest_options
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import derived_mac, derived_tap
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _language
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import given
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import Lab, expand

yaml = pytest.importorskip("yaml")

ROLES = pathlib.Path(__file__).resolve().parents[5] / "roles"
MAC = "52:54:00:00:00:01"
GUEST = {"name": "web", "memory": "128", "nics": [{"tap": "tap0", "mac": MAC}, {"user": True}]}
TAPS = [{"name": "tap0", "mtu": 1400}, {"name": "tap1", "owner": "bob"}]

Options = t.Dict[str, t.Any]


def host(*networks: Options, guests: t.Sequence[Options] = (), **options: t.Any) -> Lab:
    return expand(list(networks), list(guests), identity="host", **options)


def defaults(role: str) -> Options:
    return t.cast(Options, yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text()))


@pytest.mark.parametrize("scenario", _language.SCENARIOS)
def test_a_network_has_the_defaults_of_its_role(scenario: str) -> None:
    of_role = {name[len(scenario) + 1 :]: value for name, value in defaults(scenario).items()}
    for decided in ("state", "name", "persistent", "taps", "guests", "account"):
        of_role.pop(decided)
    if scenario != "l2":
        assert of_role.pop("bridge") == "{{ " + scenario + "_name }}0"
    # A gateway is a text where there is one, and a list where it may be of both versions.
    assert {name: value or None for name, value in _language.DEFAULTS[scenario].items()} == {
        name: value or None for name, value in of_role.items()
    }


@pytest.mark.parametrize("scenario", _language.SCENARIOS)
def test_a_network_has_the_words_of_its_role(scenario: str) -> None:
    path = ROLES / scenario / "meta" / "argument_specs.yml"
    options = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
    assert set(_language.WORDS[scenario]) - {"scenario"} == {name[len(scenario) + 1 :] for name in options}


# What only the inventory has


def test_what_a_scenario_has_not_is_absent() -> None:
    lab = host({"name": "lan", "scenario": "private"})
    for items in (lab.rules, lab.servers, lab.port_security):
        assert [(item["name"], item["bridge"], item["state"]) for item in items] == [("lan", "lan0", "absent")]
    assert host({"name": "lan", "scenario": "nat", "dhcp_enabled": False}).servers[0]["state"] == "absent"
    assert host({"name": "lan", "scenario": "nat"}).port_security[0]["state"] == "absent"
    assert host({"name": "lan", "scenario": "l2", "interface": "eth0"}).rules[0]["state"] == "absent"


@pytest.mark.parametrize("scenario", _language.WITH_SUBNET)
def test_a_network_whose_traffic_somebody_else_lets_pass_touches_no_other_firewall(scenario: str) -> None:
    (rules,) = host({"name": "lan", "scenario": scenario, "forward": False}).rules
    assert (rules["forward"], rules["forwarding"]) == (False, True)
    (rules,) = host({"name": "lan", "scenario": scenario}).rules
    assert (rules["forward"], rules["forwarding"]) == (True, True)


def test_a_guest_is_on_several_networks() -> None:
    lab = host(
        {"name": "one", "scenario": "private"},
        {"name": "two", "scenario": "nat", "taps": [{"name": "tap2"}]},
        guests=[{"name": "web", "nics": [{"network": "one"}, {"bridge": "two0"}, {"tap": "tap2"}, {"tap": "other"}]}],
    )
    nics = [given(nic) for nic in lab.guests[0]["nics"]]
    assert nics[0] == {"bridge": "one0"}
    assert nics[1] == {"bridge": "two0", "network": "two"}
    assert nics[2] == {"tap": "tap2", "network": "two"}
    assert nics[3] == {"tap": "other"}
    assert lab.guests[0]["network"] == "one"
    assert lab.taps[0]["owner"] == "labspan-web"


def test_a_guest_in_a_networks_list_need_not_name_it() -> None:
    lab = host({"name": "lan", "scenario": "private", "guests": [{"name": "web", "nics": [{"mac": MAC}, {}]}]})
    assert [given(nic) for nic in lab.guests[0]["nics"]] == [{"bridge": "lan0", "mac": MAC}, {"bridge": "lan0"}]


def test_an_address_is_a_static_lease() -> None:
    web = {"name": "Web", "nics": [{"network": "lan", "mac": MAC, "address": "10.97.0.5"}]}
    derived = {"name": "x_y", "nics": [{"network": "lan", "address": "10.97.0.6"}]}
    lab = host({"name": "lan", "scenario": "nat", "guests": [web]}, guests=[derived])
    assert [given(lease) for lease in lab.servers[0]["leases"]] == [
        {"mac": MAC, "address": "10.97.0.5", "name": "web"},
        {"mac": derived_mac("host", "x_y", 0), "address": "10.97.0.6"},
    ]
    assert "address" not in lab.guests[0]["nics"][0]


def test_a_lease_that_is_listed_stays_as_it_is() -> None:
    listed = {"mac": "52-54-00-00-00-01", "address": "10.97.0.7", "name": "desk"}
    nics = [{"mac": MAC, "address": "10.97.0.5"}, {"address": "10.97.0.8"}]
    guests = [{"name": "desk", "nics": nics}, {"name": "gone", "state": "absent", "nics": nics}]
    lab = host({"name": "lan", "scenario": "nat", "dhcp": {"leases": [listed]}, "guests": guests})
    second = {"mac": derived_mac("host", "desk", 1), "address": "10.97.0.8"}
    assert [given(lease) for lease in lab.servers[0]["leases"]] == [listed, second]


def test_an_address_in_a_lan_is_the_one_that_the_guest_may_send_from() -> None:
    nics = [{"network": "lan", "address": "192.0.2.5"}, {"network": "lan"}]
    lab = host({"name": "lan", "scenario": "l2", "interface": "eth0"}, guests=[{"name": "web", "nics": nics}])
    shown = ("tap", "guest", "nic", "addresses")
    ports = [given({name: port[name] for name in shown}) for port in lab.port_security[0]["ports"]]
    assert ports == [
        {"tap": derived_tap("web", 0), "guest": "web", "nic": 0, "addresses": ["192.0.2.5"]},
        {"tap": derived_tap("web", 1), "guest": "web", "nic": 1},
    ]


def test_everything_goes_with_the_host() -> None:
    nat = {"name": "lan", "scenario": "nat", "taps": TAPS, "guests": [{"name": "one"}]}
    lab = host(nat, guests=[{"name": "two"}], state="absent")
    every = (lab.accounts, lab.bridges, lab.taps, lab.rules, lab.servers, lab.port_security, lab.guests)
    assert {item["state"] for items in every for item in items} == {"absent"}
    assert len(lab.accounts) == 2


def test_an_account_of_the_host_is_that_of_its_networks() -> None:
    nat = {"name": "lan", "scenario": "nat", "taps": TAPS, "guests": [GUEST]}
    lab = host(nat, guests=[{"name": "two"}, {"name": "own", "user": "bob"}], account="alice")
    assert [guest["user"] for guest in lab.guests] == ["alice", "alice", "bob"]
    assert [tap["owner"] for tap in lab.taps] == ["alice", "bob"]
    assert lab.accounts == []


def test_a_part_alone_leaves_the_other_as_it_is() -> None:
    nat = {"name": "lan", "scenario": "nat", "taps": TAPS}
    guests = [{"name": "web", "nics": [{"network": "lan", "mac": MAC, "address": "10.97.0.5"}]}]
    networks = host(nat, guests=guests, parts=["networks"])
    assert (networks.guests, networks.accounts) == ([], [])
    assert networks.bridges
    assert networks.servers[0]["leases"][0]["mac"] == MAC
    alone = host(nat, guests=guests, parts=["guests"])
    assert [alone.bridges, alone.taps, alone.rules, alone.servers, alone.port_security] == [[], [], [], [], []]
    assert alone.guests[0]["nics"][0]["bridge"] == "lan0"
    assert set(alone.networks) == {"lan"}


def test_each_item_is_complete() -> None:
    lab = host({"name": "lan", "scenario": "nat", "taps": TAPS}, guests=[GUEST])
    assert set(lab.bridges[0]) == set(_bridge_options.OPTIONS)
    assert lab.bridges[0]["exclusive_addresses"] is True
    assert lab.guests[0]["wait_for"] == "qmp"
    assert lab.guests[0]["state"] == "running"
    assert set(lab.guests[0]["nics"][0]) == set(_guest_options.NIC)
