# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that nobody would think of: random addresses, routes, rules and neighbours, moved and moved back.

C(ip -force -batch) makes the state, so what the kernel does not take is not there; what it took is what counts.
"""

from __future__ import annotations

import pathlib
import random
import subprocess
import typing as t

import pytest
from support.hosts import Host
from support.uplinks import cable, difference

pytestmark = pytest.mark.one_interpreter

# Moves there on one line of input, and back on the next, with the mover itself; only the dead-man stays at home.
_MOVER = """
import sys, traceback
sys.path.insert(0, sys.argv[1])
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _guard, _journal, _plain, _transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import Kernel
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move
_guard.arm = lambda transaction: None
_plain.PlainHost.leases = lambda self, interface: False
for number, line in enumerate(sys.stdin):
    try:
        back = line.strip() == "back"
        card = Kernel().links()["eth0"]
        move = Move("br0", "eth0", card.mac, card.mtu, "move", back=back)
        order = _transaction.Order(move, _plain.find("eth0"), "labspan.vmnet:random", {}, 30.0, None)
        transaction = _journal.Transaction(f"{number:016x}")
        _transaction.carry_out(order, transaction)
        transaction.advance((_journal.MOVED,), _journal.CONFIRMED)
        if back:
            _transaction.remove_bridge("br0")
        print("done", flush=True)
    except BaseException as error:
        traceback.print_exc()
        print(f"failed: {error}", flush=True)
"""

_VIEW = """
ip -d -o address show dev {0} | sed -E 's/^[0-9]+: //; s/[0-9]+sec/ends/g; s/ +/ /g'
for table in main 100 101; do
  ip -d route show table $table; ip -d -6 route show table $table | sed -E 's/ expires [0-9]+sec/ ends/'
