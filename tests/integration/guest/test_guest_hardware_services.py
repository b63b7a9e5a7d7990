# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Firmware, TPM and limits of guests that systemd runs, by systemctl, ps and the guest's console."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from support.hosts import await_condition
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

STATE = "/var/lib/labspan/guests/cg"
GUEST = "labspan-guest@cg.service"
TPM = "labspan-tpm@cg.service"

#: Firmware that finds nothing to boot: it never hears the power button.
DEAF: dict[str, t.Any] = {"name": "cg", "memory": "64", "accelerator": "tcg", "shutdown_timeout": 1}


@pytest.fixture
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with SystemHost(python_path) as made:
        made.run("useradd", "--system", "labspan-qemu")
        yield made


def shown(host: SystemHost, unit: str, *properties: str) -> dict[str, str]:
    lines = host.out("systemctl", "show", "--property", ",".join(properties), unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


def processors(host: SystemHost, process: str) -> str:
    status = host.out("cat", f"/proc/{process}/status").splitlines()
    return next(line.split()[1] for line in status if line.startswith("Cpus_allowed_list:"))


def is_active(host: SystemHost, unit: str) -> bool:
    return host.run("systemctl", "is-active", "--quiet", unit, check=False).returncode == 0


def test_a_service_has_its_firmware_and_tpm_again_after_a_crash_and_a_boot(host: SystemHost) -> None:
    options = {**DEAF, "firmware": "uefi", "tpm": True}
    host.converge("qemu_guest", options)
    host.assert_rests("qemu_guest", options)
    assert is_active(host, TPM)
    process = shown(host, TPM, "MainPID", "User")
    assert process["User"] == "labspan-qemu"
    assert host.out("ps", "-o", "user:20=,comm=", "-p", process["MainPID"]).split() == ["labspan-qemu", "swtpm"]
    assert host.out("stat", "-c", "%a %U", f"{STATE}/uefi_vars.fd").strip() == "600 labspan-qemu"
    inode = host.out("stat", "-c", "%i", f"{STATE}/uefi_vars.fd")
    kept = host.out("sha256sum", f"{STATE}/tpm/tpm2-00.permall")

    guest = shown(host, GUEST, "MainPID")["MainPID"]
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", GUEST)
    await_condition(lambda: shown(host, GUEST, "MainPID")["MainPID"] not in ("0", guest), "the guest's next start")
    await_condition(lambda: is_active(host, TPM), "the TPM's next start")
    assert shown(host, TPM, "MainPID")["MainPID"] != process["MainPID"]

    host.reboot()
    await_condition(lambda: is_active(host, GUEST), "the guest after the boot")
    assert is_active(host, TPM)
    assert host.out("sha256sum", f"{STATE}/tpm/tpm2-00.permall") == kept
    assert host.out("stat", "-c", "%i", f"{STATE}/uefi_vars.fd") == inode
    host.assert_rests("qemu_guest", options)

    host.converge("qemu_guest", {"name": "cg", "state": "stopped", "shutdown_timeout": 1})
    assert not is_active(host, TPM)
    host.converge("qemu_guest", {"name": "cg", "state": "absent", "remove_disks": True})
    assert host.run("test", "-e", STATE, check=False).returncode == 1
    assert host.out("sh", "-c", "ls /etc/systemd/system | grep -c labspan || true").strip() == "0"
    assert host.out("systemctl", "--plain", "--no-legend", "--failed") == ""


def test_limits_are_in_force_at_once_and_the_guest_runs_on(host: SystemHost) -> None:
    limits = {"cpu_quota": 50, "cpu_weight": 20, "memory_max": "1G", "io_weight": 30, "cpu_affinity": [0]}
    host.converge("qemu_guest", {**DEAF, "limits": limits})
    properties = ("CPUQuotaPerSecUSec", "CPUWeight", "MemoryMax", "IOWeight", "MainPID")
    before = shown(host, GUEST, *properties)
    assert before == {
        "CPUQuotaPerSecUSec": "500ms",
        "CPUWeight": "20",
        "MemoryMax": str(1 << 30),
        "IOWeight": "30",
        "MainPID": before["MainPID"],
    }
    assert processors(host, before["MainPID"]) == "0"
    host.assert_rests("qemu_guest", {**DEAF, "limits": limits})

    host.converge("qemu_guest", {**DEAF, "limits": {"cpu_quota": 150}})
    after = shown(host, GUEST, *properties)
    assert after["CPUQuotaPerSecUSec"] == "1.500000s"
    assert after["MainPID"] == before["MainPID"]
    assert after["MemoryMax"] == "infinity"
    assert "[not set]" in after["CPUWeight"]
    assert processors(host, before["MainPID"]) == processors(host, "1")
