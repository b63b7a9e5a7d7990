# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet of lab hosts as its users run it, with site.yml: up, again, with one host broken, changed live, and down."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
from lab import hosts
from lab.processes import wait_until
from support.tiny_guests import tiny_guest as guest
from support.traces import differences, dump, dumps
from support.users import ROOT, Played, Running, User, entered, inventory

CONSOLE = ROOT / "roles" / "tiny_guest" / "files" / "guest_console.py"

Options = t.Dict[str, t.Any]
Dumps = t.Dict[str, t.Dict[str, str]]

#: The two guests of the first host, which talk to each other whatever becomes of their network.
TALKERS = {"one": "10.1.0.1", "two": "10.1.0.2"}


def talk(scenario: str) -> Options:
    """The network of the talkers in a scenario."""
    subnet = {} if scenario == "private" else {"subnet": "10.1.0.0/24", "gateway": "10.1.0.254"}
    return {
        "name": "talk",
        "scenario": scenario,
        **subnet,
        "guests": [guest(name, f"labspan.address={address}/24") for name, address in TALKERS.items()],
    }


def changed(played: Played) -> list[str]:
    """The hosts that a run changed, each as often as it did."""
    return sorted(task["host"] for task in played.changed)


class Fleet:
    """A lab of many hosts, and the inventory that says what they hold."""

    def __init__(self, lab: hosts.Lab, path: pathlib.Path, *, guests: bool) -> None:
        self.lab = lab
        self.guests = guests
        self.user = User(path)
        self.names = [host.name for host in lab.hosts]
        self.of_hosts: dict[str, Options] = {name: self._networks(index) for index, name in enumerate(self.names)}

    def _networks(self, index: int) -> Options:
        if index == 0 and self.guests:
            return {"vmnet_networks_extra": [talk("private")]}
        if index == 1 and self.guests:
            nic = {"network": "web", "mac": "52:54:00:00:00:01", "address": "10.97.0.5"}
            return {"vmnet_guests": [{**guest("app", "labspan.dhcp"), "nics": [nic]}]}
        kind = ("private", "routed", "nat")[index % 3]
        subnet = {} if kind == "private" else {"subnet": f"10.{100 + index}.0.0/24"}
        taps = [{"name": f"x{number}"} for number in range(1 + index % 3)]
        return {"vmnet_networks_extra": [{"name": "more", "scenario": kind, **subnet, "taps": taps}]}

    def start(self, *options: str, **environment: str) -> Running:
        web = {"name": "web", "scenario": "nat", "taps": [{"name": "w-{{ inventory_hostname }}"}]}
        own = {"name": "own", "scenario": "routed", "subnet": "10.{{ 200 + vmnet_number }}.0.0/24"}
        of_hosts = {name: {"vmnet_number": number, **self.of_hosts[name]} for number, name in enumerate(self.names)}
        self.user.write("hosts.json", inventory(self.lab, {"vmnet_networks": [web, own]}, of_hosts))
        return self.user.start("site", "-i", "hosts.json", *options, **environment)

    def play(self, *options: str, code: int = 0, **environment: str) -> Played:
        played = self.start(*options, **environment).finish()
        assert played.code == code, played.output
        return played

    def dumps(self) -> Dumps:
        return dumps(self.lab.hosts)

    def rests(self, **environment: str) -> None:
        """A run reaches each host by one task, and that changes nothing."""
        before = self.dumps()
        again = self.play(**environment)
        assert changed(again) == [], again.output
        assert sorted(task["host"] for task in again.reached) == sorted(self.names)
        assert differences(before, self.dumps()) == [], "a run that reports no change has changed something"


def in_guest(host: hosts.Host, name: str, command: str) -> str:
    """What a shell command in a guest prints."""
    console = f"/run/labspan/guests/{name}/console.sock"
    done = host.run("python3", str(CONSOLE), "--timeout", "60", console, "--", "sh", "-c", command)
    return done.stdout


def heard(host: hosts.Host) -> int:
    """How many lines have come over the one connection between the talkers."""
    return int(in_guest(host, "two", "wc -l </tmp/heard"))


def begin_to_talk(host: hosts.Host) -> None:
    # A listener that has nothing to say, and will not say so, since that would end the connection.
    in_guest(host, "two", "setsid sh -c 'sleep 100000 | busybox nc -l -p 5000 >/tmp/heard' >/dev/null 2>&1 &")
    words = "while :; do echo x; sleep 0.2; done | busybox nc 10.1.0.2 5000"
    in_guest(host, "one", f"sleep 1; setsid sh -c '{words}' >/dev/null 2>&1 &")
    wait_until(lambda: heard(host) > 5, 60, "the talkers' first words")


def identities(host: hosts.Host) -> t.Any:
    """The talkers' processes and the interfaces that their taps and their bridge are."""
    processes = sorted(host.run("pgrep", "-f", "qemu-system.*-name").stdout.split())
    links = json.loads(host.run("ip", "-j", "link", "show", "master", "talk0").stdout)
    return processes, sorted((link["ifindex"], link["ifname"]) for link in links)


