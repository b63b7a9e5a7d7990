# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""With C(exclusive), what the collection made and the task does not list goes, and nothing else."""

from __future__ import annotations

import json
import typing as t

import pytest
from support.hosts import Host

pytestmark = pytest.mark.one_interpreter

GUEST = {"memory": "32", "accelerator": "tcg", "shutdown_timeout": 0}
NAT: dict[str, t.Any] = {
    "name": "lhgoes",
    "scenario": "nat",
    "subnet": "10.65.0.0/24",
    "taps": [{"name": "lhgone"}],
    "guests": [{"name": "lhleaver", "disks": [{"size": "1M"}], **GUEST}],
}
ADOPTED = {"name": "lhadopts", "scenario": "routed", "subnet": "10.66.0.0/24", "bridge": "lhfound"}
STAYS: dict[str, t.Any] = {"name": "lhstays", "scenario": "private", "guests": [{"name": "lhstayer", **GUEST}]}


def others(host: Host) -> list[str]:
    """What was there before, as a person sees it."""
    links = [
        f"{link['ifname']} {link.get('ifalias')} {'UP' in link['flags']} {host.addresses(link['ifname'])}"
        for link in host.json("ip", "-d", "-j", "link", "show")
    ]
    return [*sorted(links), host.out("nft", "-s", "list", "ruleset"), host.sysctl("net/ipv4/conf/up0/forwarding")]


def test_what_is_not_listed_goes_and_what_is_not_ours_stays(host: Host) -> None:
    host.run("sh", "-c", "ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up")
    host.run("sh", "-c", "ip address add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1")
    host.run("sh", "-c", "ip link add lhfound up type bridge; ip tuntap add hand mode tap; ip link add own type bridge")
    host.run(
        "sh", "-c", "nft add table inet mine; nft add table inet labspan_byhand; nft add chain inet labspan_byhand c"
    )
    before = others(host)
    task = {"account": "nobody", "networks": [NAT, {**STAYS, "taps": [{"name": "lhspare"}]}, ADOPTED]}
    host.converge("lab_host", task)
    stayer = host.out("pgrep", "-f", "guest=lhstayer")

    left = {"account": "nobody", "networks": [STAYS], "exclusive": True}
    foretold = host.converge("lab_host", left, check=True)
    result = host.converge("lab_host", left)
    assert result["actions"] == foretold["actions"]
    networks = {network["name"]: network for network in result["networks"]}
    assert networks["lhstays"]["actions"] == ["Delete tap lhspare"]
    assert "Delete bridge lhgoes0" in networks["lhgoes"]["actions"]
    guests = {guest["name"]: guest for guest in result["guests"]}
    assert (guests["lhleaver"]["state"], guests["lhstayer"]["state"]) == ("absent", "running")
    assert guests["lhstayer"]["changed"] is False
    assert host.out("pgrep", "-f", "guest=lhstayer") == stayer
    assert host.run("test", "-e", "/var/lib/labspan/guests/lhleaver/disk0.qcow2").returncode == 0
    again = host.converge("lab_host", left)
    assert (again["changed"], again["actions"]) == (False, [])

    host.converge("lab_host", {"exclusive": True, "state": "absent"})
    assert others(host) == before
    assert "qemu" not in host.out("ps", "-e", "-o", "comm=")


def test_without_it_nothing_goes_that_is_not_listed(host: Host) -> None:
    host.converge("lab_host", {"account": "nobody", "networks": [STAYS]})
    result = host.converge("lab_host", {"networks": [], "state": "absent"})
    assert (result["changed"], result["networks"], result["guests"]) == (False, [], [])
    assert host.link("lhstays0") is not None


def test_the_bridge_of_an_uplink_is_left_and_told_of(host: Host) -> None:
    host.run("sh", "-c", "ip link add br0 type bridge; ip link set br0 alias labspan.vmnet:lan; ip link set br0 up")
    host.run("sh", "-c", "ip link add up0 type veth peer name far0; ip link set up0 up master br0")
    record = {"bridge": "br0", "interface": "up0", "network": "lan", "created": True, "files": []}
    host.run(
        "sh", "-c", "mkdir -p /var/lib/labspan/uplink; cat >/var/lib/labspan/uplink/br0.json", stdin=json.dumps(record)
    )
    result = host.converge("lab_host", {"exclusive": True})
    assert result["changed"] is False
    assert "The role l2 with l2_state: absent" in str(result["warnings"])
    host.run("rm", "/var/lib/labspan/uplink/br0.json")  # a move that ends with the host's uptime has no record
    result = host.converge("lab_host", {"exclusive": True})
    assert "up0" in str(result["warnings"])
    assert (host.link("br0") or {})["ifalias"] == "labspan.vmnet:lan"
    assert (host.link("up0") or {})["master"] == "br0"


def test_a_bridge_with_another_programs_tap_is_left_and_the_rest_converges(host: Host) -> None:
    gone = {"name": "lhgoes", "scenario": "private", "taps": [{"name": "lhgone"}]}
    host.converge("lab_host", {"networks": [gone]})
    host.run("sh", "-c", "ip tuntap add vnet0 mode tap; ip link set vnet0 master lhgoes0")
    left = {"networks": [{"name": "lhstays", "scenario": "private"}], "exclusive": True}
    result = host.converge("lab_host", left)
    assert "the bridge lhgoes0 of the network lhgoes is not listed, and stays" in str(result["warnings"])
    assert "vnet0" in str(result["warnings"])
    assert (host.link("vnet0") or {})["master"] == "lhgoes0"
    assert host.link("lhgone") is None
    assert host.link("lhstays0") is not None
    assert not host.converge("lab_host", left)["changed"]

    host.run("ip", "link", "set", "vnet0", "nomaster")
    assert "warnings" not in host.converge("lab_host", left)
    assert host.link("lhgoes0") is None
    assert host.link("vnet0") is not None
