# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of networks: there after a reboot and after somebody flushed them, and gone when nobody wants them."""

from __future__ import annotations

import json
import pathlib
import re
import sys
import typing as t

import pytest
from support.hosts import Host, await_condition, cable
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

SERVICE = "labspan-rules.service"
FILES = "/etc/labspan/networks/lab"
MAC = "52:54:00:00:0e:01"
LAN = "192.0.2.1"
UPLINK = """\
[Match]
Name=uplink0
[Network]
Address=192.0.2.10/24
Gateway=192.0.2.1
"""
BRIDGE = {
    "name": "br0",
    "network": "lab",
    "addresses": ["10.97.9.1/24", "fd97:9::1/64"],
    "enabled": True,
    "persistent": "auto",
}
NAT = {"name": "lab", "bridge": "br0"}
PORTS = {"name": "lab", "bridge": "br0", "ports": [{"tap": "port0", "mac": MAC, "addresses": ["10.97.9.2"]}]}
CLOSED = {"name": "br1", "network": "island", "host_access": False, "persistent": "auto"}
ABSENT: list[tuple[str, dict[str, t.Any]]] = [
    ("port_security", {"name": "lab", "state": "absent"}),
    ("nat_masquerade", {"name": "lab", "state": "absent"}),
    ("linux_bridge", {"name": "br0", "network": "lab", "state": "absent"}),
    ("linux_bridge", {"name": "br1", "network": "island", "state": "absent"}),
]


class Wiring:
    """An uplink into a LAN and a guest for the bridge, plugged in at each boot anew."""

    def __init__(self, lan: Host, guest: Host) -> None:
        self.lan, self.guest = lan, guest

    def __call__(self, host: SystemHost) -> None:
        cable(self.lan, "lan0", host, "uplink0")
        self.lan.run("ip", "addr", "add", f"{LAN}/24", "dev", "lan0")
        cable(host, "port0", self.guest, "eth0", mac=MAC)
        self.guest.run("ip", "addr", "add", "10.97.9.2/24", "dev", "eth0")
        self.guest.run("ip", "link", "set", "eth0", "up")
        self.guest.run("ip", "route", "add", "default", "via", "10.97.9.1")


@pytest.fixture(scope="module")
def guest(python_path: pathlib.Path) -> t.Iterator[Host]:
    with Host(python_path, sys.executable) as made:
        yield made


@pytest.fixture(scope="module")
def system(python_path: pathlib.Path, guest: Host) -> t.Iterator[SystemHost]:
    files = {"/etc/systemd/network/uplink0.network": UPLINK}
    with (
        Host(python_path, sys.executable) as lan,
        SystemHost(python_path, files=files, enable=["systemd-networkd"], wire=Wiring(lan, guest)) as made,
    ):
        yield made


@pytest.fixture
def host(system: SystemHost) -> t.Iterator[SystemHost]:
    yield system
    remove(system)
    system.run("nft", "flush", "ruleset")


def remove(host: SystemHost) -> None:
    host.run("ip", "link", "set", "port0", "nomaster")
    for module, params in ABSENT:
        host.converge(module, params)


def uplink_is_up(host: SystemHost) -> bool:
    return "192.0.2.10/24" in host.addresses("uplink0") and "default" in host.out("ip", "route")


def provision(host: SystemHost, **nat: t.Any) -> None:
    await_condition(lambda: uplink_is_up(host), "the uplink")
    host.converge("linux_bridge", BRIDGE)
    host.run("ip", "link", "set", "port0", "master", "br0")
    host.converge("nat_masquerade", {**NAT, **nat})


def tables(host: SystemHost) -> list[str]:
    return sorted(line.removeprefix("table ") for line in host.out("nft", "list", "tables").splitlines())


def ruleset(host: SystemHost) -> list[t.Any]:
    """All rules in tables of ours, without their numbers and counters, by table."""

    def stable(found: t.Any) -> t.Any:
        if isinstance(found, dict):
            return {key: stable(value) for key, value in found.items() if key not in ("handle", "packets", "bytes")}
        return [stable(value) for value in found] if isinstance(found, list) else found

    listed = stable(json.loads(host.out("nft", "-j", "list", "ruleset"))["nftables"][1:])
    ours = (entry for entry in listed if "labspan" in json.dumps(entry))
    return sorted(ours, key=lambda entry: json.dumps(entry, sort_keys=True))


