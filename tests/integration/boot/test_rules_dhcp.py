# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The DHCP server as a unit: reboots and kills leave it its leases, and it leaves nothing when it is not wanted."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import typing as t

import pytest
from support.hosts import Host, await_condition, cable
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MODULE = "dhcp_server"
UNIT = "labspan-dhcp@lab.service"
CONFIGURATION = "/etc/labspan/networks/lab/dnsmasq.conf"
MAC = "52:54:00:00:0d:01"
SERVER = {"name": "lab", "bridge": "br0", "dns_servers": [], "lease_time": "1h"}
_SCRIPT = "#!/bin/sh\n[ $1 = bound ] && echo ip=$ip\nexit 0\n"


def inside(host: SystemHost, words: str) -> None:
    """ip(8) in the network of a host that need not run."""
    subprocess.run(["nsenter", f"--net=/proc/{host.pid}/ns/net", "ip", *words.split()], check=True)


class Wiring:
    """A guest on the bridge, plugged in at each boot anew."""

    def __init__(self, guest: Host) -> None:
        self.guest = guest

    def __call__(self, host: SystemHost) -> None:
        inside(host, "link add br0 type bridge")
        inside(host, "addr add 10.97.8.1/24 dev br0")
        inside(host, "link set br0 up")
        cable(host, "port0", self.guest, "eth0", mac=MAC)
        inside(host, "link set port0 master br0")
        self.guest.run("ip", "link", "set", "eth0", "up")


@pytest.fixture(scope="module")
def guest(python_path: pathlib.Path) -> t.Iterator[Host]:
    with Host(python_path, sys.executable) as made:
        made.run("sh", "-c", "cat >/run/udhcpc && chmod +x /run/udhcpc", stdin=_SCRIPT)
        yield made


@pytest.fixture(scope="module")
def system(python_path: pathlib.Path, guest: Host) -> t.Iterator[SystemHost]:
    with SystemHost(python_path, wire=Wiring(guest)) as made:
        yield made


@pytest.fixture
def host(system: SystemHost) -> t.Iterator[SystemHost]:
    yield system
    system.converge(MODULE, {"name": "lab", "state": "absent"})


def lease(guest: Host) -> t.Optional[str]:
    """The address that a DHCP server gives the guest, or None."""
    done = guest.run("busybox", "udhcpc", "-i", "eth0", "-nqf", "-t", "10", "-T", "1", "-s", "/run/udhcpc", check=False)
    return done.stdout.strip().partition("=")[2] or None


def prop(host: SystemHost, name: str) -> str:
    return host.out("systemctl", "show", "--value", "-p", name, UNIT).strip()


def dnsmasqs(host: SystemHost) -> list[str]:
    """The numbers of all dnsmasq processes."""
    return host.run("pgrep", "-r", "R,S,D", "-x", "dnsmasq", check=False).stdout.split()


def traces(host: SystemHost) -> str:
    """All that a server leaves on the disk, in /run and in systemd."""
    script = """
        find /etc/systemd/system /etc/labspan /usr/local/lib/labspan /var/lib/labspan /run/labspan 2>/dev/null | sort
        systemctl list-unit-files --plain --no-legend 'labspan*'
        systemctl list-units --all --plain --no-legend 'labspan*'
    """
    return host.out("sh", "-c", script)


def test_the_unit_is_back_after_a_reboot_with_the_same_lease_and_a_rerun_has_nothing_to_do(
    host: SystemHost, guest: Host
) -> None:
    made = host.converge(MODULE, SERVER)
    assert (made["changed"], made["server"]["unit"]) == (True, UNIT)
    assert prop(host, "UnitFileState") == "enabled"
    assert host.out("ps", "-o", "user=", "-p", prop(host, "MainPID")).strip() not in ("", "root")
    first = lease(guest)
    assert (first or "").startswith("10.97.8.")
    host.assert_rests(MODULE, SERVER)

    host.reboot()

    assert prop(host, "ActiveState") == "active"
    await_condition(lambda: lease(guest) == first, "the lease of before the reboot")
    host.assert_rests(MODULE, SERVER)


def test_a_killed_server_comes_back(host: SystemHost, guest: Host) -> None:
    host.converge(MODULE, SERVER)
    first, pid = lease(guest), prop(host, "MainPID")
    host.run("kill", "-9", pid)
    await_condition(lambda: prop(host, "MainPID") not in ("0", pid), "the unit's restart")
    assert lease(guest) == first
    await_condition(lambda: not host.converge(MODULE, SERVER)["changed"], "the note of the new process")


def test_a_plain_process_is_taken_over_with_its_leases_and_given_back(host: SystemHost, guest: Host) -> None:
    plain = {**SERVER, "persistent": False}
    host.converge(MODULE, plain)
    assert prop(host, "LoadState") == "not-found"
    old, first = dnsmasqs(host), lease(guest)
    assert first
    # The twin: what nobody restarts stays dead.
    taken = host.converge(MODULE, SERVER)
    assert taken["actions"] == ["Restart the DHCP server of network lab as a unit of systemd"]
    assert dnsmasqs(host) == [prop(host, "MainPID")] != old
    assert [entry["address"] for entry in taken["leases"]] == [first] == [lease(guest)]

    given = host.converge(MODULE, plain)
    assert given["actions"] == ["Restart the DHCP server of network lab as a process of its own"]
    assert [entry["address"] for entry in given["leases"]] == [first] == [lease(guest)]
    assert prop(host, "LoadState") == "not-found"
    assert host.run("test", "-e", "/etc/labspan", check=False).returncode
    host.assert_rests(MODULE, plain)


@pytest.mark.slow
def test_static_leases_are_read_without_a_restart(host: SystemHost, guest: Host) -> None:
    host.converge(MODULE, SERVER)
    pid = prop(host, "MainPID")
    static = {**SERVER, "leases": [{"mac": MAC, "address": "10.97.8.77"}]}
    host.converge(MODULE, static)
    assert prop(host, "MainPID") == pid
    await_condition(lambda: lease(guest) == "10.97.8.77", "the static lease")
    host.assert_rests(MODULE, static)


def test_absent_leaves_nothing(host: SystemHost) -> None:
    before = traces(host)
    host.converge(MODULE, SERVER)
    assert traces(host) != before
    host.converge(MODULE, {"name": "lab", "state": "absent"})
    assert traces(host) == before
    assert dnsmasqs(host) == []
    host.assert_rests(MODULE, {"name": "lab", "state": "absent"})


@pytest.mark.slow
def test_a_configuration_that_does_not_start_is_put_back(host: SystemHost, guest: Host) -> None:
    host.converge(MODULE, SERVER)
    first, configuration = lease(guest), host.out("cat", CONFIGURATION)
    unlucky = 'grep -q 7200 "${1#*=}" && { echo no luck today >&2; exit 2; }'
    host.run("mv", "/usr/sbin/dnsmasq", "/usr/sbin/dnsmasq.real")
    script = f'#!/bin/sh\n[ "$1" = --test ] && exit 0\n{unlucky}\nexec /usr/sbin/dnsmasq.real "$@"\n'
    host.write("/usr/sbin/dnsmasq", script, 0o755)
    try:
        result = host.module(MODULE, {**SERVER, "lease_time": "2h"})
    finally:
        host.run("mv", "/usr/sbin/dnsmasq.real", "/usr/sbin/dnsmasq")
    assert result["failed"], result
    assert "no luck today" in result["msg"], result
    assert host.out("cat", CONFIGURATION) == configuration
    assert lease(guest) == first
