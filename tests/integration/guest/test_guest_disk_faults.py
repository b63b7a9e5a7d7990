# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may happen to disks: built on, held by others, crafted, no space, QEMU killed. Nothing is ever lost."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from support.hosts import await_condition

from .conftest import Guests, image_info, make_image

pytestmark = pytest.mark.one_interpreter

CONSOLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "tiny_guest" / "files" / "guest_console.py"
SMALL = "/var/lib/labspan/small"
PATTERN = 4 << 20


@pytest.fixture
def shelf(public_directory: pathlib.Path, request: pytest.FixtureRequest) -> pathlib.Path:
    """A directory of the test's own for images."""
    path = public_directory / hashlib.sha256(f"{__name__}{request.node.name}".encode()).hexdigest()[:12]
    path.mkdir()
    path.chmod(0o755)
    return path


def disk_image(path: pathlib.Path, *arguments: str, image_format: str = "qcow2") -> str:
    make_image(path, *arguments, image_format=image_format).chmod(0o666)
    return str(path)


def fingerprint(path: t.Union[str, pathlib.Path]) -> tuple[int, int, str]:
    found = os.stat(path)
    return found.st_ino, found.st_size, hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def say(guests: Guests, name: str, command: str) -> str:
    """What a command prints in the tiny guest, which must succeed."""
    return guests.host.out(
        sys.executable, str(CONSOLE), "--timeout", "150", f"/run/labspan/guests/{name}/console.sock", "--", command
    )


def run_state(guests: Guests, name: str) -> str:
    return str(guests.qmp(name, "query-status")["status"])


def check(guests: Guests, path: str) -> int:
    """What qemu-img check ends with: 0 is clean, 3 is clusters that nobody uses, 2 is damage."""
    ended = guests.host.run("qemu-img", "check", path, check=False)
    assert ended.returncode != 1, f"qemu-img could not look: {ended.stderr}"
    return ended.returncode


@pytest.fixture
def small(guests: Guests) -> str:
    """A file system with room for a disk and little more."""
    guests.host.run("mkdir", "-p", SMALL)
    guests.host.run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", SMALL)
    return SMALL


# Built on


def test_what_a_disk_is_built_on_is_written_by_no_guest(guests: Guests, shelf: pathlib.Path) -> None:
    base = disk_image(shelf / "base.qcow2", "1M")
    os.link(base, shelf / "same.qcow2")
    overlay = str(shelf / "overlay.qcow2")
    writer = {"disks": [{"path": base}], "state": "stopped"}
    built = {"disks": [{"path": overlay, "base_image": base}], "state": "stopped"}

    guests.converge("cf-w", **writer)
    assert "which destroys it" in guests.refuse("cf-o", **built)
    assert not os.path.exists(overlay)
    guests.converge("cf-w", state="absent")
    guests.converge("cf-o", **built)
    before = fingerprint(base), fingerprint(overlay)
    # Grown by root, a base image is as lost as written by a guest.
    for disk in ({"path": base}, {"path": str(shelf / "same.qcow2")}, {"path": base, "size": "2M"}):
        message = guests.refuse("cf-w", disks=[disk], state="stopped")
        assert f"is what {overlay} of guest cf-o is built on" in message
        assert "which destroys it" in guests.refuse("cf-w", disks=[disk])
    # Not what is directly below alone.
    top = {"disks": [{"path": str(shelf / "top.qcow2"), "base_image": overlay}], "state": "stopped"}
    assert f"the disk {overlay} of guest cf-o is what" in guests.refuse("cf-t", **top)
    guests.converge("cf-r", disks=[{"path": base, "read_only": True}], state="stopped")

    # The disk of a guest that is gone is still somebody's.
    guests.converge("cf-o", state="absent")
    own = {"disks": [{"base_image": base}], "state": "stopped"}
    guests.converge("cf-l", **own)
    guests.converge("cf-l", state="absent")
    assert "disk0.qcow2 of guest cf-l is built on" in guests.refuse("cf-w", **writer)
    assert before == (fingerprint(base), fingerprint(overlay))
    for name in ("cf-l", "cf-o"):
        guests.converge(name, state="absent", remove_disks=True)
    guests.converge("cf-w", **writer)


