# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole host in one task, beside a ping and beside a task for each command; and a fleet of hosts beside its pings."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import typing as t

from benchmark.measure import PING, Contender, Goal, Rounds, race, table
from lab import hosts

HERE = pathlib.Path(__file__).resolve().parent
LAB, FLEET = "benchmark", "benchmarkfleet"
HOST, PEER = "labhost", "peerhost"
#: The bridge of the network on the LAN, which on a real host bridge_uplink makes.
LAN_BRIDGE = "br0"
TAPS, GUESTS = 40, 10

TASK = "lab_host"
LOOP = "a task for each command"
CREATE, DELETE = "lab_host makes all of it", "lab_host removes all of it"
PINGS = "a ping of each host"

State = t.Dict[str, t.Any]


def _guest(number: int) -> State:
    """A QEMU that has nothing to boot from: it has looked everywhere after a second, and halts. Nobody in it hears the
    power button, so that the time for which it would be waited for is not measured.
    """
    nic = {"network": ("web", "dmz", "office", "lan")[number % 4], "mac": f"52:54:00:be:00:{number:02x}"}
    machine = {"memory": "16", "accelerator": "tcg", "machine": "pc", "shutdown_timeout": 0}
    return {"name": f"bench{number}", **machine, "nics": [nic]}


def _taps(network: str, first: int, number: int) -> list[State]:
    return [{"name": f"bench{network}{index}", "owner": "root"} for index in range(first, first + number)]


def variables() -> State:
    """Four networks, one of each scenario, with 40 taps, ten of which are guests'."""
    networks: list[State] = [
        {"name": "web", "scenario": "nat", "subnet": "10.97.1.0/24", "bridge": "web0"},
        {"name": "dmz", "scenario": "routed", "subnet": "10.98.1.0/24", "bridge": "dmz0"},
        {"name": "office", "scenario": "private", "bridge": "office0"},
        {"name": "lan", "scenario": "l2", "bridge": LAN_BRIDGE, "interface": hosts.UPLINK},
    ]
    own = TAPS - GUESTS
    for index, network in enumerate(networks):
        share = own // len(networks) + (index < own % len(networks))
        network["taps"] = _taps(network["name"], 0, share)
    return {"vmnet_networks": networks, "vmnet_guests": [_guest(number) for number in range(GUESTS)]}


def loop_variables() -> State:
    """The same for a task for each command."""
    networks: list[State] = [
        {
            "bridge": "web0",
            "address": "10.97.1.1/24",
            "subnet": "10.97.1.0/24",
            "range": "10.97.1.100,10.97.1.200",
            "masquerade": True,
        },
        {
            "bridge": "dmz0",
            "address": "10.98.1.1/24",
            "subnet": "10.98.1.0/24",
            "range": "10.98.1.100,10.98.1.200",
        },
        {"bridge": "office0"},
        {"bridge": LAN_BRIDGE},
    ]
    taps = [{"name": f"tap{number}", "bridge": networks[number % 4]["bridge"]} for number in range(TAPS)]
    guests = [
        {"name": f"bench{number}", "memory": 16, "tap": f"tap{number}", "mac": f"52:54:00:be:01:{number:02x}"}
        for number in range(GUESTS)
    ]
    return {"uplink": hosts.UPLINK, "loop_networks": networks, "loop_taps": taps, "loop_guests": guests}


