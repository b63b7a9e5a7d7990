# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts of systemd-networkd: it follows the move, renews on the bridge, and makes the same of the next boot."""

from __future__ import annotations

import contextlib
import pathlib
import re
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.lans import GATEWAY, Lan
from support.system_host import SystemHost, needs_system_host
from support.uplinks import begin, move, reaches

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MAC = "52:54:00:00:00:17"
OWN = "/etc/systemd/network/20-wired.network"
DHCP = "[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n"
STATIC = """\
# The office.
[Match]
Name=eth0

[Network]
Address=10.77.0.5/24
Address=10.77.0.6/24
Address=fd77::5/64
Gateway=10.77.0.1
Gateway=fd77::1
DNS=10.77.0.1
IPv6AcceptRA=no

[Route]
Destination=198.51.100.0/24
Gateway=10.77.0.2
Metric=50

[RoutingPolicyRule]
From=10.77.0.6/32
Table=77
Priority=900
"""
BY_HAND = """\
ip address add 10.77.0.7/24 dev eth0
ip address add 10.78.0.1/24 dev eth0
ip address add fd78::1/64 dev eth0 nodad
ip route add 203.0.113.0/24 via 10.77.0.2
ip route add default via 10.77.0.1 table 77
ip -6 route add fd79::/64 via fd77::1
ip rule add from 10.78.0.0/24 lookup 77 priority 901
ip -6 rule add from fd78::/64 lookup 77 priority 901
ip neighbour add 10.77.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
"""
GREEDY = "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n"


@pytest.fixture(scope="module")
def lan(python_path: pathlib.Path) -> t.Iterator[Lan]:
    with Host(python_path) as host:
        yield Lan(host, MAC)


@contextlib.contextmanager
def started(python_path: pathlib.Path, lan: Lan, network: str) -> t.Iterator[SystemHost]:
    with SystemHost(python_path, files={OWN: network}, enable=["systemd-networkd"], wire=lan.wire) as host:
        await_address(host, "eth0")
        yield host


@contextlib.contextmanager
def static_host(python_path: pathlib.Path, lan: Lan) -> t.Iterator[SystemHost]:
    with SystemHost(python_path, files={OWN: STATIC}, enable=["systemd-networkd"], wire=lan.wire) as host:
        await_condition(lambda: is_settled(host), "all of the host's configuration")
        yield host


def is_settled(host: SystemHost) -> bool:
    """Whether networkd has done all that the static file says, and every address can be used."""
    shown = host.out("ip", "-o", "address", "show", "eth0")
    return "fd77::5/" in shown and "10.77.0.6/" in shown and "tentative" not in shown and reaches(host, GATEWAY)


def await_rollback(host: SystemHost, transaction: str) -> None:
    unit = f"labspan-uplink-{transaction}.service"
    await_condition(
        lambda: host.run("systemctl", "is-active", unit, check=False).returncode != 0, "the dead-man to be done"
    )


def address(host: SystemHost, name: str) -> str:
    """The IPv4 address of the interface, with its prefix length; of more than one, all."""
    return " ".join(re.findall(r" inet (\S+)", host.run("ip", "-4", "-o", "addr", "show", name, check=False).stdout))


def address6(host: SystemHost, name: str) -> list[str]:
    """Global IPv6 addresses that can be used."""
    shown = host.run("ip", "-6", "-o", "addr", "show", name, "scope", "global", "-tentative", check=False).stdout
    return re.findall(r" inet6 ([0-9a-f:]+)/", shown)


def await_address(host: SystemHost, name: str) -> None:
    await_condition(lambda: bool(address(host, name) and address6(host, name)), f"the addresses of {name}")


def ports(host: SystemHost) -> set[str]:
    return set(re.findall(r"^\d+: ([^:@]+)", host.out("bridge", "link", "show"), re.MULTILINE))


def with_tap(host: SystemHost) -> None:
    host.run("ip", "tuntap", "add", "tap7", "mode", "tap")
    host.run("ip", "link", "set", "tap7", "master", "br0", "up")


def renew(host: SystemHost, lan: Lan, name: str, times: int = 1) -> None:
    """Have the lease renewed, as at half its time."""
    for _time in range(times):
        before = len(lan.given)

        def renewed(count: int = before) -> bool:  # networkd may not have its link back yet, or have no lease to renew
            host.run("networkctl", "renew", name, check=False)
            return len(lan.given) > count

        await_condition(renewed, f"a renewal on {name}")


def restart(host: SystemHost) -> None:
    host.run("systemctl", "restart", "systemd-networkd")


def options(**more: t.Any) -> dict[str, t.Any]:
    """The whole of it, to stay."""
    return {"bridge": "br0", "interface": "eth0", "persistent": True, "transaction": "0" * 16, **more}


