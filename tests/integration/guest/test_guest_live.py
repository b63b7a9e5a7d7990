# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes to guests that run: NICs and disks that come and go, memory, and what has to wait for a restart."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import typing as t

import pytest
from support.hosts import await_condition

from .conftest import RUNTIME, STATE, Guests, make_image
from .test_guest_nics import add_tap, answers, bridge

__all__ = ["bridge"]
pytestmark = pytest.mark.one_interpreter

MAC = "52:54:00:00:00:77"
CONSOLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "tiny_guest" / "files" / "guest_console.py"


def inside(guests: Guests, name: str, command: str) -> str:
    """What a command prints in the guest."""
    socket = f"{RUNTIME}/{name}/console.sock"
    return guests.host.out(guests.host.interpreter, str(CONSOLE), "--timeout", "150", socket, command)


def tell(guests: Guests, name: str, command: str, **arguments: t.Any) -> t.Any:
    """One command to QEMU, by the test's own connection."""
    said = [{"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}]
    words = "".join(json.dumps(word) + "\n" for word in said)
    answer = guests.host.run("socat", "-t", "60", "-", f"UNIX-CONNECT:{RUNTIME}/{name}/qmp.sock", stdin=words).stdout
    messages = [
        message for message in map(json.loads, answer.splitlines()) if "return" in message or "error" in message
    ]
    return messages[1].get("return", messages[1].get("error"))


def hardware(guests: Guests, name: str) -> list[str]:
    """What QEMU has of NICs and disks, as it says itself."""
    found = [child["name"] for child in tell(guests, name, "qom-list", path="/machine/peripheral")]
    return sorted(device for device in found if device.startswith(("nic", "disk")))


def test_a_nic_comes_and_goes_while_the_guest_runs(guests: Guests, tiny: dict[str, t.Any], bridge: str) -> None:
    add_tap(guests, "cgtap0")  # elsewhere, so that only one NIC answers on the bridge
    first = {"tap": "cgtap0", "mac": "52:54:00:00:00:70"}
    late = {"bridge": bridge, "mac": MAC}
    options = {**tiny, "nics": [first]}
    guests.converge("cg-n", **options)
    pid = guests.pid("cg-n")

    before = guests.host.dump()
    foretold = guests.check("cg-n", **{**options, "nics": [late, first]})
    assert guests.host.dump() == before
    result = guests.converge("cg-n", **{**options, "nics": [late, first]})
    tap = result["guest"]["nics"][0]["tap"]
    assert result["actions"] == foretold["actions"]
    assert f"Plug NIC {MAC} on tap {tap} into guest cg-n" in result["actions"]
    assert result["guest"]["pending_restart"] == []
    assert guests.pid("cg-n") == pid
    assert not guests.converge("cg-n", **{**options, "nics": [late, first]})["changed"]

    await_condition(lambda: MAC in inside(guests, "cg-n", "cat /sys/class/net/*/address"), "the guest to see its NIC")
    inside(
        guests,
        "cg-n",
        f"n=$(grep -l {MAC} /sys/class/net/*/address); n=${{n%/address}}; n=${{n##*/}}; "
        "ip addr add 10.99.0.70/24 dev $n",
    )
    await_condition(lambda: answers(guests, "10.99.0.70"), "the guest to answer on its new NIC")
    seen = guests.host.json("ip", "-j", "neigh", "show", "10.99.0.70", "dev", bridge)
    assert seen[0]["lladdr"] == MAC

    pulled = guests.converge("cg-n", **{**options, "nics": [{**late, "link": False}, first]})
    assert "Set the link of NIC 0 of guest cg-n down" in pulled["actions"]
    assert not answers(guests, "10.99.0.70")
    gone = guests.converge("cg-n", **{**options, "nics": [late]})
    assert "Unplug NIC 52:54:00:00:00:70 on tap cgtap0 from guest cg-n" in gone["actions"]
    assert hardware(guests, "cg-n") == ["nic1"]
    await_condition(lambda: answers(guests, "10.99.0.70"), "the guest to answer again")
    gone = guests.converge("cg-n", **{**options, "nics": []})
    assert hardware(guests, "cg-n") == []
    assert guests.host.link(tap) is None  # was made for the NIC
    assert not answers(guests, "10.99.0.70")
    assert guests.pid("cg-n") == pid
    assert not guests.converge("cg-n", **{**options, "nics": []})["changed"]


def test_disks_cds_and_memory_change_while_the_guest_runs(
    guests: Guests, tiny: dict[str, t.Any], public_directory: pathlib.Path
) -> None:
    isos = [make_image(public_directory / f"cg-{name}.iso", "1M", image_format="raw") for name in ("one", "two")]
    drive = {"media": "cdrom", "path": str(isos[0])}
    options = {**tiny, "balloon": True, "disks": [drive]}
    guests.converge("cg-d", **options)
    pid = guests.pid("cg-d")

    def medium(drive: str = "disk0") -> t.Optional[str]:
        (found,) = (block for block in tell(guests, "cg-d", "query-block") if block["qdev"] == drive)
        return found["inserted"]["file"] if "inserted" in found else None

    def blocks() -> set[str]:
        return set(inside(guests, "cg-d", "ls /sys/block").split())

    late = {"size": "8M", "path": f"{STATE}/cg-d/late.qcow2"}
    wanted = {**options, "disks": [late, {"media": "cdrom", "path": str(isos[1])}], "memory": "160"}
    foretold = guests.check("cg-d", **wanted)
    assert not guests.exists(late["path"])
    assert medium() == str(isos[0])
    result = guests.converge("cg-d", **wanted)
    assert result["actions"] == foretold["actions"]
    assert result["actions"] == [
        "Record what is attached to guest cg-d",
        f"Make the disk {late['path']} for guest cg-d",
        f"Plug disk {late['path']} into guest cg-d",
        f"Put {isos[1]} into CD drive 0 of guest cg-d",
        "Set the memory of guest cg-d from 192 to 160 MiB by its balloon",
        "Record the settings of guest cg-d",
    ]
    assert result["guest"]["pending_restart"] == []
    assert medium() == str(isos[1])
    assert tell(guests, "cg-d", "query-balloon")["actual"] == 160 << 20
    await_condition(lambda: "vda" in blocks(), "the guest to see its disk")
    assert inside(guests, "cg-d", "cat /sys/block/vda/size").strip() == str((8 << 20) // 512)
    inside(guests, "cg-d", "echo kept >/dev/vda; sync")
    total = int(inside(guests, "cg-d", "grep MemTotal /proc/meminfo").split()[1])
    assert total < 160 << 10
    assert not guests.converge("cg-d", **wanted)["changed"]

    more = guests.converge("cg-d", **{**wanted, "memory": "256"})
    assert more["guest"]["pending_restart"] == ["memory is 160, wanted 256: it was started with 192"]
    guests.converge("cg-d", **{**wanted, "memory": "192"})
    await_condition(
        lambda: int(inside(guests, "cg-d", "grep MemTotal /proc/meminfo").split()[1]) > total, "the memory to come back"
    )

    without = {**options, "disks": [{"media": "cdrom"}]}
    assert guests.converge("cg-d", **without)["guest"]["pending_restart"] == []
    assert medium() is None
    assert "vda" not in blocks()
    assert guests.host.out("dd", f"if={late['path']}", "bs=1", "count=3").startswith("QFI")  # nobody removes it
    guests.converge("cg-d", **wanted)
    assert guests.pid("cg-d") == pid

    restarted = guests.converge("cg-d", **wanted, state="restarted")
    assert guests.pid("cg-d") != pid
    assert restarted["guest"]["pending_restart"] == []
    assert medium("disk1") == str(isos[1])
    assert inside(guests, "cg-d", "head -c 4 /dev/vda") == "kept"
    assert not guests.converge("cg-d", **wanted)["changed"]


def test_a_cd_that_cannot_be_opened_takes_none_out(guests: Guests, public_directory: pathlib.Path) -> None:
    iso = make_image(public_directory / "cg-three.iso", "1M", image_format="raw")
    guests.converge("cg-c", disks=[{"media": "cdrom", "path": str(iso)}])
    other = make_image(public_directory / "cg-four.iso", "1M", image_format="raw")
    writer = guests.host.start("qemu-io", "-f", "raw", str(other), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.read(len("qemu-io> "))  # type: ignore[union-attr]  # it has the image, and lets nobody else have it
    message = guests.refuse("cg-c", disks=[{"media": "cdrom", "path": str(other)}])
    assert "the CD in drive 0 of guest cg-c cannot be changed" in message
    (drive,) = (block for block in tell(guests, "cg-c", "query-block") if block["qdev"] == "disk0")
    assert (drive["inserted"]["file"], drive["tray_open"]) == (str(iso), False)
    assert images(guests, "cg-c") == ["image0"]
    writer.communicate("quit\n")
    guests.converge("cg-c", disks=[{"media": "cdrom", "path": str(other)}])
    (drive,) = (block for block in tell(guests, "cg-c", "query-block") if block["qdev"] == "disk0")
    assert drive["inserted"]["file"] == str(other)


def images(guests: Guests, name: str) -> list[str]:
    """What QEMU calls the images that it has open."""
    nodes = (node["node-name"] for node in tell(guests, name, "query-named-block-nodes"))
    return sorted(node for node in nodes if node.startswith("image"))


def test_a_change_of_a_cd_that_was_killed_is_repeated(
    guests: Guests, tiny: dict[str, t.Any], public_directory: pathlib.Path
) -> None:
    isos = [make_image(public_directory / f"cg-{name}.iso", "1M", image_format="raw") for name in ("five", "six")]
    before, after = ({**tiny, "disks": [{"media": "cdrom", "path": str(iso)}]} for iso in isos)
    guests.converge("cg-k", **before)
    await_condition(lambda: "sr0" in inside(guests, "cg-k", "ls /dev"), "the guest to see its drive")
    inside(guests, "cg-k", "sleep 1000 </dev/sr0 >/dev/null & echo $! >/held")  # keeps the tray locked
    await_condition(lambda: bool(tell(guests, "cg-k", "query-block")[0]["locked"]), "the guest to lock the tray")
    descriptors = f"/proc/{guests.pid('cg-k')}/fd"
    run = guests.host.start_module("qemu_guest", guests.params("cg-k", **after, live_timeout=600))
    await_condition(lambda: str(isos[1]) in guests.host.out("ls", "-l", descriptors), "QEMU to open the second CD")
    os.kill(guests.host.child(run), signal.SIGKILL)
    run.communicate()
    assert images(guests, "cg-k") == ["image0", "image0-next"]

    message = guests.refuse("cg-k", **after, live_timeout=0.5)
    assert "guest cg-k has not let go of the CD in drive 0 within 0.5 seconds" in message
    assert images(guests, "cg-k") == ["image0"]
    inside(guests, "cg-k", "kill $(cat /held)")
    guests.converge("cg-k", **after)
    (drive,) = (block for block in tell(guests, "cg-k", "query-block") if block["qdev"] == "disk0")
    assert drive["inserted"]["file"] == str(isos[1])
    assert len(images(guests, "cg-k")) == 1


def test_a_drive_that_goes_leaves_no_cd_behind(guests: Guests, public_directory: pathlib.Path) -> None:
    """A SCSI one, which QEMU takes out at once."""
    isos = [make_image(public_directory / f"cg-{name}.iso", "1M", image_format="raw") for name in ("seven", "eight")]
    disk = {"bus": "scsi", "size": "1M"}
    drives = [{"bus": "scsi", "media": "cdrom", "path": str(iso)} for iso in isos]
    for _time in range(2):
        for drive in drives:
            guests.converge("cg-g", disks=[disk, drive])
        assert len(images(guests, "cg-g")) == 2
        assert guests.converge("cg-g", disks=[disk])["guest"]["pending_restart"] == []
        assert images(guests, "cg-g") == ["image0"]
    assert hardware(guests, "cg-g") == ["disk0"]


def test_a_guest_that_gives_nothing_back_keeps_it_and_the_task_says_so(guests: Guests) -> None:
    """No system runs in the guest that could answer: it is still asking its disks for one."""
    nics = [{"user": True, "mac": MAC}]
    guests.converge("cg-s", nics=nics)
    message = guests.refuse("cg-s", nics=[], live_timeout=0.5)
    assert f"guest cg-s has not given back NIC {MAC} on the user-mode network within 0.5 seconds" in message
    assert hardware(guests, "cg-s") == ["nic0"]
    assert "has not given back" in guests.refuse("cg-s", nics=[], live_timeout=0.5)
    guests.converge("cg-s", state="paused")
    message = guests.refuse("cg-s", nics=[], state="paused")
    assert "only a guest that runs can give back" in message
    # At its next reset QEMU takes it out; the task that then asks again only cleans up.
    guests.converge("cg-s")
    tell(guests, "cg-s", "system_reset")
    await_condition(lambda: hardware(guests, "cg-s") == [], "the NIC to go with the reset")
    result = guests.converge("cg-s", nics=[])
    assert f"Unplug NIC {MAC} on the user-mode network from guest cg-s" in result["actions"]
    assert result["guest"]["nics"] == []
    assert not guests.converge("cg-s", nics=[])["changed"]


def test_a_balloon_that_nobody_moves_is_told_and_taken_back(guests: Guests) -> None:
    guests.converge("cg-b", balloon=True)
    message = guests.refuse("cg-b", memory="24", live_timeout=0.5)
    assert "guest cg-b has 32 MiB of memory after 0.5 seconds (live_timeout), not 24" in message
    assert guests.converge("cg-b")["guest"]["memory"] == 32
    assert not guests.converge("cg-b", balloon=True)["changed"]


@pytest.mark.parametrize("machine", ["q35", pytest.param("pc", marks=pytest.mark.slow)])
def test_all_that_can_be_plugged_in_is_and_is_the_same_after_a_restart(guests: Guests, machine: str) -> None:
    """Into a guest that is held before its first instruction, which is asked for nothing."""
    disks = [{"bus": "scsi", "size": "1M"}]
    options = {"machine": machine, "memory": "64", "state": "paused"}
    guests.converge("cg-a", **options, disks=disks)
    pid = guests.pid("cg-a")
    add_tap(guests, "cgmulti", None, "multi_queue")
    models = ["e1000", "e1000e", "vmxnet3"] if machine == "pc" else ["rtl8139"]
    nics = [{"user": True, "model": model} for model in models]
    nics.append({"tap": "cgmulti", "queues": 2, "link": False})
    more = [*disks, *({"bus": bus, "size": "1M"} for bus in ("scsi", "virtio", "nvme"))]
    result = guests.converge("cg-a", **options, disks=more, nics=nics)
    assert result["guest"]["pending_restart"] == []
    assert guests.pid("cg-a") == pid
    plugged = hardware(guests, "cg-a")
    assert len(plugged) == len(nics) + len(more)
    assert not guests.converge("cg-a", **options, disks=more, nics=nics)["changed"]

    # On PCI Express there are places for four, and all are taken now.
    result = guests.converge("cg-a", **options, disks=more, nics=[*nics, {"user": True}])
    pending = result["guest"]["pending_restart"]
    if machine == "q35":
        assert len(pending) == 1
        assert pending[0].endswith("is not attached: all 4 PCI Express ports of the running guest are taken")
    else:
        assert pending == []
    result = guests.converge("cg-a", **options, disks=[*more, {"bus": "ide", "size": "1M"}])
    assert "disks on ide are not plugged in while a guest runs" in str(result["guest"]["pending_restart"])
    assert guests.pid("cg-a") == pid

    guests.converge("cg-a", **{**options, "state": "stopped"}, disks=more, nics=nics)
    guests.converge("cg-a", **options)
    assert hardware(guests, "cg-a") == [*(f"disk{n}" for n in range(len(more))), *(f"nic{n}" for n in range(len(nics)))]
    assert not guests.converge("cg-a", **options, disks=more, nics=nics)["changed"]


def test_what_stands_in_the_way_of_a_plug_is_told_before_anything_is_done(guests: Guests) -> None:
    add_tap(guests, "cgone")
    one = {"name": "cg-1", "nics": [{"tap": "cgone"}]}
    guests.converge(None, guests=[one, {"name": "cg-2"}])
    message = guests.refuse("cg-2", nics=[{"tap": "cgone"}])
    assert "the tap cgone is in use by qemu-system-x86" in message
    assert "cgnone does not exist" in guests.refuse("cg-2", nics=[{"tap": "cgnone"}])
    assert "does not exist" in guests.refuse("cg-2", disks=[{"path": "/nowhere/disk.qcow2", "size": "1M"}])
    assert hardware(guests, "cg-2") == []
    guests.converge(None, guests=[{**one, "state": "stopped"}, {"name": "cg-2", "nics": [{"tap": "cgone"}]}])
    assert hardware(guests, "cg-2") == ["nic0"]