def fleet_variables(number: int) -> State:
    """A network of one of three scenarios, with ten taps."""
    scenario = ("nat", "routed", "private")[number % 3]
    network: State = {"name": "lab", "scenario": scenario, "taps": _taps("", 0, 10)}
    if scenario != "private":
        network["subnet"] = f"10.97.{number}.0/24"
    return {"vmnet_networks": [network], "vmnet_guests": []}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a host and a fleet cost."""

    rerun: Rounds
    change: Rounds
    fleet: t.Optional[Rounds]
    hosts: int
    """In the fleet."""

    def goals(self) -> list[Goal]:
        """What is expected."""
        host = f"rerun of a host with 4 networks, {TAPS} taps and {GUESTS} guests"
        goals = [
            Goal(f"{host} / one ping", self.rerun.ratio(TASK, PING), 1.5),
            Goal(f"{LOOP} / {host}", self.rerun.ratio(LOOP, TASK), 15, at_least=True),
        ]
        if self.fleet is not None:
            text = f"rerun of {self.hosts} hosts / a ping of each, processor time"
            goals.append(Goal(text, self.fleet.ratio(TASK, PINGS), 1.5))
        return goals

    def text(self) -> str:
        """The tables."""
        rows = [
            ["lab_host, rerun", f"{self.rerun.ratio(TASK, PING):.2f}"],
            [f"{LOOP}, rerun", f"{self.rerun.ratio(LOOP, PING):.1f}"],
            ["lab_host, creation", f"{self.change.ratio(CREATE, PING):.2f}"],
            ["lab_host, removal", f"{self.change.ratio(DELETE, PING):.2f}"],
        ]
        text = table(["goal", "wanted", "measured", "met"], [goal.row() for goal in self.goals()])
        return text + "\n" + table(["whole playbook", "in playbooks of one ping"], rows)


def measure(rounds: int, fleet: int, interpreter: str, say: t.Callable[[str], None]) -> Found:
    """All of it, in labs of its own."""
    with tempfile.TemporaryDirectory(prefix="labspan-benchmark-") as directory:
        rerun, change = _measure_host(rounds, interpreter, pathlib.Path(directory), say)
        cost = _measure_fleet(rounds, fleet, interpreter, pathlib.Path(directory), say) if fleet else None
        return Found(rerun, change, cost, fleet)


def _measure_host(
    rounds: int, interpreter: str, directory: pathlib.Path, say: t.Callable[[str], None]
) -> tuple[Rounds, Rounds]:
    with _lab(LAB, [HOST, PEER]) as lab:
        lines = f"link add name {LAN_BRIDGE} type bridge mcast_snooping 0\nlink set dev {LAN_BRIDGE} up\n"
        lab.member(HOST).run("ip", "-batch", "-", input=lines)
        own = Plays(lab, {HOST: variables()}, interpreter, directory / "own.json")
        peer = Plays(lab, {PEER: loop_variables()}, interpreter, directory / "peer.json")
        for name, plays in (("lab_host.yml", own), ("lab_loop.yml", peer)):
            say(f"lab host: {name} makes the host, and changes nothing when it runs again")
            plays.run(name)
            plays.rests(name)
        _check(lab.member(HOST))
        _check(lab.member(PEER))
        rerun = race(
            [
                Contender(PING, lambda: own.run("ping.yml")),
                Contender(TASK, lambda: own.run("lab_host.yml")),
                Contender(LOOP, lambda: peer.run("lab_loop.yml")),
            ],
            rounds,
            lambda text: say(f"lab host, rerun: {text}"),
        )

        def absent() -> None:
            own.run("lab_host.yml", state="absent")

        change = race(
            [
                Contender(PING, lambda: own.run("ping.yml")),
                Contender(CREATE, lambda: own.run("lab_host.yml"), prepare=absent),
                Contender(DELETE, absent, finish=lambda: own.run("lab_host.yml")),
            ],
            min(rounds, 3),
            lambda text: say(f"lab host, creation and removal: {text}"),
        )
        return rerun, change


def _measure_fleet(
    rounds: int, number: int, interpreter: str, directory: pathlib.Path, say: t.Callable[[str], None]
) -> Rounds:
    names = [f"host{index}" for index in range(number)]
    say(f"fleet: starting {number} hosts")
    with _lab(FLEET, names) as lab:
        inventory = {name: fleet_variables(index) for index, name in enumerate(names)}
        plays = Plays(lab, inventory, interpreter, directory / "fleet.json")
        say("fleet: making the networks")
        plays.run("lab_host.yml")
        plays.rests("lab_host.yml")
        return race(
            [Contender(PINGS, lambda: plays.run("ping.yml")), Contender(TASK, lambda: plays.run("lab_host.yml"))],
            rounds,
            lambda text: say(f"fleet: {text}"),
            clock=_processor_time,
        )


@contextlib.contextmanager
def _lab(name: str, names: t.Sequence[str]) -> t.Iterator[hosts.Lab]:
    lab = hosts.up(name, names)
    try:
        yield lab
    finally:
        hosts.down(name)


def _processor_time() -> float:
    """Of all that ended below this process: the playbooks, and in namespaces of this machine what they ran on hosts."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _check(host: hosts.Host) -> None:
    """The host is what is measured: looked at with ip and ps."""
    taps = json.loads(host.run("ip", "-j", "link", "show", "type", "tun").stdout)
    guests = host.run("ps", "-C", "qemu-system-x86", "-o", "pid=", check=False).stdout.split()
    if (len(taps), len(guests)) != (TAPS, GUESTS):
        raise SystemExit(f"{host.name} has {len(taps)} taps and {len(guests)} guests")


class Plays:
    """Playbooks for hosts of a lab."""

    def __init__(self, lab: hosts.Lab, inventory: t.Mapping[str, State], interpreter: str, path: pathlib.Path) -> None:
        self._path = path
        common = {
            "ansible_connection": "labspan.vmnet.netns",
            "ansible_become": False,
            "ansible_python_interpreter": interpreter,
        }
        members = {
            name: {"ansible_netns_pid_file": str(lab.member(name).pid_file), **values}
            for name, values in inventory.items()
        }
        path.write_text(json.dumps({"all": {"vars": common, "hosts": members}}), encoding="utf-8")

    def run(self, name: str, **extra: str) -> None:
        """Run a playbook that must succeed."""
        self._run(name, extra)

    def rests(self, name: str) -> None:
        """Run a playbook that must find nothing to do."""
        output = self._run(name, {})
        recap = output.rpartition("PLAY RECAP")[2]
        if " changed=0 " not in recap or any(f" changed={digit}" in recap for digit in "123456789"):
            raise SystemExit(f"the rerun of {name} changed something:\n{output}")

    def _run(self, name: str, extra: t.Mapping[str, str]) -> str:
        program = pathlib.Path(sys.executable).parent / "ansible-playbook"
        words = ["--inventory", str(self._path), "--forks", str(2 * (os.cpu_count() or 1))]
        words += [word for key, value in extra.items() for word in ("--extra-vars", f"{key}={value}")]
        done = subprocess.run(
            [str(program), *words, str(HERE / name)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_PIPELINING": "true", "ANSIBLE_NOCOLOR": "true"},
        )
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout
