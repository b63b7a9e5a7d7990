# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""All guests of a lab host answer to Ansible: a Debian behind nat, and one where no packet comes in or out."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest
from support.debian_guest import DebianGuest, needs_debian_guest
from support.hosts import Host, cable
from support.ssh import Ssh
from support.users import User

#: Seconds of one task, which the tests let take no longer than five minutes.
PATIENCE = 270


@pytest.fixture
def lan(host: Host) -> t.Iterator[Host]:
    """Where the lab host's uplink leads, and whence the controller comes to it by SSH."""
    with Host(host.python_path) as other:
        cable(other, "port0", host, "eth0")
        other.run("ip", "addr", "add", "192.0.2.1/24", "dev", "port0")
        host.run("ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", "192.0.2.1")
        yield other


@pytest.mark.slow
@pytest.mark.one_interpreter
@needs_debian_guest
def test_ansible_reaches_a_guest_behind_nat_and_one_in_a_closed_network(
    host: Host, lan: Host, debian_guest: DebianGuest, tmp_path: pathlib.Path
) -> None:
    web = {"name": "br-web", "network": "web", "addresses": ["10.67.0.1/24"]}
    dark = {"name": "br-dark", "network": "dark", "host_access": False}
    with Ssh() as ssh:
        ssh.serve(host)
        host.converge("linux_bridge", {"bridges": [web, dark]})
        host.converge("nat_masquerade", {"name": "web", "bridge": "br-web", "persistent": False})
        host.converge("dhcp_server", {"name": "web", "bridge": "br-web", "persistent": False})
        user_data = {
            "disable_root": False,
            "users": [{"name": "root", "ssh_authorized_keys": [(ssh.directory / "login_key.pub").read_text()]}],
        }
        closed = {"version": 2, "ethernets": {"eth0": {"addresses": ["10.99.0.2/24"]}}}
        guests = [
            {
                "name": "near",
                "network": "web",
                "nics": [{"bridge": "br-web"}],
                "cloud_init": {"user_data": user_data},
                "labels": {"role": "web"},
                "wait_for": "ssh",
            },
            {
                "name": "far",
                "network": "dark",
                "nics": [{"bridge": "br-dark"}],
                "guest_agent": True,
                "cloud_init": {"user_data": {}, "network_config": closed},
                "wait_for": "cloud_init",
            },
        ]
        defaults = {"user": "nobody", "memory": "512", "accelerator": "tcg", "shutdown_timeout": 0}
        disks = [{"base_image": str(debian_guest.disk)}]
        options = {**defaults, **debian_guest.boot, "disks": disks, "guests": guests, "wait_timeout": PATIENCE}
        for _attempt in range(4):  # a task waits for guests that run already, too
            came = host.module("qemu_guest", options)
            if not came.get("failed"):
                break
        assert not came.get("failed"), came

        user = User(tmp_path)
        door = {**ssh.door("192.0.2.10", via=lan).variables, "ansible_python_interpreter": "/usr/bin/python3"}
        user.write("hosts.yml", {"lab_hosts": {"hosts": {"lab1": door}}})
        user.write("guests.yml", {"plugin": "labspan.vmnet.guests", "sources": ["hosts.yml"]})
        known = f"-o UserKnownHostsFile={tmp_path}/known -o StrictHostKeyChecking=accept-new"
        login = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(ssh.directory / "login_key"),
            "ansible_ssh_extra_args": f"-F none {known}",
            "ansible_control_path_dir": str(ssh.directory),
            "ansible_timeout": 60,
            "vmnet_guest_timeout": 120,
        }
        user.write("group_vars/vmnet_guests.yml", login)
        try:
            assert user.graph("-i", "guests.yml") == (
                "@vmnet_guests:\n  |--@vmnet_host_lab1:\n"
                "  |  |--@vmnet_host_lab1_network_dark:\n  |  |  |--far\n"
                "  |  |--@vmnet_host_lab1_network_web:\n  |  |  |--near\n"
            )
            found = user.listed("-i", "guests.yml")["_meta"]["hostvars"]
            (address,) = found["near"]["vmnet_nics"][0]["addresses"]
            assert (address["source"], address["address"]) == ("lease", found["near"]["ansible_host"])
            assert found["far"]["ansible_connection"] == "labspan.vmnet.guest"

            pinged = user.run("ansible", "-i", "guests.yml", "all", "-m", "ping").stdout
            assert pinged.count('"ping": "pong"') == 2
            assert user.said("guests.yml", "all", "uname -n") == {"near": "near", "far": "far"}
        finally:
            for socket in ssh.directory.glob("*-22-root"):
                end = ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "guest"]
                subprocess.run(end, capture_output=True, check=False)
