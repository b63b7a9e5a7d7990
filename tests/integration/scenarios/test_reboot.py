# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab host that is provisioned once and rebooted: all of its networks and guests are back, and nothing of ours ran.

A network of each scenario that lives on the host, two tiny guests, and a Debian that cloud-init has set up.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import typing as t

import pytest
from lab.hosts import build_tiny_guest
from support.debian_guest import DebianGuest, needs_debian_guest
from support.hosts import Host, await_condition
from support.lans import Lan
from support.system_host import SystemHost, needs_system_host
from support.users import User

pytestmark = [needs_system_host, needs_debian_guest, pytest.mark.one_interpreter, pytest.mark.long]

MAC = "52:54:00:00:00:19"
UPLINK = "[Match]\nName=eth0\n\n[Network]\nAddress=10.77.0.5/24\nGateway=10.77.0.1\nIPv6AcceptRA=no\n"

ROLES = ["labspan.vmnet.private", "labspan.vmnet.routed", "labspan.vmnet.nat"]

#: A boot of the Debian takes a minute, and several on a machine that is busy with other tests.
BOOT = 900.0


def tiny(name: str, address: str) -> dict[str, t.Any]:
    files = build_tiny_guest()
    return {
        "name": name,
        "memory": "96",
        "accelerator": "tcg",
        "kernel": str(files / "vmlinux"),
        "initrd": str(files / "initrd.img"),
        "cmdline": f"console=ttyS0 no_timer_check quiet labspan.hostname={name} labspan.address={address}",
        "wait_for": "console",
        "console_pattern": "labspan: .* ready",
    }


def debian(files: DebianGuest, key: str) -> dict[str, t.Any]:
    return {
        "name": "web",
        "memory": "512",
        "accelerator": "tcg",
        "disks": [{"base_image": str(files.disk)}],
        **files.boot,
        "cloud_init": {
            "user_data": {
                "hostname": "web",
                "manage_etc_hosts": True,
                "users": [{"name": "ada", "ssh_authorized_keys": [key], "shell": "/bin/bash"}],
            },
            "network_config": {
                "version": 2,
                "ethernets": {
                    "eth0": {
                        "addresses": ["10.97.0.50/24"],
                        "routes": [{"to": "0.0.0.0/0", "via": "10.97.0.1"}],
                    }
                },
            },
        },
        "wait_for": "cloud_init",
        "wait_timeout": BOOT,
    }


def provision(host: SystemHost, variables: t.Mapping[str, t.Any], path: pathlib.Path) -> int:
    """Run the roles, as an administrator would; how many tasks changed something."""
    user = User(path)
    user.write("hosts.json", {"lab_hosts": {"hosts": {"labhost": host.variables}, "vars": variables}})
    played = user.play([{"hosts": "lab_hosts", "gather_facts": False, "roles": ROLES}], "-i", "hosts.json", code=None)
    assert played.code == 0, played.output + host.failures()
    return len(played.changed)


_ALIKE = re.compile(r'"(?:handle|packets|bytes|ifindex|link_index|valid_life_time|preferred_life_time)": \d+,? ?')
_MANAGED = ("labprivate0", "labrouted0", "labnat0")


def network(host: SystemHost) -> dict[str, t.Any]:
    """Links, addresses, ports, rules and forwarding, but for numbers that every boot gives anew."""
    links = [
        {
            **{key: link.get(key) for key in ("ifname", "address", "mtu", "master", "ifalias", "operstate")},
            "flags": sorted(link["flags"]),
            "tun": link.get("linkinfo", {}).get("info_data", {}).get("user"),
            "addresses": sorted(f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]),
        }
        for link in host.json("ip", "-d", "-j", "address")
    ]
    return {
        "links": sorted(links, key=lambda link: str(link["ifname"])),
        "rules": sorted(
            _ALIKE.sub("", json.dumps(entry)) for entry in host.json("nft", "-j", "list", "ruleset")["nftables"]
        ),
        "routes": host.out("ip", "route"),
        "forwarding": {
            name: host.sysctl(f"net/{family}/conf/{name}/forwarding")
            for family in ("ipv4", "ipv6")
            for name in ("all", "eth0", *_MANAGED)
        },
        "settings": [host.sysctl(f"net/ipv6/conf/{name}/disable_ipv6") for name in _MANAGED],
    }


def reaches(host: SystemHost, address: str) -> bool:
    return host.run("ping", "-c", "1", "-W", "2", address, check=False).returncode == 0


def ask(host: SystemHost, command: str) -> str:
    """Run a command in the Debian guest, over SSH from its host."""
    ssh = ["ssh", "-i", "/root/key", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=60"]
    return host.run(*ssh, "-o", "UserKnownHostsFile=/dev/null", "ada@10.97.0.50", command, check=False).stdout.strip()


def test_after_a_reboot_everything_is_back(
    python_path: pathlib.Path, debian_guest: DebianGuest, tmp_path: pathlib.Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    key = (tmp_path / "key.pub").read_text().strip()
    variables = {
        "private_guests": [tiny("hermit", "10.96.0.2/24")],
        "routed_taps": [{"name": "tapr"}],
        "routed_guests": [{**tiny("peer", "10.98.0.2/24"), "nics": [{"tap": "tapr"}]}],
        "nat_guests": [debian(debian_guest.inside, key)],
    }
    with Host(python_path) as outside:
        lan = Lan(outside, MAC)
        host = SystemHost(
            python_path,
            files={
                "/etc/systemd/network/eth0.network": UPLINK,
                "/etc/resolv.conf": "nameserver 10.77.0.1\n",
                "/root/key": ((tmp_path / "key").read_text(), 0o600),
            },
            enable=["systemd-networkd"],
            wire=lan.wire,
            binds=debian_guest.binds,
        )
        with host:
            assert provision(host, variables, tmp_path)
            await_condition(lambda: ask(host, "hostname; id -un") == "web\nada", "the Debian guest", BOOT)
            before = network(host)
            assert provision(host, variables, tmp_path) == 0

            # Nothing of ours that needs Python could run.
            host.run("sh", "-c", "mv $(readlink -f /usr/bin/python3) /usr/bin/python3.away")
            host.reboot()
            host.run("sh", "-c", "mv /usr/bin/python3.away $(readlink -f /usr/bin/python3)")
            await_condition(lambda: reaches(host, "10.98.0.2"), "the guest of the routed network", BOOT)
            await_condition(lambda: ask(host, "hostname") == "web", "the Debian guest", BOOT)
            await_condition(lambda: network(host) == before, "the network as it was")
            assert ask(host, "ip -br -4 address show eth0").split()[2] == "10.97.0.50/24"
            assert ask(host, "ping -c 1 -W 3 10.77.0.1 >/dev/null && echo reached") == "reached"
            console = "/var/lib/labspan/guests/hermit/console.log"
            await_condition(lambda: "labspan: " in host.run("cat", console).stdout, "the guest of the private network")
            assert not reaches(host, "10.96.0.2")
            assert provision(host, variables, tmp_path) == 0
