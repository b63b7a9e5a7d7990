# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what lab hosts tell to hosts, groups and variables."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _guest_map
from ansible_collections.labspan.vmnet.plugins.plugin_utils._guest_map import Group, Guest, LabHost, Settings
from ansible_collections.labspan.vmnet.plugins.plugin_utils._ways import Door

Data = t.Dict[str, t.Any]

LAB = LabHost("lab1", Door("ssh", "192.0.2.10"), {"ansible_connection": "ssh", "ansible_host": "192.0.2.10"})
HERE = dataclasses.replace(LAB, door=Door("local"))

NETWORKS = [
    {"name": "web", "scenario": "nat", "bridge": "br-web"},
    {"name": "dark", "scenario": "private", "bridge": "br-dark"},
    {"name": "office", "scenario": "l2", "bridge": "br-lan"},
    {"name": "dual", "scenario": "routed", "bridge": "br-dual"},
]
BRIDGES = [
    {"name": "br-web", "addresses": ["192.168.6.1/24", "fe80::1/64"]},
    {"name": "br-dark", "addresses": []},
    {"name": "br-lan", "addresses": ["192.0.2.10/24"]},
    {"name": "br-dual", "addresses": ["192.168.7.1/24", "fd00:7::1/64"]},
]


def nic(network: t.Optional[str], *addresses: str, bridge: t.Optional[str] = None) -> Data:
    """A NIC; an address is C(source address)."""
    words = [text.split() for text in addresses]
    bridges = {one["name"]: one["bridge"] for one in NETWORKS}
    return {
        "tap": f"tap-{network}",
        "bridge": bridge or (bridges[network] if network else None),
        "network": network,
        "mac": "52:54:00:00:00:01",
        "addresses": [{"source": source, "address": address} for source, address in words],
    }


def told(*guests: Data) -> Data:
    return {"networks": NETWORKS, "bridges": BRIDGES, "guests": list(guests)}


def draw(*nics: Data, host: LabHost = LAB, state: str = "running", labels: t.Any = None, **settings: t.Any) -> Guest:
    guest = {"name": "vm1", "state": state, "labels": labels or {}, "nics": list(nics)}
    (found,) = _guest_map.draw(host, told(guest), Settings(**settings))[1]
    return found


BEHIND = ["ssh", "192.168.6.11", "jump"]
CONSOLE = ["labspan.vmnet.guest", None, None]


def way(guest: Guest) -> list[t.Optional[str]]:
    """Connection, address, and whether there is a jump."""
    found = guest.variables
    through = "ProxyCommand" in found.get("ansible_ssh_common_args", "")
    return [found["ansible_connection"], found.get("ansible_host"), "jump" if through else None]


@pytest.mark.parametrize(
    ("nics", "settings", "expected"),
    [
        ([nic("web", "lease 192.168.6.11")], {}, BEHIND),
        ([nic("web", "lease 192.168.6.11")], {"jump": "never"}, ["ssh", "192.168.6.11", None]),
        ([nic("web", "lease 192.168.6.11")], {"host": HERE}, ["ssh", "192.168.6.11", None]),
        ([nic("web", "lease 192.168.6.11")], {"host": HERE, "jump": "always"}, ["ssh", "192.168.6.11", None]),
        ([nic("web", "lease 192.168.6.11")], {"state": "paused"}, BEHIND),
        ([nic("web", "lease 192.168.6.11")], {"state": "unknown"}, BEHIND),
        ([nic("web", "lease 192.168.6.11")], {"state": "stopped"}, CONSOLE),
        ([nic("web", "lease 192.168.6.11")], {"state": "broken"}, CONSOLE),
        ([nic("web")], {}, CONSOLE),
        ([], {}, CONSOLE),
        ([nic(None)], {}, CONSOLE),
        ([nic("dark", "agent 10.0.0.2")], {}, CONSOLE),
        ([nic("dark", "agent 10.0.0.2")], {"jump": "never"}, CONSOLE),
        ([nic("web", "agent 10.9.9.9")], {}, CONSOLE),  # an address that nobody on the host has a way to
        ([nic("web", "lease 192.168.6.11")], {"host": dataclasses.replace(LAB, door=Door("x.y.docker"))}, CONSOLE),
        (
            [nic("web", "lease 192.168.6.11")],
            {"host": dataclasses.replace(LAB, door=Door("ssh", password=True))},
            CONSOLE,
        ),
        ([nic("office", "neighbour 192.0.2.77")], {}, ["ssh", "192.0.2.77", None]),
        ([nic("office", "neighbour 192.0.2.77")], {"jump": "always"}, ["ssh", "192.0.2.77", "jump"]),
        ([nic("dark", "agent 10.0.0.2"), nic("web", "lease 192.168.6.11")], {}, BEHIND),
        ([nic("dual", "lease 192.168.7.5", "neighbour fd00:7::5")], {}, ["ssh", "192.168.7.5", "jump"]),
        ([nic("dual", "lease 192.168.7.5", "neighbour fd00:7::5")], {"prefer": "ipv6"}, ["ssh", "fd00:7::5", "jump"]),
        ([nic("dual", "declared 192.168.7.5", "neighbour fd00:7::5")], {}, ["ssh", "fd00:7::5", "jump"]),
        ([nic(None, "neighbour 192.168.6.11", bridge="br-web")], {}, BEHIND),  # on a bridge of others
    ],
)
def test_the_way_to_a_guest(nics: list[Data], settings: Data, expected: list[t.Optional[str]]) -> None:
    assert way(draw(*nics, **settings)) == expected


