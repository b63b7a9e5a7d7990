# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Network interfaces of guests: taps by name, taps made for them, and real traffic."""

from __future__ import annotations

import typing as t

import pytest
from support.hosts import await_condition

from .conftest import Guests

pytestmark = pytest.mark.one_interpreter

GATEWAY = "10.99.0.1"


@pytest.fixture
def bridge(guests: Guests) -> str:
    """With a port from the start and without link-local address: both would be the kernel's to change as it likes."""
    guests.host.run("ip", "link", "add", "cgbr", "address", "02:00:00:00:00:01", "type", "bridge", "forward_delay", "0")
    guests.host.run("ip", "link", "set", "cgbr", "addrgenmode", "none")
    add_tap(guests, "cgidle", "cgbr")
    guests.host.run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "cgbr")
    guests.host.run("ip", "link", "set", "cgbr", "up")
    return "cgbr"


def add_tap(guests: Guests, name: str, bridge: t.Optional[str] = None, *flags: str) -> None:
    guests.host.run("ip", "tuntap", "add", name, "mode", "tap", "user", "root", *flags)
    guests.host.run("ip", "link", "set", name, "addrgenmode", "none")
    if bridge:
        guests.host.run("ip", "link", "set", name, "master", bridge)
    guests.host.run("ip", "link", "set", name, "up")


def answers(guests: Guests, address: str) -> bool:
    return guests.host.run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0


def test_guests_on_taps_reach_the_host_and_the_cable_can_be_pulled(
    guests: Guests, tiny: dict[str, t.Any], bridge: str
) -> None:
    add_tap(guests, "cgtap0", bridge)

    def entry(number: int, nic: dict[str, t.Any]) -> dict[str, t.Any]:
        cmdline = f"{tiny['cmdline']} labspan.address=10.99.0.1{number}/24"
        return {"name": f"cg-n{number}", "cmdline": cmdline, "nics": [nic]}

    entries = [entry(0, {"tap": "cgtap0"}), entry(1, {"bridge": bridge, "model": "e1000"})]
    result = guests.converge(None, **tiny, guests=entries)
    made = result["guests"][1]["nics"][0]["tap"]
    assert made.startswith("vn")
    link = guests.host.link(made)
    assert link is not None
    assert (link["master"], link["ifalias"]) == (bridge, f"labspan.vmnet:{bridge}")
    macs = {guest["nics"][0]["mac"] for guest in result["guests"]}
    assert len(macs) == 2
    for address in ("10.99.0.10", "10.99.0.11"):
        await_condition(lambda address=address: answers(guests, address), f"{address} to answer")  # type: ignore[misc]
    seen = guests.host.json("ip", "-j", "neigh", "show", "dev", bridge)
    assert {entry["lladdr"] for entry in seen if entry["dst"].startswith("10.99.0.1")} == macs
    assert not guests.converge(None, **tiny, guests=entries)["changed"]

    pulled = [entry(0, {"tap": "cgtap0", "link": False}), entries[1]]
    result = guests.converge(None, **tiny, guests=pulled)
    assert "Set the link of NIC 0 of guest cg-n0 down" in result["actions"]
    assert not answers(guests, "10.99.0.10")
    await_condition(lambda: answers(guests, "10.99.0.11"), "the guest whose cable is plugged in")
    assert not guests.converge(None, **tiny, guests=pulled)["changed"]
    guests.converge(None, **tiny, guests=entries)
    await_condition(lambda: answers(guests, "10.99.0.10"), "the guest to answer again")

    guests.converge(None, guests=[{"name": "cg-n0"}, {"name": "cg-n1"}], state="absent", force=True)
    assert guests.host.link(made) is None  # made for the guest
    assert guests.host.link("cgtap0") is not None  # not made for it


def test_a_cable_that_is_pulled_from_the_start_is_pulled(guests: Guests, tiny: dict[str, t.Any], bridge: str) -> None:
    cmdline = f"{tiny['cmdline']} labspan.address=10.99.0.20/24"
    nic = {"bridge": bridge, "link": False}
    guests.converge("cg-c", **{**tiny, "cmdline": cmdline}, nics=[nic])
    assert guests.activity("cg-c") == "running"
    assert not answers(guests, "10.99.0.20")
    guests.converge("cg-c", **{**tiny, "cmdline": cmdline}, nics=[{**nic, "link": True}])
    await_condition(lambda: answers(guests, "10.99.0.20"), "the guest to answer")


