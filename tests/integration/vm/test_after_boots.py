# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab on a VM host is back after a reboot and after a power cut, by itself, as it was; or a rerun makes it whole."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import typing as t

import pytest
from support.hosts import await_condition
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
        },
    ),
]
#: How often the power goes: each takes minutes without KVM.
CUTS = 2
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


@pytest.fixture(scope="module")
def lab() -> t.Iterator[VmHost]:
    with VmHost(memory=1536) as made:
        made.run("useradd", "--system", "labspan-qemu", check=False)
        yield made


def test_a_lab_is_back_after_a_reboot_and_after_a_reset(lab: VmHost) -> None:
    assert set(provision(lab)) >= {"linux_bridge", "tap_device", "nat_masquerade", "dhcp_server", "qemu_guest"}
    await_condition(lambda: running(lab) == ["active"] * len(UNITS), "the units")
    before = picture(lab)
    assert before["addresses"]["br-lab"] == ["10.97.1.1", "fd00:97:1::1"]
    assert provision(lab) == []

    lab.reboot()

    await_condition(lambda: running(lab) == ["active"] * len(UNITS), "the units after the reboot")
    assert picture(lab) == before
    assert provision(lab) == []

    lab.run("sync")
    lab.reset()

    await_condition(lambda: running(lab) == ["active"] * len(UNITS), "the units after the reset")
    assert picture(lab) == before
    assert provision(lab) == []


def test_a_provisioning_that_a_power_cut_interrupts_is_finished_by_the_next(lab: VmHost) -> None:
    provision(lab)
    whole = picture(lab)
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    for _cut in range(CUTS):
        unprovision(lab)
        with _ended_within(moments.uniform(0.5, 30.0), lab):
            provision(lab)

        provision(lab)

        assert provision(lab) == [], f"the second run after a cut was not at rest (seed {seed})"
        await_condition(lambda: running(lab) == ["active"] * len(UNITS), "the units after the rerun")
        assert picture(lab) == whole, f"seed {seed}"


def unprovision(host: VmHost) -> None:
    """Take the lab down."""
    for name, params in reversed(LAB):
        host.converge(name, {**{key: params[key] for key in params if key in ("name", "network")}, **_gone(params)})


def _gone(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    many = {key: [{"name": item["name"]} for item in params[key]] for key in ("bridges", "taps") if key in params}
    return {**many, "state": "absent"}


@contextlib.contextmanager
def _ended_within(seconds: float, host: VmHost) -> t.Iterator[None]:
    """The host loses its power so long after the block has begun; what the block raises by that is expected."""
    cut = threading.Event()

    def pull() -> None:
        cut.set()
        host.power_cut(boot=False)

    timer = threading.Timer(seconds, pull)
    timer.start()
    try:
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):
            yield
    finally:
        timer.join()
    host.boot(degraded=True)