def forwarding(host: SystemHost) -> list[str]:
    """Which interfaces forward, those that come later included."""
    names = ("all", "default", "lo", "br0", "uplink0", "port0")
    paths = [f"/proc/sys/net/ipv{version}/conf/{name}/forwarding" for version in (4, 6) for name in names]
    return host.out("grep", "-H", ".", *paths).splitlines()


def reaches_lan(guest: Host) -> bool:
    """Whether an answer comes back; the LAN has no route to the guest, so that only masqueraded packets have one."""
    return not guest.run("ping", "-c", "1", "-W", "1", LAN, check=False).returncode


def connects_to_lan(guest: Host) -> bool:
    """The same for TCP, since ufw lets a ping pass; nobody listens there, who says so."""
    done = guest.run("timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{LAN}/9", check=False)
    return "Connection refused" in done.stderr


def traces(host: SystemHost) -> str:
    """All that networks leave on the disk, in systemd and in the firewall."""
    script = """
        find /etc/systemd /etc/labspan /etc/sysctl.d /etc/NetworkManager/conf.d /usr/local/lib/labspan \\
            /var/lib/labspan /run/labspan* 2>/dev/null | sort
        systemctl list-unit-files --plain --no-legend 'labspan*'
        systemctl list-units --all --plain --no-legend 'labspan*'
        nft list tables
    """
    return host.out("sh", "-c", script)


def test_the_rules_are_the_same_after_a_reboot_and_packets_are_masqueraded(host: SystemHost, guest: Host) -> None:
    provision(host)
    host.converge("port_security", PORTS)
    host.converge("linux_bridge", CLOSED)
    assert tables(host) == [
        "arp labspan_island_closed",
        "bridge labspan_lab",
        "inet labspan_island_closed",
        "inet labspan_lab",
    ]
    before = ruleset(host), forwarding(host)
    await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")

    host.reboot()

    assert (ruleset(host), forwarding(host)) == before
    await_condition(lambda: uplink_is_up(host), "the uplink")
    host.run("ip", "link", "set", "port0", "master", "br0")
    await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")
    for module, params in (("linux_bridge", BRIDGE), ("nat_masquerade", NAT), ("port_security", PORTS)):
        host.assert_rests(module, params)
    # The twin: without its table the guest reaches nobody.
    host.run("systemctl", "stop", SERVICE)
    host.run("nft", "delete", "table", "inet", "labspan_lab")
    assert not reaches_lan(guest)


slow = pytest.mark.slow
FLUSHES = {
    "flush": ["nft", "flush", "ruleset"],
    "one table": ["nft", "delete", "table", "inet", "labspan_lab"],
    "all rules of a table": ["nft", "flush", "table", "inet", "labspan_lab"],
    "nftables": ["systemctl", "restart", "nftables"],
}


@pytest.mark.parametrize("how", ["flush", *(pytest.param(how, marks=slow) for how in list(FLUSHES)[1:])])
def test_what_somebody_flushes_is_back_at_once(host: SystemHost, how: str) -> None:
    provision(host)
    host.converge("linux_bridge", CLOSED)
    before = ruleset(host)
    host.run("systemctl", "stop", SERVICE)
    host.run(*FLUSHES[how])
    if how != "nftables":  # of which the networks' own unit is told
        assert ruleset(host) != before
        # The twin: while nothing watches, it stays gone, whatever else happens in the firewall.
        host.run("nft", "add", "table", "ip", "somebody")
        host.run("nft", "delete", "table", "ip", "somebody")
        assert ruleset(host) != before
    host.run("systemctl", "start", SERVICE)
    await_condition(lambda: ruleset(host) == before, "the rules that the service found missing at its start")

    host.run(*FLUSHES[how])
    await_condition(lambda: ruleset(host) == before, f"the rules after {how}")
    assert not host.converge("nat_masquerade", NAT)["changed"]