def test_taps_made_for_a_guest_come_and_go_with_its_nics(guests: Guests, bridge: str) -> None:
    def taps() -> set[str]:
        return {link["ifname"] for link in guests.host.json("ip", "-j", "link", "show", "master", bridge)} - {"cgidle"}

    before = guests.host.dump()
    foretold = guests.check("cg-t", nics=[{"bridge": bridge}, {"bridge": bridge, "tap": "cgnamed"}])
    assert guests.host.dump() == before
    result = guests.converge("cg-t", nics=[{"bridge": bridge}, {"bridge": bridge, "tap": "cgnamed"}])
    assert result["actions"] == foretold["actions"]
    assert len(taps()) == 2
    assert "cgnamed" in taps()
    guests.converge("cg-t", nics=[{"bridge": bridge, "queues": 2}], restart="if_needed")
    assert len(taps()) == 1
    (tap,) = taps()
    assert "multi_queue" in guests.host.out("ip", "-d", "tuntap", "show")
    assert not guests.converge("cg-t")["changed"]
    guests.converge("cg-t", state="stopped")
    assert taps() == {tap}
    guests.converge("cg-t", state="absent")
    assert taps() == set()


def test_every_model_is_known_to_qemu(guests: Guests) -> None:
    models = ["virtio-net-pci", "virtio-net", "e1000", "e1000e", "rtl8139", "vmxnet3"]
    nics = [{"user": True, "model": model} for model in models]
    guests.converge("cg-m", state="paused", memory="64", nics=nics, boot_order=["disk", "network"])
    assert guests.activity("cg-m") == "paused"


def test_queues_of_tap_and_nic_agree_or_are_refused(guests: Guests) -> None:
    add_tap(guests, "cgsingle")
    add_tap(guests, "cgmulti", None, "multi_queue")
    assert "which QEMU refuses" in guests.refuse("cg-q", nics=[{"tap": "cgmulti"}])
    assert "the tap cgsingle has one" in guests.refuse("cg-q", nics=[{"tap": "cgsingle", "queues": 2}])
    assert "needs a virtio-net-pci" in guests.refuse("cg-q", nics=[{"tap": "cgmulti", "queues": 2, "model": "e1000"}])
    guests.converge("cg-q", nics=[{"tap": "cgmulti", "queues": 2}, {"tap": "cgsingle"}])


def test_a_tap_serves_one_guest(guests: Guests) -> None:
    add_tap(guests, "cgone")
    one, two = ({"name": name, "nics": [{"tap": "cgone"}]} for name in ("cg-1", "cg-2"))
    assert "is given to the guests cg-1 and cg-2" in guests.refuse(None, guests=[one, two])
    guests.converge(None, guests=[one])
    message = guests.refuse(None, guests=[two])
    assert "the tap cgone is in use by qemu-system-x86" in message
    assert f"(pid {guests.pid('cg-1')})" in message
    guests.converge(None, guests=[{**one, "state": "absent"}, two])
    assert guests.activity("cg-2") == "running"


def test_a_mac_address_is_used_once_on_a_bridge(guests: Guests, bridge: str) -> None:
    guests.host.run("ip", "link", "add", "cgbr2", "type", "bridge")
    mac = {"mac": "52:54:00:12:34:56"}
    one = {"name": "cg-1", "nics": [{"bridge": bridge, **mac}]}
    two = {"name": "cg-2", "nics": [{"bridge": bridge, **mac}]}
    elsewhere = {"name": "cg-2", "nics": [{"bridge": "cgbr2", **mac}]}
    assert "is given to the guests cg-1 and cg-2 on bridge cgbr" in guests.refuse(None, guests=[one, two])
    guests.converge(None, guests=[one])
    assert "is given to the guests cg-2 and cg-1 on bridge cgbr" in guests.refuse(None, guests=[two])
    guests.converge(None, guests=[elsewhere])


def test_a_nic_must_lead_somewhere(guests: Guests, bridge: str) -> None:
    refusals: list[tuple[dict[str, t.Any], str]] = [
        ({"tap": "cgmissing"}, "the tap cgmissing does not exist"),
        ({"tap": bridge}, f"{bridge} is not a tap but a bridge"),
        ({"bridge": "cgnobridge"}, "cgnobridge"),
        ({"model": "e1000"}, "leads nowhere"),
        ({"tap": "tap0", "user": True}, "choose one"),
        ({"tap": "a-name-that-is-too-long"}, "the kernel allows 15"),
        ({"user": True, "mac": "01:00:00:00:00:00"}, "is a multicast address"),
    ]
    for nic, sentence in refusals:
        assert sentence in guests.refuse("cg-l", nics=[nic]), nic


def test_what_an_earlier_task_may_make_is_a_warning_in_check_mode(guests: Guests) -> None:
    options = {"nics": [{"tap": "cglater"}], "kernel": "/later/kernel", "user": "labspan-later"}
    before = guests.host.dump()
    result = guests.host.converge("qemu_guest", guests.params("cg-w", **options), check=True)
    assert guests.host.dump() == before
    assert result["changed"]
    for sentence in ("the tap cglater does not exist", "/later/kernel", "the account labspan-later"):
        assert sentence in str(result["warnings"])
    assert "3 things stand in the way" in guests.refuse("cg-w", **options)
