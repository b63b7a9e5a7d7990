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
    assert found["list"] == ["vmnet_networks: is no list of networks, but dict."]
    assert found["place"][0].startswith("vmnet_guests_extra[0].nics[0].network: 'lam' is no network of this host")
    assert found["ports"][0].startswith("vmnet_networks[0].port_security_options.ports[0]: ")
    assert found["check"][0].startswith("vmnet_fleet_checks: 'subnet' is no check")
    assert all(text.endswith(".") for texts in found.values() for text in texts)


def test_secrets_are_not_told() -> None:
    secret = {"name": "a", "cloud_init": {"user_data": "hunter2", "meta_dta": "hunter2"}, "memory": "0"}
    found = fleet_check({"one": {"vmnet_guests": [secret]}}, ["one"])
    assert found["problems"]
    assert "hunter2" not in str(found)


def test_hosts_are_chosen_by_their_uplinks() -> None:
    assert fleet_hosts(HOSTS, list(HOSTS), "uplinked") == ["out"]
    assert fleet_hosts(HOSTS, list(HOSTS), "returning") == ["out", "gone"]
    assert fleet_hosts(HOSTS, list(HOSTS), "plain") == ["one", "two", "free", "gone", "nothing", "broken"]
    assert fleet_hosts(HOSTS, ["one"], "uplinked") == NOBODY
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
