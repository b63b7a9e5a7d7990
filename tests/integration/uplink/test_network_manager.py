# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts of NetworkManager: it follows the move, and later restarts and reboots make the same."""

from __future__ import annotations

import contextlib
import pathlib
import re
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.lans import GATEWAY, GATEWAY6, SHORT, Lan
from support.system_host import SystemHost, needs_system_host
from support.uplinks import begin, identity, move, options, reaches

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MAC = "52:54:00:00:00:16"
DIRECTORY = "/etc/NetworkManager/system-connections"
PROFILE = f"{DIRECTORY}/uplink.nmconnection"
# Other cables than the card are none of NetworkManager's, as udev's rules say where there is udev.
WITHOUT_UDEV = "[keyfile]\nunmanaged-devices=interface-name:labspan-c*\n[main]\ndns=default\nrc-manager=symlink\n"
AUTO = """\
# The uplink of this host.
[connection]
id=uplink
uuid=7d6b0c6e-3f0f-4a57-9a39-3e9f9b3f7a11
type=ethernet
interface-name=eth0

[ethernet]

[ipv4]
method=auto

[ipv6]
addr-gen-mode=stable-privacy
method=auto
"""
STATIC = """\
[connection]
id=uplink
uuid=7d6b0c6e-3f0f-4a57-9a39-3e9f9b3f7a12
type=ethernet
interface-name=eth0

[ipv4]
address1=10.77.0.5/24,10.77.0.1
address2=10.77.0.6/24
dns=10.77.0.1;
dns-search=lab.example;
route1=198.51.100.0/24,10.77.0.2,50
method=manual

[ipv6]
addr-gen-mode=eui64
address1=fd77::5/64
gateway=fd77::1
method=manual
"""


@pytest.fixture(scope="module")
def lan(python_path: pathlib.Path) -> t.Iterator[Lan]:
    with Host(python_path) as host:
        yield Lan(host, MAC, *SHORT, f"dhcp-option=option:dns-server,{GATEWAY}")


@contextlib.contextmanager
def started(python_path: pathlib.Path, lan: Lan, profile: t.Optional[str]) -> t.Iterator[SystemHost]:
    files: dict[str, t.Any] = {"/etc/NetworkManager/conf.d/without-udev.conf": WITHOUT_UDEV, "/etc/resolv.conf": ""}
    if profile is not None:
        files[PROFILE] = (profile, 0o600)
    with SystemHost(python_path, files=files, enable=["NetworkManager"], wire=lan.wire) as host:
        await_addresses(host, "eth0")
        yield host


def await_addresses(host: SystemHost, name: str) -> None:
    """Wait for an address and a default route of each family, and until no address is tentative any more."""

    def are_there() -> bool:
        shown = host.run("ip", "-o", "address", "show", name, check=False).stdout
        if not shown:  # not made yet
            return False
        routed = all(host.out("ip", family, "route", "show", "default", "dev", name) for family in ("-4", "-6"))
        families = set(re.findall(r" (inet6?) \S+ .*scope global", shown))
        return routed and families == {"inet", "inet6"} and "tentative" not in shown

    await_condition(are_there, f"the addresses of {name}")


def addresses(host: SystemHost, name: str) -> set[str]:
    """All of an interface, with prefix lengths."""
    return set(re.findall(r" inet6? (\S+)", host.out("ip", "-o", "address", "show", name)))


def global_addresses(host: SystemHost, name: str) -> list[str]:
    """Without prefix lengths, IPv4 first."""
    found = [each.partition("/")[0] for each in addresses(host, name) if not each.startswith("fe80")]
    return sorted(found, key=lambda each: ":" in each)


