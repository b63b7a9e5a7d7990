# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules and sockets that really name the card are found as the host's own programs list them; nothing is loaded."""

from __future__ import annotations

import json
import subprocess
import typing as t

import pytest
from support.hosts import Host

pytestmark = pytest.mark.one_interpreter

_FIND = """
import dataclasses, json, sys
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _mentions
found = _mentions.find(sys.argv[1], sys.argv[2])
print(json.dumps([{**dataclasses.asdict(mention), "sentence": mention.sentence} for mention in found]))
"""

_LEGACY = ("ip_tables_names", "ip6_tables_names", "arp_tables_names")


def find(host: Host) -> list[dict[str, t.Any]]:
    command = ("env", f"PYTHONPATH={host.python_path}", host.interpreter, "-c", _FIND, "eth0", "br0")
    return t.cast("list[dict[str, t.Any]]", json.loads(host.out(*command)))


def legacy_tables(host: Host) -> str:
    return host.run("cat", *(f"/proc/net/{name}" for name in _LEGACY), check=False).stdout


@pytest.fixture
def card(host: Host) -> Host:
    """A host with the card eth0 and a second one that is named as often."""
    for name in ("eth0", "eth1"):
        host.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        host.run("ip", "link", "set", name, "up")
        host.run("ip", "link", "set", f"{name}p", "up")
    host.run("ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
    return host


RULES = """
table inet guard {{
    set inside {{ type ifname; elements = {{ "{0}", "lo" }} }}
    map verdicts {{ type ifname : verdict; elements = {{ "{0}" : accept }} }}
    chain input {{
        type filter hook input priority 0
        iifname "{0}" tcp dport 22 accept
        iif "{0}" accept
        iifname {{ "{0}", "lo" }} accept
        iifname . tcp dport {{ "{0}" . 22 }} accept
        iifname @inside accept
    }}
}}
table netdev early {{
    chain wire {{ type filter hook ingress device "{0}" priority 0; }}
}}
table bridge frames {{
    chain forward {{ type filter hook forward priority 0; iifname "{0}" accept; }}
}}
"""


def test_rules_of_nftables_are_found_wherever_they_name_the_card(card: Host) -> None:
    card.run("nft", "-f", "-", stdin=RULES.format("eth1"))
    assert find(card) == []
    card.run("nft", "-f", "-", stdin="flush ruleset" + RULES.format("eth0"))
    before = card.dump()
    assert sorted(mention["where"] for mention in find(card)) == [
        "nftables, table inet guard, chain input",
        "nftables, table inet guard, map verdicts",
        "nftables, table inet guard, set inside",
        "nftables, table netdev early, chain wire",
    ]
    assert card.dump() == before


@pytest.mark.parametrize("program", ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"])
def test_rules_of_iptables_are_found_in_each_of_its_worlds(card: Host, program: str) -> None:
    card.run(program, "-A", "INPUT", "-i", "eth1", "-j", "DROP")
    assert find(card) == []
    card.run(program, "-A", "INPUT", "-i", "eth+", "-p", "tcp", "--dport", "22", "-j", "DROP")
    (mention,) = find(card)
    assert "INPUT" in mention["where"]
    card.run(program, "-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE")
    assert len(find(card)) == 2


def test_looking_loads_no_legacy_table(card: Host) -> None:
    before = legacy_tables(card)
    assert find(card) == []
    assert legacy_tables(card) == before
    card.run("iptables-legacy-save", "-t", "mangle")
    assert legacy_tables(card) != before, "the twin: reading a table by its name does load it"


def test_rules_of_iptables_are_found_where_there_is_no_nft(card: Host) -> None:
    card.run("iptables-nft", "-A", "INPUT", "-i", "eth0", "-j", "DROP")
    nft = card.out("sh", "-c", "command -v nft").strip()
    card.run("mount", "--bind", "/dev/null", nft)
    (mention,) = find(card)
    assert mention["where"] == "iptables-nft, table filter, chain INPUT"


def test_a_nat_network_that_goes_out_through_the_card_is_told_as_ours(card: Host) -> None:
    card.run("ip", "link", "add", "lab0", "type", "bridge")
    card.converge(
        "nat_masquerade", {"bridge": "lab0", "sources": ["192.168.7.0/24"], "out_interface": "eth0", "name": "lab"}
    )
    (mention,) = find(card)
    assert mention["ours"]
    assert "belongs to the network lab" in mention["sentence"]


_PRIVATE_ETC = """
mkdir /run/etc /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work overlay /etc
mkdir -p /etc/ufw
"""


def test_ufws_files_count_where_ufw_is_switched_on(card: Host) -> None:
    card.run("sh", "-ec", _PRIVATE_ETC)
    rule = "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in_eth0\n"
    card.run("sh", "-c", "cat > /etc/ufw/user.rules", stdin=rule)
    card.run("sh", "-c", "echo ENABLED=no > /etc/ufw/ufw.conf")
    assert find(card) == []
    card.run("sh", "-c", "echo ENABLED=yes > /etc/ufw/ufw.conf")
    (mention,) = find(card)
    assert mention["where"] == "ufw, /etc/ufw/user.rules"


def test_a_filter_on_what_comes_in_is_found(card: Host) -> None:
    card.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    assert find(card) == []
    action = ("action", "mirred", "egress", "redirect", "dev", "lo")
    made = card.run(
        "tc",
        "filter",
        "add",
        "dev",
        "eth0",
        "ingress",
        "protocol",
        "ip",
        "u32",
        "match",
        "u32",
        "0",
        "0",
        *action,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"this kernel: {made.stderr.strip()}")
    (mention,) = find(card)
    assert mention["where"] == "traffic control, ingress of eth0"


_BOUND = """
import socket, sys
names = [word.encode() for word in sys.argv[1:]]
held = []
for number, name in enumerate(names):
    for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_DGRAM, 67)):
        one = socket.socket(socket.AF_INET, kind)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        one.bind(("0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            one.listen()
        held.append(one)
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    packets.bind((name.decode(), 0x0806))
    held.append(packets)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["eth0", "eth1"])
def test_sockets_that_are_bound_to_the_card_are_found(card: Host, name: str) -> None:
    process = card.start(card.interpreter, "-c", _BOUND, name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    found = {mention["what"] for mention in find(card)}
    process.communicate("")
    assert found == ({"tcp 0.0.0.0 port 80", "udp 0.0.0.0 port 67", "packets of ARP"} if name == "eth0" else set())