@slow
def test_a_firewalld_that_starts_reloads_and_ends_leaves_the_rules(host: SystemHost) -> None:
    provision(host, forward=False)
    before = ruleset(host)
    for verb in ("start", "reload", "restart", "stop"):
        host.run("systemctl", verb, "firewalld")
        await_condition(lambda: ruleset(host) == before, f"the rules after firewalld's {verb}")
    assert host.out("systemctl", "is-active", SERVICE).strip() == "active"


@slow
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_ufw_that_comes_reloads_and_goes_leaves_the_rules(host: SystemHost, guest: Host, backend: str) -> None:
    provision(host, backend=backend)
    before = ruleset(host)
    try:
        host.run("ufw", "--force", "enable")
        await_condition(lambda: ruleset(host) == before, "the rules after ufw was switched on")
        host.run("ufw", "route", "allow", "in", "on", "br0", "out", "on", "uplink0")
        for words in (("reload",), ("disable",), ("--force", "enable")):
            host.run("ufw", *words)
            assert ("Status: active" in host.out("ufw", "status")) == (words != ("disable",))
            assert ("-P FORWARD DROP" in host.out("iptables", "-S", "FORWARD")) == (words != ("disable",))
            await_condition(lambda: ruleset(host) == before, f"the rules after ufw's {words[-1]}")
            await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")
        assert not host.converge("nat_masquerade", {**NAT, "backend": backend, "forward": False})["actions"]
    finally:
        host.run("ufw", "--force", "reset")


MANUAL = pathlib.Path(__file__).resolve().parents[3] / "docs" / "firewall.md"
STARTS = {"ufw": "ufw --force enable", "firewalld": "systemctl start firewalld && firewall-cmd --state"}
ENDS = {
    "ufw": "ufw --force reset",
    "firewalld": "systemctl stop firewalld; rm -f /etc/firewalld/zones/lab.xml* /etc/firewalld/policies/lab-out.xml*",
}


