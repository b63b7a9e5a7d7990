# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""linux_bridge against the kernel; what became of it is seen through ip, bridge, nft and /proc."""

from __future__ import annotations

import json
import re
import subprocess
import typing as t

import pytest
from support.hosts import Host, Result, await_condition

BR0 = {"name": "br0"}


def bridge(host: Host, **options: t.Any) -> Result:
    return host.converge("linux_bridge", {**BR0, **options})


def link(host: Host, name: str = "br0") -> dict[str, t.Any]:
    found = host.link(name)
    assert found is not None
    return found


def settings(host: Host) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", link(host)["linkinfo"]["info_data"])


def veth(host: Host, *names: str) -> None:
    for name in names:
        host.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        host.run("ip", "link", "set", name, "up")
        host.run("ip", "link", "set", f"{name}p", "up")


def ports(host: Host, name: str = "br0") -> set[str]:
    return {port["ifname"] for port in host.json("bridge", "-j", "link", "show") if port.get("master") == name}


def assert_rests(host: Host, options: dict[str, t.Any]) -> None:
    host.assert_rests("linux_bridge", options)


def test_a_bridge_is_made_pinned_marked_and_up(host: Host) -> None:
    result = bridge(host, addresses=["192.168.6.10/24", "fd00:6::10/64"])
    assert result["changed"]
    assert host.addresses("br0") == ["192.168.6.10/24", "fd00:6::10/64"]
    assert link(host)["ifalias"] == "labspan.vmnet:br0"
    assert "UP" in link(host)["flags"]
    assert settings(host)["mcast_snooping"] == 0
    mac = link(host)["address"]
    assert result["bridge"]["mac_address"] == mac
    assert result["bridge"]["id"] == "8000." + mac.replace(":", "")
    veth(host, "v0")
    host.run("ip", "link", "set", "v0", "address", "02:00:00:00:00:01")
    host.run("ip", "link", "set", "v0", "master", "br0")
    assert link(host)["address"] == mac
    assert_rests(host, {**BR0, "addresses": ["192.168.6.10/24", "fd00:6::10/64"]})


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"stp": True}, {"stp_state": 1}),
        ({"priority": 4096}, {"priority": 4096}),
        ({"forward_delay": 4}, {"forward_delay": 400}),
        ({"hello_time": 1}, {"hello_time": 100}),
        ({"max_age": 10}, {"max_age": 1000}),
        ({"ageing_time": 60}, {"ageing_time": 6000}),
        ({"multicast_snooping": True}, {"mcast_snooping": 1}),
        ({"multicast_querier": True}, {"mcast_querier": 1}),
        ({"group_forward_mask": 0x4000}, {"group_fwd_mask": "0x4000"}),
    ],
)
def test_each_setting_on_a_new_and_on_a_living_bridge(
    host: Host, options: dict[str, t.Any], shown: dict[str, t.Any]
) -> None:
    bridge(host, **options)
    assert {key: settings(host)[key] for key in shown} == shown
    assert_rests(host, {**BR0, **options})
    bridge(host, state="absent")
    bridge(host)
    assert {key: settings(host)[key] for key in shown} != shown
    result = bridge(host, **options)
    assert len(result["actions"]) == 1
    assert {key: settings(host)[key] for key in shown} == shown


def test_mtu_mac_and_enabled(host: Host) -> None:
    options = {"mtu": 9000, "mac_address": "02-AB-00-00-00-01", "enabled": False}
    bridge(host, **options)
    assert (link(host)["mtu"], link(host)["address"]) == (9000, "02:ab:00:00:00:01")
    assert "UP" not in link(host)["flags"]
    assert_rests(host, {**BR0, **options})
    result = bridge(host, enabled=True, mtu=1400)
    assert result["actions"] == ["Set the MTU of bridge br0 from 9000 to 1400", "Bring bridge br0 up"]
    assert link(host)["address"] == "02:ab:00:00:00:01"


def test_addresses_converge_exclusively_or_not(host: Host) -> None:
    bridge(host, addresses=["10.0.0.1/24", "10.1.0.1/16", "fd00::1/64"])
    bridge(host, addresses=["10.0.0.2/24", "fd00::2/64"])
    assert set(host.addresses("br0")) == {"10.0.0.2/24", "fd00::2/64"}
    bridge(host, addresses=["10.0.0.3/24"], exclusive_addresses=False)
    assert set(host.addresses("br0")) == {"10.0.0.2/24", "10.0.0.3/24", "fd00::2/64"}
    bridge(host, addresses=[])
    assert host.addresses("br0") == []
    bridge(host)
    assert host.addresses("br0") == []