@pytest.mark.parametrize(
    ("addresses", "first"),
    [
        (["declared 192.168.6.14", "neighbour 192.168.6.13", "agent 192.168.6.12", "lease 192.168.6.11"], ".11"),
        (["declared 192.168.6.14", "neighbour 192.168.6.13", "agent 192.168.6.12"], ".12"),
        (["declared 192.168.6.14", "neighbour 192.168.6.13"], ".13"),
        (["declared 192.168.6.14"], ".14"),
        (["hearsay 192.168.6.15", "neighbour 192.168.6.13"], ".13"),
        (["lease 192.168.6.16", "lease 192.168.6.11"], ".16"),
    ],
)
def test_the_best_known_address_comes_first(addresses: list[str], first: str) -> None:
    found = draw(nic("web", *addresses)).variables
    assert found["ansible_host"] == found["vmnet_addresses"][0] == f"192.168.6{first}"
    assert len(found["vmnet_addresses"]) == len(addresses)


def test_the_first_nic_comes_first() -> None:
    first, second = nic("web", "neighbour 192.168.6.11"), nic("dual", "lease 192.168.7.5")
    assert way(draw(first, second))[1] == "192.168.6.11"
    assert way(draw(second, first))[1] == "192.168.7.5"


def test_a_guest_says_what_it_is() -> None:
    found = draw(nic("web", "lease 192.168.6.11"), nic("dark"), labels={"role": "db", "old": ""}).variables
    assert {key: value for key, value in found.items() if key.startswith("vmnet_") and key != "vmnet_nics"} == {
        "vmnet_guest": "vm1",
        "vmnet_host": "lab1",
        "vmnet_host_connection": {"ansible_connection": "ssh", "ansible_host": "192.0.2.10"},
        "vmnet_state": "running",
        "vmnet_labels": {"role": "db", "old": ""},
        "vmnet_network_names": ["web", "dark"],
        "vmnet_scenarios": ["nat", "private"],
        "vmnet_macs": ["52:54:00:00:00:01"] * 2,
        "vmnet_taps": ["tap-web", "tap-dark"],
        "vmnet_addresses": ["192.168.6.11"],
    }


@pytest.mark.parametrize(
    ("nics", "labels", "groups"),
    [
        (
            [nic("web"), nic("dark")],
            {"role": "db", "old": ""},
            {
                "vmnet_host_lab1_network_web",
                "vmnet_host_lab1_network_dark",
                "vmnet_network_web",
                "vmnet_network_dark",
                "vmnet_scenario_nat",
                "vmnet_scenario_private",
                "vmnet_state_running",
                "vmnet_label_role_db",
                "vmnet_label_old",
            },
        ),
        ([nic(None, bridge="virbr0")], {"a.b": "c d"}, {"vmnet_host_lab1_bridge_virbr0", "vmnet_label_a_b_c_d"}),
        ([nic(None)], {}, {"vmnet_host_lab1"}),
        ([], {}, {"vmnet_host_lab1"}),
    ],
)
def test_the_groups_of_a_guest(nics: list[Data], labels: Data, groups: set[str]) -> None:
    assert set(draw(*nics, labels=labels).groups) == groups | {"vmnet_state_running"}


def test_the_map_leads_from_all_to_hosts_to_networks_and_empty_ones_are_on_it() -> None:
    guests = [{"name": "vm1", "state": "running", "nics": [nic(None, bridge="virbr0")]}]
    groups, _guests = _guest_map.draw(dataclasses.replace(LAB, name="lab-1.x"), told(*guests), Settings())
    assert _guest_map.in_order(groups) == [
        Group("vmnet_guests"),
        Group("vmnet_host_lab_1_x", "vmnet_guests"),
        *(
            Group(f"vmnet_host_lab_1_x_network_{name}", "vmnet_host_lab_1_x")
            for name in ("dark", "dual", "office", "web")
        ),
        Group("vmnet_host_lab_1_x_bridge_virbr0", "vmnet_host_lab_1_x"),
        Group("vmnet_state_running"),
    ]


def test_a_host_that_has_nothing_is_on_the_map() -> None:
    assert _guest_map.draw(LAB, {"guests": []}, Settings()) == (
        [Group("vmnet_guests"), Group("vmnet_host_lab1", "vmnet_guests")],
        [],
    )


def test_a_guest_without_a_definition_is_there_too() -> None:
    bare = {"name": "vm1", "state": "running", "memory": None, "labels": None, "nics": []}
    (found,) = _guest_map.draw(LAB, {"guests": [bare]}, Settings())[1]
    assert found.variables["vmnet_labels"] == {}
    assert way(found) == CONSOLE


@pytest.mark.parametrize(
    ("guests", "taken", "names"),
    [
        (["lab1 vm1", "lab1 vm2", "lab2 vm3"], [], ["vm1", "vm2", "vm3"]),
        (["lab1 vm1", "lab2 vm1", "lab2 vm2"], [], ["vm1.lab1", "vm1.lab2", "vm2"]),
        (["lab1 lab2"], ["lab1", "lab2"], ["lab2.lab1"]),
    ],
)
def test_names_are_the_guests_own_while_nobody_else_has_them(
    guests: list[str], taken: list[str], names: list[str]
) -> None:
    found = [Guest(host, name, {}, ()) for host, name in map(str.split, guests)]
    assert _guest_map.names(found, taken) == names
