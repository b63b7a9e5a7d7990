# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks of guests, seen through stat, checksums and qemu-img."""

from __future__ import annotations

import hashlib
import pathlib
import subprocess
import typing as t

import pytest

from .conftest import ACCOUNT, STATE, Guests, image_info, make_image

pytestmark = pytest.mark.one_interpreter

MEBIBYTE = 1 << 20


@pytest.fixture
def shelf(public_directory: pathlib.Path, request: pytest.FixtureRequest) -> pathlib.Path:
    """A directory of the test's own for images."""
    path = public_directory / hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    path.mkdir()
    path.chmod(0o755)
    return path


def fingerprint(path: pathlib.Path) -> tuple[int, int, str]:
    found = path.stat()
    return found.st_ino, found.st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def test_disks_are_made_for_the_account_and_never_again(guests: Guests, shelf: pathlib.Path) -> None:
    base = make_image(shelf / "base.qcow2", "4M")
    untouched = fingerprint(base)
    disks = [
        {"size": "2M"},
        {"path": str(shelf / "raw.img"), "format": "raw", "size": "1M", "bus": "ide"},
        {"base_image": str(base), "size": "8M", "bus": "scsi"},
        {"path": str(shelf / "nvme.qcow2"), "size": "1M", "bus": "nvme"},
    ]
    foretold = guests.check("cg-d", disks=disks)
    assert not guests.exists(f"{STATE}/cg-d")
    result = guests.converge("cg-d", disks=disks)
    assert result["actions"] == foretold["actions"]
    first, third = f"{STATE}/cg-d/disk0.qcow2", f"{STATE}/cg-d/disk2.qcow2"
    assert [disk["made"] for disk in result["guest"]["disks"]] == [True] * 4
    assert image_info(guests.host, first)["virtual-size"] == 2 * MEBIBYTE
    assert image_info(guests.host, str(shelf / "raw.img"))["format"] == "raw"
    overlay = image_info(guests.host, third)
    assert overlay["virtual-size"] == 8 * MEBIBYTE
    assert (overlay["backing-filename"], overlay["backing-filename-format"]) == (str(base), "qcow2")
    for path in (first, third, str(shelf / "raw.img"), str(shelf / "nvme.qcow2")):
        assert guests.mode(path) == f"600 {ACCOUNT}"
    inodes = guests.host.out("stat", "-c", "%i %Y", first, third, str(shelf / "raw.img"))
    assert not guests.converge("cg-d", disks=disks)["changed"]
    guests.converge("cg-d", disks=disks, state="restarted")
    assert guests.host.out("stat", "-c", "%i %Y", first, third, str(shelf / "raw.img")) == inodes
    guests.converge("cg-d", state="stopped")
    for path in (first, third):
        assert guests.host.run("qemu-img", "check", path).returncode == 0
    assert fingerprint(base) == untouched


def test_every_bus_of_the_old_machine_is_known_to_qemu(guests: Guests) -> None:
    disks = [{"size": "1M", "bus": bus} for bus in ("ide", "ide", "ide", "sata", "sata", "virtio", "scsi", "nvme")]
    guests.converge("cg-m", state="paused", machine="pc", disks=disks, boot_order=["disk"])
    assert guests.activity("cg-m") == "paused"


def test_absent_keeps_the_disks_and_remove_disks_removes_what_was_made(guests: Guests, shelf: pathlib.Path) -> None:
    own = make_image(shelf / "own.qcow2", "1M")
    own.chmod(0o666)
    disks = [{"size": "1M"}, {"path": str(own)}, {"path": str(shelf / "made.qcow2"), "size": "1M"}]
    guests.converge("cg-r", disks=disks)
    guests.converge("cg-r", state="absent")
    assert guests.exists(f"{STATE}/cg-r/disk0.qcow2")
    assert (shelf / "made.qcow2").exists()

    guests.converge("cg-r", disks=disks)
    (shelf / "made.qcow2").rename(shelf / "aside.qcow2")
    make_image(shelf / "made.qcow2", "1M")  # somebody put another file in its place
    result = guests.converge("cg-r", state="absent", remove_disks=True)
    assert f"Remove the disk {STATE}/cg-r/disk0.qcow2 of guest cg-r" in result["actions"]
    assert not guests.exists(f"{STATE}/cg-r")
    assert own.exists()
    assert (shelf / "made.qcow2").exists()
    assert (shelf / "aside.qcow2").exists()
    assert not guests.converge("cg-r", state="absent", remove_disks=True)["changed"]