@pytest.mark.parametrize("promote", ["0", "1"])
def test_replacing_the_primary_address_of_a_subnet_loses_no_other(host: Host, promote: str) -> None:
    bridge(host, addresses=["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"])
    host.run("sysctl", "-qw", f"net.ipv4.conf.br0.promote_secondaries={promote}")
    bridge(host, addresses=["10.0.0.3/24", "10.0.0.4/24"])
    assert set(host.addresses("br0")) == {"10.0.0.3/24", "10.0.0.4/24"}


def test_an_ipv6_address_is_usable_without_a_port(host: Host) -> None:
    bridge(host, addresses=["fd00::1/64"])
    (address,) = [each for each in link(host)["addr_info"] if each["scope"] == "global"]
    assert not address.get("tentative")


def test_ports_come_and_go(host: Host) -> None:
    veth(host, "v0", "v1", "v2")
    bridge(host, ports=["v0", "v1"])
    assert ports(host) == {"v0", "v1"}
    assert_rests(host, {**BR0, "ports": ["v0", "v1"]})
    bridge(host, ports=["v2"])
    assert ports(host) == {"v0", "v1", "v2"}
    result = bridge(host, ports=["v2"], exclusive_ports=True)
    assert ports(host) == {"v2"}
    assert result["bridge"]["ports"] == ["v2"]


def test_an_exclusive_list_of_ports_leaves_taps(host: Host) -> None:
    veth(host, "v0")
    bridge(host)
    host.converge("tap_device", {"name": "t0", "bridge": "br0"})
    host.run("ip", "link", "set", "v0", "master", "br0")
    bridge(host, ports=[], exclusive_ports=True)
    assert ports(host) == {"t0"}


def test_many_bridges_are_one_task(host: Host) -> None:
    options = {
        "stp": True,
        "bridges": [
            {"name": "br-web", "addresses": ["10.1.0.1/24"]},
            {"name": "br-db", "addresses": ["10.2.0.1/24"], "stp": False},
        ],
    }
    result = host.converge("linux_bridge", options)
    assert [each["name"] for each in result["bridges"]] == ["br-web", "br-db"]
    assert "bridge" not in result
    states = {name: link(host, name)["linkinfo"]["info_data"]["stp_state"] for name in ("br-web", "br-db")}
    assert states == {"br-web": 1, "br-db": 0}
    assert_rests(host, options)
    before = host.dump()
    message = host.refuse("linux_bridge", {"bridges": [{"name": "br-new"}, {"name": "br-web", "mtu": 1}]})
    assert "mtu" in message
    assert host.dump() == before


def test_check_mode_writes_nothing_and_predicts_what_happens(host: Host) -> None:
    veth(host, "v0")
    host.run("ip", "link", "set", "v0p", "down")  # with a carrier the spanning tree would soon change its state
    options = {**BR0, "addresses": ["10.0.0.1/24", "fd00::1/64"], "ports": ["v0"], "stp": True, "host_access": None}
    before = host.dump()
    with host.monitored() as heard:
        predicted = host.converge("linux_bridge", options, check=True)
    assert (host.dump(), heard) == (before, [])
    done = host.converge("linux_bridge", options)
    assert predicted == done
    changed = {**BR0, "addresses": [], "ports": ["v0"], "host_access": False, "mtu": 1400}
    before = host.dump()
    with host.monitored() as heard:
        predicted = host.converge("linux_bridge", changed, check=True)
    assert (host.dump(), heard) == (before, [])
    assert predicted == host.converge("linux_bridge", changed)
    predicted = host.converge("linux_bridge", {**changed, "state": "absent"}, check=True)
    assert predicted == host.converge("linux_bridge", {**changed, "state": "absent"})


def test_the_monitors_of_the_check_mode_test_do_hear_the_same_task(host: Host) -> None:
    with host.monitored() as heard:
        bridge(host, host_access=False)
    assert any("br0" in line for line in heard)
    assert any("labspan_br0_closed" in line for line in heard)