def layer3(host: SystemHost, name: str) -> list[str]:
    """All addresses and routes of an interface, whatever their order, without what counts down."""
    lines: list[str] = []
    for command in ("address show", "route show table all", "-6 route show table all"):
        lines += host.out("ip", "-o", *command.split(), "dev", name).splitlines()
    lines = [re.sub(rf"^\d+: \S+|\b{name}\b|\b(valid_lft|preferred_lft|expires) \w+|\\", "", line) for line in lines]
    return sorted({" ".join(line.split()) for line in lines})


def ports(host: SystemHost) -> set[str]:
    return set(re.findall(r"^\d+: ([^:@]+)", host.out("bridge", "link", "show"), re.MULTILINE))


def with_tap(host: SystemHost) -> None:
    host.run("ip", "tuntap", "add", "tap7", "mode", "tap")
    host.run("ip", "link", "set", "tap7", "master", "br0", "up")


def active(host: SystemHost) -> dict[str, str]:
    """The profile of each interface that NetworkManager runs."""
    rows = [line.split(":") for line in host.out("nmcli", "-t", "-f", "DEVICE,STATE,CONNECTION", "device").splitlines()]
    return {row[0]: row[2] for row in rows if row[1] == "connected"}


def leftovers(host: SystemHost) -> list[str]:
    """What of ours is in /run."""
    return host.out("find", "/run/NetworkManager", "-name", "*labspan*").splitlines()


def servers(host: SystemHost) -> list[str]:
    """Of names, those that the profile gives."""
    return re.findall(r"^(?:nameserver 10|search).*", host.out("cat", "/etc/resolv.conf"), re.MULTILINE)


def rerun(host: SystemHost, **more: t.Any) -> t.Any:
    return host.converge("bridge_uplink", options(transaction=identity(), persistent=True, **more))


def test_a_host_with_a_lease_keeps_its_addresses_through_all_that_comes(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, AUTO) as host:
        v4, v6 = global_addresses(host, "eth0")
        given = len(lan.given)
        before = addresses(host, "eth0")
        with lan.pinging(v4, lose=1), lan.pinging(v6, lose=1):
            move(host, persistent=True)
            lan.await_renewals(3)
        assert addresses(host, "br0") >= before
        assert addresses(host, "eth0") == set()
        assert active(host) == {"br0": "br0", "eth0": "br0-eth0"}
        assert servers(host) == [f"nameserver {GATEWAY}"]
        assert leftovers(host) == []
        assert lan.returned == []
        with_tap(host)
        with lan.pinging(v4, lose=1), lan.pinging(v6, lose=1):
            host.run("nmcli", "connection", "reload")
            host.run("systemctl", "restart", "NetworkManager")
            lan.await_renewals(1)
        assert ports(host) == {"eth0", "tap7"}
        assert addresses(host, "br0") >= before
        assert not rerun(host)["changed"]
        host.run("ip", "link", "del", "tap7")
        host.power_cut()
        await_addresses(host, "br0")
        assert addresses(host, "br0") >= before
        assert active(host) == {"br0": "br0", "eth0": "br0-eth0"}
        assert not rerun(host)["changed"]
        # And back. NetworkManager switches IPv6 off and on when it takes the card.
        with lan.pinging(v4, lose=1):
            move(host, persistent=True, state="absent")
            lan.await_renewals(1)
        await_addresses(host, "eth0")
        # The bridge's own link-local address came along until the next start.
        assert addresses(host, "eth0") >= before
        assert active(host) == {"eth0": "uplink"}
        assert set(lan.given[given:]) == {v4}
        assert host.link("br0") is None
        assert leftovers(host) == []
        assert host.out("cat", PROFILE) == AUTO
        assert host.out("ls", DIRECTORY).split() == ["uplink.nmconnection"]
        host.power_cut()
        await_addresses(host, "eth0")
        assert addresses(host, "eth0") == before


