# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab on a VM host is back after a reboot and after a reset, by itself, as it was."""

from __future__ import annotations

import typing as t

import pytest
from support.vm_host import TINY_GUEST, VmHost, needs_vm_host

pytestmark = [needs_vm_host, pytest.mark.slow, pytest.mark.one_interpreter]

UNTAGGED = {"pvid": True, "untagged": True}
#: A whole lab: a bridge with VLANs, addresses and a closed one, taps, rules, DHCP and a guest.
LAB: list[tuple[str, dict[str, t.Any]]] = [
    (
        "linux_bridge",
        {
            "network": "lab",
            "persistent": "true",
            "bridges": [
                {"name": "br-lab", "addresses": ["10.97.1.1/24", "fd00:97:1::1/64"], "vlan_filtering": True},
                {"name": "br-shut", "host_access": False},
            ],
        },
    ),
    (
        "tap_device",
        {
            "network": "lab",
            "persistent": "true",
            "bridge": "br-lab",
            "taps": [{"name": "lab-t1"}, {"name": "lab-t2", "vlans": [{"id": "40", **UNTAGGED}, {"id": "50"}]}],
        },
    ),
    ("nat_masquerade", {"name": "lab", "bridge": "br-lab", "out_interface": "uplink0", "persistent": "true"}),
    ("dhcp_server", {"name": "lab", "bridge": "br-lab", "dns_servers": [], "persistent": "true"}),
    ("guest_account", {"name": "vm1"}),
    (
        "qemu_guest",
        {
            "name": "vm1",
            "memory": "96",
            "accelerator": "tcg",
            "kernel": f"{TINY_GUEST}/vmlinux",
            "initrd": f"{TINY_GUEST}/initrd.img",
            "cmdline": "console=ttyS0 no_timer_check quiet",
            "nics": [{"bridge": "br-lab"}],
            "shutdown_timeout": 5,
        },
    ),
]
UNITS = ("labspan-network@lab", "labspan-dhcp@lab", "labspan-rules", "labspan-guest@vm1")
_VOLATILE = ("timer", "_lft", "life_time", "ifindex", "packets", "bytes", "updated", "used", "handle", "operstate")


def provision(host: VmHost) -> list[str]:
    """Have the lab; which of its modules changed something."""
    return [name for name, params in LAB if host.converge(name, params)["changed"]]


def stable(found: t.Any) -> t.Any:
    """Without what time alone changes."""
    if isinstance(found, dict):
        kept = {key: stable(value) for key, value in found.items() if not key.endswith(_VOLATILE)}
        return {key: value for key, value in kept.items() if key not in ("flags", "txqlen", "queues")}
    return [stable(value) for value in found] if isinstance(found, list) else found


def picture(host: VmHost) -> dict[str, t.Any]:
    """Links with their MAC addresses and addresses, VLANs and rules, as the programs of the system show them."""
    links = {link["ifname"]: link for link in host.json("ip", "-d", "-j", "addr", "show")}
    addresses = {
        name: sorted(address["local"] for address in link["addr_info"] if address["scope"] == "global")
        for name, link in links.items()
    }
    return {
        "links": {name: (link.get("address"), link.get("master"), link.get("mtu")) for name, link in links.items()},
        "addresses": addresses,
        "vlans": {entry["ifname"]: entry["vlans"] for entry in host.json("bridge", "-j", "vlan", "show")},
        "rules": sorted(map(str, stable(host.json("nft", "-j", "list", "ruleset")["nftables"][1:]))),
        "forwarding": host.sysctl("net/ipv4/ip_forward"),
    }


def running(host: VmHost) -> list[str]:
    return host.run("systemctl", "is-active", *UNITS, check=False).stdout.split()


def test_a_lab_is_back_after_a_reboot_and_after_a_reset(vm_host: VmHost) -> None:
    assert set(provision(vm_host)) >= {"linux_bridge", "tap_device", "nat_masquerade", "dhcp_server", "qemu_guest"}
    vm_host.wait(lambda: running(vm_host) == ["active"] * len(UNITS), "the units")
    before = picture(vm_host)
    assert before["addresses"]["br-lab"] == ["10.97.1.1", "fd00:97:1::1"]
    assert [vlan["vlan"] for vlan in before["vlans"]["lab-t2"]] == [40, 50]

    vm_host.reboot()

    vm_host.wait(lambda: running(vm_host) == ["active"] * len(UNITS), "the units after the reboot")
    assert picture(vm_host) == before
    assert provision(vm_host) == []

    vm_host.run("sync")
    vm_host.reset()

    vm_host.wait(lambda: running(vm_host) == ["active"] * len(UNITS), "the units after the reset")
    assert picture(vm_host) == before