def test_absent_leaves_exactly_what_was_there(host: Host) -> None:
    veth(host, "v0")
    host.run("nft", "add", "table", "inet", "foreign")
    before = host.dump()
    bridge(host, addresses=["10.0.0.1/24"], ports=["v0"], stp=True)
    bridge(host, addresses=[], host_access=False)
    assert host.dump() != before
    result = bridge(host, state="absent", ports=["v0"])
    assert result["bridge"] is None
    assert host.dump() == before
    assert not bridge(host, state="absent")["changed"]


def ways_in(host: Host, client: str) -> dict[str, bool]:
    """What a guest on the bridge can do to the host: each way in, by whether it works."""
    inside = ("ip", "netns", "exec", client)
    host.run(*inside, "ip", "neigh", "replace", "10.99.0.1", "lladdr", link(host)["address"], "dev", "eth0")

    def answers(address: str) -> bool:
        return host.run(*inside, "ping", "-c1", "-W1", address, check=False).returncode == 0

    return {
        "an address of the host by a static neighbour": answers("10.99.0.1"),
        "an address of the host by ARP": answers("10.99.0.2"),
        "IPv6 on the link": len(other_nodes(host, client)) > 1,
    }


def other_nodes(host: Host, client: str) -> list[str]:
    """Whose answers to a ping of all nodes a guest hears, itself left out."""
    inside = ("ip", "netns", "exec", client)
    (interface,) = host.json(*inside, "ip", "-j", "addr", "show", "dev", "eth0")
    own = {address["local"] for address in interface["addr_info"]}
    heard = host.run(*inside, "ping", "-c2", "-W1", "ff02::1%eth0", check=False).stdout
    sources = {line.split("from ")[1].split("%")[0] for line in heard.splitlines() if "bytes from" in line}
    return sorted(sources - own)


def guest(host: Host, name: str, address: str) -> None:
    """A stand-in for a guest: a namespace on the bridge."""
    host.run("mkdir", "-p", "/run/netns")
    host.run("ip", "netns", "add", name)
    host.run("ip", "link", "add", f"port-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    host.run("ip", "link", "set", f"port-{name}", "master", "br0", "up")
    host.run("ip", "-n", name, "addr", "add", address, "dev", "eth0")
    host.run("ip", "-n", name, "link", "set", "eth0", "up")


@pytest.mark.one_interpreter
def test_a_closed_host_answers_to_nothing_and_an_open_one_does(host: Host) -> None:
    host.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "lanp")
    host.run("ip", "addr", "add", "10.99.0.1/32", "dev", "lan")
    host.run("ip", "addr", "add", "10.99.0.2/32", "dev", "lan")
    host.run("ip", "link", "set", "lan", "up")
    bridge(host)
    guest(host, "g0", "10.99.0.100/24")
    guest(host, "g1", "10.99.0.101/24")
    host.run("ip", "route", "add", "10.99.0.100/32", "dev", "br0")
    host.settle()
    await_condition(lambda: len(other_nodes(host, "g0")) == 2, "the other guest and the host to answer over IPv6")
    assert set(ways_in(host, "g0").values()) == {True}
    bridge(host, host_access=False)
    assert set(ways_in(host, "g0").values()) == {False}
    host.run("ip", "netns", "exec", "g0", "ping", "-c1", "-W5", "10.99.0.101")
    assert host.sysctl("net/ipv6/conf/br0/disable_ipv6") == "1"
    bridge(host, host_access=True)
    assert ways_in(host, "g0")["an address of the host by ARP"]
    assert host.json("nft", "-j", "list", "ruleset")["nftables"][1:] == []
    assert host.sysctl("net/ipv6/conf/br0/disable_ipv6") == "0"


@pytest.mark.one_interpreter
def test_a_closed_host_does_not_route_for_guests(host: Host) -> None:
    host.run(
        "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"
    )
    host.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "lanp")
    host.run("ip", "addr", "add", "10.99.0.1/24", "dev", "lan")
    host.run("ip", "link", "set", "lan", "up")
    host.run("ip", "link", "set", "lanp", "up")
    host.run("ip", "neigh", "add", "10.99.0.5", "lladdr", "02:00:00:00:00:05", "dev", "lan", "nud", "permanent")
    bridge(host)
    guest(host, "g0", "10.50.0.100/24")
    host.run("ip", "-n", "g0", "route", "add", "10.99.0.0/24", "dev", "eth0")
    host.run("ip", "-n", "g0", "neigh", "add", "10.99.0.5", "lladdr", link(host)["address"], "dev", "eth0")

    def sent_to_lan() -> int:
        before = transmitted(host)
        host.run("ip", "netns", "exec", "g0", "ping", "-c3", "-i0.2", "-W1", "10.99.0.5", check=False)
        return transmitted(host) - before

    await_condition(lambda: sent_to_lan() >= 3, "packets on their way to the LAN")
    bridge(host, host_access=False)
    assert sent_to_lan() < 3


