# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A network that becomes one of another scenario: rules, DHCP and the host come and go, those on the bridge stay."""

from __future__ import annotations

import subprocess
import typing as t

import pytest
from support.hosts import Host, await_condition

pytestmark = pytest.mark.one_interpreter

ON_IT = ("one", "two")
NETWORK: dict[str, t.Any] = {
    "name": "lhchange",
    "taps": [{"name": "lhtap"}],
    "bridge_options": {"ports": [f"lh{name}" for name in ON_IT]},
}
SUBNET = {"subnet": "10.64.0.0/24"}


@pytest.fixture
def neighbours(host: Host) -> t.Iterator[dict[str, int]]:
    """A host with a way out, and two hosts that hang on ports; their processes."""
    host.run("sh", "-c", "ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up")
    host.run("sh", "-c", "ip address add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1")
    found: dict[str, int] = {}
    started = []
    for number, name in enumerate(ON_IT, 11):
        process = host.start("unshare", "--net", "sleep", "1000")
        started.append(process)
        inside = host.child(process)
        found[name] = inside
        own = host.out("readlink", "/proc/self/ns/net").strip()
        await_condition(
            lambda inside=inside, own=own: (
                subprocess.run(  # type: ignore[misc]
                    ["readlink", f"/proc/{inside}/ns/net"], capture_output=True, text=True, check=False
                ).stdout.strip()
                not in ("", own)
            ),
            "the neighbour's own network",
        )
        end = f"type veth peer name eth0 netns {inside}"
        subprocess.run(["nsenter", "-t", str(host.pid), "-n", "ip", *f"link add lh{name} up {end}".split()], check=True)
        for words in ("link set lo up", "link set eth0 up", f"address add 10.64.0.{number}/24 dev eth0"):
            subprocess.run(["nsenter", "-t", str(inside), "-n", "ip", *words.split()], check=True)
    yield found
    for process in started:
        process.kill()
        process.wait()


def talk(connection: subprocess.Popen[str], words: str) -> str:
    """Send a line on a connection, and hear what comes back on it."""
    assert connection.stdin is not None
    assert connection.stdout is not None
    connection.stdin.write(f"{words}\n")
    connection.stdin.flush()
    return connection.stdout.readline().strip()


def test_a_connection_on_the_bridge_outlives_every_scenario(host: Host, neighbours: dict[str, int]) -> None:
    private = {**NETWORK, "scenario": "private"}
    host.converge("lab_host", {"networks": [private]})
    indices = {name: (host.link(name) or {})["ifindex"] for name in ("lhchange0", "lhtap")}
    inside = {name: ("nsenter", "-t", str(pid), "-n") for name, pid in neighbours.items()}
    server = subprocess.Popen([*inside["one"], "socat", "TCP-LISTEN:7777,reuseaddr", "EXEC:cat"])
    listening = [*inside["one"], "ss", "-Hltn", "sport = :7777"]
    await_condition(
        lambda: bool(subprocess.run(listening, capture_output=True, check=False).stdout), "the server to listen"
    )
    connection = subprocess.Popen(
        [*inside["two"], "socat", "-", "TCP:10.64.0.11:7777"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert talk(connection, "private") == "private"
        for scenario in ("routed", "nat", "private"):
            words = {} if scenario == "private" else SUBNET
            wanted = {"networks": [{**NETWORK, "scenario": scenario, **words}]}
            foretold = host.converge("lab_host", wanted, check=True)
            result = host.converge("lab_host", wanted)
            assert result["actions"] == foretold["actions"]
            assert not [action for action in result["actions"] if "bridge lhchange0" in action and "lete" in action]
            assert not [action for action in result["actions"] if "lhtap" in action]
            assert talk(connection, scenario) == scenario
            assert {name: (host.link(name) or {})["ifindex"] for name in indices} == indices
            tables = host.out("nft", "list", "tables").split()
            assert ("labspan_lhchange" in tables) == (scenario != "private")
            assert ("labspan_lhchange_closed" in tables) == (scenario == "private")
            assert ("dnsmasq" in host.out("ps", "-e", "-o", "comm=")) == (scenario != "private")
            assert host.addresses("lhchange0") == ([] if scenario == "private" else ["10.64.0.1/24"])
            again = host.converge("lab_host", wanted)
            assert (again["changed"], again["actions"]) == (False, [])
    finally:
        connection.kill()
        server.kill()
        connection.wait()
        server.wait()