def advice(manager: str, message: str) -> list[str]:
    """The commands that a user is told: by the error, or where it sends him."""
    if manager == "ufw":
        return re.findall(r"ufw (?:route )?allow [^;.]+", message)
    assert "docs/firewall.md" in message
    told = re.findall(r"^# (firewall-cmd .*)$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE)
    return [command.replace("eth0", "uplink0") for command in told]


@pytest.mark.parametrize("manager", STARTS)
def test_a_host_with_a_manager_can_be_provisioned_by_what_the_error_says(
    host: SystemHost, guest: Host, manager: str
) -> None:
    network = {"name": "lab", "scenario": "nat", "bridge": "br0", "subnet": "10.97.9.0/24", "dhcp_enabled": False}
    opened = {"networks": [{**network, "forward": False}]}
    await_condition(lambda: uplink_is_up(host), "the uplink")
    try:
        host.run("sh", "-c", STARTS[manager])
        message = host.refuse("lab_host", {"networks": [network]})
        assert "then set forward: false (nat_forward or routed_forward: false for the roles" in message
        assert host.converge("lab_host", opened)["forward_blockers"]
        host.run("ip", "link", "set", "port0", "master", "br0")
        # The twin: without the rest of what it says, nothing passes.
        assert not connects_to_lan(guest)
        commands = advice(manager, message)
        for command in commands:
            host.run(*command.split())
        await_condition(lambda: connects_to_lan(guest), f"a masqueraded packet's answer after {commands}")
        assert host.converge("lab_host", opened)["actions"] == []
        # What is open there is not seen, as the sentence says.
        assert host.refuse("lab_host", {"networks": [network]}) == message
    finally:
        host.run("sh", "-c", ENDS[manager])


def test_the_watch_writes_nothing_while_nobody_else_does(host: SystemHost) -> None:
    provision(host)
    await_condition(lambda: watches(host), "the watch to listen")
    with host.monitored() as heard:
        pass
    assert heard == []
    # Not even after it has loaded something: its own transaction is not one that calls for another.
    loads = loaded(host) + 1
    host.run("nft", "delete", "table", "inet", "labspan_lab")
    await_condition(lambda: loaded(host) == loads, "the table")
    assert "inet labspan_lab" in tables(host)
    with host.monitored() as heard:
        host.run("nft", "add", "table", "ip", "somebody")
        host.run("nft", "delete", "table", "ip", "somebody")
    assert [line for line in heard if "labspan" in line] == []
    assert loaded(host) == loads


def loaded(host: SystemHost) -> int:
    """How often the service has said since the boot that it has loaded rules."""
    return host.journal("-u", SERVICE, "-b").count("loaded from")


def watches(host: SystemHost) -> bool:
    """Whether its monitor hears what happens to tables."""
    script = "for pid in $(pgrep -x nft); do awk -v pid=$pid '$2 == 12 && $3 == pid' /proc/net/netlink; done"
    return bool(host.out("sh", "-c", script).strip())


@slow
def test_a_killed_watch_is_started_again(host: SystemHost) -> None:
    provision(host)
    await_condition(lambda: watches(host), "the watch to listen")
    host.run("pkill", "-9", "-x", "nft")
    host.run("nft", "flush", "ruleset")
    await_condition(lambda: "inet labspan_lab" in tables(host), "the table")


@slow
def test_many_flushes_in_a_row_are_all_seen(host: SystemHost) -> None:
    provision(host)
    await_condition(lambda: watches(host), "the watch to listen")
    for _time in range(40):
        host.run("nft", "flush", "ruleset")
    await_condition(lambda: "inet labspan_lab" in tables(host), "the table")


@slow
def test_forwarding_for_all_interfaces_does_not_become_each_ones_own_at_boot(host: SystemHost) -> None:
    """Kernels before 6.17 need that setting for IPv6, and write it into all others."""
    provision(host)
    host.write(f"{FILES}/forwarding", "net/ipv6/conf/all/forwarding = 1\n")
    before = forwarding(host)
    host.run("systemctl", "restart", "labspan-network@lab.service")
    changed = set(forwarding(host)) - set(before)
    assert changed == {"/proc/sys/net/ipv6/conf/all/forwarding:1"}
    # The twin: written plainly, it reaches the others.
    host.run(
        "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
    )
    assert len(set(forwarding(host)) - set(before)) > 1
    host.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding")


# Permission in chains of others


def docker(host: SystemHost) -> None:
    """What Docker does to the FORWARD chain when it starts."""
    for words in (
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-I FORWARD -j DOCKER-USER",
        "-P FORWARD DROP",
    ):
        host.run("iptables-nft", "-w", *words.split())


def has_accept(host: SystemHost) -> bool:
    done = host.run("iptables-nft", "-w", "-S", "DOCKER-USER", check=False)
    return "-j LABSPAN-lab-ACC" in done.stdout


def test_an_accept_is_there_when_docker_is(host: SystemHost, guest: Host) -> None:
    await_condition(lambda: uplink_is_up(host), "the uplink")
    docker(host)
    provision(host)
    assert has_accept(host)
    await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")
    assert "-I DOCKER-USER 1 " in host.out("cat", f"{FILES}/accept.iptables-nft")
    before = host.out("iptables-nft-save")

    host.reboot()

    # Docker has not started: nothing of ours has made a chain for it.
    assert "ip filter" not in tables(host)
    docker(host)
    await_condition(lambda: has_accept(host), "the accept")
    assert _without_comments(host.out("iptables-nft-save")) == _without_comments(before)
    await_condition(lambda: uplink_is_up(host), "the uplink")
    host.run("ip", "link", "set", "port0", "master", "br0")
    await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")
    host.assert_rests("nat_masquerade", NAT)
    host.run("iptables-nft", "-w", "-F", "DOCKER-USER")
    await_condition(lambda: has_accept(host), "the accept after a flush")


def _without_comments(saved: str) -> list[str]:
    lines = [line for line in saved.splitlines() if not line.startswith("#")]
    return sorted(line.partition(" [")[0] for line in lines)


@slow
def test_rules_of_iptables_are_back_after_a_reboot(host: SystemHost, guest: Host) -> None:
    provision(host, backend="iptables")
    before = _without_comments(host.out("iptables-save"))
    assert any("MASQUERADE" in line for line in before)
    await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")

    host.reboot()

    assert _without_comments(host.out("iptables-save")) == before
    await_condition(lambda: uplink_is_up(host), "the uplink")
    host.run("ip", "link", "set", "port0", "master", "br0")
    await_condition(lambda: reaches_lan(guest), "a masqueraded packet's answer")
    host.assert_rests("nat_masquerade", {**NAT, "backend": "iptables"})
    assert host.out("cat", "/proc/net/ip_tables_names") == "", "legacy tables were made"
    host.run("iptables", "-w", "-t", "nat", "-F")
    await_condition(lambda: _without_comments(host.out("iptables-save")) == before, "the rules after a flush")


def without_rules_and_bridge(host: SystemHost) -> None:
    """As the host is at boot, before any unit of ours."""
    host.run("systemctl", "stop", SERVICE, "labspan-network@lab.service")
    host.run("nft", "flush", "ruleset")
    host.run("ip", "link", "del", "br0")
    assert "MASQUERADE" not in host.out("iptables-save")


def test_rules_of_iptables_are_there_before_the_interfaces_that_they_guard(host: SystemHost) -> None:
    provision(host, backend="iptables")
    before = _without_comments(host.out("iptables-save")), _without_comments(host.out("ip6tables-save"))
    (name,) = host.out("sh", "-c", f"cd {FILES} && ls rules.iptables-*").split()
    text = host.out("cat", f"{FILES}/{name}")

    without_rules_and_bridge(host)
    host.write(f"{FILES}/{name}", text.replace("\nCOMMIT", "\n-A NOWHERE -j ACCEPT\nCOMMIT"))
    assert host.run("systemctl", "start", "labspan-network@lab.service", check=False).returncode
    assert host.run("ip", "link", "show", "br0", check=False).returncode, "a bridge without rules"
    assert "rules of iptables were not loaded" in host.journal("-u", "labspan-network@lab.service", "-b")

    # The twin: what can be loaded is there with the bridge, and nobody else has loaded it.
    host.write(f"{FILES}/{name}", text)
    host.run("systemctl", "start", "labspan-network@lab.service")
    host.run("ip", "link", "show", "br0")
    assert (_without_comments(host.out("iptables-save")), _without_comments(host.out("ip6tables-save"))) == before
    assert host.run("systemctl", "is-active", SERVICE, check=False).stdout.strip() == "inactive"


def test_two_that_load_the_same_chains_at_once_load_them_once(host: SystemHost) -> None:
    provision(host, backend="iptables")
    before = _without_comments(host.out("iptables-save"))
    without_rules_and_bridge(host)
    program = "/usr/local/lib/labspan/rules"
    host.run("sh", "-c", f"for _ in 1 2 3 4 5 6; do {program} load & {program} guard lab & done; wait")
    assert _without_comments(host.out("iptables-save")) == before
    host.run("systemctl", "start", "labspan-network@lab.service", SERVICE)


# Leaving nothing


def test_absent_and_not_persistent_leave_no_file_and_no_unit(host: SystemHost) -> None:
    before = traces(host)
    provision(host)
    host.converge("port_security", PORTS)
    assert traces(host) != before
    host.converge("port_security", {**PORTS, "persistent": "false"})
    host.converge("nat_masquerade", {**NAT, "persistent": "false"})
    host.converge("linux_bridge", {**BRIDGE, "persistent": "false"})
    assert host.run("test", "-e", "/etc/labspan", check=False).returncode
    assert host.run("systemctl", "cat", SERVICE, check=False).returncode
    assert "inet labspan_lab" in tables(host)
    remove(host)
    assert traces(host) == before
    for module, params in ABSENT:
        host.assert_rests(module, params)


@slow
def test_what_is_taken_away_on_purpose_does_not_come_back(host: SystemHost) -> None:
    provision(host)
    await_condition(lambda: watches(host), "the watch to listen")
    host.converge("linux_bridge", CLOSED)  # keeps the service there
    host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    host.run("nft", "delete", "table", "arp", "labspan_island_closed")
    # When this one is back, all that was heard before has been looked at.
    await_condition(lambda: "arp labspan_island_closed" in tables(host), "the other network's table")
    assert "inet labspan_lab" not in tables(host)


def test_where_nothing_would_read_the_files_they_are_refused(python_path: pathlib.Path) -> None:
    with Host(python_path, sys.executable) as host:
        host.run("ip", "link", "add", "br0", "type", "bridge")
        asked = {**NAT, "out_interface": "br0", "sources": ["10.97.9.0/24"], "persistent": "true"}
        message = host.refuse("nat_masquerade", asked)
    assert "systemd does not run this host" in message