ISLAND = {"network": "island", "host_access": False}


def closed_on(host: Host) -> set[str]:
    """The bridges on which the tables of the network island close the host off."""
    return set(re.findall(r'iifname "(\w+)"', host.out("nft", "list", "ruleset")))


@pytest.mark.one_interpreter
@pytest.mark.parametrize("other", [{"state": "absent"}, {"host_access": True}])
def test_no_other_bridge_of_its_network_opens_a_closed_one(host: Host, other: dict[str, t.Any]) -> None:
    bridge(host, **ISLAND)
    host.converge("linux_bridge", {"name": "br1", "network": "island"})
    for _time in range(2):
        result = host.converge("linux_bridge", {"name": "br1", "network": "island", **other})
        assert "Open the host on bridge br1" not in result["actions"]
        assert closed_on(host) == {"br0"}
    assert not bridge(host, **ISLAND)["changed"]


@pytest.mark.one_interpreter
@pytest.mark.parametrize("former", [{"state": "absent"}, {"host_access": True}])
@pytest.mark.parametrize("first", [0, 1])
def test_another_bridge_of_a_network_is_closed_in_the_task_that_opens_the_former(
    host: Host, former: dict[str, t.Any], first: int
) -> None:
    bridge(host, **ISLAND)
    both = [{"name": "br0", "network": "island", **former}, {"name": "br1", **ISLAND}]
    bridges = {"bridges": [both[first], both[1 - first]]}
    foretold = host.converge("linux_bridge", bridges, check=True)
    assert host.converge("linux_bridge", bridges)["actions"] == foretold["actions"]
    assert closed_on(host) == {"br1"}
    host.assert_rests("linux_bridge", bridges)
    host.converge("linux_bridge", {"name": "br1", "network": "island", "state": "absent"})
    assert closed_on(host) == set()


@pytest.mark.one_interpreter
def test_a_second_closed_bridge_of_a_network_is_refused_and_opens_nothing(host: Host) -> None:
    bridge(host, **ISLAND)
    message = host.refuse("linux_bridge", {"name": "br1", **ISLAND})
    assert "closed off from the network island on bridge br0 already" in message
    assert "Remove bridge br0 first (state: absent)" in message
    assert closed_on(host) == {"br0"}
    foretold = host.converge("linux_bridge", {"name": "br1", **ISLAND}, check=True)
    assert any("an earlier task may open it" in json.dumps(warning) for warning in foretold["warnings"])
    host.run("ip", "link", "del", "br0")
    host.converge("linux_bridge", {"name": "br1", **ISLAND})
    assert closed_on(host) == {"br1"}


def transmitted(host: Host) -> int:
    (found,) = host.json("ip", "-s", "-j", "link", "show", "dev", "lan")
    return int(found["stats64"]["tx"]["packets"])


def test_a_hand_made_bridge_is_adopted_and_put_back(host: Host) -> None:
    veth(host, "v0", "v1")
    host.run("ip", "link", "set", "v1p", "down")  # with a carrier the spanning tree would soon change its state
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "addr", "add", "10.5.0.1/24", "brd", "+", "dev", "br0")
    host.run("ip", "addr", "add", "10.5.0.2/24", "dev", "br0")
    host.run("ip", "link", "set", "br0", "alias", "the printer's", "up")
    host.run("ip", "link", "set", "v0", "master", "br0")
    host.settle()
    before = host.dump()
    result = bridge(host, addresses=["10.6.0.1/24"], ports=["v1"], stp=True, mtu=1400)
    assert result["bridge"]["adopted"]
    assert link(host)["ifalias"] == "labspan.vmnet:br0"
    assert_rests(host, {**BR0, "addresses": ["10.6.0.1/24"], "ports": ["v1"], "stp": True, "mtu": 1400})
    host.settle()
    bridge(host, state="absent", ports=["v1"])
    assert host.dump() == before
    # Now it is nobody's again, and is left alone with a word.
    again = bridge(host, state="absent")
    assert not again["changed"]
    assert "left alone" in str(again["warnings"])
    assert host.dump() == before