def test_a_disk_that_others_are_built_on_does_not_go_with_its_guest(guests: Guests) -> None:
    base, path = "cg-rb", f"{STATE}/cg-rb/disk0.qcow2"
    guests.converge(None, guests=[{"name": base, "state": "stopped", "disks": [{"size": "1M"}]}])
    clone = {"name": "cg-rc", "state": "stopped", "disks": [{"base_image": path}]}
    guests.converge(None, guests=[{"name": base, "state": "absent"}, clone])
    going = {"name": base, "state": "absent", "remove_disks": True}
    told = f"{path} was made for guest {base} and would go with it, and guest cg-rc has {STATE}/cg-rc/disk0.qcow2 built"
    assert told in guests.refuse(None, guests=[going])
    # What is left of a guest that is gone is built on it still.
    guests.converge("cg-rc", state="absent")
    assert told in guests.refuse(None, guests=[going])
    # A guest that has the disk itself is in the way, too.
    guests.converge("cg-rc", state="absent", remove_disks=True)
    guests.converge("cg-rd", state="stopped", disks=[{"path": path}])
    assert "guest cg-rd has it. Remove guest cg-rd" in guests.refuse(None, guests=[going])
    assert guests.exists(path)
    # The twin: all that hang on it go in the same task.
    guests.converge("cg-rd", state="absent")
    guests.converge(None, guests=[clone])
    both = [going, {**clone, "state": "absent", "remove_disks": True, "disks": None}]
    assert guests.converge(None, guests=both)["changed"]
    assert not guests.exists(f"{STATE}/cg-rb")
    assert not guests.exists(f"{STATE}/cg-rc")


def test_a_disk_that_has_become_larger_is_in_nobodys_way(guests: Guests) -> None:
    path = f"{STATE}/cg-g/disk0.qcow2"
    guests.converge("cg-g", disks=[{"size": "1M"}], state="stopped")
    guests.host.run("qemu-img", "resize", "-q", path, "3M")
    guests.converge("cg-g", state="stopped")
    guests.converge("cg-g", disks=[{"path": path}])
    assert not guests.converge("cg-g", disks=[{"path": path}])["changed"]
    assert guests.converge("cg-g", state="stopped")["guest"]["disks"][0]["size"] == 3 * MEBIBYTE
    # Its twin: a task that asks for less is refused.
    assert "would have to shrink" in guests.refuse("cg-g", disks=[{"path": path, "size": "1M"}])


def test_a_disk_that_cannot_be_read_is_in_the_way_of_a_start_only(guests: Guests, shelf: pathlib.Path) -> None:
    path = shelf / "broken.qcow2"
    disks = [{"path": str(path), "size": "1M"}]
    guests.converge("cg-x", disks=disks)
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    stopped = guests.converge("cg-x", disks=disks, state="stopped", force=True)
    assert "is cut short" in str(stopped["warnings"])
    assert "is cut short" in guests.refuse("cg-x", disks=disks)
    assert "is cut short" in guests.refuse("cg-y", disks=disks, state="stopped")
    assert guests.converge("cg-x", state="absent")["changed"]
    assert path.read_bytes() == whole[:20]


def test_disks_can_go_after_the_guest(guests: Guests) -> None:
    guests.converge("cg-r", disks=[{"size": "1M"}])
    guests.converge("cg-r", state="absent")
    assert guests.converge("cg-r", state="absent", remove_disks=True)["changed"]
    assert not guests.exists(f"{STATE}/cg-r")