done | sed -E 's/ +/ /g; s/ $//'
ip -d -4 route show table local | grep -v ' dev lo '
ip -d rule; ip -d -6 rule
{{ ip neigh show nud permanent; ip -6 neigh show nud permanent; ip neigh show proxy; }} | sort
true
"""


class Mover:
    """The mover in a process of its own on the host."""

    def __init__(self, host: Host) -> None:
        self.process = host.start(
            host.interpreter, "-c", _MOVER, str(host.python_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def go(self, way: str) -> str:
        stdin, stdout = t.cast("t.IO[str]", self.process.stdin), t.cast("t.IO[str]", self.process.stdout)
        stdin.write(f"{way}\n")
        stdin.flush()
        return stdout.readline().strip()


def addresses(chance: random.Random) -> t.Iterator[str]:
    for number in chance.sample(range(10, 30), chance.randrange(5)):
        network = chance.choice(["192.0.2", "198.51.100"])
        form = chance.choice(
            [
                f"{network}.{number}/24 brd +",
                f"{network}.{number}/25",
                f"{network}.{number}/32",
                f"{network}.{number} peer 203.0.113.{number}/32",
                f"{network}.{number}/24 metric {chance.randrange(1, 90)}",
                f"{network}.{number}/24 scope link",
            ]
        )
        more = chance.choice(["", "", " noprefixroute", " label eth0:a", " valid_lft 5000 preferred_lft 3000"])
        yield f"address add {form} dev eth0{more}"
    for number in chance.sample(range(10, 30), chance.randrange(4)):
        form = f"2001:db8:{chance.randrange(1, 3)}::{number}/{chance.choice([64, 64, 128, 48])}"
        more = chance.choice(["", "", " noprefixroute", " valid_lft 5000 preferred_lft 0", " metric 77"])
        yield f"address add {form} dev eth0 nodad{more}"


def routes(chance: random.Random) -> t.Iterator[str]:
    shapes = [
        "route {verb} 10.{n}.0.0/16 via 192.0.2.1",
        "route {verb} 10.{n}.0.0/16 via 192.0.2.2 metric {m}",
        "route {verb} 10.{n}.0.0/16 dev eth0 scope link metric {m}",
        "route {verb} 10.{n}.0.0/16 dev eth0 src 192.0.2.{h}",
        "route {verb} 10.{n}.0.0/16 via 10.99.9.9 dev eth0 onlink mtu 1400 advmss 1200",
        "route {verb} 10.{n}.0.0/16 nexthop via 192.0.2.1 weight 2 nexthop via 192.0.2.2",
        "route {verb} 10.{n}.0.0/16 nexthop dev eth0 nexthop dev other0",
        "route {verb} 10.{n}.0.0/16 via 192.0.2.1 table 100 proto static",
        "route {verb} default via 192.0.2.1 metric {m} table {t}",
        "route {verb} local 10.{n}.1.1 dev eth0 table 101",
        "route {verb} multicast 239.{n}.0.0/16 dev eth0 table 101",
        "route {verb} blackhole 10.{n}.0.0/16 metric {m}",
        "route {verb} throw 10.{n}.0.0/16 table 100",
        "route {verb} 10.{n}.0.0/16 dev other0 metric {m}",
        "route {verb} 10.{n}.0.0/16 via inet6 fe80::{h} dev eth0",
        "-6 route {verb} 2001:db8:f{n}::/48 via 2001:db8:1::1 metric {m}",
        "-6 route {verb} 2001:db8:f{n}::/48 dev eth0 metric {m}",
        "-6 route {verb} 2001:db8:f{n}::/48 via fe80::{h} dev eth0",
        "-6 route {verb} 2001:db8:f{n}::/48 nexthop via fe80::1 dev eth0 weight 3 nexthop via fe80::2 dev eth0",
        "-6 route {verb} 2001:db8:f{n}::/48 via fe80::1 dev eth0 src 2001:db8:1::{h} table {t}",
        "-6 route {verb} default via fe80::{h} dev eth0 expires 4000 pref high",
        "-6 route {verb} unreachable 2001:db8:f{n}::/48 metric {m}",
        "-6 route {verb} 2001:db8:f{n}::/48 from 2001:db8:9::/48 via fe80::1 dev eth0",
        "-6 route {verb} 2001:db8:f{n}::/48 dev other0 metric {m}",
    ]
    for _number in range(chance.randrange(16)):
        yield chance.choice(shapes).format(
            verb=chance.choice(["add", "add", "append", "prepend"]),
            n=chance.randrange(4),
            m=chance.choice([5, 5, 100, 1024]),
            h=chance.randrange(10, 30),
            t=chance.choice(["100", "main"]),
        )


def rules(chance: random.Random) -> t.Iterator[str]:
    for _number in range(chance.randrange(5)):
        selector = chance.choice(
            ["iif eth0", "oif eth0", "from 192.0.2.0/24", "iif eth0 fwmark 0x1/0xff", "to 10.1.0.0/16 oif eth0"]
        )
        action = chance.choice(["lookup 100", "lookup 101", "prohibit", "lookup main suppress_prefixlength 0"])
        family = chance.choice(["", "", "-6 "]) if "eth0" in selector and "10.1" not in selector else ""
        yield f"{family}rule add {selector} {action} priority {chance.choice([700, 700, 800])}"


def neighbours(chance: random.Random) -> t.Iterator[str]:
    for number in chance.sample(range(40, 60), chance.randrange(3)):
        yield f"neigh add 192.0.2.{number} lladdr 02:00:00:00:00:{number} dev eth0 nud permanent"
    if chance.random() < 0.3:
        yield f"neigh add proxy 192.0.2.{chance.randrange(60, 80)} dev eth0"
    if chance.random() < 0.3:
        yield "neigh add 2001:db8:1::77 lladdr 02:00:00:00:00:99 dev eth0 nud permanent router"


def build(host: Host, seed: int) -> str:
    """Bring the host into the random state of this seed; the batch, for the report."""
    chance = random.Random(seed)
    lines = [*addresses(chance), *routes(chance), *rules(chance), *neighbours(chance)]
    batch = "\n".join(lines)
    clear = "ip link set eth0 nomaster; ip -4 addr flush dev eth0; ip -6 addr flush dev eth0; "
    clear += "for t in main 100 101; do ip route flush table $t; ip -6 route flush table $t; done; "
    clear += (
        "for p in 700 800; do while ip rule del priority $p; do :; done; while ip -6 rule del priority $p; do :; done; "
    )
    clear += "done; ip neigh flush dev eth0 nud permanent; ip -6 neigh flush dev eth0 nud permanent; "
    clear += "for a in $(ip neigh show proxy | cut -d' ' -f1); do ip neigh del proxy $a dev eth0; done; "
    clear += "ip link set eth0 down; ip link set eth0 up; ip link set other0 up"
    host.run("sh", "-c", f"exec 2>/dev/null; {clear}", check=False)
    host.run("sh", "-c", "until ip -6 addr show dev eth0 scope link -tentative | grep -q fe80; do sleep 0.01; done")
    host.run("ip", "-force", "-batch", "-", stdin=batch + "\n", check=False)
    return batch


def view(host: Host, name: str) -> list[str]:
    return host.out("sh", "-c", _VIEW.format(name)).splitlines()


def as_if_on(name: str, lines: t.Sequence[str]) -> list[str]:
    """The lines of one interface as they would be on another; which of two interfaces is listed first is no matter."""
    return sorted(line.replace("eth0", name) for line in lines)


def try_hosts(host: Host, seeds: t.Iterable[int]) -> None:
    host.run("sh", "-c", "sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link add other0 type veth peer name other1")
    host.run("sh", "-c", "ip link set other0 up; ip link set other1 up; ip addr add 172.16.0.1/24 dev other0")
    mover = Mover(host)
    lines = 0
    for seed in seeds:
        batch = build(host, seed)
        before = view(host, "eth0")
        lines += len(before)
        assert (seed, batch, mover.go("there")) == (seed, batch, "done")
        assert (seed, batch, difference(as_if_on("br0", view(host, "br0")), as_if_on("br0", before))) == (
            seed,
            batch,
            [],
        )
        assert (seed, batch, mover.go("back")) == (seed, batch, "done")
        assert (seed, batch, difference(view(host, "eth0"), before)) == (seed, batch, [])
    assert lines > 10 * len(list(seeds)), "hosts without anything show nothing"


@pytest.fixture
def bare(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    with Host(python_path, interpreter) as host:
        cable(host)
        yield host


def test_random_hosts_are_moved_and_moved_back_without_a_difference(bare: Host) -> None:
    try_hosts(bare, range(40))


@pytest.mark.slow
def test_many_random_hosts_are_moved_and_moved_back_without_a_difference(bare: Host) -> None:
    try_hosts(bare, range(1000, 1250))
