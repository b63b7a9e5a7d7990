# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts of netplan over systemd-networkd: the card's definition becomes the bridge's, and the lease stays."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.lans import Lan
from support.system_host import SystemHost, needs_system_host
from support.uplinks import move

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MAC = "52:54:00:00:00:18"
OWN = "/etc/netplan/50-cloud-init.yaml"
CLOUD = "/etc/cloud/cloud.cfg.d"
# On a host with udev, the card's identity is of its name. Here it is of the MAC address, which the bridge has, too.
IDENTITY = "/etc/systemd/network/10-netplan-lan.network.d/identity.conf"
CARRIED = "/etc/systemd/network/10-netplan-br0.network.d/labspan.conf"
DHCP = """\
# The office's.
network:
  version: 2
  ethernets:
    lan:
      match: {name: eth0}
      dhcp4: true
      nameservers: {addresses: [10.77.0.1]}
"""
STATIC = """\
network:
  version: 2
  ethernets:
    renderer: networkd
    eth0:
      addresses: [10.77.0.5/24]
      routes: [{to: default, via: 10.77.0.1}]
"""


@pytest.fixture(scope="module")
def lan(python_path: pathlib.Path) -> t.Iterator[Lan]:
    with Host(python_path) as host:
        yield Lan(host, MAC)


@contextlib.contextmanager
def started(python_path: pathlib.Path, lan: Lan, network: str) -> t.Iterator[SystemHost]:
    files = {OWN: (network, 0o600), f"{CLOUD}/05_logging.cfg": "{}\n", IDENTITY: "[DHCPv4]\nIAID=4711\n"}
    with SystemHost(python_path, files=files, enable=["systemd-networkd"], wire=lan.wire) as host:
        yield host


def address(host: SystemHost, name: str) -> str:
    return " ".join(re.findall(r" inet (\S+)", host.run("ip", "-4", "-o", "addr", "show", name, check=False).stdout))


def _has(host: SystemHost, wanted: str) -> bool:
    return address(host, "br0") == wanted


def options(**more: t.Any) -> dict[str, t.Any]:
    return {"bridge": "br0", "interface": "eth0", "persistent": True, "transaction": "0" * 16, **more}


def ports(host: SystemHost) -> set[str]:
    return set(re.findall(r"^\d+: ([^:@]+)", host.out("bridge", "link", "show"), re.MULTILINE))


def test_a_host_of_netplan_keeps_its_address_through_all_that_comes(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        await_condition(lambda: address(host, "eth0") != "", "a lease")
        leased = address(host, "eth0")
        with lan.pinging(leased.partition("/")[0], lose=1):
            result = move(host, persistent=True)
        assert result["uplinks"][0]["manager"] == "netplan"
        assert address(host, "br0") == leased
        assert not host.converge("bridge_uplink", options())["changed"]
        assert host.out("stat", "-c", "%a", OWN).strip() == "600"
        assert "disabled" in host.out("cat", f"{CLOUD}/99-labspan-network.cfg")
        with lan.pinging(leased.partition("/")[0], lose=1):
            host.run("netplan", "generate")
            host.run("networkctl", "reload")
            host.run("systemctl", "restart", "systemd-networkd")
        assert address(host, "br0") == leased
        host.power_cut()
        await_condition(lambda: address(host, "br0") == leased, "the lease on the bridge")
        assert ports(host) == {"eth0"}
        assert not host.converge("bridge_uplink", options())["changed"]
        with lan.pinging(leased.partition("/")[0], lose=1):
            move(host, persistent=True, state="absent")
            host.run("systemctl", "restart", "systemd-networkd")
        assert address(host, "eth0") == leased
        assert host.link("br0") is None
        assert host.out("cat", OWN) == DHCP
        assert host.run("ls", f"{CLOUD}/99-labspan-network.cfg", check=False).returncode != 0
        host.power_cut()
        await_condition(lambda: address(host, "eth0") == leased, "the lease on the card")
        assert host.link("br0") is None
        assert set(lan.given) == {leased.partition("/")[0]}
        assert lan.returned == []
        # Two files cannot be told apart by what they leave out.
        host.write("/etc/netplan/60-more.yaml", "network: {ethernets: {lan: {mtu: 1400}}}\n", 0o600)
        refused = host.module("bridge_uplink", options())
        assert refused.get("failed")
        assert "60-more.yaml" in refused["msg"]


def test_another_address_is_there_after_the_next_boot_too(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, STATIC) as host:
        await_condition(lambda: address(host, "eth0") == "10.77.0.5/24", "the address")
        for wanted in ("10.77.0.6/24", "10.77.0.7/24"):  # networkd knows nothing of the bridge yet, and then it does
            given = {"address_mode": "static", "addresses": [wanted], "gateway": ["10.77.0.1"]}
            move(host, persistent=True)
            move(host, persistent=True, **given)
            assert wanted in host.out("cat", OWN)
            assert not host.converge("bridge_uplink", options(**given))["changed"]
            host.power_cut()
            await_condition(functools.partial(_has, host, wanted), "the other address")
            assert not host.converge("bridge_uplink", options(**given))["changed"]
        move(host, persistent=True, state="absent")
        assert host.out("cat", OWN) == STATIC


@pytest.mark.slow
def test_without_its_identity_the_bridge_is_another_client(python_path: pathlib.Path, lan: Lan) -> None:
    with started(python_path, lan, DHCP) as host:
        await_condition(lambda: address(host, "eth0") != "", "a lease")
        leased = address(host, "eth0")
        move(host, persistent=True)
        assert "IAID=4711" in host.out("cat", CARRIED)
        host.run("rm", CARRIED)
        host.power_cut()
        await_condition(lambda: address(host, "br0") != "", "a lease")
        assert address(host, "br0") != leased