def test_a_downloaded_image_is_nobodys_disk(guests: Guests, shelf: pathlib.Path) -> None:
    base = disk_image(shelf / "base.qcow2", "1M")
    guests.converge("cf-d", disks=[{"base_image": f"file://{base}"}], state="stopped")
    (kept,) = guests.host.out("find", "/var/lib/labspan/images", "-type", "f").split()
    guests.converge("cf-d", state="absent", remove_disks=True)
    assert "never written to" in guests.refuse("cf-x", disks=[{"path": kept}], user="root", state="stopped")
    guests.converge("cf-x", disks=[{"path": kept, "read_only": True}], state="stopped")


# Crafted


def test_a_crafted_backing_file_is_refused(guests: Guests, shelf: pathlib.Path) -> None:
    elsewhere = shelf.with_name(f"{shelf.name}-elsewhere")
    elsewhere.mkdir()
    disk_image(elsewhere / "secret.raw", "1M", image_format="raw")
    disk_image(shelf / "good.raw", "1M", image_format="raw")
    (shelf / "link.raw").symlink_to(elsewhere / "secret.raw")
    disk = shelf / "disk.qcow2"
    outside = "not in a directory where its images are"
    crafted: list[tuple[str, str]] = [
        (str(elsewhere / "secret.raw"), outside),
        (f"../{elsewhere.name}/secret.raw", outside),
        ("/etc/shadow", outside),
        ("link.raw", outside),
        ("nbd://127.0.0.1/x", "keeps or reads data elsewhere"),
        ('json:{"driver":"file","filename":"/etc/shadow"}', "keeps or reads data elsewhere"),
    ]
    for backing, sentence in crafted:
        disk_image(disk, "-u", "-F", "raw", "-b", backing, "1M")
        before = fingerprint(disk)
        assert sentence in guests.refuse("cf-c", disks=[{"path": str(disk)}]), backing
        if backing == "link.raw":
            assert sentence in guests.refuse("cf-c", disks=[{"base_image": str(disk)}])
        assert fingerprint(disk) == before
        disk.unlink()
    disk_image(disk, "-o", f"data_file={elsewhere / 'data.raw'},data_file_raw=on", "1M")
    assert "keeps or reads data elsewhere" in guests.refuse("cf-c", disks=[{"path": str(disk)}])
    disk.unlink()
    disk_image(disk, "-F", "raw", "-b", "good.raw", "1M")
    guests.converge("cf-c", disks=[{"path": str(disk)}])
    assert guests.activity("cf-c") == "running"


# Held


def test_who_holds_an_image_is_named(guests: Guests, shelf: pathlib.Path) -> None:
    disk = disk_image(shelf / "held.qcow2", "1M")
    words = ("qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults", "-name", "guest=foreign")
    log = shelf / "log"
    with log.open("w") as output:
        other = guests.host.start(
            *words, "-qmp", "stdio", "-drive", f"file={disk},format=qcow2,if=none", stdin=subprocess.PIPE, stdout=output
        )
    await_condition(lambda: "QMP" in log.read_text(encoding="utf-8"), "the other QEMU")
    before = fingerprint(disk)
    message = guests.refuse("cf-h", disks=[{"path": disk}])
    assert "is open in another QEMU: qemu-system-x86_64 (pid " in message
    assert "guest=foreign" not in message
    assert "guest foreign)" in message
    assert fingerprint(disk) == before
    os.kill(guests.host.child(other), 9)
    other.communicate()
    guests.converge("cf-h", disks=[{"path": disk}])


# No space


