# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts of ifupdown and of a dhclient by hand: the lease moves with the uplink, and the next boot makes the same."""

from __future__ import annotations

import contextlib
import pathlib
import re
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.lans import GATEWAY, SHORT, Lan
from support.system_host import SystemHost, needs_system_host
from support.uplinks import begin, move, phase, reaches

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MAC = "52:54:00:00:00:15"
INTERFACES = "/etc/network/interfaces"
LEASES = "/var/lib/dhcp/dhclient.br0.leases"
DHCP = """\
auto lo
iface lo inet loopback

# The primary network interface
auto eth0
iface eth0 inet dhcp
iface eth0 inet6 auto
"""
STATIC = """\
auto eth0
iface eth0 inet static
    address 10.77.0.5/24
    gateway 10.77.0.1
    up ip route add 198.51.100.0/24 via 10.77.0.2 dev eth0
iface eth0 inet static
    address 10.77.0.6/24
iface eth0 inet6 static
    address fd77::5/64
    gateway fd77::1
"""


@pytest.fixture(scope="module")
def lan(python_path: pathlib.Path) -> t.Iterator[Lan]:
    with Host(python_path) as host:
        yield Lan(host, MAC, *SHORT)


@contextlib.contextmanager
def started(python_path: pathlib.Path, lan: Lan, interfaces: str) -> t.Iterator[SystemHost]:
    files = {INTERFACES: interfaces}
    with SystemHost(python_path, files=files, enable=["networking"], wire=lan.wire) as host:
        yield host


def address(host: SystemHost, name: str) -> str:
    """The IPv4 address of the interface, with its prefix length; of more than one, all."""
    return " ".join(re.findall(r" inet (\S+)", host.out("ip", "-4", "-o", "address", "show", name)))


def ports(host: SystemHost) -> set[str]:
    return set(re.findall(r"^\d+: ([^:@]+)", host.out("bridge", "link", "show"), re.MULTILINE))


def clients(host: SystemHost) -> list[str]:
    """The interfaces that have a dhclient."""
    found: dict[str, tuple[str, str]] = {}
    for line in host.out("ps", "-e", "-o", "pid=,ppid=,args=").splitlines():
        pid, parent, words = line.split(None, 2)
        if "dhclient" in words.split()[0] and not words.endswith("<defunct>"):
            found[pid] = parent, words
    # Between its fork and the start of its script a client is there twice.
    alone = [words for parent, words in found.values() if found.get(parent, ("", ""))[1] != words]
    return sorted(name for words in alone for name in re.findall(r"\b(?:eth0|br0)$", words))


def await_dead_man(host: SystemHost, transaction: str) -> None:
    """Wait until nobody watches over the move any more."""
    unit = f"labspan-uplink-{transaction}.service"
    await_condition(
        lambda: host.run("systemctl", "is-active", unit, check=False).returncode != 0, "the dead-man to be done"
    )


def with_tap(host: SystemHost) -> None:
    host.run("ip", "tuntap", "add", "tap7", "mode", "tap")
    host.run("ip", "link", "set", "tap7", "master", "br0", "up")


