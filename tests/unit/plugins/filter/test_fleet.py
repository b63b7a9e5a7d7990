# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbook of a fleet is told before it goes to any host."""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.filter.fleet import NOBODY, fleet_check, fleet_hosts, lab_uplinks

ROUTED = {"name": "far", "scenario": "routed"}
NAT = {"name": "lan", "scenario": "nat"}
L2 = {"name": "out", "scenario": "l2", "interface": "eth0"}


class Broken(t.Dict[str, t.Any]):
    """Variables that cannot be evaluated."""

    def __getitem__(self, name: str) -> t.Any:
        raise RuntimeError("nosuch is undefined")

    def get(self, name: str, default: t.Any = None) -> t.Any:
        return self[name]


HOSTS: dict[str, t.Any] = {
    "one": {"vmnet_networks": [ROUTED]},
    "two": {"vmnet_networks": [NAT], "vmnet_networks_extra": [ROUTED], "vmnet_guests": [{"name": "a", "memory": 64}]},
    "free": {"vmnet_networks": [ROUTED], "vmnet_fleet_checks": ["macs"]},
    "out": {"vmnet_networks": [L2, {**L2, "name": "off", "bridge": "br1", "state": "absent", "interface": "eth1"}]},
    "gone": {"vmnet_networks": [L2], "vmnet_state": "absent"},
    "nothing": {},
    "broken": Broken(vmnet_networks="{{ nosuch }}"),
}


def test_a_conflict_is_told_of_those_that_are_in_it_and_by_the_variables_names() -> None:
    found = fleet_check(HOSTS, list(HOSTS))
    assert set(found["problems"]) == {"one", "two"}
    assert found["problems"]["one"][0].startswith(
        "vmnet_networks[0].subnet: '10.98.0.0/24' is also on host two (vmnet_networks_extra[0].subnet); "
    )
    assert found["idle"] == ["nothing"]


def test_what_is_wrong_on_a_host_is_told_before_it_is_reached() -> None:
    wrong = {
        "types": {"vmnet_guests": [{"name": "a", "cpus": "many"}]},
        "words": {"vmnet_networks": [{**NAT, "subnett": "10.1.0.0/24"}]},
        "list": {"vmnet_networks": NAT},
        "place": {"vmnet_networks": [NAT], "vmnet_guests_extra": [{"name": "a", "nics": [{"network": "lam"}]}]},
        "ports": {"vmnet_networks": [{**L2, "port_security_options": {"ports": [{"guest": "who"}]}}]},
        "check": {"vmnet_networks": [NAT], "vmnet_fleet_checks": ["subnet"]},
    }
    found = fleet_check(wrong, list(wrong))["problems"]
    assert set(found) == set(wrong)
    assert "cpus" in found["types"][0]
    assert "subnett" in found["words"][0]
    assert found["list"] == ["vmnet_networks: is a dictionary and must be a list, each entry after a dash."]
    assert found["place"][0].startswith("vmnet_guests_extra[0].nics[0].network: 'lam' is no network of this host")
    assert found["ports"][0].startswith("vmnet_networks[0].port_security_options.ports[0]: ")
    assert found["check"][0].startswith("vmnet_fleet_checks: 'subnet' is no check")
    assert all(text.endswith(".") for texts in found.values() for text in texts)


def test_a_variable_that_is_almost_ours_is_told_and_others_are_not() -> None:
    guests = [{"name": "a", "memory": 64}]
    hosts: dict[str, t.Any] = {
        "beside": {"vmnet_networks": [NAT], "vmnet_guest": guests, "vmnet_exclusive": True},
        "alone": {"vmnet_network": [NAT]},
        "switch": {"vmnet_networks": [ROUTED], "vmnet_exlusive": True},
        "right": {"vmnet_guests": guests, "vmnet_drawing": "x", "vmnet_rack": "4", "our_vmnet_guest": 1},
        "nested": {"vmnet_guests": guests, "vmnet_host": "one", "vmnet_guest": "nested", "vmnet_network_names": []},
    }
    found = fleet_check(hosts, list(hosts))
    assert found["problems"] == {
        host: [f"{name}: there is no such variable; perhaps {meant} is meant. If it is yours, give it another name."]
        for host, name, meant in (
            ("beside", "vmnet_guest", "vmnet_guests"),
            ("alone", "vmnet_network", "vmnet_networks"),
            ("switch", "vmnet_exlusive", "vmnet_exclusive"),
        )
    }
    assert found["idle"] == []