def test_a_bridge_that_we_made_takes_no_router_advertisements(host: Host) -> None:
    bridge(host)
    host.run("ip", "link", "add", "br1", "type", "bridge")
    accepts = {name: host.out("sysctl", "-n", f"net.ipv6.conf.{name}.accept_ra").strip() for name in ("br0", "br1")}
    assert accepts == {"br0": "0", "br1": "1"}


def test_adopting_can_be_forbidden_and_removal_forced(host: Host) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    assert "adopt: true" in host.refuse("linux_bridge", {**BR0, "adopt": False})
    bridge(host, state="absent", force=True)
    assert host.link("br0") is None


def test_an_interface_that_was_removed_by_hand_is_not_taken_for_the_adopted_one(host: Host) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    bridge(host, mtu=1400)
    host.run("ip", "link", "del", "br0")
    assert not bridge(host)["bridge"]["adopted"]
    bridge(host, state="absent")
    assert host.link("br0") is None
    assert host.dump()["files"] == []


REFUSALS: list[tuple[dict[str, t.Any], str]] = [
    ({"name": "a-name-of-sixteen"}, "characters long"),
    ({"name": "br%d"}, "not a usable interface name"),
    ({"name": "v*"}, "not a usable interface name"),
    ({"name": "lo"}, "keeps for itself"),
    ({"addresses": ["10.0.0.1"]}, "no prefix length"),
    ({"addresses": ["10.0.0.300/24"]}, "not an address"),
    ({"addresses": ["10.0.0.0/24"]}, "the network's own address"),
    ({"addresses": ["10.0.0.255/24"]}, "broadcast address"),
    ({"addresses": ["ff02::1/64"]}, "not an address that an interface can have"),
    ({"addresses": ["192.0.2.1/24"]}, "already an address of lan"),
    ({"addresses": ["192.0.2.77/25"]}, "overlaps 192.0.2.0/24"),
    ({"addresses": ["198.51.100.1/28"]}, "reaches through lan"),
    ({"mac_address": "01:00:5e:00:00:01"}, "multicast address"),
    ({"mtu": 40}, "not a usable MTU"),
    ({"forward_delay": 1, "stp": True}, "while STP is on"),
    ({"hello_time": 11}, "out of range"),
    ({"group_forward_mask": 1}, "lowest three bits"),
    ({"ports": ["nothing"]}, "does not exist"),
    ({"ports": ["lan"]}, "Remove them there first"),
    ({"ports": ["taken"]}, "a port of other already"),
    ({"ports": ["other"]}, "cannot be the port of a bridge"),
    ({"name": "lan"}, "not a bridge but a veth device"),
    ({"host_access": False, "addresses": ["10.0.0.1/24"]}, "host_access: false"),
    ({"name": "theirs"}, "belongs to the network 'somebody'"),
    ({"name": "theirs", "state": "absent"}, "belongs to the network 'somebody'"),
    ({"vlans": [{"id": "5000"}]}, "not a VLAN"),
    ({"vlans": [{"id": "1-5", "pvid": True}]}, "one PVID"),
]


@pytest.fixture
def busy_host(host: Host) -> Host:
    """A host with a LAN, and with bridges of others."""
    veth(host, "lan", "taken")
    host.run("ip", "addr", "add", "192.0.2.1/24", "dev", "lan")
    host.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.254")
    host.run("ip", "link", "add", "other", "type", "bridge")
    host.run("ip", "link", "set", "taken", "master", "other")
    host.run("ip", "link", "add", "theirs", "type", "bridge")
    host.run("ip", "link", "set", "theirs", "alias", "labspan.vmnet:somebody")
    host.settle()
    return host


@pytest.mark.one_interpreter
def test_what_cannot_be_right_is_refused_with_a_sentence_before_anything_is_written(busy_host: Host) -> None:
    wrong = []
    for options, words in REFUSALS:
        # In a list behind a good entry: the whole list is checked first.
        message = busy_host.refuse("linux_bridge", {"bridges": [{"name": "br-good"}, {**BR0, **options}]})
        if words not in message:
            wrong.append((options, words, message))
    assert wrong == []
    assert busy_host.link("br-good") is None