def test_an_existing_file_is_used_as_it_is_or_refused(guests: Guests, shelf: pathlib.Path) -> None:
    disk = make_image(shelf / "there.qcow2", "2M")
    disk.chmod(0o666)
    before = fingerprint(disk)
    path = str(disk)
    base = make_image(shelf / "base.raw", "1M", image_format="raw")
    refusals: list[tuple[dict[str, t.Any], str]] = [
        ({"format": "raw"}, "holds a qcow2 image, not raw"),
        ({"size": "1M"}, "would have to shrink"),
        ({"base_image": str(base)}, f"has no base image, not on {base}"),
    ]
    for options, sentence in refusals:
        assert sentence in guests.refuse("cg-e", disks=[{"path": path, **options}])
    guests.converge("cg-e", disks=[{"path": path, "size": "2M"}])
    guests.converge("cg-e", state="stopped")
    assert fingerprint(disk) == before


def test_a_disk_grows_and_never_shrinks(guests: Guests) -> None:
    path = f"{STATE}/cg-w/disk0.qcow2"
    guests.converge("cg-w", disks=[{"size": "1M"}], state="stopped")
    for state, size in (("stopped", 2), ("paused", 3)):
        guests.converge("cg-w", disks=[{"size": f"{size - 1}M"}], state=state)
        wanted = {"disks": [{"size": f"{size}M"}], "state": state}
        foretold = guests.check("cg-w", **wanted)
        grown = guests.converge("cg-w", **wanted)
        assert [action for action in grown["actions"] if "Grow the disk" in action] != []
        assert (grown["actions"], grown["guest"]["pending_restart"]) == (foretold["actions"], [])
        assert image_info(guests.host, path)["virtual-size"] == size * MEBIBYTE
        assert not guests.converge("cg-w", **wanted)["changed"]
        assert not guests.converge("cg-w", state=state)["changed"]
        assert "would have to shrink" in guests.refuse("cg-w", **{**wanted, "disks": [{"size": "1M"}]})


def test_a_base_image_must_be_what_the_task_says(guests: Guests, shelf: pathlib.Path) -> None:
    base = make_image(shelf / "base.qcow2", "2M")
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    unreadable = make_image(shelf / "unreadable.qcow2", "1M")
    unreadable.chmod(0o600)
    crafted = make_image(shelf / "crafted.qcow2", "-u", "-F", "raw", "-b", 'json:{"driver":"null-co"}', "1M")
    orphan = make_image(shelf / "orphan.qcow2", "-u", "-F", "raw", "-b", "gone.raw", "1M")
    refusals: list[tuple[dict[str, t.Any], str]] = [
        ({"base_image": str(shelf / "missing.qcow2")}, "does not exist"),
        ({"base_image": str(base), "base_format": "raw"}, "is a qcow2 image, not raw"),
        ({"base_image": str(base), "size": "1M"}, "is smaller than its base image"),
        ({"base_image": str(base), "checksum": f"sha256:{'0' * 64}"}, f"has the sha256 checksum {digest}, not 000"),
        ({"base_image": str(unreadable)}, f"{unreadable} cannot be read by {ACCOUNT}"),
        ({"base_image": str(crafted)}, "keeps or reads data elsewhere"),
        ({"base_image": str(orphan)}, "gone.raw, on which"),
        ({"path": str(shelf / "nowhere.qcow2")}, "does not exist. Give its size, or a base_image"),
        ({"path": str(shelf / "no" / "where.qcow2"), "size": "1M"}, "does not exist. Make it first"),
    ]
    for options, sentence in refusals:
        assert sentence in guests.refuse("cg-b", disks=[options]), options
    guests.converge("cg-b", disks=[{"base_image": str(base), "base_format": "qcow2", "checksum": f"sha256:{digest}"}])


