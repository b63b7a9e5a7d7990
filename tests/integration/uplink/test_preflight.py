# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel and the host really show is read as what it is, and reading changes nothing."""

from __future__ import annotations

import json
import subprocess

import pytest
from support.hosts import Host, await_condition

pytestmark = pytest.mark.one_interpreter

_JUDGE = """
import json, sys
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _preflight
facts = _preflight.gather(sys.argv[1], sys.argv[2])
print(json.dumps([_preflight.refusals(facts), _preflight.warnings(facts)]))
"""


def judge(host: Host, interface: str = "eth0", bridge: str = "br0") -> tuple[list[str], list[str]]:
    command = ("env", f"PYTHONPATH={host.python_path}", host.interpreter, "-c", _JUDGE, interface, bridge)
    found, warned = json.loads(host.out(*command))
    return found, warned


@pytest.fixture
def card(host: Host) -> Host:
    """A host with the card eth0, whose other end is in another namespace."""
    host.run("ip", "netns", "add", "lan")
    host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "uplink", "netns", "lan")
    host.run("ip", "-n", "lan", "link", "set", "uplink", "up")
    host.run("ip", "link", "set", "eth0", "up")
    host.run("ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
    return host


def test_a_card_can_be_moved_and_looking_at_it_changes_nothing(card: Host) -> None:
    before = card.dump()
    assert judge(card) == ([], [])
    assert card.dump() == before


def test_a_half_made_and_a_made_host_can_be_moved(card: Host) -> None:
    card.run("ip", "link", "add", "br0", "type", "bridge")
    assert judge(card) == ([], [])
    card.run("ip", "link", "set", "eth0", "master", "br0")
    assert judge(card) == ([], [])
    card.run("ip", "tuntap", "add", "tap0", "mode", "tap")
    card.run("ip", "link", "set", "tap0", "master", "br0")
    assert judge(card) == ([], [])


CASES = {
    "down": ("ip link set eth0 down", "is down"),
    "no carrier": ("ip -n lan link set uplink down", "has no carrier"),
    "in a bridge": ("ip link add br9 type bridge; ip link set eth0 master br9", "a port of the bridge br9"),
    "macvlan": ("ip link add mv0 link eth0 type macvlan mode bridge", "carries mv0 (macvlan)"),
    "macvtap": ("ip link add mt0 link eth0 type macvtap", "carries mt0 (macvtap)"),
    "ipvlan": ("ip link add iv0 link eth0 type ipvlan mode l2", "carries iv0 (ipvlan)"),
    "a namespace's macvlan": (
        "ip netns add c; ip link add mv0 link eth0 netns c type macvlan",
        "mv0 (macvlan, in network namespace c)",
    ),
    "vlan": ("ip link add link eth0 name eth0.7 type vlan id 7", "carries eth0.7 (vlan)"),
    "vxlan": ("ip link add vx0 type vxlan id 4 dev eth0 dstport 4789", "what vx0 (vxlan) sends"),
    "nexthop": ("ip nexthop add id 5 via 192.0.2.1 dev eth0", "the nexthop objects 5 "),
    "another kind": ("ip tuntap add br0 mode tap", "br0 is there already and is no bridge (tun)"),
    "another network": ("ip link add br0 type bridge; ip link set br0 alias labspan.vmnet:lab", "network 'lab'"),
    "the name as an altname": ("ip link property add dev eth0 altname br0", "br0 is another name of eth0"),
    "vrf": ("ip link add red type vrf table 9; ip link set red up; ip link set eth0 master red", "in the VRF red"),
    "bond": ("ip link set eth0 down; ip link add bond0 type bond; ip link set eth0 master bond0", "the bond bond0"),
}


@pytest.mark.parametrize(("commands", "words"), CASES.values(), ids=list(CASES))
def test_what_is_in_the_way_is_seen_and_is_gone_with_it(card: Host, commands: str, words: str) -> None:
    made = card.run("sh", "-ec", commands, check=False)
    if made.returncode:
        pytest.skip(f"this kernel: {made.stderr.strip()}")
    refused, _warned = judge(card)
    assert any(words in refusal for refusal in refused), refused


def test_another_cards_macvlan_in_a_container_is_not_in_the_way(card: Host) -> None:
    """Its lower interface has the same number in a third namespace as the card has here."""
    index = card.json("ip", "-j", "link", "show", "eth0")[0]["ifindex"]
    card.run("ip", "netns", "add", "third")
    card.run("ip", "-n", "third", "link", "add", "v0", "index", str(index), "type", "bridge")
    card.run("ip", "netns", "add", "c")
    # Makes the namespace c know this one by a number as well.
    card.run("ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1", "netns", "c")
    card.run("ip", "-n", "third", "link", "add", "mv0", "link", "v0", "netns", "c", "type", "macvlan")
    listed = [link for link in card.json("ip", "-n", "c", "-j", "link", "show") if link["ifname"] == "mv0"]
    assert listed[0]["link_index"] == index, "the trap is set"
    assert judge(card)[0] == []


def test_a_containers_macvlan_is_told_with_its_process(card: Host) -> None:
    holder = card.start("unshare", "--net", "cat", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        await_condition(lambda: card.run("pgrep", "-x", "cat", check=False).returncode == 0, "the container")
        pid = card.out("pgrep", "-x", "cat").split()[0]
        card.run("ip", "link", "add", "mv0", "link", "eth0", "netns", pid, "type", "macvlan")
        (refusal,), _warned = judge(card)
        assert f"mv0 (macvlan, in the network namespace of process {pid}, cat)" in refusal
    finally:
        holder.communicate("")


def test_an_interface_that_is_missing_or_known_by_another_name_is_told(card: Host) -> None:
    (refusal,), _warned = judge(card, "eth9")
    assert "there is no eth9" in refusal
    card.run("ip", "link", "property", "add", "dev", "eth0", "altname", "enp1s0")
    (refusal,), _warned = judge(card, "enp1s0")
    assert "another name of eth0" in refusal


def test_loopback_is_refused(card: Host) -> None:
    refused, _warned = judge(card, "lo")
    assert "is not Ethernet (but loopback)" in refused[0]


def test_a_firewall_that_drops_what_passes_a_bridge_is_warned_of(card: Host) -> None:
    if card.run("test", "-e", "/proc/sys/net/bridge/bridge-nf-call-iptables", check=False).returncode:
        pytest.skip("this kernel has no br_netfilter")
    card.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    chain = "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    card.run("nft", f"add table ip filter; {chain}")
    _refused, (warning,) = judge(card)
    assert "chain FORWARD of table ip filter drops" in warning
    card.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    assert judge(card) == ([], [])
    card.run("nft", "delete table ip filter")
    card.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    card.run("iptables-legacy", "-P", "FORWARD", "DROP")
    _refused, (warning,) = judge(card)
    assert "FORWARD of iptables-legacy" in warning


def test_a_supplicant_on_the_card_is_seen(card: Host) -> None:
    script = 'exec -a wpa_supplicant bash -c "read -r line" -Dwired -ieth0'
    process = card.start("bash", "-c", script, stdin=subprocess.PIPE)
    try:
        await_condition(lambda: bool(judge(card)[0]), "the program to be seen")
        (refusal,), _warned = judge(card)
        assert "-Dwired -ieth0" in refusal
    finally:
        process.communicate("\n")
    assert judge(card)[0] == []


_FLAGS = """
import sys
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _preflight
print(_preflight.offload_flags(sys.argv[1]))
"""
#: ETH_FLAG_RXVLAN (linux/ethtool.h): the neighbour of the one for LRO that a veth has.
_RXVLAN = 1 << 8


def test_offloads_are_read_as_ethtool_sets_them(card: Host) -> None:
    def flags(interface: str) -> int:
        command = ("env", f"PYTHONPATH={card.python_path}", card.interpreter, "-c", _FLAGS, interface)
        return int(card.out(*command))

    assert flags("eth0") & _RXVLAN
    card.run("ethtool", "-K", "eth0", "rxvlan", "off")
    assert not flags("eth0") & _RXVLAN
    assert flags("eth9") == 0
