# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests with their networks in one task: on several networks, as accounts that the task itself makes, and undone with
the rest when one of them does not start."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from support.hosts import HARDENED, AnyHost, Host
from support.system_host import SystemHost, needs_system_host

pytestmark = pytest.mark.one_interpreter

GUEST = {"memory": "32", "accelerator": "tcg", "shutdown_timeout": 0}
LAB: dict[str, t.Any] = {
    "networks": [
        {"name": "lhone", "scenario": "nat", "subnet": "10.67.0.0/24", "guests": [{"name": "lhvm1", **GUEST}]},
        {"name": "lhtwo", "scenario": "private", "taps": [{"name": "lhtap"}]},
    ],
    "guests": [
        {"name": "lhvm2", "nics": [{"network": "lhone", "address": "10.67.0.20"}, {"network": "lhtwo"}], **GUEST}
    ],
}


def connect(host: AnyHost) -> None:
    """Give the host a way out."""
    host.run("sh", "-c", "ip link add up0 type veth peer name far0; ip link set up0 up; ip link set far0 up")
    host.run("sh", "-c", "ip address add 192.0.2.2/24 dev up0; ip route add default via 192.0.2.1")


def test_guests_are_made_with_their_networks_and_undone_with_them(host: Host) -> None:
    connect(host)
    before = host.dump()
    lab = {**LAB, "account": "nobody"}
    foretold = host.converge("lab_host", lab, check=True)
    assert host.dump() == before, "check mode has written"

    broken = {**lab["guests"][0], "extra_args": ["-nonsense"]}
    failed = host.module("lab_host", {**lab, "guests": [broken]})
    assert "lhvm2" in failed["msg"]
    assert "Create bridge lhone0" in failed["undone"]
    assert {**host.dump(), "files": None} == {**before, "files": None}
    assert not [word for word in host.out("ps", "-e", "-o", "comm=").split() if word.startswith(("qemu", "dnsmasq"))]

    result = host.converge("lab_host", lab)
    assert result["actions"] == foretold["actions"]
    guests = {guest["name"]: guest for guest in result["guests"]}
    taps = [nic["tap"] for nic in guests["lhvm2"]["nics"]]
    assert [(host.link(tap) or {})["master"] for tap in taps] == ["lhone0", "lhtwo0"]
    assert [(host.link(tap) or {})["ifalias"] for tap in taps] == ["labspan.vmnet:lhone", "labspan.vmnet:lhtwo"]
    assert f"Create tap {taps[0]} on bridge lhone0" in guests["lhvm2"]["actions"]
    networks = {network["name"]: network for network in result["networks"]}
    assert networks["lhone"]["guests"] == ["lhvm1", "lhvm2"]
    assert "10.67.0.20" in host.out("cat", "/var/lib/labspan/dhcp/lhone.static")
    again = host.converge("lab_host", lab)
    assert (again["changed"], again["actions"]) == (False, [])

    host.converge("lab_host", {**lab, "state": "absent"})
    left = host.dump()
    assert (left["links"], left["nft"], left["sysctl"]) == (before["links"], before["nft"], before["sysctl"])


def test_a_lab_is_made_on_a_fresh_host_where_what_root_makes_is_roots_alone(host: Host) -> None:
    connect(host)
    host.forget_collection()
    lab = {**LAB, "account": "nobody"}
    result = host.converge("lab_host", lab, wrapper=HARDENED)
    assert {guest["name"]: guest["state"] for guest in result["guests"]} == {"lhvm1": "running", "lhvm2": "running"}
    owners = host.out("ps", "-C", "qemu-system-x86_64", "-o", "user=").split()
    assert owners == ["nobody", "nobody"]
    modes = host.directories("/var/lib/labspan", "/run/labspan")
    own = {path: rest for path, rest in modes.items() if "/guests/" in path}
    assert set(own.values()) == {"711 root"}
    assert {path: rest for path, rest in modes.items() if path not in own} == {
        **dict.fromkeys(("/var/lib/labspan", "/var/lib/labspan/guests", "/var/lib/labspan/dhcp"), "755 root"),
        **dict.fromkeys(("/run/labspan", "/run/labspan/guests", "/run/labspan/dhcp"), "755 root"),
    }
    assert not host.converge("lab_host", lab, wrapper=HARDENED)["changed"]


@pytest.mark.slow
@needs_system_host
def test_accounts_that_the_task_makes_own_what_it_makes(python_path: pathlib.Path) -> None:
    with SystemHost(python_path, files={"/etc/resolv.conf": "nameserver 192.0.2.1\n"}) as host:
        connect(host)
        accounts = host.out("getent", "passwd")
        foretold = host.converge("lab_host", LAB, check=True)
        assert host.out("getent", "passwd") == accounts
        result = host.converge("lab_host", LAB)
        assert result["actions"] == foretold["actions"]
        for guest in result["guests"]:
            (uid,) = {
                host.link(nic["tap"])["linkinfo"]["info_data"]["user"]  # type: ignore[index]
                for nic in guest["nics"]
            }
            assert uid == f"labspan-{guest['name']}"
            assert host.out("ps", "-o", "user:32=", "-p", str(guest["pid"])).strip() == uid
        again = host.converge("lab_host", LAB)
        assert (again["changed"], again["actions"]) == (False, [])
        host.converge("lab_host", {**LAB, "state": "absent"})
        assert host.out("getent", "passwd") == accounts
        assert host.run("ls", "/etc/labspan", check=False).returncode != 0

        broken = {**LAB["guests"][0], "extra_args": ["-nonsense"]}
        failed = host.module("lab_host", {**LAB, "guests": [broken]})
        assert "Make the account labspan-lhvm2" in failed["undone"]
        assert host.out("getent", "passwd") == accounts
