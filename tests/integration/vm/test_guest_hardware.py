# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest gets of Debian's kernel, and not of the machine's: vhost, huge pages, and a tap in VLANs."""

from __future__ import annotations

import typing as t

import pytest
from support.vm_host import TINY_GUEST, VmHost, needs_vm_host

pytestmark = [needs_vm_host, pytest.mark.slow, pytest.mark.one_interpreter]

#: The host is in VLAN 7 of the bridge by the bridge itself, the guest by its tap.
TAGGED = [{"id": "7", "pvid": True, "untagged": True}]
BRIDGE = {
    "name": "br7",
    "network": "lab",
    "addresses": ["10.7.1.1/24"],
    "vlan_filtering": True,
    "vlans": TAGGED,
    "persistent": "true",
}
TAP = {"name": "tap7", "network": "lab", "bridge": "br7", "owner": "labspan-vm1", "vlans": TAGGED, "persistent": "true"}
GUEST: dict[str, t.Any] = {
    "name": "vm1",
    "memory": "96",
    "accelerator": "tcg",
    "kernel": f"{TINY_GUEST}/vmlinux",
    "initrd": f"{TINY_GUEST}/initrd.img",
    "cmdline": "console=ttyS0 no_timer_check quiet labspan.address=10.7.1.2/24",
    "nics": [{"tap": "tap7", "vhost": "true"}],
    "hugepages": True,
    "shutdown_timeout": 1,
}
PAGES = 48


def huge_pages_free(host: VmHost) -> int:
    return int(host.out("cat", "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"))


def reaches_guest(host: VmHost) -> bool:
    return host.run("ping", "-c", "1", "-W", "5", "10.7.1.2", check=False).returncode == 0


def test_a_guest_has_vhost_and_huge_pages_in_a_vlan_and_again_after_a_reboot(vm_host: VmHost) -> None:
    vm_host.converge("guest_account", {"name": "vm1"})
    vm_host.converge("linux_bridge", BRIDGE)
    vm_host.converge("tap_device", TAP)
    vm_host.run("modprobe", "vhost_net")

    # The twins: without pages, and without the right to open the device, there is no such guest.
    assert "huge pages" in vm_host.module("qemu_guest", GUEST)["msg"]
    vm_host.write("/etc/sysctl.d/10-pages.conf", f"vm.nr_hugepages = {PAGES}\n")
    vm_host.run("sysctl", "-p", "/etc/sysctl.d/10-pages.conf")
    assert huge_pages_free(vm_host) == PAGES
    vm_host.run("chmod", "600", "/dev/vhost-net")
    assert "may not open /dev/vhost-net" in vm_host.module("qemu_guest", GUEST)["msg"]
    vm_host.run("chmod", "660", "/dev/vhost-net")

    assert vm_host.converge("qemu_guest", GUEST)["changed"]

    def as_asked() -> None:
        pid = vm_host.out("systemctl", "show", "--value", "--property=MainPID", "labspan-guest@vm1").strip()
        assert "-> /dev/vhost-net" in vm_host.out("ls", "-l", f"/proc/{pid}/fd")
        # The kernel's own half, a thread that bears QEMU's number.
        assert f"vhost-{pid}" in vm_host.out("ps", "-e", "-L", "-o", "comm=")
        assert huge_pages_free(vm_host) == 0
        vm_host.wait(lambda: reaches_guest(vm_host), "the guest's answer")

    as_asked()
    vm_host.run("bridge", "vlan", "del", "dev", "tap7", "vid", "7")
    assert not reaches_guest(vm_host)

    vm_host.reboot()

    as_asked()
    assert not vm_host.converge("tap_device", TAP)["changed"]
    assert not vm_host.converge("qemu_guest", GUEST)["changed"]
