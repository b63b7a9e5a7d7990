# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Debian as it comes, told by cloud-init what the notes set by hand: looked at over SSH, from the host beside it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import typing as t

import pytest
from support.debian_guest import DebianGuest, needs_debian_guest
from support.hosts import Host, await_condition

from .conftest import Guests

pytestmark = [needs_debian_guest, pytest.mark.one_interpreter]

#: Without KVM, and beside other tests.
PATIENCE = 900.0
MAC = "52:54:00:21:34:56"
SECOND_MAC = "52:54:00:21:34:57"
#: ssh's exit status when it could not connect or log in.
_NO_WAY_IN = 255
#: Of the word "lab".
PASSWORD = "$6$labspan$YEFGeKcvaI9smVX.AcShBzTlCqgnB/xPIpBcZLD.eMLdIatoVsy9zfS6YWRGSXQ2WrLzpe.u1ySoPMewsyDvR1"


@dataclasses.dataclass(frozen=True)
class Keys:
    """An SSH key, and where it is."""

    path: pathlib.Path

    @classmethod
    def make(cls, path: pathlib.Path) -> Keys:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)], check=True)
        return cls(path)

    @property
    def private(self) -> str:
        return self.path.read_text(encoding="ascii")

    @property
    def public(self) -> str:
        return self.path.with_suffix(".pub").read_text(encoding="ascii").strip()


@dataclasses.dataclass(frozen=True)
class Login:
    """The way into a guest from its host; the guest's own key is checked."""

    host: Host
    address: str
    key: Keys
    known: pathlib.Path

    @classmethod
    def make(cls, host: Host, address: str, key: Keys, server: Keys) -> Login:
        known = key.path.with_name("known_hosts")
        known.write_text(f"{address} {server.public}\n", encoding="ascii")
        return cls(host, address, key, known)

    def look(self, *commands: str) -> list[str]:
        """What the commands print, as soon as there is a way in: all over one connection, since each takes long."""
        options = [
            "BatchMode=yes",
            "ConnectTimeout=60",
            f"UserKnownHostsFile={self.known}",
            "StrictHostKeyChecking=yes",
        ]
        words = ["ssh", "-F", "none", "-i", str(self.key.path), *(f"-o{option}" for option in options)]
        argv = self.host.argv(*words, f"ada@{self.address}", "\necho @@@\n".join(["set -e", *commands]))
        said: list[subprocess.CompletedProcess[str]] = []

        def opens() -> bool:
            said.append(subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False))
            return said[-1].returncode != _NO_WAY_IN

        await_condition(opens, f"SSH to {self.address}", timeout=PATIENCE)
        assert said[-1].returncode == 0, said[-1]
        return said[-1].stdout.split("@@@\n")[1:]


def user_data(key: Keys, server: Keys) -> dict[str, t.Any]:
    return {
        "manage_etc_hosts": True,
        "users": [
            {
                "name": "ada",
                "groups": "sudo",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": False,
                "hashed_passwd": PASSWORD,
                "ssh_authorized_keys": [key.public],
            }
        ],
        "ssh_pwauth": True,
        "ssh_keys": {"ed25519_private": server.private, "ed25519_public": server.public},
    }


def add_bridge(host: Host, name: str, address: str) -> None:
    host.converge("linux_bridge", {"name": name, "addresses": [address]})


