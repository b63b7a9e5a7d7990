# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Gateways are asked on the wire: a real second host answers, through a card, a bridge's port and a bridge."""

from __future__ import annotations

import json
import subprocess
import typing as t

import pytest
from support.hosts import Host

pytestmark = pytest.mark.one_interpreter

# The dead-man carries the file alone, without the collection and Ansible: -I shows that it needs neither.
_ASK = """
import importlib.util, json, sys
specification = importlib.util.spec_from_file_location("_reach", sys.argv[1])
reach = importlib.util.module_from_spec(specification)
sys.modules["_reach"] = reach
specification.loader.exec_module(reach)
interface, gateways, sources, timeout = json.loads(sys.argv[2])
print("asking", flush=True)
print(json.dumps(sorted(reach.answers(interface, gateways, sources=sources, timeout=timeout))))
"""

GATEWAYS = ["192.0.2.1", "2001:db8::1", "fe80::1"]
ABSENT = ["192.0.2.99", "2001:db8::99", "fe80::99"]
SOURCES = {"192.0.2.1": "192.0.2.10", "2001:db8::1": "2001:db8::10", "fe80::1": "fe80::10"}

#: Ends only a test that would fail.
PATIENCE = 20.0
#: Of those that will not answer.
SHORT = 0.6

_LAN = """
set -e
ip netns add lan
ip link add eth0 type veth peer name uplink netns lan
ip netns exec lan sysctl -qw net.ipv6.conf.uplink.accept_dad=0 net.ipv6.conf.uplink.addr_gen_mode=1
ip -n lan link set uplink up
ip -n lan addr add 192.0.2.1/24 dev uplink
ip -n lan addr add 2001:db8::1/64 dev uplink nodad
ip -n lan addr add fe80::1/64 dev uplink nodad
sysctl -qw net.ipv6.conf.eth0.addr_gen_mode=1
ip link set eth0 up
"""

_ADDRESSES = """
set -e
ip addr add 192.0.2.10/24 dev "$0"
ip addr add 2001:db8::10/64 dev "$0" nodad
ip addr add fe80::10/64 dev "$0" nodad
"""

_BRIDGE = """
set -e
ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
sysctl -qw net.ipv6.conf.br0.addr_gen_mode=1
ip link set br0 up
ip link set eth0 master br0
"""


def command(
    host: Host, interface: str, gateways: t.Sequence[str], sources: t.Mapping[str, str], timeout: float
) -> list[str]:
    file = host.python_path / "ansible_collections/labspan/vmnet/plugins/module_utils/_uplink/_reach.py"
    return [host.interpreter, "-I", "-c", _ASK, str(file), json.dumps([interface, gateways, sources, timeout])]


def ask(
    host: Host,
    interface: str,
    gateways: t.Sequence[str],
    *,
    sources: t.Optional[t.Mapping[str, str]] = None,
    timeout: float = PATIENCE,
) -> list[str]:
    asked = command(host, interface, gateways, SOURCES if sources is None else sources, timeout)
    lines = host.out(*asked).splitlines()
    return t.cast("list[str]", json.loads(lines[-1]))


@pytest.fixture
def lan(host: Host) -> Host:
    """A host whose eth0 leads to another one, which has the gateways' addresses."""
    host.run("sh", "-c", _LAN)
    return host


def test_a_card_with_the_addresses_reaches_them_and_nobody_else(lan: Host) -> None:
    lan.run("sh", "-c", _ADDRESSES, "eth0")
    assert ask(lan, "eth0", GATEWAYS) == sorted(GATEWAYS)
    assert ask(lan, "eth0", [*GATEWAYS, *ABSENT], timeout=SHORT * 5) == sorted(GATEWAYS)


def test_the_system_interpreter_asks_as_well(lan: Host) -> None:
    lan.interpreter = "/usr/bin/python3"
    assert ask(lan, "eth0", GATEWAYS) == sorted(GATEWAYS)


def test_a_half_made_host_reaches_them_through_the_card_that_is_a_port_already(lan: Host) -> None:
    """Its addresses are still on the card, where the kernel's own ARP hears no answer: the twin shows it."""
    lan.run("sh", "-c", _ADDRESSES, "eth0")
    lan.run("sh", "-c", _BRIDGE)
    assert ask(lan, "eth0", GATEWAYS) == sorted(GATEWAYS)
    lan.run("ip", "neigh", "flush", "dev", "eth0")
    assert lan.run("ping", "-c", "1", "-W", "1", "-I", "eth0", "192.0.2.1", check=False).returncode


