# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""UEFI firmware, judged by what it says on the serial console, and the store of its variables, judged by its bytes."""

from __future__ import annotations

import pathlib
import shutil
import typing as t

import pytest

from .conftest import ACCOUNT, STATE, Guests

pytestmark = pytest.mark.one_interpreter

OVMF = pathlib.Path("/usr/share/OVMF")
AAVMF = pathlib.Path("/usr/share/AAVMF")

needs_ovmf = pytest.mark.skipif(not OVMF.exists(), reason="the package ovmf is not installed")

#: The firmware's own shell started, which is not signed.
SHELL = "UEFI Interactive Shell"

UEFI: dict[str, t.Any] = {
    "firmware": "uefi",
    "memory": "64",
    "wait_for": "console",
    "console_pattern": SHELL,
    "wait_timeout": 240,
}


def store(name: str) -> str:
    return f"{STATE}/{name}/uefi_vars.fd"


def fingerprint(guests: Guests, path: str) -> tuple[str, str]:
    """Inode and content."""
    return guests.host.out("stat", "-c", "%i", path).strip(), guests.host.out("sha256sum", path).split()[0]


@needs_ovmf
def test_uefi_starts_and_keeps_its_variables_in_a_store_of_the_guests_own(guests: Guests) -> None:
    foretold = guests.check("cg-f", **UEFI)
    started = guests.converge("cg-f", **UEFI)
    template = "/usr/share/OVMF/OVMF_VARS_4M.fd"
    assert (
        started["actions"]
        == foretold["actions"]
        == [
            "Define guest cg-f",
            f"Make the store of UEFI variables for guest cg-f from {template}",
            "Start guest cg-f",
        ]
    )
    assert started["guest"]["firmware_variables"] == store("cg-f")
    assert guests.mode(store("cg-f")) == f"600 {ACCOUNT}"
    inode, content = fingerprint(guests, store("cg-f"))
    assert content != fingerprint(guests, template)[1]  # the firmware wrote to it
    assert not guests.converge("cg-f", **UEFI)["changed"]

    guests.converge("cg-f", state="stopped")
    kept = fingerprint(guests, store("cg-f"))
    assert kept[0] == inode
    again = guests.converge("cg-f", wait_for="nothing")
    assert again["actions"] == ["Start guest cg-f"]
    assert fingerprint(guests, store("cg-f"))[0] == inode

    guests.converge("cg-f", state="absent")
    assert fingerprint(guests, store("cg-f"))[0] == inode
    back = guests.converge("cg-f", firmware="uefi", state="stopped")
    assert back["actions"] == ["Define guest cg-f"]
    assert fingerprint(guests, store("cg-f"))[0] == inode
    guests.converge("cg-f", state="absent", remove_disks=True)
    assert not guests.exists(f"{STATE}/cg-f")


@needs_ovmf
def test_secure_boot_refuses_what_is_not_signed(guests: Guests) -> None:
    """The firmware's own shell is not signed; test_uefi_starts shows that it starts otherwise."""
    started = guests.converge("cg-f", **{**UEFI, "console_pattern": "Security Violation"}, secure_boot=True)
    assert started["guest"]["secure_boot"]
    assert SHELL not in guests.host.out("cat", f"{STATE}/cg-f/console.log")


@needs_ovmf
def test_a_store_without_keys_is_no_secure_boot_and_is_left_as_it_is(guests: Guests) -> None:
    guests.converge("cg-f", firmware="uefi", state="stopped")
    before = fingerprint(guests, store("cg-f"))
    refused = guests.refuse("cg-f", secure_boot=True)
    assert f"secure_boot: {store('cg-f')} of guest cg-f has no platform key" in refused
    assert fingerprint(guests, store("cg-f")) == before
    guests.host.run("rm", store("cg-f"))
    guests.converge("cg-f", secure_boot=True, state="stopped")
    assert fingerprint(guests, store("cg-f"))[1] == fingerprint(guests, "/usr/share/OVMF/OVMF_VARS_4M.ms.fd")[1]


@needs_ovmf
def test_a_store_of_another_size_is_refused_and_left_as_it_is(guests: Guests) -> None:
    guests.converge("cg-f", state="stopped")
    guests.host.run("sh", "-c", 'echo precious > "$0"', store("cg-f"))
    before = fingerprint(guests, store("cg-f"))
    assert "has 9 bytes" in guests.refuse("cg-f", firmware="uefi")
    assert fingerprint(guests, store("cg-f")) == before
    guests.converge("cg-f", state="absent", remove_disks=True)
    assert fingerprint(guests, store("cg-f")) == before  # not made here


@needs_ovmf
def test_what_firmware_there_is_is_said_by_descriptors(guests: Guests, public_directory: pathlib.Path) -> None:
    code = public_directory / "code.fd"
    shutil.copy(OVMF / "OVMF_CODE_4M.fd", code)
    try:
        assert "Give firmware_variables, too" in guests.refuse("cg-f", firmware="uefi", firmware_code=str(code))
        template = str(OVMF / "OVMF_VARS_4M.fd")
        named = guests.converge(
            "cg-f", firmware="uefi", firmware_code=str(code), firmware_variables=template, state="paused"
        )
        assert named["guest"]["firmware_code"] == str(code)
        assert str(code) in guests.host.out("ps", "-ww", "-o", "args=", "-p", str(guests.pid("cg-f")))
    finally:
        code.unlink()
    assert "needs firmware: uefi" in guests.refuse("cg-g", secure_boot=True)
    refused = guests.refuse("cg-g", firmware="uefi", machine="pc", secure_boot=True)
    assert "secure boot and enrolled keys for x86_64 on the machine pc" in refused
    assert "Install the package ovmf" in refused


@needs_ovmf
def test_another_firmware_is_a_matter_of_a_restart(guests: Guests) -> None:
    guests.converge("cg-f")
    result = guests.converge("cg-f", firmware="uefi")
    assert result["guest"]["pending_restart"] == ["firmware is bios, wanted uefi"]
    assert not result["changed"]
    restarted = guests.converge("cg-f", firmware="uefi", restart="if_needed")
    assert restarted["guest"]["pending_restart"] == []
    assert "OVMF_CODE" in guests.host.out("ps", "-ww", "-o", "args=", "-p", str(guests.pid("cg-f")))


@pytest.mark.skipif(not AAVMF.exists(), reason="the package qemu-efi-aarch64 is not installed")
@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="the package qemu-system-arm is not installed")
def test_a_guest_of_another_architecture_gets_as_far_as_its_firmware(guests: Guests) -> None:
    assert "does not exist for the architecture" in guests.refuse("cg-b", architecture="aarch64", firmware="bios")
    options = {**UEFI, "memory": "128", "console_pattern": "UEFI firmware"}
    del options["firmware"]
    started = guests.converge("cg-a", **options, architecture="aarch64")
    assert started["guest"]["firmware"] == "uefi"
    assert started["guest"]["accelerator"] == "tcg"