def test_a_host_with_a_lease_keeps_its_address_through_all_that_comes(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        leased = address(host, "eth0")
        given = len(lan.given)
        with lan.pinging(leased.partition("/")[0], lose=1):
            move(host, persistent=True)
            lan.await_renewals(3)
        assert address(host, "br0") == leased
        assert address(host, "eth0") == ""
        assert clients(host) == ["br0"]
        assert lan.returned == []
        # The same bridge is what ifupdown makes, with the lease; it does not take the tap off.
        with_tap(host)
        host.run("systemctl", "restart", "networking")
        assert address(host, "br0") == leased
        assert ports(host) == {"eth0", "tap7"}
        assert clients(host) == ["br0"]
        assert not host.converge("bridge_uplink", options())["changed"]
        host.run("ip", "link", "del", "tap7")
        host.power_cut()
        assert address(host, "br0") == leased
        assert ports(host) == {"eth0"}
        assert set(lan.given[given:]) == {leased.partition("/")[0]}
        assert not host.converge("bridge_uplink", options())["changed"]
        # And back.
        with lan.pinging(leased.partition("/")[0], lose=1):
            move(host, persistent=True, state="absent")
            lan.await_renewals(1)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        assert host.link("br0") is None
        assert host.out("cat", INTERFACES) == DHCP
        assert host.run("test", "-e", LEASES, check=False).returncode != 0
        host.power_cut()
        assert address(host, "eth0") == leased


def test_without_the_lease_under_its_name_the_bridge_is_another_client(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        leased = address(host, "eth0")
        move(host, persistent=True)
        host.run("rm", LEASES)
        host.power_cut()
        assert address(host, "br0") not in ("", leased)


def test_a_static_host_has_all_of_it_again_after_a_restart_and_a_reboot(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, STATIC) as host:
        before = layer3(host, "eth0")
        with lan.pinging("10.77.0.5", lose=1), lan.pinging("fd77::5", lose=1):
            move(host, persistent=True)
        assert layer3(host, "br0") == before
        with_tap(host)
        host.run("systemctl", "restart", "networking")
        assert layer3(host, "br0") == before
        assert ports(host) == {"eth0", "tap7"}
        host.reboot()
        assert layer3(host, "br0") == before
        assert layer3(host, "eth0") == []
        assert reaches(host, GATEWAY)
        assert not host.converge("bridge_uplink", options())["changed"]


def test_what_somebody_wrote_into_the_files_since_is_not_lost_on_the_way_back(
    python_path: pathlib.Path, lan: Lan
) -> None:
    edit = "    up ip route add 203.0.113.0/24 via 10.77.0.3\n"
    with started(python_path, lan, STATIC) as host:
        before = layer3(host, "eth0")
        move(host, persistent=True)
        host.run("tee", "-a", INTERFACES, stdin=edit)
        refusal = host.module("bridge_uplink", options(state="absent"))["msg"]
        assert f"{INTERFACES} was changed by somebody else" in refusal
        assert (layer3(host, "br0"), ports(host)) == (before, {"eth0"})
        assert host.out("cat", INTERFACES).endswith(edit)
        move(host, state="absent", persistent=True, force=True)
        assert layer3(host, "eth0") == before
        assert host.out("cat", INTERFACES) == STATIC
        assert host.out("cat", "/var/lib/labspan/uplink/br0-edited-etc-network-interfaces").endswith(edit)


def test_what_the_administrator_put_in_the_place_of_our_files_comes_back(python_path: pathlib.Path, lan: Lan) -> None:
    newer = STATIC.replace("10.77.0.5/24", "10.77.0.25/24")
    with started(python_path, lan, STATIC) as host:
        move(host, persistent=True)
        host.run("tee", INTERFACES, stdin=newer)
        host.power_cut()
        before = layer3(host, "eth0")
        assert "10.77.0.25/24" in " ".join(before)
        move(host, persistent=True)
        assert layer3(host, "br0") == before
        move(host, persistent=True, state="absent")
        assert host.out("cat", INTERFACES) == newer
        assert host.out("cat", "/var/lib/labspan/uplink/br0-before-etc-network-interfaces") == STATIC
        assert layer3(host, "eth0") == before


def test_the_client_is_the_cards_again_when_nobody_confirms(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        leased = address(host, "eth0")
        pending = begin(host, persistent=True, confirm_timeout=10)["pending"]["transaction"]
        assert (address(host, "br0"), clients(host)) == (leased, ["br0"])
        await_dead_man(host, pending)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        assert host.link("br0") is None
        # It is not a part of the unit that ended.
        lan.await_renewals(1)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        assert host.out("cat", INTERFACES) == DHCP


def test_the_client_is_the_cards_again_while_the_server_is_silent(python_path: pathlib.Path, lan: Lan) -> None:
    with SystemHost(python_path, wire=lan.wire) as host:
        host.run("dhclient", "eth0")
        leased = address(host, "eth0")
        pending = begin(host, confirm_timeout=5)["pending"]["transaction"]
        with lan.without_dhcp():
            await_dead_man(host, pending)
            assert phase(host, pending) == "rolled back"
            assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        lan.await_renewals(1)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        assert host.out("cat", "/run/dhclient.pid").strip() in host.out("pgrep", "-x", "dhclient").split()


@pytest.mark.slow
def test_a_server_that_is_silent_already_ends_the_move_and_not_the_client(python_path: pathlib.Path, lan: Lan) -> None:
    with SystemHost(python_path, wire=lan.wire) as host:
        host.run("dhclient", "eth0")
        leased = address(host, "eth0")
        with lan.without_dhcp():
            assert "rolled back" in host.module("bridge_uplink", options(persistent=False))["msg"]
            assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        lan.await_renewals(1)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])


def test_a_client_that_does_not_run_after_the_way_back_is_told(python_path: pathlib.Path, lan: Lan) -> None:
    with SystemHost(python_path, wire=lan.wire) as host:
        host.run("dhclient", "eth0")
        leased = address(host, "eth0")
        pending = begin(host, confirm_timeout=10)["pending"]["transaction"]
        host.run("chmod", "-x", "/usr/sbin/dhclient")
        await_dead_man(host, pending)
        asked = options(persistent=False, transaction=pending, step="confirm")
        assert "dhclient does not run for eth0 any more" in host.module("bridge_uplink", asked)["msg"]
        assert phase(host, pending) == "stuck"
        host.run("chmod", "+x", "/usr/sbin/dhclient")
        move(host)
        assert (address(host, "br0"), clients(host)) == (leased, ["br0"])


def test_the_client_goes_back_whatever_mode_the_task_has_by_then(python_path: pathlib.Path, lan: Lan) -> None:
    static = {"address_mode": "static", "addresses": ["10.77.0.9/24"]}
    with SystemHost(python_path, wire=lan.wire) as host:
        host.run("dhclient", "eth0")
        leased = address(host, "eth0")
        move(host)
        move(host, state="absent", **static)
        lan.await_renewals(1)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])
        # A lease that nobody renews is told of there, too.
        move(host)
        host.run("pkill", "-KILL", "dhclient")
        for mode in (static, {"address_mode": "none"}):
            asked = options(persistent=False, state="absent", **mode)
            assert "was leased" in host.module("bridge_uplink", asked)["msg"]
        assert address(host, "br0") == leased


