# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taps that are made for a guest last as long as the guest and its bridge do."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.slow]

BRIDGE = {"name": "lab0", "network": "lab"}
GUEST: dict[str, t.Any] = {
    "name": "g1",
    "network": "lab",
    "memory": 64,
    "shutdown_timeout": 1,  # nothing runs in it that could power it off
    "user": "nobody",
    "nics": [{"bridge": "lab0", "tap": "tap0"}],
}


def test_a_guests_tap_lasts_with_its_bridge_and_goes_with_the_guest(python_path: pathlib.Path) -> None:
    links = "/etc/labspan/networks/lab/links"
    with SystemHost(python_path) as host:
        host.converge("linux_bridge", {**BRIDGE, "persistent": "true"})
        host.converge("qemu_guest", {**GUEST, "state": "running"})
        assert "# tap tap0\ntuntap add name tap0 mode tap user 65534\n" in host.out("cat", links)
        assert host.converge("qemu_guest", {**GUEST, "state": "running"})["actions"] == []
        tap = host.link("tap0")
        assert tap is not None
        host.reboot()
        back = host.link("tap0")
        assert back is not None
        assert [back[key] for key in ("address", "master", "ifalias")] == [
            tap[key] for key in ("address", "master", "ifalias")
        ]
        host.converge("qemu_guest", {"name": "g1", "state": "absent"})
        assert "tap0" not in host.out("cat", links)
        host.converge("linux_bridge", {**BRIDGE, "persistent": "false"})
        host.converge("qemu_guest", {**GUEST, "state": "stopped"})
        assert host.run("test", "-e", links, check=False).returncode != 0
        # The twin of the beginning: what is warned of is what the next boot brings.
        done = host.converge("qemu_guest", {**GUEST, "state": "running"})
        assert "their taps do not last (persistent: false): g1 (tap0)." in str(done["warnings"])
        host.reboot()
        assert host.link("tap0") is None
        assert host.run("systemctl", "is-active", "labspan-guest@g1", check=False).stdout.strip() != "active"
        host.converge("linux_bridge", {**BRIDGE, "persistent": "true"})
        assert "do not last" not in str(host.converge("qemu_guest", {**GUEST, "state": "running"}).get("warnings"))