def scenario_of(host: hosts.Host) -> str:
    """What the kernel says of the talkers' bridge."""
    if "inet " not in host.run("ip", "-4", "address", "show", "talk0").stdout:
        return "private"
    table = host.run("nft", "list", "table", "inet", "labspan_talk").stdout
    return "nat" if "masquerade" in table else "routed"


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> t.Iterator[Fleet]:
    """Lab hosts on one LAN."""
    size, guests = request.param
    name = f"fleet-{os.getpid()}-{size}"
    made = hosts.up(name, [f"lab{number}" for number in range(size)], tiny_guest=guests)
    yield Fleet(made, tmp_path, guests=guests)
    hosts.down(name)


@pytest.mark.parametrize(
    "fleet", [(4, False), pytest.param((20, True), marks=pytest.mark.slow)], indirect=True, ids=["small", "large"]
)
def test_a_fleet_lives(fleet: Fleet) -> None:
    broken = fleet.lab.hosts[-1]
    before = fleet.dumps()

    if not fleet.guests:
        plan_the_example(fleet)
    planned = fleet.play("--check", "--diff")
    assert changed(planned) == sorted(fleet.names)
    assert '+        "web0": {' in planned.output
    assert differences(before, fleet.dumps()) == [], "check mode has written"

    # One host is broken on purpose: the name of its bridge is somebody else's.
    broken.run("ip", "link", "add", "web0", "type", "veth", "peer", "web9")
    refused = dump(broken)
    made = fleet.play(code=2)
    assert changed(made) == sorted(fleet.names[:-1])
    assert "web0" in made.output
    changes = differences({broken.name: refused}, {broken.name: dump(broken)})
    assert changes == [], "a host that was refused was changed"
    broken.run("ip", "link", "delete", "web0")
    up = fleet.dumps()
    assert all(up[name]["firewall"] != before[name]["firewall"] for name in fleet.names[:-1])
    assert [".zip" in up[name]["files"] for name in fleet.names] == [True] * (len(fleet.names) - 1) + [False]
    assert changed(fleet.play()) == [broken.name]

    two_runs_at_once(fleet)
    if fleet.guests:
        fleet.rests(ANSIBLE_STRATEGY="free")
        live_changes(fleet)
        exclusive(fleet)

    assert changed(fleet.play("-e", "vmnet_state=absent")) == sorted(fleet.names)
    assert differences(before, fleet.dumps()) == []


def plan_the_example(fleet: Fleet) -> None:
    """The inventory that the collection shows, on hosts that are here, whose cards and images are called otherwise."""
    here = {
        **entered(fleet.lab.hosts[0].pid_file.parent / "{{ inventory_hostname }}.pid"),
        "lan_card": hosts.UPLINK,
        "debian": [],
        # Nothing configures the card at boot.
        "vmnet_persistent": "false",
    }
    example = str(ROOT / "playbooks" / "inventory" / "fleet.yml")
    planned = fleet.user.play("site", "-i", example, "--check", "-e", json.dumps(here))
    assert set(changed(planned)) == {"lab1", "lab2", "lab3"}
    assert {task["action"] for task in planned.reached if task["host"] == "lab3"} == {"bridge_uplink", "lab_host"}


def two_runs_at_once(fleet: Fleet) -> None:
    """They wait for each other on each host, and the second one finds what the first one has made."""
    third = fleet.names[2]
    (network,) = fleet.of_hosts[third]["vmnet_networks_extra"]
    network["taps"] += [{"name": f"y{number}"} for number in range(3)]
    played = [running.finish() for running in [fleet.start(), fleet.start()]]
    assert [each.code for each in played] == [0, 0], played[0].output + played[1].output
    assert [name for each in played for name in changed(each)] == [third]
    fleet.rests()


def live_changes(fleet: Fleet) -> None:
    """The scenario of a network changes under its guests, who do not notice."""
    first = fleet.lab.hosts[0]
    begin_to_talk(first)
    are = identities(first)
    assert scenario_of(first) == "private"
    for scenario in ("routed", "nat", "private"):
        fleet.of_hosts[first.name] = {"vmnet_networks_extra": [talk(scenario)]}
        said = heard(first)
        assert changed(fleet.play()) == [first.name]
        assert scenario_of(first) == scenario
        assert identities(first) == are
        wait_until(lambda said=said: heard(first) > said + 5, 60, "more over the same connection")  # type: ignore[misc]
    fleet.rests()


def exclusive(fleet: Fleet) -> None:
    """What is not listed any more goes if that is asked for, and nothing else."""
    host = fleet.lab.hosts[2]
    others = {name: found for name, found in fleet.dumps().items() if name != host.name}
    fleet.of_hosts[host.name].pop("vmnet_networks_extra")
    assert changed(fleet.play()) == []
    assert '"more0"' in dump(host)["links"]
    assert changed(fleet.play("-e", "vmnet_exclusive=true")) == [host.name]
    links = dump(host)["links"]
    assert '"web0"' in links
    assert not {name for name in ("more0", "x0", "y0", "y2") if f'"{name}"' in links}
    now = {name: found for name, found in fleet.dumps().items() if name != host.name}
    assert differences(others, now) == []