@pytest.mark.slow
def test_a_debian_has_the_name_users_addresses_and_routes_of_the_notes(
    guests: Guests, debian_guest: DebianGuest, tmp_path: pathlib.Path
) -> None:
    host = guests.host
    key, server = Keys.make(tmp_path / "key"), Keys.make(tmp_path / "server")
    add_bridge(host, "br0", "192.168.1.7/24")
    add_bridge(host, "br1", "192.168.6.10/24")
    network = {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": MAC},
                "set-name": "eth0",
                "addresses": ["192.168.1.169/24"],
                "routes": [
                    {"to": "192.168.1.1/32", "via": "192.168.1.7"},
                    {"to": "0.0.0.0/0", "via": "192.168.1.7"},
                ],
            },
            "eth1": {"match": {"macaddress": SECOND_MAC}, "set-name": "eth1", "addresses": ["192.168.6.1/24"]},
        },
    }
    guests.converge(
        "vm1",
        memory="512",
        disks=[{"base_image": str(debian_guest.disk)}],
        nics=[{"bridge": "br0", "mac": MAC}, {"bridge": "br1", "mac": SECOND_MAC}],
        cloud_init={"user_data": user_data(key, server), "network_config": network},
    )
    shown = Login.make(host, "192.168.1.169", key, server).look(
        "hostname",
        "cat /etc/hosts",
        "sudo -n id -un; id -Gn",
        "sudo -n cat /etc/shadow",
        "ip -br -4 address show up",
        "ip -j route",
        "ping -c 1 -W 30 192.168.1.7 >&2; ping -c 1 -W 30 192.168.6.10 >&2",
        "sudo -n blkid -L cidata; cat /sys/block/vdb/ro",
        "cat /var/lib/cloud/data/instance-id; cloud-id",
    )
    name, hosts, account, shadow, addresses, routes, _pings, disk, instance = shown
    assert name.strip() == "vm1"
    assert "127.0.1.1 vm1 vm1" in hosts.splitlines()
    assert account.split() == ["root", "ada", "sudo"]
    assert f"ada:{PASSWORD}:" in shadow

    found = [line.split() for line in addresses.splitlines()]
    assert {interface: given for interface, _state, *given in found if interface != "lo"} == {
        "eth0": ["192.168.1.169/24"],
        "eth1": ["192.168.6.1/24"],
    }
    ways = {(route["dst"], route.get("gateway"), route["dev"]) for route in json.loads(routes)}
    assert {("192.168.1.1", "192.168.1.7", "eth0"), ("default", "192.168.1.7", "eth0")} <= ways

    # The seed is behind the disk that the firmware has booted from, and cannot be written to.
    assert disk.split() == ["/dev/vdb", "1"]
    assert instance.split() == ["labspan-vm1", "nocloud"]


#: Serves the files of a directory, and writes down what was asked for.
_SERVER = ("python3", "-u", "-m", "http.server", "--bind", "192.168.100.1", "8000")


@pytest.mark.slow
def test_a_debian_fetches_its_seed_from_a_web_server(
    guests: Guests, debian_guest: DebianGuest, tmp_path: pathlib.Path
) -> None:
    host = guests.host
    key, server = Keys.make(tmp_path / "key"), Keys.make(tmp_path / "server")
    add_bridge(host, "br0", "192.168.100.1/24")
    host.converge(
        "dhcp_server", {"name": "lab", "bridge": "br0", "leases": [{"mac": MAC, "address": "192.168.100.69"}]}
    )
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "user-data").write_text(f"#cloud-config\n{json.dumps(user_data(key, server))}\n", encoding="utf-8")
    (seed / "meta-data").write_text("instance-id: from-the-web\nlocal-hostname: web\n", encoding="utf-8")
    (seed / "vendor-data").write_text("", encoding="utf-8")
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        process = host.start(*_SERVER, "--directory", str(seed), stdout=log, stderr=log)
        guests.converge(
            "vm1",
            memory="512",
            disks=[{"base_image": str(debian_guest.disk)}],
            nics=[{"bridge": "br0", "mac": MAC}],
            # Debian 12 has cloud-init 22.4, which fetches what "nocloud" names and then does not heed it.
            cloud_init={"delivery": "smbios", "seed_url": "http://192.168.100.1:8000/", "datasource": "nocloud-net"},
            **debian_guest.boot,
        )
        guest = Login.make(host, "192.168.100.69", key, server)
        (told,) = guest.look("hostname; cat /var/lib/cloud/data/instance-id")
        process.terminate()
        process.wait()
    assert told.split() == ["web", "from-the-web"]
    fetched = (tmp_path / "log").read_text(encoding="utf-8")
    assert all(f"GET /{name} " in fetched for name in ("meta-data", "user-data", "vendor-data"))
