# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Wish

DEFAULTS = {
    "name": "vm1",
    "state": "running",
    "restart": "never",
    "shutdown_timeout": 60.0,
    "live_timeout": 20.0,
    "force": False,
    "remove_disks": False,
    "wait_for": "qmp",
    "wait_timeout": 120.0,
}


def wish(**options: t.Any) -> Wish:
    return _spec.wish({**DEFAULTS, **options}, identity="host")


def define(**options: t.Any) -> GuestSpec:
    defined = options.pop("defined", None)
    return _spec.define(wish(**{"architecture": "x86_64", **options}), defined, None)


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [("512", 512), ("1", 1), ("2G", 2048), ("2g", 2048), ("1.", None), ("512M", 512), ("512MiB", 512), ("1T", 1 << 20)],
)
def test_memory_is_mebibytes_or_has_a_unit(text: str, mebibytes: t.Optional[int]) -> None:
    if mebibytes is None:
        with pytest.raises(InvalidInput):
            _spec.memory_size("memory", text)
    else:
        assert _spec.memory_size("memory", text) == mebibytes


@pytest.mark.parametrize("text", ["", "0", "-1", "0G", "1K", "lots", "1.5G"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="memory: "):
        _spec.memory_size("memory", text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "../vm"}, "name: '../vm' is not a usable name"),
        ({"name": "a" * 64}, "is not a usable name"),
        ({"cpus": 0}, "cpus: 0 is no processor"),
        ({"kernel": "vmlinuz"}, "is not an absolute path"),
        ({"cmdline": "a\nb", "kernel": "/k"}, "more than one line"),
        ({"machine": "q35 -monitor"}, "no place in a value for QEMU"),
        ({"user": "-x"}, "is not the name of an account"),
        ({"labels": {"a b": "c"}}, "labels: 'a b' is not a usable key"),
        ({"labels": {"a": ["c"]}}, r"labels\.a: \['c'\] is not a text"),
        ({"labels": {"a": "b\nc"}}, "one line"),
        ({"shutdown_timeout": -1.0}, "before now"),
        ({"remove_disks": True}, "with state: absent only"),
        ({"wait_for": "console"}, "needs console_pattern"),
        ({"wait_for": "console", "console_pattern": "("}, "not a regular expression"),
        ({"wait_for": "console", "console_pattern": "x", "console": False}, "needs the console"),
        ({"nics": [{}]}, "leads nowhere"),
        ({"nics": [{"tap": "t0", "user": True}]}, "choose one"),
        ({"nics": [{"tap": "v*"}]}, "not a usable interface name"),
        ({"nics": [{"tap": "t0", "mac": "x"}]}, "nics\\[0\\].mac: 'x' is not a MAC address"),
        ({"nics": [{"tap": "t0", "queues": 2, "model": "e1000"}]}, "needs a virtio-net-pci"),
        ({"nics": [{"user": True, "queues": 2}]}, "needs a virtio-net-pci"),
        ({"nics": [{"tap": "t0", "queues": 0}]}, "is no queue"),
        ({"disks": [{"path": "a.qcow2"}]}, "is not an absolute path"),
        ({"disks": [{"size": "10"}]}, "is not a size"),
        ({"disks": [{"base_image": "/b", "format": "raw"}]}, "an overlay is a qcow2 image"),
        ({"disks": [{"base_format": "raw", "size": "1G"}]}, "tells about a base_image"),
        ({"disks": [{"base_image": "/b", "checksum": "abc"}]}, "is not a checksum"),
        ({"disks": [{"base_image": "/b", "checksum": "sha256:https://h/SUMS"}]}, "give the digits"),
        ({"disks": [{"base_image": "http://h/b"}]}, "anybody on the way"),
        ({"disks": [{"media": "cdrom", "bus": "virtio"}]}, "has no CD drives"),
        ({"disks": [{"media": "cdrom", "path": "/i.iso", "size": "1G"}]}, "is not for media: cdrom"),
        ({"disks": [{"media": "cdrom", "format": "qcow2"}]}, "an ISO image is raw"),
        ({"disks": [{"media": "cdrom", "read_only": False}]}, "is not what a CD is"),
    ],
)
def test_options_that_cannot_be_right_are_refused_by_name(options: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        wish(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"initrd": "/i"}, "initrd: '/i' of guest vm1 needs option kernel"),
        ({"cmdline": "x"}, "needs option kernel"),
        ({"nics": [{"tap": "t0"}, {"tap": "t0"}]}, "nics\\[\\].tap: 't0' is given twice"),
        ({"nics": [{"user": True, "mac": "52:54:00:00:00:01"}] * 2}, "is given twice"),
        ({"architecture": "s390x"}, "machine: None has no default for the architecture s390x"),
    ],
)
def test_a_guest_that_does_not_fit_together_is_refused(options: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        define(**options)


@pytest.mark.parametrize(
    ("machine", "buses", "fits"),
    [
        ("q35", ["ide"] * 4 + ["sata"] * 2, True),
        ("q35", ["ide"] * 4 + ["sata"] * 3, False),
        ("pc", ["ide"] * 4 + ["sata"] * 6, True),
        ("pc", ["ide"] * 5, False),
        ("pc", ["sata"] * 7, False),
        ("microvm", ["ide"], False),
        ("microvm", ["virtio"] * 20, True),
    ],
)
def test_disks_must_find_a_place(machine: str, buses: list[str], fits: bool) -> None:
    disks = tuple(_spec.Disk(f"/{number}", "raw", bus) for number, bus in enumerate(buses))
    asked = wish(machine=machine)
    if fits:
        assert len(_spec.define(asked, None, disks).disks) == len(buses)
    else:
        with pytest.raises(InvalidInput):
            _spec.define(asked, None, disks)


def test_labels_are_texts_in_one_order_and_stay_unless_given() -> None:
    asked = wish(labels={"stage": "test", 7: 1, "lab": None, "on": True})
    spec = _spec.define(asked, None, ())
    assert spec.labels.given() == {"7": "1", "lab": "", "on": "true", "stage": "test"}
    assert spec == _spec.define(wish(labels={"on": "true", "lab": "", "stage": "test", "7": "1"}), None, ())
    assert _spec.define(wish(), spec, ()).labels == spec.labels
    assert _spec.define(wish(labels={}), spec, ()).labels.given() == {}
    assert _spec.from_data(json.loads(json.dumps(_spec.to_data(spec)))) == spec


def test_a_cd_drive_is_empty_unless_it_has_a_path() -> None:
    asked = wish(disks=[{"media": "cdrom"}, {"media": "cdrom", "path": ""}, {"media": "cdrom", "path": "/i.iso"}])
    disks = tuple(_spec.Disk(**options) for options in asked.disks or ())
    assert [disk.is_empty for disk in disks] == [True, True, False]
    assert {(disk.bus, disk.read_only, disk.is_cdrom) for disk in disks} == {("sata", True, True)}
    assert _spec.define(asked, None, disks).disks == disks
    assert [_spec.files_of(disk) for disk in disks] == [(), (), ("/i.iso",)]


def test_an_image_from_a_url_is_a_base_image_where_it_is_kept() -> None:
    asked = wish(disks=[{"base_image": "https://h/b.qcow2"}])
    (options,) = asked.disks or ()
    assert options["source"] == "https://h/b.qcow2"
    assert options["base_image"].startswith("/var/lib/labspan/images/b-")
    assert _spec.files_of(options) == (options["path"], options["base_image"])


def test_disks_on_ide_are_written_to() -> None:
    disks = (_spec.Disk("/d", "raw", "ide", read_only=True),)
    with pytest.raises(InvalidInput, match="has no read-only disks"):
        _spec.define(wish(), None, disks)


def test_what_is_left_out_stays_as_defined_and_an_empty_text_takes_away() -> None:
    first = define(memory="1G", kernel="/k", cmdline="quiet", network="lab")
    assert define(defined=first) == first
    assert define(defined=first, cpus=2).memory == 1024
    without = define(defined=first, kernel="", cmdline="")
    assert (without.kernel, without.cmdline) == (None, None)


def test_mac_and_tap_are_derived_and_stable() -> None:
    nics = wish(nics=[{"bridge": "br0"}, {"bridge": "br0"}]).given["nics"]
    assert nics == wish(nics=[{"bridge": "br0"}, {"bridge": "br0"}]).given["nics"]
    assert len({nic.mac for nic in nics}) == len({nic.tap for nic in nics}) == 2
    other = wish(name="vm2", nics=[{"bridge": "br0"}]).given["nics"][0]
    assert other.mac != nics[0].mac
    assert other.tap != nics[0].tap
    assert all(len(nic.tap) <= 15 for nic in nics)


def test_a_definition_survives_its_file() -> None:
    spec = define(nics=[{"bridge": "br0"}, {"user": True}], boot_order=["disk"], extra_args=["-S"])
    assert _spec.from_data(_spec.to_data(spec)) == spec
    with pytest.raises(TypeError):
        _spec.from_data({**_spec.to_data(spec), "unknown": 1})