def test_a_static_host_has_all_of_it_again_after_a_restart_and_a_reboot(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, STATIC) as host:
        at_boot = layer3(host, "eth0")
        host.run("ip", "-6", "route", "add", "2001:db8:9::/64", "via", GATEWAY6, "dev", "eth0")
        host.run("ip", "route", "add", "203.0.113.0/24", "via", GATEWAY, "dev", "eth0", "table", "7")
        before = layer3(host, "eth0")
        with lan.pinging("10.77.0.5", lose=1), lan.pinging("fd77::5", lose=1):
            move(host, persistent=True)
            assert layer3(host, "br0") == before
            with_tap(host)
            host.run("systemctl", "restart", "NetworkManager")
            await_condition(
                lambda: active(host) == {"br0": "br0", "eth0": "br0-eth0"}, "NetworkManager to have both again"
            )
        assert servers(host) == ["search lab.example", f"nameserver {GATEWAY}"]
        assert layer3(host, "br0") == before
        assert ports(host) == {"eth0", "tap7"}
        host.reboot()
        await_addresses(host, "br0")
        assert layer3(host, "br0") == at_boot
        assert reaches(host, GATEWAY)
        assert reaches(host, GATEWAY6)
        assert servers(host) == ["search lab.example", f"nameserver {GATEWAY}"]
        assert not rerun(host)["changed"]


def test_the_card_is_as_it_was_when_nobody_confirms(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, STATIC) as host:
        host.run("ip", "-6", "route", "add", "2001:db8:9::/64", "via", GATEWAY6, "dev", "eth0")
        before = layer3(host, "eth0")
        pending = begin(host, persistent=True, confirm_timeout=10)["pending"]["transaction"]
        assert layer3(host, "br0") == before
        assert active(host) == {"br0": "br0", "eth0": "br0-eth0"}
        unit = f"labspan-uplink-{pending}.service"
        await_condition(
            lambda: host.run("systemctl", "is-active", unit, check=False).returncode != 0, "the dead-man to be done"
        )
        await_condition(lambda: active(host) == {"eth0": "uplink"}, "NetworkManager to have the card again")
        await_addresses(host, "eth0")
        assert layer3(host, "eth0") == before
        assert host.link("br0") is None
        assert leftovers(host) == []
        assert host.out("cat", PROFILE) == STATIC
        # It is NetworkManager's as before: started again, it stays.
        host.run("systemctl", "restart", "NetworkManager")
        await_condition(lambda: active(host) == {"eth0": "uplink"}, "NetworkManager to have the card again")
        await_addresses(host, "eth0")
        assert layer3(host, "eth0") == before


@pytest.mark.slow
def test_a_power_cut_between_two_files_leaves_a_host_that_boots(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, STATIC) as host:
        before = layer3(host, "eth0")
        move(host, persistent=True)
        bridge = f"{DIRECTORY}/labspan-br0.nmconnection"
        profile = host.out("cat", bridge)
        for written, holder in (([], "eth0"), ([bridge], "br0")):
            host.write(PROFILE, STATIC, 0o600)
            host.run("rm", bridge, check=False)
            for path in written:
                host.write(path, profile, 0o600)
            host.power_cut()
            await_addresses(host, holder)
            assert layer3(host, holder) == before
            assert reaches(host, GATEWAY)


@pytest.mark.slow
def test_a_card_that_has_no_profile_of_its_own(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, None) as host:
        v4, v6 = global_addresses(host, "eth0")
        before = addresses(host, "eth0")
        with lan.pinging(v4, lose=1), lan.pinging(v6, lose=1):
            move(host)
            assert rerun(host)["changed"]
        assert leftovers(host) == []
        host.power_cut()
        await_addresses(host, "br0")
        assert addresses(host, "br0") >= before
        with lan.pinging(v4, lose=1):
            move(host, persistent=True, state="absent")
        await_addresses(host, "eth0")
        assert v4 in global_addresses(host, "eth0")
        host.power_cut()
        await_addresses(host, "eth0")
        assert host.out("ls", DIRECTORY).split() == []
        assert addresses(host, "eth0") == before
