# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What only a real system in a guest can show: cloud-init's own words, sshd, and the real agent."""

from __future__ import annotations

import typing as t

import pytest
from support.debian_guest import DebianGuest, needs_debian_guest

from .conftest import STATE, Guests, image_info

PATIENCE = 280


@pytest.mark.slow
@pytest.mark.one_interpreter
@needs_debian_guest
def test_cloud_init_ssh_and_the_agent_of_a_debian(guests: Guests, debian_guest: DebianGuest) -> None:
    host = guests.host
    host.converge("linux_bridge", {"name": "br0", "addresses": ["10.67.0.1/24"]})
    ethernets = {"eth0": {"addresses": ["10.67.0.9/24"], "routes": [{"to": "0.0.0.0/0", "via": "10.67.0.1"}]}}
    options: dict[str, t.Any] = {
        **debian_guest.boot,
        "memory": "512",
        "disks": [{"base_image": str(debian_guest.disk)}],
        "nics": [{"bridge": "br0", "mac": "52:54:00:67:00:01"}],
        "guest_agent": True,
        "cloud_init": {
            "user_data": {"hostname": "awaited", "runcmd": ["exit 7"]},
            "network_config": {"version": 2, "ethernets": ethernets},
        },
        "wait_timeout": PATIENCE,
    }

    # The address is there long before cloud-init has finished, and tells of the failure.
    came = guests.converge("gd-a", **options, wait_for="address")
    assert came["waited"]["gd-a"]["addresses"] == ["10.67.0.9"]
    log = f"{STATE}/gd-a/console.log"
    failed = host.module("qemu_guest", guests.params("gd-a", **{**options, "wait_for": "cloud_init"}))
    assert failed["failed"]
    assert "guest gd-a has come to the end of cloud-init, which reports: " in failed["msg"]
    assert "scripts" in failed["msg"]
    assert guests.activity("gd-a") == "running"
    assert "Cloud-init v. 22.4.2 finished at" in host.out("cat", log)

    reached = guests.converge("gd-a", **options, wait_for="ssh")
    assert not reached["changed"]
    assert "10.67.0.9 answers with SSH-2.0-OpenSSH" in reached["waited"]["gd-a"]["stage"]
    assert "10.67.0.9" in reached["guest"]["nics"][0]["addresses"]

    def ask(**options: t.Any) -> dict[str, t.Any]:
        return host.module("guest_agent", {"name": "gd-a", "timeout": 60, **options})

    assert ask()["guest"]["frozen"] is False
    (eth0,) = ask(command="addresses")["guest"]["interfaces"]
    assert (eth0["name"], eth0["mac"]) == ("eth0", "52:54:00:67:00:01")
    assert "10.67.0.9/24" in eth0["addresses"]
    told = ask(command="exec", argv=["sh", "-c", "hostname; cat; echo bad >&2"], stdin="grüße\n")
    assert (told["rc"], told["stdout"], told["stderr"]) == (0, "awaited\ngrüße\n", "bad\n")
    ended = ask(command="exec", argv=["sh", "-c", "exit 3"])
    assert "sh in guest gd-a ended with exit status 3" in ended["msg"]
    assert ended["rc"] == 3
    assert "Failed to execute" in ask(command="exec", argv=["/no/such/program"])["msg"]

    assert ask(command="freeze")["guest"]["frozen"] is True
    assert not ask(command="freeze")["changed"]
    assert "frozen" in ask(command="addresses")["msg"]
    assert ask(command="thaw")["guest"]["frozen"] is False

    taken = host.converge(
        "guest_snapshot", {"name": "gd-a", "snapshot": "quiet", "memory": False, "quiesce": True, "timeout": 60}
    )
    assert taken["changed"]
    assert ask()["guest"]["frozen"] is False
    disk = f"{STATE}/gd-a/disk0.qcow2"
    assert [one["name"] for one in image_info(host, disk)["snapshots"]] == ["quiet"]