@pytest.mark.parametrize("interface", ["eth0", "br0"])
def test_a_moved_host_reaches_them_through_the_bridge_and_through_its_port(lan: Host, interface: str) -> None:
    lan.run("sh", "-c", _BRIDGE)
    lan.run("sh", "-c", _ADDRESSES, "br0")
    lan.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
    assert ask(lan, interface, GATEWAYS) == sorted(GATEWAYS)
    assert ask(lan, interface, ABSENT, timeout=SHORT) == []


def test_a_bridge_with_an_address_of_its_own_reaches_them(lan: Host) -> None:
    lan.run("sh", "-c", _BRIDGE)
    lan.run("ip", "link", "set", "br0", "address", "02:00:00:00:00:77")
    lan.run("sh", "-c", _ADDRESSES, "br0")
    assert ask(lan, "br0", GATEWAYS) == sorted(GATEWAYS)


def test_who_has_no_address_yet_asks_as_nobody(lan: Host) -> None:
    assert ask(lan, "eth0", GATEWAYS, sources={}) == sorted(GATEWAYS)
    assert ask(lan, "eth0", ABSENT, sources={}, timeout=SHORT) == []


def test_what_the_neighbour_table_holds_is_no_answer(lan: Host) -> None:
    lan.run("sh", "-c", _ADDRESSES, "eth0")
    router = lan.json("ip", "-n", "lan", "-j", "link", "show", "uplink")[0]["address"]
    for gateway in GATEWAYS:
        lan.run("ip", "neigh", "add", gateway, "lladdr", router, "dev", "eth0", "nud", "permanent")
    assert ask(lan, "eth0", GATEWAYS) == sorted(GATEWAYS)
    lan.run("ip", "-n", "lan", "addr", "flush", "dev", "uplink")
    assert ask(lan, "eth0", GATEWAYS, timeout=SHORT) == []


def test_asking_leaves_the_hosts_neighbour_table_as_it_is(lan: Host) -> None:
    lan.run("sh", "-c", _ADDRESSES, "eth0")
    assert ask(lan, "eth0", ["192.0.2.1"]) == ["192.0.2.1"]
    assert lan.json("ip", "-4", "-j", "neigh", "show", "nud", "all", "dev", "eth0") == []


def test_a_gateway_that_comes_late_is_asked_again(lan: Host) -> None:
    lan.run("ip", "-n", "lan", "link", "set", "uplink", "down")
    process = lan.start(*command(lan, "eth0", ["192.0.2.1"], SOURCES, PATIENCE), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    lan.run("ip", "-n", "lan", "link", "set", "uplink", "up")
    output, _errors = process.communicate(timeout=PATIENCE * 2)
    assert json.loads(output) == ["192.0.2.1"]


def test_over_an_interface_that_is_down_or_missing_nobody_answers(lan: Host) -> None:
    assert ask(lan, "nothing0", GATEWAYS) == []
    lan.run("ip", "link", "set", "eth0", "down")
    assert ask(lan, "eth0", GATEWAYS, timeout=SHORT) == []


# An ARP reply of 192.0.2.1 to argv 1 (hardware address) and argv 2 (address, in hexadecimal).
_SHOUT = """
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("uplink", 0))
own = wire.getsockname()[4]
target, address = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
wire.send(target + own + bytes.fromhex("08060001080006040002") + own + bytes([192, 0, 2, 1]) + target + address)
"""


@pytest.mark.parametrize("to_us", [False, True], ids=["to all", "to us"])
def test_what_a_gateway_shouts_to_all_is_no_answer(lan: Host, to_us: bool) -> None:
    """It shows a way from it to us only. The same, addressed to us, is one: so the shouts are heard."""
    lan.run("ip", "netns", "exec", "lan", "sysctl", "-qw", "net.ipv4.conf.uplink.arp_ignore=8")
    card = lan.json("ip", "-j", "link", "show", "eth0")[0]["address"].replace(":", "")
    words = (card, "c000020a") if to_us else ("ff" * 6, "c0000201")
    timeout = PATIENCE if to_us else 1.0
    process = lan.start(*command(lan, "eth0", ["192.0.2.1"], SOURCES, timeout), stdout=subprocess.PIPE)
    while process.poll() is None:
        lan.run("ip", "netns", "exec", "lan", lan.interpreter, "-c", _SHOUT, *words)
    output, _errors = process.communicate()
    assert json.loads(output.splitlines()[-1]) == (["192.0.2.1"] if to_us else [])
