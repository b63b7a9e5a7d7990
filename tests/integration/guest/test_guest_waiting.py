# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for addresses, SSH servers and cloud-init, with tiny guests; what is waited for is looked at from outside."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import typing as t

import pytest
from support.hosts import await_condition, finish_module

from .conftest import STATE, Guests

one_interpreter = pytest.mark.one_interpreter

ROOT = pathlib.Path(__file__).resolve().parents[3]
MACS = {name: f"52:54:00:66:00:0{number}" for number, name in enumerate(("wa-a", "wa-b", "wa-c"), 1)}


def in_guest(guests: Guests, name: str, command: str) -> None:
    """Run a command on the serial console of a tiny guest."""
    path = ROOT / "roles" / "tiny_guest" / "files" / "guest_console.py"
    specification = importlib.util.spec_from_file_location("guest_console", path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["guest_console"] = module
    specification.loader.exec_module(module)
    socket = pathlib.Path(f"/proc/{guests.host.pid}/root/run/labspan/guests/{name}/console.sock")
    result = module.run(socket, command, timeout=60)
    assert result.status == 0, result


def options(tiny: dict[str, t.Any], name: str, *words: str, bridge: str = "br0", **more: t.Any) -> dict[str, t.Any]:
    """A tiny guest on a bridge, configured by these words of its kernel's command line."""
    base = tiny["cmdline"].replace(" labspan.dhcp=no", "")
    nics = [{"bridge": bridge, "mac": MACS[name]}]
    plain = {key: value for key, value in tiny.items() if key not in ("wait_for", "console_pattern", "cmdline")}
    return {**plain, "cmdline": " ".join([base, *words]), "nics": nics, "wait_timeout": 120, **more}


@one_interpreter
def test_an_address_is_waited_for_and_a_guest_without_one_is_left_to_be_looked_at(
    guests: Guests, tiny: dict[str, t.Any]
) -> None:
    host = guests.host
    host.converge("linux_bridge", {"name": "br0", "addresses": ["10.66.0.1/24"]})
    host.converge("dhcp_server", {"name": "wait", "bridge": "br0"})
    leased = options(tiny, "wa-a", wait_for="address")
    unheard = options(tiny, "wa-b", "labspan.dhcp=no", wait_for="address", wait_timeout=3)
    entries = [{"name": "wa-a", **leased}, {"name": "wa-b", **unheard}]
    failed = host.module("qemu_guest", guests.params(None, guests=entries))
    assert failed["failed"]
    assert failed["changed"]
    assert "Start guest wa-b" in failed["actions"]
    assert (
        "guest wa-b has not got an address within 3 seconds: the host's DHCP servers have leased none" in failed["msg"]
    )
    assert f"(all: {STATE}/wa-b/console.log)" in failed["msg"]
    assert "In time were: wa-a" in failed["msg"]
    assert sorted(guests.processes().values()) == ["wa-a", "wa-b"]

    (address,) = [line.split()[2] for line in host.out("cat", "/var/lib/labspan/dhcp/wait.leases").splitlines()]
    assert failed["waited"]["wa-a"]["addresses"] == [address]
    assert (failed["waited"]["wa-a"]["reached"], failed["waited"]["wa-b"]["reached"]) == (True, False)

    again = guests.converge("wa-a", **leased)
    assert not again["changed"]
    assert again["waited"]["wa-a"]["reached"]
    assert again["guest"]["nics"][0]["addresses"] == [address]

    # An SSH server, too, is waited for, and what is there instead of one is told.
    asked = {**leased, "wait_for": "ssh"}
    told = f"it has the address {address}, where port 22 cannot be reached (Connection refused)"

    def is_told() -> bool:  # when the guest has answered in time
        return told in host.module("qemu_guest", guests.params("wa-a", **{**asked, "wait_timeout": 1}))["msg"]

    await_condition(is_told, told)
    waiting = host.start_module("qemu_guest", guests.params("wa-a", **asked))
    in_guest(guests, "wa-a", "(while :; do echo SSH-2.0-Tiny | nc -l -p 22; done) >/dev/null 2>&1 &")
    result = finish_module(waiting)
    assert not result.get("failed"), result
    assert result["waited"]["wa-a"]["stage"] == f"{address} answers with SSH-2.0-Tiny"

    # The lease is still in the file, and whoever only looked there would be content.
    guests.kill("wa-a")
    await_condition(lambda: list(guests.processes().values()) == ["wa-b"], "the end of QEMU")
    mute = {**leased, "cmdline": f"{leased['cmdline']} labspan.dhcp=no", "wait_timeout": 2}
    silent = host.module("qemu_guest", guests.params("wa-a", **mute))
    assert f"nobody with its MAC address answers for {address}" in silent["msg"]


def test_what_the_neighbour_table_knows_of_a_guest_is_told_and_not_taken_for_an_answer(guests: Guests) -> None:
    host = guests.host
    host.converge("linux_bridge", {"name": "br0", "addresses": ["10.66.0.1/24", "fd00:66::1/64"]})
    wanted = {"nics": [{"bridge": "br0", "mac": MACS["wa-a"]}]}
    assert guests.converge("wa-a", **wanted)["guest"]["nics"][0]["addresses"] == []
    for address, mac in (
        ("10.66.0.9", MACS["wa-a"]),
        ("fd00:66::9", MACS["wa-a"]),
        ("fe80::9", MACS["wa-a"]),
        ("10.66.0.10", MACS["wa-b"]),
    ):
        host.run("ip", "neigh", "add", address, "lladdr", mac, "dev", "br0", "nud", "stale")
    again = guests.converge("wa-a", **wanted)
    assert not again["changed"]
    assert again["guest"]["nics"][0]["addresses"] == ["10.66.0.9", "fd00:66::9"]
    waited = host.module("qemu_guest", guests.params("wa-a", **wanted, wait_for="address", wait_timeout=0.1))
    assert "nobody with its MAC address answers for 10.66.0.9, fd00:66::9" in waited["msg"]
    stopped = guests.converge("wa-a", **wanted, state="stopped")
    assert stopped["guest"]["nics"][0]["addresses"] == []


@one_interpreter
def test_a_static_address_is_asked_for_on_a_bridge_where_the_host_has_none(
    guests: Guests, tiny: dict[str, t.Any]
) -> None:
    guests.host.converge("linux_bridge", {"name": "br0", "host_access": False})
    config = {"version": 2, "ethernets": {"nic0": {"addresses": ["10.66.0.77/24"], "gateway4": "10.66.0.1"}}}
    told = {"cloud_init": {"network_config": config}, "wait_for": "address"}
    result = guests.converge(
        "wa-c", **options(tiny, "wa-c", "labspan.dhcp=no", "labspan.address=10.66.0.77/24", **told)
    )
    assert result["guest"]["nics"][0]["addresses"] == ["10.66.0.77"]


@one_interpreter
def test_the_end_of_cloud_init_is_read_from_the_console(guests: Guests) -> None:
    failed = guests.host.module("qemu_guest", guests.params("wa-d", wait_for="cloud_init", wait_timeout=0.5))
    assert "guest wa-d has not come to the end of cloud-init within 0.5 seconds" in failed["msg"]
    assert guests.activity("wa-d") == "running"
    log = f"{STATE}/wa-d/console.log"
    message = "Cloud-init v. 22.4.2 finished at now. Datasource DataSourceNoCloud.  Up 1 seconds"
    guests.host.run("tee", "-a", log, stdin=f"Running module runcmd (<module>) failed\n{message}\n")
    broken = guests.host.module("qemu_guest", guests.params("wa-d", wait_for="cloud_init"))
    assert "guest wa-d has come to the end of cloud-init, which reports: runcmd failed." in broken["msg"]
    assert not broken["changed"]
    guests.host.run("tee", log, stdin=f"{message}\n")
    result = guests.converge("wa-d", wait_for="cloud_init")
    assert (result["changed"], result["waited"]["wa-d"]["reached"]) == (False, True)


@one_interpreter
def test_what_can_never_be_seen_is_refused_before_anything_is_made(guests: Guests) -> None:
    assert "needs a NIC on a tap" in guests.refuse("wa-e", wait_for="ssh", nics=[{"user": True}])
    assert "Give console: true" in guests.refuse("wa-e", wait_for="cloud_init", console=False)
