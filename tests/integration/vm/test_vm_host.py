# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tests take a VM host for, and what only its kernel can do: VLANs on bridges, limits, vhost, lost writes."""

from __future__ import annotations

import typing as t

import pytest
from support.vm_host import VmHost, needs_vm_host

pytestmark = [needs_vm_host, pytest.mark.slow, pytest.mark.one_interpreter]

BRIDGE = {"name": "br7", "network": "vlans"}
_ROOM = "ip netns add {0} && ip link add port-{0} up type veth peer name eth0 netns {0} && " \
    "ip -n {0} addr add {1}/24 dev eth0 && ip -n {0} link set eth0 up"  # fmt: skip


def vlans(host: VmHost, port: str) -> dict[int, frozenset[str]]:
    """The VLANs of a port, as bridge(8) has them, with their flags."""
    shown = [entry for entry in host.json("bridge", "-j", "vlan", "show") if entry["ifname"] == port]
    return {vlan["vlan"]: frozenset(vlan.get("flags", ())) for entry in shown for vlan in entry["vlans"]}


@pytest.fixture
def rooms(vm_host: VmHost) -> VmHost:
    """Two namespaces in the host that have a cable out, and are in the same subnet."""
    for name, address in (("one", "10.7.0.1"), ("two", "10.7.0.2")):
        vm_host.run("sh", "-c", _ROOM.format(name, address))
    return vm_host


def reaches(host: VmHost) -> bool:
    """Whether one room gets through to the other."""
    host.run("ip", "-n", "one", "neigh", "flush", "all")
    ping = ("ping", "-c", "1", "-W", "2", "10.7.0.2")
    return host.run("ip", "netns", "exec", "one", *ping, check=False).returncode == 0


def test_a_bridge_keeps_vlans_apart(rooms: VmHost) -> None:
    def bridge(second: str) -> dict[str, t.Any]:
        return {
            **BRIDGE,
            "vlan_filtering": True,
            "ports": ["port-one", "port-two"],
            "vlans": [
                {"id": "10", "port": "port-one", "pvid": True, "untagged": True},
                {"id": "20-22", "port": "port-one"},
                {"id": second, "port": "port-two", "pvid": True, "untagged": True},
            ],
        }

    assert rooms.converge("linux_bridge", bridge("10"))["changed"]

    details = rooms.json("ip", "-d", "-j", "link", "show", "br7")[0]["linkinfo"]["info_data"]
    assert details["vlan_filtering"] == 1
    untagged = frozenset(["PVID", "Egress Untagged"])
    assert vlans(rooms, "port-one") == {10: untagged, 20: frozenset(), 21: frozenset(), 22: frozenset()}
    assert vlans(rooms, "port-two") == {10: untagged}
    assert reaches(rooms)
    again = rooms.converge("linux_bridge", bridge("10"))
    assert (again["changed"], again["actions"]) == (False, [])

    assert rooms.converge("linux_bridge", bridge("30"))["changed"]

    assert vlans(rooms, "port-two") == {30: untagged}
    assert not reaches(rooms)


def test_it_enforces_limits_and_has_vhost(vm_host: VmHost) -> None:
    assert vm_host.out("stat", "-f", "-c", "%T", "/sys/fs/cgroup") == "cgroup2fs\n"
    greedy = ("--wait", "--quiet", "--pipe", "-p", "MemorySwapMax=0", "python3", "-c", "bytearray(100 << 20)")
    assert vm_host.run("systemd-run", "-p", "MemoryMax=40M", *greedy, check=False).returncode != 0
    assert vm_host.run("systemd-run", "-p", "MemoryMax=400M", *greedy, check=False).returncode == 0
    vm_host.run("modprobe", "vhost_net")
    assert vm_host.run("test", "-c", "/dev/vhost-net", check=False).returncode == 0


def test_a_reset_loses_what_was_not_on_the_disk_yet(vm_host: VmHost) -> None:
    kernel = vm_host.out("uname", "-r")
    assert "cloud" in kernel
    before = vm_host.boot_id()
    vm_host.run("sh", "-c", "echo kept >/root/kept && sync && mkdir /run/gone")

    vm_host.reset(preparation="echo lost >/root/lost")

    assert vm_host.boot_id() != before
    assert vm_host.out("cat", "/root/kept") == "kept\n"
    assert vm_host.run("cat", "/root/lost", check=False).stdout == ""
    assert vm_host.run("test", "-e", "/run/gone", check=False).returncode == 1
