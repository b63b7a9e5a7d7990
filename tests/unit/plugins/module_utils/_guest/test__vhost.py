# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
import types
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _hotplug, _spec, _vhost
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account

TAP = Nic("52:54:00:00:00:01", "virtio-net-pci", tap="tap0")
QUEUES = dataclasses.replace(TAP, tap="tap1", queues=2)
OLD = dataclasses.replace(TAP, tap="tap2", model="e1000")
USER = dataclasses.replace(TAP, tap=None)

ACCOUNT = Account("guest", 1000, 1000, (1000, 108))


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_vhost, "trouble", lambda: None)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_vhost, "trouble", lambda: "/dev/vhost-net does not exist")


def on(nic: Nic) -> Nic:
    return dataclasses.replace(nic, vhost=_vhost.TRUE)


def backends(*nics: Nic, manager: str = "none") -> list[str]:
    words = _argv.command_line(GuestSpec("g", nics=nics), program="qemu", accelerator="tcg", manager=manager)
    return [value for word, value in zip(words, words[1:]) if word == "-netdev"]


def test_qemu_is_handed_one_descriptor_for_each_queue() -> None:
    assert backends(on(TAP), on(QUEUES), OLD) == [
        "tap,id=net0,fd=5,vhost=on,vhostfd=9",
        "tap,id=net1,fds=6:7,vhost=on,vhostfds=10:11",
        "tap,id=net2,fd=8",
    ]
    assert backends(TAP) == ["tap,id=net0,fd=5"]


def test_what_systemd_starts_opens_the_device_itself() -> None:
    assert backends(on(TAP), manager="systemd") == ["tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=on"]


def test_what_is_plugged_in_is_handed_its_descriptors_by_name() -> None:
    assert _hotplug._ByName(None).tap(on(QUEUES), "net1") == (
        "tap,id=net1,fds=net1-queue0:net1-queue1,vhost=on,vhostfds=net1-vhost-queue0:net1-vhost-queue1"
    )
    assert _hotplug.arguments("tap,id=n,fd=a,vhost=on,vhostfd=b", head="type")["vhost"] is True


@pytest.mark.usefixtures("works")
def test_auto_is_on_where_it_works() -> None:
    settled = _vhost.settle(GuestSpec("g", nics=(TAP, OLD, USER, dataclasses.replace(TAP, vhost="false"))), None)
    assert [nic.vhost for nic in settled.nics] == ["true", "false", "false", "false"]


@pytest.mark.usefixtures("lacking")
def test_auto_is_off_where_it_does_not_and_true_is_an_error() -> None:
    assert _vhost.settle(GuestSpec("g", nics=(TAP,)), None).nics[0].vhost == "false"
    assert _vhost.problems(GuestSpec("g", nics=(TAP,)), None) == []
    (problem,) = _vhost.problems(GuestSpec("g", nics=(TAP, on(TAP))), None)
    assert "nics[1].vhost of guest g: /dev/vhost-net does not exist" in problem


@pytest.mark.usefixtures("works")
@pytest.mark.parametrize(
    ("mode", "uid", "gid", "may"),
    [(0o600, 0, 0, False), (0o660, 0, 108, True), (0o640, 0, 108, False), (0o666, 0, 0, True), (0o600, 1000, 0, True)],
)
def test_an_account_opens_what_the_devices_mode_lets_it(
    monkeypatch: pytest.MonkeyPatch, mode: int, uid: int, gid: int, may: bool
) -> None:
    found = types.SimpleNamespace(st_mode=0o020000 | mode, st_uid=uid, st_gid=gid)
    monkeypatch.setattr(os, "stat", lambda _path: found)
    assert (_vhost.trouble_for(ACCOUNT) is None) == may
    assert _vhost.trouble_for(None) is None


@pytest.mark.parametrize("entry", [{"user": True}, {"tap": "tap0", "model": "e1000"}])
def test_only_virtio_on_a_tap_can_have_it(entry: dict[str, t.Any]) -> None:
    with pytest.raises(InvalidInput, match="virtio-net-pci"):
        _spec._nic("g", 0, {**entry, "vhost": "true"}, "host")
    assert _spec._nic("g", 0, {"tap": "tap0", "vhost": "true"}, "host").vhost == "true"
    assert _spec._nic("g", 0, entry, "host").vhost == "auto"
