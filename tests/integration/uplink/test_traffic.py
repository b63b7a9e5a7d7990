# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What goes on while the uplink moves: pings, connections, and addresses that router advertisements gave."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.uplinks import GATEWAY, GATEWAY6, PLAIN, cable, move, reaches, uplink_host

pytestmark = pytest.mark.one_interpreter

#: Behind the gateway: an address that is reached by the default route.
FAR, FAR6 = "203.0.113.1", "2001:db8:f::1"

STRICT = f"""
{PLAIN}
sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.arp_ignore=1
sysctl -qw net.ipv4.conf.eth0.ignore_routes_with_linkdown=1
"""

# One byte there and back, again and again; says at the end how many.
_ECHO = """
import socket, threading
def serve(family, address):
    server = socket.create_server((address, 7), family=family)
    while True:
        peer, _ = server.accept()
        threading.Thread(target=echo, args=(peer,), daemon=True).start()
def echo(peer):
    while data := peer.recv(64):
        peer.sendall(data)
for family, address in ((socket.AF_INET, "{0}"), (socket.AF_INET6, "{1}")):
    threading.Thread(target=serve, args=(family, address), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
_TALK = """
import signal, socket, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
connection = socket.create_connection((sys.argv[1], 7), timeout=10)
print("talking", flush=True)
count, worst = 0, 0.0
while not stop:
    begun = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(64) == b"x"
    worst = max(worst, time.monotonic() - begun)
    count += 1
    time.sleep(0.01)
print(count, round(worst * 1000), flush=True)
"""


@pytest.fixture(params=[PLAIN, STRICT], ids=["plain", "strict"])
def host(request: pytest.FixtureRequest, interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    with uplink_host(python_path, interpreter, request.param) as made:
        made.run("sh", "-c", f"ip -n lan addr add {FAR}/32 dev lo; ip -n lan addr add {FAR6}/128 dev lo")
        yield made


def pinging(host: Host, target: str) -> subprocess.Popen[str]:
    return host.start("ping", "-i", "0.01", "-q", target, stdout=subprocess.PIPE)


def lost(host: Host, ping: subprocess.Popen[str]) -> int:
    os.kill(host.child(ping), signal.SIGINT)
    output, _errors = ping.communicate(timeout=30)
    summary = next(line for line in output.splitlines() if "packets transmitted" in line)
    sent, received = (int(part.split()[0]) for part in summary.split(",")[:2])
    assert sent > 20, summary
    # The last one may be on its way when ping is asked to end.
    return max(sent - received - 1, 0)


def test_no_ping_is_lost_there_or_back(host: Host) -> None:
    for more in ({}, {"state": "absent"}):
        pings = [pinging(host, target) for target in (GATEWAY, GATEWAY6, FAR, FAR6)]
        move(host, **more)
        assert [lost(host, ping) <= 1 for ping in pings] == [True] * 4


def test_open_connections_live(host: Host) -> None:
    echo = host.start(
        "ip", "netns", "exec", "lan", host.interpreter, "-c", _ECHO.format(FAR, FAR6), stdout=subprocess.PIPE
    )
    assert echo.stdout is not None
    assert echo.stdout.readline() == "ready\n"
    talks = [
        host.start(host.interpreter, "-c", _TALK, target, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for target in (FAR, FAR6)
    ]
    for talk in talks:
        assert talk.stdout is not None
        assert talk.stdout.readline() == "talking\n"
    move(host)
    move(host, state="absent")
    for talk in talks:
        os.kill(host.child(talk), signal.SIGTERM)
        output, errors = talk.communicate(timeout=30)
        count, _worst = (int(word) for word in output.split())
        assert (count > 50, errors) == (True, "")


def test_the_notes_own_commands_lose_ipv6(host: Host) -> None:
    """The twin: what the comparison finds where the move is made by hand, as the notes have it."""
    ping = pinging(host, GATEWAY6)
    host.run(
        "sh",
        "-c",
        "ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0; ip addr flush dev eth0; "
        f"ip addr add 192.0.2.10/24 dev br0; ip route add default via {GATEWAY}",
    )
    assert reaches(host, GATEWAY)
    assert not reaches(host, GATEWAY6)
    assert lost(host, ping) > 5


@pytest.fixture
def advertised(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    """A host whose IPv6 is all from router advertisements."""
    with Host(python_path, interpreter) as made:
        cable(made)
        made.run("ip", "netns", "exec", "lan", "sysctl", "-qw", "net.ipv6.conf.uplink.forwarding=1")
        options = ["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=uplink", "--enable-ra"]
        options += ["--dhcp-range=2001:db8:1::,ra-only,64,600", "--ra-param=uplink,4,600", "--pid-file="]
        options += ["--dhcp-leasefile=/run/leases"]
        process = made.start("ip", "netns", "exec", "lan", "dnsmasq", *options, stderr=subprocess.DEVNULL)
        made.run("sh", "-c", "ip link set eth0 up; ip addr add 192.0.2.10/24 dev eth0")
        await_condition(lambda: bool(addresses(made, "eth0")), "a router advertisement")
        made.settle()
        yield made
        process.kill()
        process.wait()


def addresses(host: Host, name: str) -> list[str]:
    return [address for address in host.addresses(name) if ":" in address]


def defaults(host: Host) -> list[tuple[str, str]]:
    shown = host.json("ip", "-6", "-j", "route", "show", "default")
    return [(route["gateway"], route["dev"]) for route in shown]


def lifetime(host: Host, name: str) -> int:
    shown = host.json("ip", "-6", "-j", "addr", "show", "dev", name, "scope", "global")
    return int(shown[0]["addr_info"][0]["valid_life_time"])


def test_router_advertisements_go_on_on_the_bridge(advertised: Host) -> None:
    before, routes = addresses(advertised, "eth0"), defaults(advertised)
    assert routes
    move(advertised)
    assert addresses(advertised, "br0") == before
    assert defaults(advertised) == [(gateway, "br0") for gateway, _interface in routes]
    # An advertisement gives the whole time again.
    known = [lifetime(advertised, "br0")]
    await_condition(lambda: _rises(known, lifetime(advertised, "br0")), "the next router advertisement")
    assert addresses(advertised, "br0") == before
    assert defaults(advertised) == [(gateway, "br0") for gateway, _interface in routes]
    assert addresses(advertised, "eth0") == []
    assert not [line for line in advertised.out("ip", "-6", "route").splitlines() if "eth0" in line]
    move(advertised, state="absent")
    assert addresses(advertised, "eth0") == before
    assert defaults(advertised) == routes


def _rises(known: list[int], now: int) -> bool:
    known.append(now)
    return now > known[-2]
