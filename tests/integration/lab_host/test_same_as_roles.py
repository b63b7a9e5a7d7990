# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two ways to have networks and guests do not drift apart: by roles, and by one task, a host is the same."""

from __future__ import annotations

import json
import pathlib
import re
import typing as t

import pytest
from support.hosts import AnyHost, Host
from support.system_host import SystemHost, needs_system_host
from support.users import User

pytestmark = pytest.mark.one_interpreter

SCENARIOS = ("private", "routed", "nat")

#: What differs from one making to the next: numbers that the kernel gives, and times.
_NUMBERS = ("ifindex", "handle", "link_index", "bridge_id", "root_id", "timer", "time")
_PROCESSES = re.compile(r'"(pid|started|index|inode|device)": \d+|\.(pid|loaded):.*')


def guest(name: str) -> dict[str, t.Any]:
    """One whose firmware finds nothing to boot."""
    return {"name": name, "memory": "32", "accelerator": "tcg", "shutdown_timeout": 0}


def networks(*, account: t.Optional[str]) -> list[dict[str, t.Any]]:
    """One network of each scenario, with all that there is."""
    found: list[dict[str, t.Any]] = [
        {"name": "lhprivate", "taps": [{"name": "lhtp"}], "guests": [guest("lhone")]},
        {"name": "lhrouted", "subnet": "10.62.0.0/24", "subnet6": "fd00:62::/64", "bridge_options": {"mtu": 1400}},
        {
            "name": "lhnat",
            "subnet": "10.61.0.0/24",
            "taps": [{"name": "lhtn", "isolated": True}],
            "dhcp": {"leases": [{"mac": "52:54:00:00:00:11", "address": "10.61.0.11"}], "domain": "lab"},
            "port_forwards": [{"host_port": "8080", "guest_address": "10.61.0.11", "guest_port": "80"}],
            "exclude_destinations": ["10.9.0.0/16"],
            "guests": [guest("lhtwo")],
        },
    ]
    named = [{**network, "scenario": scenario} for network, scenario in zip(found, SCENARIOS)]
    return [{**network, "account": account} if account else network for network in named]


def seen(host: AnyHost) -> dict[str, str]:
    """Everything that either way makes."""
    commands = {
        "links": "ip -d -j link",
        "addresses": "ip -j address",
        "ports": "bridge -d -j link",
        "firewall": "nft -s list ruleset",
        "settings": "sysctl -a -r net.ipv[46].conf.(lh|up|all).*forwarding",
        "files": "grep -rs . /etc/labspan /etc/systemd/network /etc/systemd/system /usr/local/lib/labspan",
        "state": "grep -rs . /var/lib/labspan --exclude=*.leases --exclude=*.log --exclude=*.iso",
        "programs": "ps -e -o user=,args=",
        "accounts": "cut -d: -f1,5- /etc/passwd",
    }
    host.settle()
    found = {}
    numbers = {
        fields[2]: fields[0]
        for fields in (line.split(":") for line in host.out("getent", "passwd").splitlines())
        if fields[0].startswith("labspan-")
    }
    for name, command in commands.items():
        printed = host.run(*command.split(), check=False).stdout
        if " -j " in command:
            lines = sorted(json.dumps(_lasting(each), sort_keys=True) for each in json.loads(printed or "[]"))
        else:
            for number, account in numbers.items():  # which one an account gets is nobody's concern
                printed = re.sub(rf"(?<=user ){number}\b|(?<=:){number}\b", account, printed)
            lines = sorted(_PROCESSES.sub("", line) for line in printed.splitlines())
        if name == "programs":
            lines = [line for line in lines if re.search("qemu-system|dnsmasq", line)]
        found[name] = "\n".join(lines)
    return found


def _lasting(shown: t.Any) -> t.Any:
    """What iproute2 shows, without numbers."""
    if isinstance(shown, dict):
        return {key: _lasting(value) for key, value in shown.items() if not key.endswith(_NUMBERS)}
    return [_lasting(each) for each in shown] if isinstance(shown, list) else shown


def play_roles(host: AnyHost, variables: t.Mapping[str, t.Any], path: pathlib.Path, state: str) -> None:
    """All networks by their roles."""
    user = User(path)
    user.write("hosts.json", {"all": {"hosts": {"labhost": dict(variables)}}})
    account = variables.get("account")
    named = dict(zip(SCENARIOS, networks(account=account)))
    roles = [
        {
            "role": f"labspan.vmnet.{scenario}",
            "vars": {
                f"{scenario}_state": state,
                **{f"{scenario}_{word}": value for word, value in named[scenario].items() if word != "scenario"},
            },
        }
        for scenario in SCENARIOS
    ]
    user.play([{"hosts": "all", "gather_facts": False, "roles": roles}], "-i", "hosts.json")


def hold_both_ways_together(host: AnyHost, variables: t.Mapping[str, t.Any], path: pathlib.Path) -> None:
    """Up and down by roles, up by the one task, and again; then down by the task what was up by roles."""
    wanted = {"networks": networks(account=variables.get("account"))}
    before = seen(host)
    play_roles(host, variables, path, "present")
    by_roles = seen(host)
    assert by_roles != before
    again = host.converge("lab_host", wanted)
    assert (again["changed"], again["actions"]) == (False, [])
    host.converge("lab_host", {**wanted, "state": "absent"})
    host.converge("lab_host", wanted)
    by_task = seen(host)
    for name in by_roles:
        assert by_task[name] == by_roles[name], name
    play_roles(host, variables, path, "absent")
    left = seen(host)
    assert (left["links"], left["firewall"], left["programs"]) == (
        before["links"],
        before["firewall"],
        before["programs"],
    )


@pytest.mark.slow
def test_a_plain_host_is_the_same_by_roles_and_by_one_task(host: Host, tmp_path: pathlib.Path) -> None:
    host.run("sh", "-c", "ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up")
    host.run("sh", "-c", "ip address add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1")
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{host.pid}\n")
    variables = {
        "ansible_connection": "labspan.vmnet.netns",
        "ansible_netns_pid_file": str(pid_file),
        "ansible_python_interpreter": host.interpreter,
        "account": "nobody",
    }
    hold_both_ways_together(host, variables, tmp_path)


@pytest.mark.slow
@needs_system_host
def test_a_host_with_systemd_is_the_same_by_roles_and_by_one_task(
    python_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with SystemHost(python_path, files={"/etc/resolv.conf": "nameserver 192.0.2.1\n"}) as host:
        host.run("sh", "-c", "ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up")
        host.run("sh", "-c", "ip address add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1")
        hold_both_ways_together(host, host.variables, tmp_path)