def test_no_space_for_a_disk_leaves_nothing(guests: Guests, small: str) -> None:
    guests.host.run("mount", "-o", "remount,size=64k", small)
    disks = [{"path": f"{small}/d.qcow2", "size": "1G"}]
    assert "No space left on device" in guests.refuse("cf-n", disks=disks, state="stopped")
    assert guests.host.out("ls", "-A", small) == ""
    guests.host.run("mount", "-o", "remount,size=3m", small)
    guests.converge("cf-n", disks=disks, state="stopped")


def test_a_guest_that_finds_no_space_is_paused_and_goes_on(guests: Guests, small: str, tiny: dict[str, t.Any]) -> None:
    path = f"{small}/d.qcow2"
    wanted = {**tiny, "disks": [{"path": path, "size": "64M"}]}
    guests.converge("cf-s", **wanted)
    inode = guests.host.out("stat", "-c", "%i", path)
    digest = say(guests, "cf-s", f"head -c {PATTERN} /dev/urandom >/tmp/p; sha256sum </tmp/p").split()[0]
    # A paused guest answers nobody: it writes when the console, whose files these are, has had its answer.
    answered = "sleep 1; while ls /tmp/.labspan-*; do sleep 1; done; sleep 1"
    write = "dd if=/tmp/p of=/dev/vda bs=64k conv=fsync; echo ended $? >/tmp/end"
    say(guests, "cf-s", f"({answered}; {write}) >/dev/null 2>&1 &")
    await_condition(lambda: run_state(guests, "cf-s") == "io-error", "QEMU to pause the guest")

    paused = guests.converge("cf-s", **{**wanted, "state": "paused"})
    trouble = f"the disk {path} could not be written: no space is left in {small}"
    assert (paused["guest"]["state"], paused["guest"]["troubles"]) == ("paused", [trouble])
    assert any(trouble in str(warning) for warning in paused["warnings"])
    assert f"cannot go on: {trouble}" in guests.refuse("cf-s", **wanted)
    assert run_state(guests, "cf-s") == "io-error"

    guests.host.run("mount", "-o", "remount,size=32m", small)
    resumed = guests.converge("cf-s", **wanted)
    assert resumed["actions"] == [f"Resume guest cf-s, which QEMU paused because {trouble}"]
    assert (resumed["guest"]["state"], resumed["guest"]["troubles"]) == ("running", [])
    await_condition(lambda: "ended 0" in say(guests, "cf-s", "cat /tmp/end; true"), "the guest's write to end")
    assert not guests.converge("cf-s", **wanted)["changed"]
    guests.converge("cf-s", **{**wanted, "state": "stopped"})
    assert check(guests, path) == 0
    assert guests.host.out("stat", "-c", "%i", path) == inode
    assert content(guests, path) == digest


def content(guests: Guests, path: str) -> str:
    """The checksum of the pattern at the beginning of the disk."""
    guests.host.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, "/run/content.raw")
    return guests.host.out("sh", "-c", f"head -c {PATTERN} /run/content.raw | sha256sum").split()[0]


# Killed


def test_what_a_killed_qemu_leaves_is_whole(guests: Guests, tiny: dict[str, t.Any]) -> None:
    wanted = {**tiny, "disks": [{"size": "256M"}]}
    path = "/var/lib/labspan/guests/cf-k/disk0.qcow2"
    guests.converge("cf-k", **wanted)
    make = f"head -c {PATTERN} /dev/urandom >/tmp/p; dd if=/tmp/p of=/dev/vda bs=64k conv=fsync 2>/dev/null"
    digest = say(guests, "cf-k", f"{make}; sha256sum </tmp/p").split()[0]
    place = "$((64 + $(date +%s) % 32 * 32))"
    writing = f"while dd if=/dev/urandom of=/dev/vda bs=64k seek={place} count=999 conv=notrunc; do :; done"
    say(guests, "cf-k", f"({writing}) >/dev/null 2>&1 &")
    size = os.stat(f"/proc/{guests.host.pid}/root{path}").st_blocks
    await_condition(
        lambda: os.stat(f"/proc/{guests.host.pid}/root{path}").st_blocks > size + 8192, "the guest to write"
    )
    locked = guests.host.run("qemu-io", "-f", "qcow2", "-c", "read 0 1", path, check=False)
    assert "lock" in locked.stdout + locked.stderr
    inode = guests.host.out("stat", "-c", "%i", path)
    guests.kill("cf-k")
    await_condition(lambda: guests.activity("cf-k") == "stopped", "QEMU to be gone")
    assert check(guests, path) in (0, 3)
    assert content(guests, path) == digest
    again = guests.converge("cf-k", **wanted)
    assert again["actions"] == ["Start guest cf-k"]
    assert say(guests, "cf-k", f"head -c {PATTERN} /dev/vda | sha256sum").split()[0] == digest
    guests.converge("cf-k", **{**wanted, "state": "stopped"})
    assert guests.host.out("stat", "-c", "%i", path) == inode
    assert check(guests, path) in (0, 3)


