# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots, looked at with qemu-img and qemu-io, and by the guest itself."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest

from .conftest import ACCOUNT, STATE, Guests, image_info, make_image
from .test_guest_waiting import in_guest

one_interpreter = pytest.mark.one_interpreter

OLD, NEW = "0xaa", "0xbb"


def write(guests: Guests, path: str, pattern: str) -> None:
    guests.host.run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 1M", path)


def holds(guests: Guests, path: str, pattern: str) -> bool:
    """Whether the first MiB is all of this pattern."""
    command = ("qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} 0 1M", path)
    return guests.host.run(*command, check=False).returncode == 0


def names(guests: Guests, path: str) -> list[str]:
    return [snapshot["name"] for snapshot in image_info(guests.host, path).get("snapshots", [])]


def intact(guests: Guests, path: str) -> bool:
    return guests.host.run("qemu-img", "check", "-q", path, check=False).returncode == 0


def snapshot(guests: Guests, name: t.Optional[str], word: str, **options: t.Any) -> dict[str, t.Any]:
    return guests.host.module("guest_snapshot", {**({"name": name} if name else {}), "snapshot": word, **options})


def good(result: dict[str, t.Any]) -> dict[str, t.Any]:
    assert not result.get("failed"), result
    return result


@one_interpreter
def test_a_guest_at_rest_goes_back_with_all_its_disks(guests: Guests, public_directory: pathlib.Path) -> None:
    base = make_image(public_directory / "snapshot-base.qcow2", "8M")
    disks = [{"base_image": str(base)}, {"size": "8M"}, {"path": str(base), "read_only": True}]
    guests.converge("gs-a", state="stopped", disks=disks[:2])
    first, second = (f"{STATE}/gs-a/disk{number}.qcow2" for number in range(2))
    before = guests.host.out("md5sum", str(base))
    for path in (first, second):
        write(guests, path, OLD)

    foretold = guests.host.converge("guest_snapshot", {"name": "gs-a", "snapshot": "one"}, check=True)
    assert names(guests, first) == []
    taken = good(snapshot(guests, "gs-a", "one"))
    assert taken["actions"] == foretold["actions"] == ["Take the snapshot one of guest gs-a"]
    assert names(guests, first) == names(guests, second) == ["one"]
    (shown,) = taken["guest"]["snapshots"]
    assert (shown["name"], shown["memory"], shown["disks"], shown["complete"]) == ("one", 0, [first, second], True)
    assert not good(snapshot(guests, "gs-a", "one"))["changed"]

    for path in (first, second):
        write(guests, path, NEW)
    assert not holds(guests, first, OLD)
    guests.host.converge("guest_snapshot", {"name": "gs-a", "snapshot": "one", "state": "reverted"}, check=True)
    assert holds(guests, first, NEW)
    back = good(snapshot(guests, "gs-a", "one", state="reverted"))
    assert f"throwing away what was written to {first} and {second} since then" in back["actions"][0]
    assert holds(guests, first, OLD)
    assert holds(guests, second, OLD)
    assert names(guests, first) == names(guests, second) == ["one"]
    assert intact(guests, first)
    assert intact(guests, second)
    assert guests.mode(first) == f"600 {ACCOUNT}"

    assert good(snapshot(guests, "gs-a", "one", state="absent"))["changed"]
    assert not good(snapshot(guests, "gs-a", "one", state="absent"))["changed"]
    assert names(guests, first) == names(guests, second) == []
    assert holds(guests, first, OLD)
    assert guests.host.out("md5sum", str(base)) == before


@one_interpreter
def test_all_disks_or_none(guests: Guests) -> None:
    guests.converge("gs-b", state="stopped", disks=[{"size": "8M"}, {"size": "8M"}])
    first, second = (f"{STATE}/gs-b/disk{number}.qcow2" for number in range(2))
    guests.host.run("chown", "root", second)
    failed = snapshot(guests, "gs-b", "one")
    assert f"qemu-img could not take the snapshot one of {second} of guest gs-b" in failed["msg"]
    assert names(guests, first) == names(guests, second) == []
    guests.host.run("qemu-img", "snapshot", "-c", "half", first)
    guests.host.run("chown", ACCOUNT, second)
    assert f"is on {first} and not on its other disks" in snapshot(guests, "gs-b", "half")["msg"]
    assert f"is on {first} and not on {second}" in snapshot(guests, "gs-b", "half", state="reverted")["msg"]
    assert good(snapshot(guests, "gs-b", "half", state="absent"))["changed"]
    assert names(guests, first) == []