@pytest.mark.one_interpreter
def test_two_entries_that_contradict_each_other_are_refused(host: Host) -> None:
    def both(first: dict[str, t.Any], second: dict[str, t.Any]) -> str:
        return host.refuse("linux_bridge", {"bridges": [{"name": "br0", **first}, {"name": "br1", **second}]})

    assert "overlaps" in both({"addresses": ["10.0.0.1/16"]}, {"addresses": ["10.0.1.1/24"]})
    assert "is given to the bridges" in both(*[{"mac_address": "02:00:00:00:00:01"}] * 2)
    assert "is listed for the bridges" in both({"ports": ["v0"]}, {"ports": ["v0"]})
    assert "has two closed bridges" in both(*[{"network": "island", "host_access": False}] * 2)
    message = host.refuse("linux_bridge", {"bridges": [{"name": "br0"}, {"name": "br0"}]})
    assert "listed twice" in message


@pytest.mark.one_interpreter
def test_an_overlap_can_be_allowed(busy_host: Host) -> None:
    result = busy_host.converge("linux_bridge", {**BR0, "addresses": ["198.51.100.1/28"], "allow_overlap": True})
    assert busy_host.addresses("br0") == ["198.51.100.1/28"]
    assert any("overlaps" in json.dumps(warning) for warning in result["warnings"])


@pytest.mark.one_interpreter
def test_a_missing_port_is_only_a_warning_in_check_mode(host: Host) -> None:
    result = host.converge("linux_bridge", {**BR0, "ports": ["later"]}, check=True)
    assert result["bridge"]["ports"] == ["later"]
    assert any("later" in json.dumps(warning) for warning in result["warnings"])


@pytest.mark.parametrize("options", [{"vlan_filtering": True}, {"vlan_default_pvid": 5}, {"vlans": [{"id": "10"}]}])
def test_vlans_work_or_the_kernel_is_named_as_the_reason(host: Host, options: dict[str, t.Any]) -> None:
    before = host.dump()
    result = host.module("linux_bridge", {**BR0, **options})
    if not result.get("failed"):
        assert_rests(host, {**BR0, **options})
        return
    assert "CONFIG_BRIDGE_VLAN_FILTERING" in result["msg"]
    assert host.dump() == before
    bridge(host)
    assert "CONFIG_BRIDGE_VLAN_FILTERING" in host.refuse("linux_bridge", {**BR0, **options})
    pytest.skip("EOPNOTSUPP: this kernel was built without bridge VLAN filtering")


def test_a_failure_halfway_is_undone_and_told(host: Host) -> None:
    """An address that the kernel refuses: IPv6 is switched off for every interface there will be."""
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
    veth(host, "v0")
    before = host.dump()
    # The bridge's file-system entry cannot be written by anybody: the second write of the task fails.
    host.run("mount", "--bind", "-o", "ro", "/proc/sys", "/proc/sys")
    host.run("mount", "-o", "remount,ro,bind", "/proc/sys")
    result = host.module("linux_bridge", {**BR0, "ports": ["v0"], "host_access": False})
    host.run("umount", "/proc/sys")
    assert result["failed"]
    assert "disable_ipv6 cannot be written" in result["msg"]
    assert result["not_undone"] == []
    assert host.dump() == before


def test_another_network_is_refused_and_force_takes_over(host: Host) -> None:
    bridge(host, network="lab")
    assert link(host)["ifalias"] == "labspan.vmnet:lab"
    assert "belongs to the network 'lab'" in host.refuse("linux_bridge", {**BR0, "network": "other"})
    bridge(host, network="other", force=True)
    assert link(host)["ifalias"] == "labspan.vmnet:other"


@pytest.mark.one_interpreter
def test_a_missing_library_is_a_clear_message(host: Host) -> None:
    host.run("sh", "-c", "mkdir /run/nothing && echo 'raise ImportError(\"gone\")' > /run/nothing/pyroute2.py")
    path = f"{host.python_path}:/run/nothing"
    result = host.module("linux_bridge", BR0, environment={"PYTHONPATH": f"/run/nothing:{path}"})
    assert result["failed"]
    assert "python3-pyroute2" in result["msg"]


@pytest.mark.one_interpreter
def test_an_account_without_the_capability_is_told_so(host: Host) -> None:
    dropped = subprocess.run(
        [
            *host.argv("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", host.interpreter, "-c"),
            "from ansible_collections.labspan.vmnet.plugins.module_utils import _netlink, _links\n"
            "from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change\n"
            "refusal = _netlink.Netlink().send([_netlink.create_bridge('br0', '02:00:00:00:00:01')])[0]\n"
            "print(_links.failure(Change('bridge br0', 'Create bridge br0', None, None), refusal))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(host.python_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert "become: true" in dropped.stdout
    assert host.link("br0") is None