# Seen by the guest


@pytest.mark.parametrize("machine", ["q35", pytest.param("pc", marks=pytest.mark.slow)])
def test_a_guest_reads_and_writes_its_disks_on_every_bus(
    guests: Guests, shelf: pathlib.Path, tiny: dict[str, t.Any], machine: str
) -> None:
    buses = ("virtio", "scsi", "ide", "sata", "nvme")
    disks: list[dict[str, t.Any]] = []
    for number, bus in enumerate(buses, 1):
        path = shelf / f"{bus}.raw"
        path.write_bytes(f"this is {bus}.".encode().ljust(number << 20, b"\0"))
        path.chmod(0o666)
        disks.append({"path": str(path), "format": "raw", "bus": bus})
    for bus in ("sata", "scsi"):
        path = shelf / f"{bus}.iso"
        path.write_bytes(f"this is a CD in {bus}.".encode().ljust(2 << 20, b"\0"))
        path.chmod(0o444)
        disks.append({"media": "cdrom", "path": str(path), "bus": bus})
    disks.append({"media": "cdrom", "bus": "ide"})
    wanted = {**tiny, "machine": machine, "disks": disks}
    guests.converge("cf-b", **wanted)
    assert not guests.converge("cf-b", **wanted)["changed"]
    expected = {*(f"this is {bus}." for bus in buses), "this is a CD in sata.", "this is a CD in scsi."}
    read = "head -c 40 $d 2>/dev/null | tr -d '\\0'; echo \" $d\""
    read = f"for d in /dev/vd? /dev/sd? /dev/sr? /dev/nvme?n?; do {read}; done"

    def found() -> dict[str, str]:
        lines = [line.rpartition(" ") for line in say(guests, "cf-b", read).splitlines()]
        return {text: device for text, _space, device in lines if text}

    await_condition(lambda: set(found()) == expected, f"all disks ({found()})")
    for text, device in found().items():
        write = f"echo {text!r} | dd of={device} bs=4096 seek=1 conv=notrunc,fsync 2>/dev/null && echo wrote"
        assert ("wrote" in say(guests, "cf-b", f"{write}; true")) is not ("CD" in text), device

    # What grows under the guest is larger there, too.
    grown = [
        {**disk, "size": "8M"} if disk.get("bus") in ("virtio", "scsi") and "media" not in disk else disk
        for disk in disks
    ]
    result = guests.converge("cf-b", **{**wanted, "disks": grown})
    assert len([action for action in result["actions"] if "while it runs" in action]) == 2
    devices = [found()[f"this is {bus}."].removeprefix("/dev/") for bus in ("virtio", "scsi")]
    for device in devices:
        sectors = f"cat /sys/block/{device}/size"
        await_condition(
            lambda sectors=sectors: say(guests, "cf-b", sectors).strip() == "16384", f"{device} to be larger"
        )
    guests.converge("cf-b", **{**wanted, "disks": grown, "state": "stopped"})
    for bus in buses:
        assert (shelf / f"{bus}.raw").read_bytes()[4096:].startswith(f"this is {bus}.".encode())
    assert image_info(guests.host, str(shelf / "virtio.raw"))["virtual-size"] == 8 << 20
