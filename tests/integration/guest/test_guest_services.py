# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests that systemd runs: as an account of their own, back after a boot and a crash, powered off before either.

systemctl, ps and the guests' consoles are the judges.
"""

from __future__ import annotations

import pathlib
import time
import typing as t

import pytest
from lab.hosts import build_tiny_guest
from support.hosts import HARDENED, await_condition
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.one_interpreter, pytest.mark.long]

DROP_IN = "/etc/systemd/system/labspan-guest@{}.service.d/guest.conf"
TEMPLATE = "/etc/systemd/system/labspan-guest@.service"
SCRIPT = "/usr/local/lib/labspan/guest"
CONSOLE = "/var/lib/labspan/guests/{}/console.log"

#: Firmware that finds nothing to boot: it never hears the power button.
DEAF: dict[str, t.Any] = {"memory": "32", "accelerator": "tcg"}


@pytest.fixture(scope="module")
def tiny() -> dict[str, t.Any]:
    """Options of a guest that boots in seconds, answers to its power button, and says when it is ready."""
    files = build_tiny_guest()
    return {
        "memory": "96",
        "accelerator": "tcg",
        "kernel": str(files / "vmlinux"),
        "initrd": str(files / "initrd.img"),
        "cmdline": "console=ttyS0 no_timer_check quiet",
        "wait_for": "console",
        "console_pattern": "ready",
        "nics": [{"user": True}],
    }


@pytest.fixture(scope="module")
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with SystemHost(python_path) as made:
        made.run("useradd", "--system", "labspan-qemu")
        yield made


def unit(name: str) -> str:
    return f"labspan-guest@{name}.service"


def shown(host: SystemHost, name: str, *properties: str) -> dict[str, str]:
    lines = host.out("systemctl", "show", "--property", ",".join(properties), unit(name)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def main_pid(host: SystemHost, name: str) -> int:
    return int(shown(host, name, "MainPID")["MainPID"])


def has_said(host: SystemHost, name: str, text: str) -> bool:
    return text in host.run("cat", CONSOLE.format(name), check=False).stdout


def test_a_guest_is_a_service_of_an_account_of_its_own(host: SystemHost, tiny: dict[str, t.Any]) -> None:
    tiny = {**tiny, "guest_agent": True}
    early = host.module("qemu_guest", {"name": "own", "user": "labspan-own", **tiny}, check=True)["guest"]
    host.converge("guest_account", {"name": "own"})
    host.assert_rests("guest_account", {"name": "own"})
    predicted = host.module("qemu_guest", {"name": "own", **tiny}, check=True)
    assert host.run("test", "-e", TEMPLATE, check=False).returncode == 1
    result = host.converge("qemu_guest", {"name": "own", **tiny})
    assert result["actions"] == predicted["actions"]
    assert result["guest"]["service"] == unit("own")
    known = ("user", "service", "autostart", "state")
    assert [early[key] for key in known] == [result["guest"][key] for key in known]
    state = shown(host, "own", "ActiveState", "UnitFileState", "User", "NoNewPrivileges", "MainPID")
    assert state == {
        "ActiveState": "active",
        "UnitFileState": "enabled",
        "User": "labspan-own",
        "NoNewPrivileges": "yes",
        "MainPID": str(result["guest"]["pid"]),
    }
    pid = state["MainPID"]
    assert host.out("ps", "-o", "user:20=,comm=", "-p", pid).split() == ["labspan-own", "qemu-system-x86"]
    status = host.out("cat", f"/proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    for socket in ("qmp.sock", "console.sock", "agent.sock", "power.in"):
        mode, owner = host.out("stat", "-c", "%a %U", f"/run/labspan/guests/own/{socket}").split()
        assert (mode[1:], owner) == ("00", "labspan-own")
    host.assert_rests("qemu_guest", {"name": "own", **tiny})
    host.run("systemd-analyze", "verify", unit("own"))

    host.converge("qemu_guest", {"name": "own", "state": "absent"})
    kept = host.converge("guest_account", {"name": "own", "state": "absent"})
    assert kept["actions"] == ["Remove the account labspan-own"]
    assert (
        host.run("test", "-e", TEMPLATE, "-o", "-e", SCRIPT, "-o", "-e", DROP_IN.format("own"), check=False).returncode
        == 1
    )


def test_a_guest_is_a_service_of_a_host_where_what_root_makes_is_roots_alone(
    python_path: pathlib.Path, tiny: dict[str, t.Any]
) -> None:
    """A fresh one: none of the directories is there."""
    with SystemHost(python_path) as fresh:
        fresh.converge("guest_account", {"name": "hard"}, wrapper=HARDENED)
        options = {"name": "hard", "disks": [{"size": "1M"}], **tiny}
        result = fresh.converge("qemu_guest", options, wrapper=HARDENED)
        assert (result["guest"]["service"], result["guest"]["state"]) == (unit("hard"), "running")
        pid = str(main_pid(fresh, "hard"))
        assert fresh.out("ps", "-o", "user:20=", "-p", pid).strip() == "labspan-hard"
        ours = ("/var/lib/labspan", "/var/lib/labspan/guests", "/run/labspan", "/usr/local/lib/labspan")
        modes = fresh.directories("/var/lib/labspan", "/run/labspan", "/usr/local/lib/labspan")
        assert {path: modes[path] for path in ours} == dict.fromkeys(ours, "755 root")
        fresh.run("systemctl", "stop", unit("hard"))  # by the script, which the account executes
        assert shown(fresh, "hard", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_a_crash_is_followed_by_a_start_and_a_power_off_is_not(host: SystemHost, tiny: dict[str, t.Any]) -> None:
    host.converge("qemu_guest", {"name": "phoenix", **tiny})
    first = main_pid(host, "phoenix")
    host.run("kill", "-9", str(first))
    await_condition(lambda: main_pid(host, "phoenix") not in (0, first), "a new process after the crash")
    await_condition(lambda: has_said(host, "phoenix", "ready"), "the guest after the crash")
    host.assert_rests("qemu_guest", {"name": "phoenix", **tiny})

    stopped = host.converge("qemu_guest", {"name": "phoenix", "state": "stopped"})
    assert stopped["ended_by"] == {"phoenix": "powerdown"}
    assert shown(host, "phoenix", "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive",
        "UnitFileState": "disabled",
    }
    host.converge("qemu_guest", {"name": "phoenix", "state": "absent"})


@pytest.mark.slow
def test_what_is_plugged_in_is_there_after_a_crash(host: SystemHost, tiny: dict[str, t.Any]) -> None:
    host.converge("qemu_guest", {"name": "grown", **tiny})
    host.run("ip", "link", "add", "grbr", "type", "bridge")
    wanted = {**tiny, "nics": [*tiny["nics"], {"bridge": "grbr"}], "disks": [{"size": "1M"}]}
    first = main_pid(host, "grown")
    grown = host.converge("qemu_guest", {"name": "grown", **wanted})
    assert grown["guest"]["pending_restart"] == []
    assert main_pid(host, "grown") == first
    tap = grown["guest"]["nics"][1]["tap"]
    link = host.link(tap)
    assert link is not None
    assert "LOWER_UP" in link["flags"]  # somebody holds it
    assert f"ifname={tap}" in host.out("cat", DROP_IN.format("grown"))
    host.assert_rests("qemu_guest", {"name": "grown", **wanted})

    host.converge("tap_device", {"name": "grtap", "owner": "root"})
    message = host.refuse("qemu_guest", {"name": "grown", **wanted, "nics": [*wanted["nics"], {"tap": "grtap"}]})
    assert "the tap grtap belongs to root" in message

    host.run("kill", "-9", str(first))
    await_condition(lambda: main_pid(host, "grown") not in (0, first), "a new process after the crash")
    await_condition(lambda: has_said(host, "grown", "ready"), "the guest after the crash")
    words = host.out("cat", f"/proc/{main_pid(host, 'grown')}/cmdline")
    assert tap in words
    assert "disk0.qcow2" in words
    host.assert_rests("qemu_guest", {"name": "grown", **wanted})
    host.converge("qemu_guest", {"name": "grown", "state": "absent", "remove_disks": True})
    assert host.link(tap) is None
    host.converge("tap_device", {"name": "grtap", "state": "absent"})


def test_systemctl_stop_presses_the_power_button_and_waits(host: SystemHost, tiny: dict[str, t.Any]) -> None:
    host.converge("qemu_guest", {"name": "willing", **tiny})
    host.run("systemctl", "stop", unit("willing"))
    state = shown(host, "willing", "ActiveState", "Result", "ExecMainStatus")
    assert state == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert "signal" not in host.journal("-b", "-u", unit("willing"))
    host.converge("qemu_guest", {"name": "willing", "state": "absent"})


def test_a_guest_that_is_deaf_to_its_power_button_is_ended_within_its_bound(host: SystemHost) -> None:
    disk = {"size": "64M"}
    host.converge("qemu_guest", {"name": "deaf", "shutdown_timeout": 2, "disks": [disk], **DEAF})
    begin = time.monotonic()
    host.run("systemctl", "stop", unit("deaf"))
    waited = time.monotonic() - begin
    assert waited >= 2  # it was asked first
    assert "terminating on signal 15" in host.journal("-b", "-u", unit("deaf"))
    assert shown(host, "deaf", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    host.run("qemu-img", "check", "/var/lib/labspan/guests/deaf/disk0.qcow2")
    host.converge("qemu_guest", {"name": "deaf", "state": "absent", "remove_disks": True})


def test_a_change_of_the_template_restarts_no_guest(host: SystemHost) -> None:
    host.converge("qemu_guest", {"name": "steady", **DEAF})
    pid = main_pid(host, "steady")
    host.run("sed", "-i", "s/^RestartSec=5/RestartSec=7/", TEMPLATE)
    host.run("sed", "-i", "s/TimeoutStopSec=.*/TimeoutStopSec=7/", DROP_IN.format("steady"))
    result = host.converge("qemu_guest", {"name": "steady", **DEAF})
    assert result["actions"] == [f"Write {TEMPLATE}", "Change the unit of guest steady"]
    assert main_pid(host, "steady") == pid
    assert shown(host, "steady", "NeedDaemonReload")["NeedDaemonReload"] == "no"
    # What concerns systemd alone is changed while the guest runs.
    result = host.converge("qemu_guest", {"name": "steady", "shutdown_timeout": 5, "autostart": False, **DEAF})
    assert main_pid(host, "steady") == pid
    assert shown(host, "steady", "TimeoutStopUSec", "UnitFileState") == {
        "TimeoutStopUSec": "35s",
        "UnitFileState": "disabled",
    }
    host.converge("qemu_guest", {"name": "steady", "state": "absent", "shutdown_timeout": 0})


def test_a_start_that_fails_tells_why_and_is_not_tried_for_ever(host: SystemHost) -> None:
    before = host.dump()
    result = host.module("qemu_guest", {"name": "broken", "extra_args": ["-device", "no-such-device"], **DEAF})
    assert result["failed"]
    assert "QEMU said: " in result["msg"]
    assert "'no-such-device' is not a valid device model name. What had" in result["msg"]
    assert shown(host, "broken", "ActiveState")["ActiveState"] == "inactive"
    assert host.run("test", "-e", DROP_IN.format("broken"), check=False).returncode == 1
    # The log is left to be looked at, and goes with the guest.
    host.converge("qemu_guest", {"name": "broken", "state": "absent"})
    assert host.dump() == before


@pytest.mark.slow
def test_paused_and_unplugged_guests_begin_so(host: SystemHost, tiny: dict[str, t.Any]) -> None:
    host.converge("qemu_guest", {"name": "idle", **tiny, "state": "paused", "nics": [{"user": True, "link": False}]})
    assert host.run("cat", CONSOLE.format("idle")).stdout == ""
    host.converge("qemu_guest", {"name": "idle", **tiny, "nics": [{"user": True, "link": False}]})
    await_condition(lambda: has_said(host, "idle", "ready"), "the guest that was paused")
    pid = main_pid(host, "idle")
    host.run("kill", "-9", str(pid))
    # It is not paused this time: that was for one start only.
    await_condition(lambda: main_pid(host, "idle") not in (0, pid), "a new process after the crash")
    await_condition(lambda: has_said(host, "idle", "ready"), "the guest after the crash")
    host.converge("qemu_guest", {"name": "idle", "state": "absent"})


def test_a_tap_of_somebody_else_is_refused_because_nobody_could_open_it(host: SystemHost) -> None:
    host.converge("tap_device", {"name": "tap9", "owner": "root"})
    message = host.refuse("qemu_guest", {"name": "tapped", "nics": [{"tap": "tap9"}], **DEAF})
    assert "the tap tap9 belongs to root" in message
    assert "owner: labspan-qemu" in message
    host.converge("tap_device", {"name": "tap9", "owner": "labspan-qemu", "recreate": "if_needed"})
    host.converge("qemu_guest", {"name": "tapped", "nics": [{"tap": "tap9"}], **DEAF})
    host.converge("qemu_guest", {"name": "tapped", "state": "absent", "shutdown_timeout": 0})
    host.converge("tap_device", {"name": "tap9", "state": "absent"})


def test_guests_go_down_before_the_host_and_come_back_with_it(
    python_path: pathlib.Path, tiny: dict[str, t.Any]
) -> None:
    with SystemHost(python_path) as host:
        host.run("useradd", "--system", "labspan-qemu")
        guests = [
            {"name": "vm1", **tiny, "disks": [{"size": "64M"}]},
            {"name": "deaf", **DEAF, "shutdown_timeout": 3, "disks": [{"size": "64M"}]},
            {"name": "manual", **DEAF, "shutdown_timeout": 0, "autostart": False},
        ]
        host.converge("qemu_guest", {"guests": guests})
        # Neither the way down nor the way up needs Python.
        host.run("sh", "-c", "mv $(readlink -f /usr/bin/python3) /usr/bin/python3.away")
        host.reboot()
        await_condition(lambda: has_said(host, "vm1", "ready"), "the guest after the boot")
        assert shown(host, "deaf", "ActiveState")["ActiveState"] == "active"
        assert shown(host, "manual", "ActiveState")["ActiveState"] == "inactive"
        before = host.journal("-b", "-1", "-u", unit("vm1"))
        assert "Deactivated successfully" in before
        assert "signal" not in before
        assert "terminating on signal 15" in host.journal("-b", "-1", "-u", unit("deaf"))
        host.run("sh", "-c", "mv /usr/bin/python3.away $(readlink -f /usr/bin/python3)")
        result = host.converge("qemu_guest", {"guests": guests})
        assert result["actions"] == ["Start guest manual"]
        host.converge(
            "qemu_guest",
            {
                "guests": [{"name": name} for name in ("vm1", "deaf", "manual")],
                "state": "stopped",
                "shutdown_timeout": 3,
            },
        )
        for name in ("vm1", "deaf"):
            host.run("qemu-img", "check", f"/var/lib/labspan/guests/{name}/disk0.qcow2")