def test_what_ansible_would_refuse_without_a_place_has_one() -> None:
    wrong: dict[str, tuple[dict[str, t.Any], str]] = {
        "typo": (
            {"vmnet_networks": [NAT], "vmnet_networks_extra": [{**NAT, "portforwards": []}]},
            "vmnet_networks_extra[0].portforwards: there is no such option; perhaps port_forwards is meant.",
        ),
        "deep": (
            {"vmnet_networks": [{**NAT, "guests": [{"name": "a"}, {"name": "b", "mem": 64}]}]},
            "vmnet_networks[0].guests[1].mem: there is no such option; perhaps memory is meant.",
        ),
        "number": (
            {"vmnet_guests": [{"name": "a", "cpus": "many"}]},
            "vmnet_guests[0].cpus: 'many' is no whole number.",
        ),
        "text": (
            {"vmnet_networks": [{**NAT, "taps": ["t1"]}]},
            "vmnet_networks[0].taps[0]: is a text and must be a dictionary, as in {name: ...}.",
        ),
        "count": (
            {"vmnet_networks": [{**NAT, "taps": 3}]},
            "vmnet_networks[0].taps: is the value 3 and must be a list, each entry after a dash.",
        ),
        "missing": (
            {"vmnet_networks": [{"name": "a"}]},
            "vmnet_networks[0].scenario: is missing, one of private, routed, nat, l2.",
        ),
        "choice": (
            {"vmnet_networks": [NAT, {"name": "a", "scenario": "bridged"}]},
            "vmnet_networks[1].scenario: 'bridged' is none of its values, which are private, routed, nat, l2.",
        ),
        "state": (
            {"vmnet_networks": [NAT], "vmnet_state": "gone"},
            "vmnet_state: 'gone' is none of its values, which are present, absent.",
        ),
        "exclusive": (
            {"vmnet_networks": [NAT], "vmnet_exclusive": "maybe"},
            "vmnet_exclusive: 'maybe' is neither true nor false.",
        ),
        "empty": ({"vmnet_networks": None}, "vmnet_networks: is empty; write [] for none, or leave it out."),
    }
    found = fleet_check({host: variables for host, (variables, _text) in wrong.items()}, list(wrong))["problems"]
    assert found == {host: [text] for host, (_variables, text) in wrong.items()}


def test_what_ansible_makes_fit_is_taken() -> None:
    taken = {"vmnet_persistent": True, "vmnet_exclusive": "yes", "vmnet_guests": [{"name": "a", "cpus": "2"}]}
    assert fleet_check({"one": taken}, ["one"])["problems"] == {}


def test_a_word_of_another_scenario_is_told_as_it_was_written() -> None:
    closed = {"name": "a", "scenario": "private", "dhcp": {"domain": "lab"}}
    (text,) = fleet_check({"one": {"vmnet_networks": [closed]}}, ["one"])["problems"]["one"]
    assert text.startswith("vmnet_networks[0].dhcp: {'domain': 'lab'} is nothing that")


def test_secrets_are_not_told() -> None:
    secret = {"name": "a", "cloud_init": {"user_data": "hunter2", "meta_dta": "hunter2"}, "memory": "0"}
    found = fleet_check({"one": {"vmnet_guests": [secret]}}, ["one"])
    assert found["problems"]
    assert "hunter2" not in str(found)


def test_hosts_are_chosen_by_their_uplinks() -> None:
    assert fleet_hosts(HOSTS, list(HOSTS), "uplinked") == ["out"]
    assert fleet_hosts(HOSTS, list(HOSTS), "returning") == ["out", "gone"]
    assert fleet_hosts(HOSTS, list(HOSTS), "l2") == ["out", "gone"]
    assert fleet_hosts(HOSTS, list(HOSTS), "plain") == ["one", "two", "free", "gone", "nothing", "broken"]
    assert fleet_hosts(HOSTS, ["one"], "uplinked") == NOBODY
    assert fleet_hosts(HOSTS, ["out", "one", "two"], "first") == ["one", "two", "out"]
    assert fleet_hosts(HOSTS, ["out"], "first") == NOBODY
    assert fleet_hosts({}, ["one", "out"], "plain") == ["one", "out"]


def test_an_uplink_has_the_defaults_of_the_role() -> None:
    (uplink,) = lab_uplinks([NAT, {**L2, "persistent": "false", "probe": "none"}])
    assert (uplink["network"], uplink["state"]) == ("out", "present")
    assert uplink["uplink"] == {
        "bridge": "br0",
        "interface": "eth0",
        "address_mode": "move",
        "addresses": [],
        "gateway": [],
        "dns": [],
        "mac": "interface",
        "stp": False,
        "forward_delay": 15.0,
        "confirm_timeout": 90.0,
        "probe": ["none"],
        "persistent": False,
        "accept_risk": False,
        "force": False,
    }
    assert [each["state"] for each in lab_uplinks([L2, {**L2, "state": "absent"}], "absent")] == ["absent", "absent"]
    assert lab_uplinks([{"name": "x"}]) == []
    assert [each["uplink"]["persistent"] for each in lab_uplinks([L2], persistent="false")] == [False]
    assert [each["uplink"]["persistent"] for each in lab_uplinks([L2], "present", "auto")] == [True]
