# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cloud-init seeds: what is on the image, whose it is, when it changes; looked at with blkid, isoinfo, stat and ps."""

from __future__ import annotations

import os
import shutil
import subprocess
import typing as t

import pytest
from support.hosts import Host

from .conftest import ACCOUNT, STATE, Guests

SEED = f"{STATE}/vm1/seed.iso"
MAKERS = ("genisoimage", "mkisofs", "xorriso")
USER_DATA = {"hostname": "vm1", "runcmd": ["echo käse"]}

pytestmark = pytest.mark.skipif(shutil.which("isoinfo") is None, reason="the program isoinfo is not installed")


def content(host: Host, path: str = SEED) -> dict[str, str]:
    """The files on the image, by the names that Linux shows."""
    names = [name for name in host.out("isoinfo", "-R", "-f", "-i", path).split() if name]
    return {name.lstrip("/"): host.out("isoinfo", "-R", "-x", name, "-i", path) for name in names}


def inode(host: Host) -> str:
    return host.out("stat", "-c", "%i %Y", SEED)


def hide(host: Host, *programs: str) -> None:
    """Take programs away from the host: what cannot be executed is not found."""
    for program in programs:
        path = shutil.which(program)
        if path:
            host.run("mount", "--bind", "/dev/null", path)


def assert_made(guests: Guests, path: str) -> None:
    """A guest with C(path) as the place of programs gets a seed with all its files."""
    host = guests.host
    seed = {"user_data": USER_DATA, "vendor_data": "#!/bin/sh\n", "network_config": "x\n"}
    made = host.converge(
        "qemu_guest",
        guests.params("vm1", state="stopped", cloud_init=seed),
        environment={"PATH": f"{path}:{os.environ['PATH']}"},
    )
    assert made["actions"] == ["Define guest vm1", "Make the cloud-init seed of guest vm1"]
    assert host.out("blkid", "-p", "-s", "LABEL", "-o", "value", SEED).strip() == "cidata"
    found = content(host)
    assert sorted(found) == ["meta-data", "network-config", "user-data", "vendor-data"]
    assert found["user-data"].startswith("#cloud-config\n")
    assert "echo käse" in found["user-data"]
    assert found["vendor-data"] == "#!/bin/sh\n"
    assert host.out("find", "/run/labspan", "-name", "seed*") == ""


@pytest.mark.one_interpreter
@pytest.mark.parametrize("maker", MAKERS)
def test_every_program_makes_an_image_that_cloud_init_finds(maker: str, guests: Guests) -> None:
    path = shutil.which(maker)
    if path is None:
        pytest.skip(f"the program {maker} is not installed")
    # One may be a link to another that is to be hidden.
    guests.host.run("sh", "-c", 'mkdir /run/bin && cp -L "$0" /run/bin', path)
    hide(guests.host, *MAKERS)
    assert_made(guests, "/run/bin")


def test_the_library_makes_an_image_that_cloud_init_finds(guests: Guests, interpreter: str) -> None:
    if subprocess.run([interpreter, "-c", "import pycdlib"], capture_output=True, check=False).returncode:
        pytest.skip(f"{interpreter} has no pycdlib")
    hide(guests.host, *MAKERS)
    assert_made(guests, "/run/bin")


@pytest.mark.one_interpreter
def test_a_host_that_can_make_none_is_told_before_anything_is_written(guests: Guests) -> None:
    hide(guests.host, *MAKERS)
    blind = {"PYTHONPATH": f"/run/blind:{guests.host.python_path}"}
    guests.host.run("sh", "-c", "mkdir /run/blind; echo 'raise ImportError(\"no pycdlib\")' > /run/blind/pycdlib.py")
    params = guests.params("vm1", state="stopped", cloud_init={})
    message = guests.host.refuse("qemu_guest", params, environment=blind)
    assert "Install the package genisoimage" in message
    checked = guests.host.converge("qemu_guest", params, check=True, environment=blind)
    assert "In check mode this is only a warning" in str(checked["warnings"])