def test_a_client_that_was_started_by_hand_follows_too(python_path: pathlib.Path, lan: Lan) -> None:
    with SystemHost(python_path, wire=lan.wire) as host:
        host.run("dhclient", "eth0")
        leased = address(host, "eth0")
        assert "set persistent: false" in host.module("bridge_uplink", options()).get("msg", "")
        with lan.pinging(leased.partition("/")[0], lose=1):
            move(host)
            lan.await_renewals(1)
            assert "set persistent: false" in host.module("bridge_uplink", options()).get("msg", "")
            move(host, state="absent")
            lan.await_renewals(1)
        assert (address(host, "eth0"), clients(host)) == (leased, ["eth0"])


def options(**more: t.Any) -> dict[str, t.Any]:
    """The whole of it, to stay."""
    return {"bridge": "br0", "interface": "eth0", "persistent": True, "transaction": "0" * 16, **more}


def layer3(host: SystemHost, name: str) -> list[str]:
    """Addresses and routes of the interface, without what every interface has."""
    lines = host.out("ip", "-o", "address", "show", name).splitlines()
    for family in ("-4", "-6"):
        lines += host.out("ip", family, "route", "show", "dev", name).splitlines()
    words = (re.sub(r"^\d+: | (valid|preferred)_lft forever|\\", "", line).replace(name, "NAME") for line in lines)
    return sorted(" ".join(line.split()) for line in words if "fe80::" not in line and "mngtmpaddr" not in line)