def test_all_problems_of_a_list_are_told_at_once(guests: Guests, shelf: pathlib.Path) -> None:
    entries = [
        {"name": "cg-1", "disks": [{"path": str(shelf / "a.qcow2")}]},
        {"name": "cg-2", "kernel": "/no/such/kernel"},
        {"name": "cg-3", "nics": [{"tap": "cg-no-tap"}]},
        {"name": "cg-4", "user": "labspan-no-such-account"},
        {"name": "cg-5"},
    ]
    message = guests.refuse(None, guests=entries)
    assert message.startswith("4 things stand in the way.")
    for sentence in ("a.qcow2", "kernel: /no/such/kernel", "cg-no-tap does not exist", "labspan-no-such-account"):
        assert sentence in message


def test_an_image_in_use_elsewhere_is_refused(guests: Guests, shelf: pathlib.Path) -> None:
    disk, base = make_image(shelf / "disk.qcow2", "1M"), make_image(shelf / "base.qcow2", "1M")
    disk.chmod(0o666)
    wanted: list[list[dict[str, t.Any]]] = [[{"path": str(disk)}], [{"base_image": str(base)}]]
    drives = [word for path in (disk, base) for word in ("-drive", f"file={path},format=qcow2,if=none")]
    other = subprocess.Popen(
        ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults", "-qmp", "stdio", *drives],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        assert b"QMP" in other.stdout.readline()
        assert "is open in another QEMU" in guests.refuse("cg-o", disks=wanted[0])
        assert "is open for writing in a running QEMU" in guests.refuse("cg-o", disks=wanted[1])
    finally:
        other.kill()
        other.communicate()
    for number, disks in enumerate(wanted):
        guests.converge(f"cg-o{number}", disks=disks)


def test_two_guests_never_write_one_image(guests: Guests, shelf: pathlib.Path) -> None:
    shared = make_image(shelf / "shared.qcow2", "1M")
    shared.chmod(0o666)
    writer = {"name": "cg-s1", "disks": [{"path": str(shared)}]}
    overlay = {"name": "cg-s2", "disks": [{"base_image": str(shared)}]}
    same = {"name": "cg-s3", "disks": [{"path": str(shared)}]}
    assert "which destroys it" in guests.refuse(None, guests=[writer, same])
    assert "which destroys it" in guests.refuse(None, guests=[writer, overlay])
    guests.converge(None, guests=[writer])
    assert "which destroys it" in guests.refuse(None, guests=[same])
    readers = [{**guest, "disks": [{"path": str(shared), "read_only": True}]} for guest in (writer, same)]
    guests.converge(None, guests=[{"name": "cg-s1", "state": "absent"}])
    guests.converge(None, guests=readers)


def test_a_disk_that_the_account_cannot_write_is_refused(guests: Guests, shelf: pathlib.Path) -> None:
    disk = make_image(shelf / "root.qcow2", "1M")
    message = guests.refuse("cg-p", disks=[{"path": str(disk)}])
    assert f"{disk} cannot be read and written by {ACCOUNT}" in message
    guests.converge("cg-p", disks=[{"path": str(disk), "read_only": True}])
    shelf.chmod(0o700)
    message = guests.refuse("cg-p2", disks=[{"path": str(disk), "read_only": True}])
    assert f"it may not pass {shelf}" in message


def test_the_programs_must_be_there(guests: Guests) -> None:
    for name in ("qemu-system-x86_64", "kvm", "qemu-img"):
        found = guests.host.run("sh", "-c", f"command -v {name}", check=False).stdout.strip()
        if found:  # hidden in the mount namespace of the test host
            guests.host.run("mount", "--bind", "/dev/null", found)
    message = guests.refuse("cg-n", disks=[{"size": "1M"}])
    assert "qemu-system-x86_64 is not on the managed host. Install the package qemu-system-x86" in message
    assert "qemu-img is needed to make the disk" in message
