# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is told by its inventory is what its roles would tell it, as Ansible renders their variables."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _bridge_options, _dhcp_options, _tap_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _options as _rule_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_options
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _options as _guest_options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import complete
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import LabNetwork, expand

pytest.importorskip("ansible.template")

ROOT = pathlib.Path(__file__).resolve().parents[5]
MAC = "52:54:00:00:00:01"
GUEST = {"name": "web", "memory": "128", "nics": [{"tap": "tap0", "mac": MAC}, {"user": True}]}
TAPS = [{"name": "tap0", "mtu": 1400}, {"name": "tap1", "owner": "bob"}]

Options = t.Dict[str, t.Any]

#: What the tasks of the role _common hand to the modules, in words of a scenario's vars/main.yml.
EXPRESSIONS = {
    "name": "_common_bridge.name",
    "persistent": "_common_persistent",
    "account": "_common_account",
    "bridge": "_common_bridge",
    "taps": "_common_taps | labspan.vmnet.owned_taps(_common_guests, _common_account)",
    "rules": "_common_rules | default({})",
    "server": "_common_dhcp | default({})",
    "port_security": "_common_port_security | default({})",
    "guests": (
        "[_common_guest_defaults] | product(_common_guests, [_common_guest_state]) | map('list') | map('combine')"
    ),
}

# Apart from this process, in which the collection has been imported without Ansible's loader.
_RENDER = """
import json, sys
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

try:
    from ansible.template import trust_as_template
except ImportError:
    trust_as_template = str

def marked(value):
    if isinstance(value, dict):
        return {name: marked(each) for name, each in value.items()}
    if isinstance(value, list):
        return [marked(each) for each in value]
    return trust_as_template(value) if isinstance(value, str) else value

def variables(scenario, file):
    with open(f"roles/{scenario}/{file}/main.yml") as text:
        return yaml.safe_load(text)

init_plugin_loader()
cases, expressions = json.load(sys.stdin)
uplink = {"uplink": {"addresses": ["192.0.2.9/24"], "routes": []}}
for scenario, network in cases:
    given = {f"{scenario}_{name}": value for name, value in network.items()}
    known = {**variables(scenario, "defaults"), **given, **variables(scenario, "vars"), "_common_uplink_result": uplink}
    templar = Templar(loader=DataLoader(), variables=marked(known))
    found = {}
    for name, expression in expressions.items():
        found[name] = json.loads(templar.template(marked("{{ (" + expression + ") | to_json }}")))
    print(json.dumps(found))
"""


NETWORKS: t.Mapping[str, t.Sequence[Options]] = {
    "private": [{}, {"bridge": "br7", "bridge_options": {"mtu": 1400, "enabled": False}, "persistent": "false"}],
    "routed": [
        {},
        {"forward": False},
        {"subnet6": "fd00:98::/64", "gateway": "10.98.0.9", "dhcp": {"domain": "lab.example"}},
    ],
    "nat": [
        {"subnet": "10.1.0.0/25", "uplink": "eth1", "backend": "nftables", "exclude_destinations": ["10.0.0.0/8"]},
        {"forward": False},
        {
            "subnet6": "fd00:97::/64",
            "gateway6": "fd00:97::9",
            "port_forwards": [{"host_port": "80", "guest_address": "10.97.0.5"}],
            "dhcp": {"router_advertisements": False, "leases": [{"mac": MAC, "address": "10.97.0.5"}]},
        },
    ],
    "l2": [
        {"interface": "eth0"},
        {"interface": "eth0", "port_security": False},
        {"interface": "eth0", "persistent": "false", "port_security_options": {"unlisted": "drop"}},
        {
            "interface": "eth0",
            "port_security_options": {
                "protected_addresses": ["192.0.2.77"],
                "ports": [{"guest": "web", "addresses": ["192.0.2.50"]}, {"tap": "tap1", "mac": MAC}],
            },
        },
    ],
}

PEOPLE: t.Mapping[str, Options] = {
    "nobody": {},
    "guests and taps": {"guests": [GUEST, {"name": "plain"}, {"name": "off", "state": "stopped"}], "taps": TAPS},
    "an account": {"guests": [GUEST, {"name": "own", "user": "carol"}], "taps": TAPS, "account": "alice"},
}


def asked_of(network: Options, people: str, state: str) -> Options:
    asked: Options = {"name": "lan", **network, **PEOPLE[people], "state": state}
    if people == "nobody" and "port_security_options" in asked:
        asked["port_security_options"] = {**asked["port_security_options"], "ports": []}
    return asked


def in_a_role(scenario: str, asked: Options) -> Options:
    """The same in a role's words: there the uplink either lasts or not."""
    if scenario == "l2" and "persistent" in asked:
        return {**asked, "persistent": asked["persistent"] != "false"}
    return asked


CASES = [
    (scenario, asked_of(network, people, state))
    for (scenario, networks), people, state in itertools.product(NETWORKS.items(), PEOPLE, ("present", "absent"))
    for network in networks
]


@functools.lru_cache(maxsize=1)
def rendered() -> list[Options]:
    """What the roles tell their modules in each case."""
    cases = [(scenario, in_a_role(scenario, asked)) for scenario, asked in CASES]
    done = subprocess.run(
        [sys.executable, "-c", _RENDER],
        input=json.dumps([cases, EXPRESSIONS]),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number][0]}-{number}")
def test_the_modules_are_told_what_the_role_tells_them(number: int) -> None:
    (scenario, asked), role = CASES[number], rendered()[number]
    lab = expand([{**asked, "scenario": scenario}], [], identity="host", protected=lambda bridge: ["192.0.2.9"])
    stays = {"persistent": role["persistent"]}
    shared = {**stays, "state": asked["state"]}
    interface = {**shared, "enabled": True, "network": "lan"}

    assert lab.networks == {"lan": LabNetwork("lan", scenario, role["name"], asked["state"])}
    assert lab.taps == [
        complete(_tap_options.OPTIONS, interface, {"bridge": role["name"]}, tap) for tap in role["taps"]
    ]
    of_guests = {"network": "lan", "user": role["account"] or None}
    assert lab.guests == [complete(_guest_options.OPTIONS, of_guests, guest) for guest in role["guests"]]
    if scenario == "l2":
        assert lab.bridges == []
        told = complete(_port_security_options.OPTIONS, stays, {"bridge": role["name"]}, role["port_security"])
        assert lab.port_security == [told]
    else:
        # That the host is on the bridge goes without saying in a role, and has to be said where it was closed off.
        access = {"host_access": scenario != "private"}
        assert lab.bridges == [complete(_bridge_options.OPTIONS, interface, role["bridge"], access)]
    if scenario in ("routed", "nat"):
        assert lab.rules == [complete(_rule_options.OPTIONS, shared, role["rules"])]
        assert lab.servers == [complete(_dhcp_options.OPTIONS, shared, role["server"])]