def layer3(host: SystemHost, name: str) -> list[str]:
    """Addresses, routes and rules of the interface."""
    lines = host.out("ip", "-o", "address", "show", name).splitlines()
    for family in ("-4", "-6"):
        lines += host.out("ip", family, "route", "show", "table", "all", "dev", name).splitlines()
        lines += host.out("ip", family, "rule", "show").splitlines()
    words = (re.sub(r"^\d+: | (valid|preferred)_lft forever|\\", "", line).replace(name, "NAME") for line in lines)
    return sorted(" ".join(line.split()) for line in words if not re.search(r"fe80::|ff00::|anycast", line))


def test_a_host_with_a_lease_keeps_its_address_through_all_that_comes(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        leased, (announced,) = address(host, "eth0"), address6(host, "eth0")
        given = len(lan.given)
        with lan.pinging(leased.partition("/")[0], lose=1), lan.pinging(announced, lose=1):
            move(host, persistent=True)
            renew(host, lan, "br0", 3)
            with_tap(host)
            restart(host)
            host.run("networkctl", "reload")
            renew(host, lan, "br0")
        assert (address(host, "br0"), address6(host, "br0")) == (leased, [announced])
        assert address(host, "eth0") == ""
        assert ports(host) == {"eth0", "tap7"}
        assert not host.converge("bridge_uplink", options())["changed"]
        host.power_cut()
        await_address(host, "br0")
        assert (address(host, "br0"), address6(host, "br0")) == (leased, [announced])
        assert ports(host) == {"eth0"}
        assert not host.converge("bridge_uplink", options())["changed"]
        with lan.pinging(leased.partition("/")[0], lose=1), lan.pinging(announced, lose=1):
            with_tap(host)
            restart(host)
            renew(host, lan, "br0", 2)
            assert ports(host) == {"eth0", "tap7"}
            host.run("ip", "link", "del", "tap7")
            move(host, persistent=True, state="absent")
            renew(host, lan, "eth0", 2)
            restart(host)
            renew(host, lan, "eth0")
        assert (address(host, "eth0"), address6(host, "eth0")) == (leased, [announced])
        assert host.link("br0") is None
        assert host.out("ls", "/etc/systemd/network").split() == ["20-wired.network"]
        host.power_cut()
        await_address(host, "eth0")
        assert address(host, "eth0") == leased
        assert set(lan.given[given:]) == {leased.partition("/")[0]}
        assert lan.returned == []


def test_a_static_host_has_all_of_it_again_after_a_restart_and_a_reboot(python_path: pathlib.Path, lan: Lan) -> None:
    with static_host(python_path, lan) as host:
        before = layer3(host, "eth0")
        with lan.pinging("10.77.0.5", lose=1), lan.pinging("fd77::5", lose=1):
            move(host, persistent=True)
            assert layer3(host, "br0") == before
            with_tap(host)
            restart(host)
            host.run("networkctl", "reload")
        assert layer3(host, "br0") == before
        assert ports(host) == {"eth0", "tap7"}
        # A carrier that goes and comes does not bring the addresses to the card again.
        host.run("ip", "link", "del", "tap7")
        lan.host.run("ip", "link", "set", "port0", "down")
        await_condition(
            lambda: "NO-CARRIER" in host.out("ip", "link", "show", "br0"), "the bridge to be without carrier"
        )
        lan.host.run("ip", "link", "set", "port0", "up")
        await_condition(lambda: reaches(host, GATEWAY), "the gateway")
        assert layer3(host, "br0") == before
        host.reboot()
        await_condition(lambda: layer3(host, "br0") == before, "the addresses of before")
        assert layer3(host, "eth0") == [line for line in before if " lookup " in line]
        await_condition(lambda: reaches(host, GATEWAY), "the gateway")
        assert not host.converge("bridge_uplink", options())["changed"]
        with lan.pinging("10.77.0.5", lose=1), lan.pinging("fd77::5", lose=1):
            move(host, persistent=True, state="absent")
            restart(host)
        assert layer3(host, "eth0") == before


def test_what_others_gave_the_card_is_kept_both_ways(python_path: pathlib.Path, lan: Lan) -> None:
    with static_host(python_path, lan) as host:
        host.run("sh", "-ec", BY_HAND)
        before = layer3(host, "eth0")
        move(host)
        assert layer3(host, "br0") == before
        restart(host)
        assert layer3(host, "br0") == before
        move(host, state="absent")
        assert layer3(host, "eth0") == before


@pytest.mark.slow
def test_what_others_gave_the_card_is_there_after_a_rollback(python_path: pathlib.Path, lan: Lan) -> None:
    with static_host(python_path, lan) as host:
        host.run("sh", "-ec", BY_HAND)
        before = layer3(host, "eth0")
        pending = begin(host, confirm_timeout=5)["pending"]["transaction"]
        await_rollback(host, pending)
        assert layer3(host, "eth0") == before


def test_networkd_goes_on_with_the_card_when_nobody_confirms(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        leased, (announced,) = address(host, "eth0"), address6(host, "eth0")
        with lan.pinging(leased.partition("/")[0], lose=1), lan.pinging(announced, lose=1):
            pending = begin(host, persistent=True, confirm_timeout=15)["pending"]["transaction"]
            renew(host, lan, "br0")
            await_rollback(host, pending)
            renew(host, lan, "eth0", 2)
        assert (address(host, "eth0"), address6(host, "eth0")) == (leased, [announced])
        assert host.link("br0") is None
        assert host.out("ls", "/etc/systemd/network").split() == ["20-wired.network"]
        assert host.out("find", "/run/systemd/network", "-name", "*.network") == ""
        assert lan.returned == []


@pytest.mark.slow
def test_networkd_goes_on_with_the_bridge_when_nobody_confirms(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        leased, (announced,) = address(host, "eth0"), address6(host, "eth0")
        move(host, persistent=True)
        host.power_cut()
        await_address(host, "br0")
        with lan.pinging(leased.partition("/")[0], lose=1), lan.pinging(announced, lose=1):
            pending = begin(host, persistent=True, state="absent", confirm_timeout=5)["pending"]["transaction"]
            assert address(host, "eth0") == leased
            await_rollback(host, pending)
            renew(host, lan, "br0", 2)
        assert (address(host, "br0"), address6(host, "br0")) == (leased, [announced])
        assert ports(host) == {"eth0"}
        assert lan.returned == []


@pytest.mark.parametrize("network", [DHCP, STATIC], ids=["dhcp", "static"])
def test_a_power_cut_after_any_file_leaves_a_host_that_boots(python_path: pathlib.Path, lan: Lan, network: str) -> None:
    files = ["06-labspan-br0.netdev", "06-labspan-br0.network", "06-labspan-eth0.network"]
    with SystemHost(python_path, files={OWN: network}, enable=["systemd-networkd"], wire=lan.wire) as host:
        await_condition(lambda: address(host, "eth0") != "", "an address")
        wanted = address(host, "eth0")
        move(host, persistent=True)
        assert sorted(host.out("ls", "/etc/systemd/network").split()) == sorted([*files, "20-wired.network"])
        for count, owner in ((2, "eth0"), (1, "eth0")):
            host.run("rm", f"/etc/systemd/network/{files[count]}")
            host.power_cut()
            await_condition(lambda name=owner: address(host, name) == wanted, f"{owner}'s address")  # type: ignore[misc]
            await_condition(lambda: reaches(host, GATEWAY), "the gateway")
            assert address(host, "br0") == ""


@pytest.mark.slow
def test_a_file_for_any_ethernet_does_not_take_taps_off(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, GREEDY) as host:
        leased = address(host, "eth0")
        move(host, persistent=True)
        with_tap(host)
        restart(host)
        renew(host, lan, "br0")
        assert ports(host) == {"eth0", "tap7"}
        host.power_cut()
        await_address(host, "br0")
        with_tap(host)
        restart(host)
        renew(host, lan, "br0")
        assert (address(host, "br0"), ports(host)) == (leased, {"eth0", "tap7"})
        # It would: without our file the tap is not a port any more.
        host.run("rm", "/etc/systemd/network/06-labspan-taps.network")
        restart(host)
        await_condition(lambda: ports(host) == {"eth0"}, "networkd to take the tap off")


def test_check_mode_tells_and_writes_nothing_and_a_vlan_is_refused(python_path: pathlib.Path, lan: Lan) -> None:
    with SystemHost(python_path, files={OWN: DHCP}, enable=["systemd-networkd"], wire=lan.wire) as host:
        await_condition(lambda: address(host, "eth0") != "", "a lease")
        result = host.converge("bridge_uplink", options(), check=True)
        assert result["changed"]
        assert any("systemd-networkd" in action for action in result["actions"])
        assert host.link("br0") is None
        assert host.out("ls", "/etc/systemd/network").split() == ["20-wired.network"]
        assert host.run("ls", "/run/systemd/network", check=False).stdout == ""
        host.write(OWN, DHCP + "VLAN=eth0.5\n")
        refused = host.module("bridge_uplink", options())
        assert refused.get("failed")
        assert "VLAN=eth0.5" in refused["msg"]