@pytest.mark.one_interpreter
def test_a_seed_is_made_once_and_again_when_its_content_changes(guests: Guests) -> None:
    host = guests.host
    guests.check("vm1", cloud_init={"user_data": USER_DATA}, state="stopped")
    assert not guests.exists(SEED)
    made = guests.converge("vm1", cloud_init={"user_data": USER_DATA}, state="stopped")
    assert guests.mode(SEED) == f"600 {ACCOUNT}"
    assert guests.mode(f"{STATE}/vm1/seed.json") == "600 root"
    assert '"local-hostname": "vm1"' in content(host)["meta-data"]
    before = inode(host)

    for again in ({"cloud_init": {"user_data": USER_DATA}}, {}):
        assert guests.converge("vm1", state="stopped", **again)["actions"] == []
    assert inode(host) == before

    changed = {"user_data": {**USER_DATA, "locale": "C"}}
    checked = guests.check("vm1", cloud_init=changed, state="stopped")
    assert inode(host) == before
    result = guests.converge("vm1", cloud_init=changed, state="stopped")
    expected = ["Change the definition of guest vm1: cloud-init: the seed has changed", *made["actions"][1:]]
    assert checked["actions"] == result["actions"] == expected
    was, now = (result["diff"][when]["guests"]["vm1"]["cloud_init"] for when in ("before", "after"))
    assert was["digest"] != now["digest"]
    assert was["digest"] == made["guest"]["cloud_init"]["digest"]
    assert "locale" in content(host)["user-data"]
    assert inode(host) != before

    # Made anew when somebody has changed it, and refused when nobody tells what it held.
    host.run("sh", "-c", f"echo >> {SEED}")
    assert "what it held is written nowhere else" in guests.refuse("vm1", state="running")
    assert guests.converge("vm1", cloud_init=changed, state="stopped")["actions"] == made["actions"][1:]
    assert guests.converge("vm1", user="daemon", state="stopped")["actions"][1:] == [
        "Hand over the cloud-init seed of guest vm1"
    ]
    assert guests.mode(SEED) == "600 daemon"

    result = guests.converge("vm1", user="daemon", cloud_init={"delivery": "none"}, state="stopped")
    assert result["actions"][1:] == ["Remove the cloud-init seed of guest vm1"]
    assert not guests.exists(SEED)
    guests.converge("vm1", user="daemon", cloud_init=changed, state="stopped")
    guests.converge("vm1", state="absent")
    assert host.out("find", STATE, "-mindepth", "1") == ""


@pytest.mark.one_interpreter
def test_a_running_guest_keeps_its_seed_and_a_failed_start_gives_the_old_one_back(guests: Guests) -> None:
    host = guests.host
    old, new = {"user_data": USER_DATA}, {"user_data": {"hostname": "other"}}
    guests.converge("vm1", cloud_init=old)
    before, pid = inode(host), guests.pid("vm1")
    assert f"driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename={SEED}" in words(guests)
    assert SEED in host.out("sh", "-c", f"ls -l /proc/{pid}/fd")

    result = guests.converge("vm1", cloud_init=new)
    assert (result["changed"], result["guest"]["pending_restart"]) == (False, ["cloud-init: the seed has changed"])
    assert inode(host) == before

    broken = guests.params("vm1", cloud_init=new, restart="if_needed", extra_args=["-device", "no-such-device"])
    failed = host.module("qemu_guest", broken)
    assert "no-such-device" in failed["msg"]
    assert "Make the cloud-init seed of guest vm1" in failed["undone"]
    assert "other" not in content(host)["user-data"]
    assert guests.mode(SEED) == f"600 {ACCOUNT}"

    assert guests.converge("vm1", cloud_init=old)["actions"] == ["Start guest vm1"]
    assert guests.converge("vm1", cloud_init=new, state="restarted")["actions"] == [
        "Stop guest vm1",
        "Change the definition of guest vm1: cloud-init: the seed has changed",
        "Make the cloud-init seed of guest vm1",
        "Start guest vm1",
    ]
    assert "other" in content(host)["user-data"]


@pytest.mark.one_interpreter
@pytest.mark.parametrize("datasource", [None, "nocloud-net"])
def test_a_serial_number_tells_where_the_seed_is(datasource: t.Optional[str], guests: Guests) -> None:
    more = {"datasource": datasource} if datasource else {}
    guests.converge("vm1", cloud_init={"delivery": "smbios", "seed_url": "http://192.168.100.1:8000", **more})
    expected = f"type=1,serial=ds={datasource or 'nocloud'};s=http://192.168.100.1:8000/"
    assert expected in words(guests)
    assert not guests.exists(SEED)


def words(guests: Guests) -> list[str]:
    return guests.host.out("cat", f"/proc/{guests.pid('vm1')}/cmdline").split("\0")