@one_interpreter
def test_what_cannot_be_done_is_a_sentence_and_changes_nothing(guests: Guests) -> None:
    guests.converge("gs-c", state="stopped", disks=[{"size": "8M"}])
    guests.converge("gs-d", state="stopped", disks=[{"size": "8M", "format": "raw"}])
    guests.converge("gs-e", state="stopped")
    path = f"{STATE}/gs-c/disk0.qcow2"
    guests.converge("gs-f", state="stopped", disks=[{"size": "8M"}])
    guests.host.run("qemu-img", "rebase", "-u", "-b", path, "-F", "qcow2", f"{STATE}/gs-f/disk0.qcow2")
    good(snapshot(guests, "gs-c", "one"))

    def refuse(name: str, word: str, **options: t.Any) -> str:
        return guests.host.refuse("guest_snapshot", {"name": name, "snapshot": word, **options})

    assert "Only qcow2 images hold snapshots" in refuse("gs-d", "one")
    assert "has no disk that it can write to" in refuse("gs-e", "one")
    assert "is not defined on this host" in refuse("gs-x", "one")
    assert "has no snapshot two. It has one." in refuse("gs-c", "two", state="reverted")
    assert "takes for a snapshot's id" in refuse("gs-c", "17")
    assert "no memory to keep" in refuse("gs-c", "two", memory=True)
    assert "with state: present" in refuse("gs-c", "one", memory=True, state="reverted")
    assert f"of guest gs-f is built on {path}, which would change below it" in refuse("gs-c", "one", state="reverted")
    holder = guests.host.start("qemu-io", "-f", "qcow2", path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.read(len("qemu-io> "))  # type: ignore[union-attr]  # it has the image
    assert "is open in" in refuse("gs-c", "two")
    holder.communicate("quit\n")
    missing = guests.host.converge("guest_snapshot", {"name": "gs-x", "snapshot": "one"}, check=True)
    assert "is not defined on this host" in str(missing["warnings"])


@one_interpreter
def test_a_running_guest_goes_back_with_its_memory(guests: Guests, tiny: dict[str, t.Any]) -> None:
    options = {**tiny, "disks": [{"size": "8M"}, {"size": "8M", "bus": "scsi"}]}
    guests.converge("gs-g", **options)
    first, second = (f"{STATE}/gs-g/disk{number}.qcow2" for number in range(2))
    pid = guests.pid("gs-g")
    in_guest(guests, "gs-g", "echo old >/dev/vda; sync; echo remembered >/tmp/mark")
    taken = good(snapshot(guests, "gs-g", "one"))
    assert taken["actions"] == ["Take the snapshot one of guest gs-g with its memory"]
    assert taken["guest"]["snapshots"][0]["memory"] > 1 << 20
    assert names(guests, first) == names(guests, second) == ["one"]
    assert guests.activity("gs-g") == "running"
    assert not good(snapshot(guests, "gs-g", "one"))["changed"]

    in_guest(guests, "gs-g", "echo new >/dev/vda; sync; rm /tmp/mark")
    back = good(snapshot(guests, "gs-g", "one", state="reverted"))
    assert f"throwing away what it has in memory and wrote to {first} and {second}" in back["actions"][0]
    in_guest(guests, "gs-g", "grep -q remembered /tmp/mark && grep -q '^old' /dev/vda")
    assert names(guests, first) == ["one"]
    assert guests.pid("gs-g") == pid

    # Of the disks alone: taken at any time, gone back to at rest only.
    in_guest(guests, "gs-g", "echo third >/dev/vda; sync")
    good(snapshot(guests, "gs-g", "disks", memory=False))
    assert "holds no memory" in snapshot(guests, "gs-g", "disks", state="reverted")["msg"]
    assert guests.activity("gs-g") == "running"
    in_guest(guests, "gs-g", "echo last >/dev/vda; sync")
    guests.converge("gs-g", **options, state="stopped")
    good(snapshot(guests, "gs-g", "disks", state="reverted"))
    assert guests.host.out("qemu-io", "-r", "-f", "qcow2", "-c", "read -v 0 16", first).count("third") == 1
    rested = good(snapshot(guests, "gs-g", "one", state="reverted"))
    assert "not its memory" in str(rested["warnings"])
    assert guests.host.out("qemu-io", "-r", "-f", "qcow2", "-c", "read -v 0 16", first).count("old") == 1
    assert intact(guests, first)
    assert intact(guests, second)
    for word in ("one", "disks"):
        good(snapshot(guests, "gs-g", word, state="absent"))
    assert names(guests, first) == []


@one_interpreter
def test_a_snapshot_that_qemu_refuses_leaves_nothing(guests: Guests) -> None:
    guests.converge("gs-h", disks=[{"size": "8M", "bus": "nvme"}])
    failed = snapshot(guests, "gs-h", "one")
    assert (
        "QEMU refuses the command snapshot-save for guest gs-h: State blocked by non-migratable device" in failed["msg"]
    )
    assert names(guests, f"{STATE}/gs-h/disk0.qcow2") == []
    assert guests.activity("gs-h") == "running"
    good(snapshot(guests, "gs-h", "one", memory=False))
    assert names(guests, f"{STATE}/gs-h/disk0.qcow2") == ["one"]
    assert good(snapshot(guests, "gs-h", "one", state="absent"))["changed"]


@one_interpreter
def test_the_agent_keeps_the_guest_quiet_for_the_moment(guests: Guests, tmp_path: pathlib.Path) -> None:
    guests.converge("gs-i", disks=[{"size": "8M"}], guest_agent=True)
    assert "goes with memory: false only" in snapshot(guests, "gs-i", "one", quiesce=True)["msg"]
    with (tmp_path / "asked").open("w", encoding="utf-8") as asked, guests.agent("gs-i", stdout=asked):
        good(snapshot(guests, "gs-i", "one", quiesce=True, memory=False))
    done = [
        word for word in (tmp_path / "asked").read_text(encoding="utf-8").split() if word.endswith(("freeze", "thaw"))
    ]
    assert done == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    assert names(guests, f"{STATE}/gs-i/disk0.qcow2") == ["one"]
    refused = snapshot(guests, "gs-i", "two", quiesce=True, memory=False, timeout=1)
    assert "agent" in refused["msg"]
    assert names(guests, f"{STATE}/gs-i/disk0.qcow2") == ["one"]
