# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is made of what was read."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._info import _gather, _networks, _readers
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Guest, Seen
from ansible_collections.labspan.vmnet.plugins.module_utils._info._who import Who, reservations
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

from .hosts import MACS, lab, link
from .test_contract import deviations, documented


def told(seen: Seen, *subsets: str) -> dict[str, t.Any]:
    return _gather._told(seen, subsets or _gather.SUBSETS)


def by_name(entries: t.Iterable[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    return {entry["name"]: entry for entry in entries}


def port(found: dict[str, t.Any], name: str) -> dict[str, t.Any]:
    (only,) = (one for bridge in found["bridges"] for one in bridge["ports"] if one["name"] == name)
    return only


def test_what_is_told_is_what_is_documented() -> None:
    assert list(deviations(documented(), told(lab()))) == []


def test_only_what_is_asked_for_is_told() -> None:
    assert set(told(lab(), "guests", "leases")) == {"guests", "leases"}


def test_the_scenario_is_read_off_what_is_there() -> None:
    found = by_name(told(lab())["networks"])
    assert {name: network["scenario"] for name, network in found.items()} == {
        "lan": "l2",
        "office": "routed",
        "quiet": "private",
        "web": "nat",
    }
    assert {name: network["uplinks"] for name, network in found.items()} == {
        "lan": ["eth0"],
        "office": ["br-lan"],
        "quiet": [],
        "web": ["br-lan"],
    }
    assert [name for name, network in found.items() if network["persistent"]] == ["lan", "web"]


def test_without_rules_there_is_no_scenario_but_that_of_the_uplink() -> None:
    unseen = dataclasses.replace(lab(), rules=None)
    assert {name: _networks.scenario(unseen, name) for name in _networks.names(unseen)} == {
        "lan": "l2",
        "office": None,
        "quiet": None,
        "web": None,
    }
    assert told(unseen)["host"]["firewalls"] is None


def test_a_bridge_of_others_with_a_tap_of_ours_is_the_networks() -> None:
    seen = lab()
    links = {**seen.links, "tap-x": link("tap-x", "tun", "virbr0", "guestnet"), "virbr0": link("virbr0", "bridge")}
    found = told(dataclasses.replace(seen, links=links))
    assert by_name(found["bridges"])["virbr0"]["by"] == "libvirt"
    assert by_name(found["bridges"])["virbr0"]["network"] is None
    assert by_name(found["networks"])["guestnet"]["bridge"] == "virbr0"
    assert [bridge["name"] for bridge in found["foreign_bridges"]] == ["docker0"]


def test_foreign_bridges_are_named_and_not_looked_into() -> None:
    found = told(lab())
    assert found["foreign_bridges"] == [
        {"name": "docker0", "by": "docker", "addresses": ["172.17.0.1/16"], "ports": ["veth7"], "up": True}
    ]
    assert "docker0" not in by_name(found["bridges"])


def test_who_is_behind_a_port() -> None:
    found = told(lab())
    first, stranger = port(found, "tap-vm1")["neighbours"]
    assert first == {
        "mac": MACS["vm1"],
        "heard": True,
        "guest": "vm1",
        "name": "vm1",
        "addresses": ["192.168.6.11"],
        "lease": {"address": "192.168.6.11", "expires": "2030-01-01T00:00:00Z"},
    }
    assert (stranger["mac"], stranger["guest"], stranger["lease"]) == ("52:54:00:aa:bb:cc", None, None)
    (silent,) = port(found, "tap-vm2")["neighbours"]
    assert (silent["guest"], silent["heard"]) == ("vm2", False)
    (router,) = port(found, "eth0")["neighbours"]
    assert (router["guest"], router["addresses"], router["heard"]) == (None, ["192.0.2.1"], True)
    assert (port(found, "eth0")["kind"], port(found, "tap-vm1")["kind"]) == ("uplink", "tap")
    assert port(found, "tap-vm4")["state"] == "disabled"


def test_addresses_come_with_who_told_them_and_of_the_right_segment_only() -> None:
    seen = lab()
    guests = dict(seen.guests)
    guests["vm2"] = dataclasses.replace(guests["vm2"], told={MACS["vm2"]: ("192.168.6.12", "fd00::2", "fe80::2")})
    nics = {
        (guest["name"], number): {one["address"]: one["source"] for one in nic["addresses"]}
        for guest in told(dataclasses.replace(seen, guests=guests))["guests"]
        for number, nic in enumerate(guest["nics"])
    }
    assert nics == {
        ("vm1", 0): {"192.168.6.11": "lease"},  # and not what Docker's bridge heard of the same MAC address
        ("vm2", 0): {"192.168.6.12": "agent", "fd00::2": "agent", "192.168.6.77": "declared"},
        ("vm2", 1): {},
        ("vm3", 0): {"10.20.0.14": "neighbour"},
        ("vm3", 1): {},
        ("vm4", 0): {},
    }


def test_guests_are_told_with_what_qemu_says() -> None:
    seen = lab()
    odd = {
        "ghost": Guest("ghost", None, Process(7, 7), run_state="unknown"),
        "hidden": Guest("hidden", None, None, hidden=True),
        "dead": dataclasses.replace(seen.guests["vm1"], name="dead", run_state="guest-panicked", as_defined=False),
    }
    found = by_name(told(dataclasses.replace(seen, guests={**seen.guests, **odd}))["guests"])
    states = {name: guest["state"] for name, guest in found.items()}
    states.pop("vm3")
    assert states == {
        "vm1": "running",
        "vm2": "paused",
        "vm4": "stopped",
        "ghost": "unknown",
        "hidden": "unknown",
        "dead": "broken",
    }
    assert found["ghost"]["memory"] is None
    assert found["ghost"]["run_state"] is None
    assert "not recorded" in found["ghost"]["pending_restart"][0]
    assert "another command line" in found["dead"]["pending_restart"][0]
    assert found["vm4"]["console_socket"] is None
    assert found["vm3"]["nics"][1] | {"mac": ""} == {
        "tap": None,
        "bridge": None,
        "network": None,
        "mac": "",
        "model": "virtio-net-pci",
        "link": True,
        "addresses": [],
    }


def test_taps_say_who_may_hold_them_and_who_does() -> None:
    found = by_name(told(lab())["taps"])
    assert sorted(found) == ["tap-vm1", "tap-vm2", "tap-vm2b", "tap-vm3", "tap-vm4"]
    assert found["tap-vm1"]["holders"] == [{"pid": 101, "program": "qemu-system-x86", "guest": "vm1"}]
    assert found["tap-vm3"]["holders"] == [{"pid": 999, "program": "socat", "guest": None}]
    assert found["tap-vm1"]["owner"] == "nobody"
    assert (found["tap-vm2b"]["guest"], found["tap-vm2b"]["nic"]) == ("vm2", 1)


def test_limits_to_networks_and_guests() -> None:
    found = _gather._limit(told(lab()), frozenset(["web"]), None)
    assert [network["name"] for network in found["networks"]] == ["web"]
    assert [bridge["name"] for bridge in found["bridges"]] == ["br-web"]
    assert [guest["name"] for guest in found["guests"]] == ["vm1", "vm2"]
    assert {rule["network"] for rule in found["rules"]} == {"web"}
    assert found["foreign_bridges"]
    assert found["host"]
    found = _gather._limit(told(lab()), None, frozenset(["vm2", "nobody"]))
    assert [guest["name"] for guest in found["guests"]] == ["vm2"]
    assert [tap["name"] for tap in found["taps"]] == ["tap-vm2", "tap-vm2b"]
    assert len(found["networks"]) == 4


def test_dhcp_servers_and_leases() -> None:
    found = told(lab())
    server = by_name(found["networks"])["web"]["dhcp"]
    assert (server["running"], server["pid"], server["domain"], server["dns"]) == (True, 81, "web.lab", True)
    assert server["ranges"] == [{"start": "192.168.6.2", "end": "192.168.6.254"}]
    assert [lease["guest"] for lease in found["leases"]] == ["vm1"]


def test_static_leases_without_an_address_or_a_name() -> None:
    assert reservations("52:54:00:00:00:01,vm1\n52:54:00:00:00:02,10.0.0.2\n") == [
        ("52:54:00:00:00:01", None, "vm1"),
        ("52:54:00:00:00:02", "10.0.0.2", None),
    ]


def test_nothing_is_nothing() -> None:
    found = told(Seen())
    assert found.pop("host")["firewalls"] is None
    assert found == {subset: [] for subset in _gather.SUBSETS if subset != "host"}


def test_a_segment_without_bridge_is_the_tap() -> None:
    seen = lab()
    links = {**seen.links, "tap-vm3": dataclasses.replace(seen.links["tap-vm3"], master=None)}
    who = Who(dataclasses.replace(seen, links=links))
    plug = who.at_tap("tap-vm3")
    assert plug is not None
    assert (who.segment(plug.nic), who.bridge(plug.nic)) == ("tap-vm3", None)


# Reading


def test_a_part_that_cannot_be_read_is_a_warning_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> t.NoReturn:
        raise SystemFailure("it is on fire.")

    monkeypatch.setattr(_readers, "rules", broken)
    monkeypatch.setattr(_readers, "network", lambda _wanted: {"links": {"br0": link("br0", "bridge", owner="lab")}})
    warnings: list[str] = []
    seen = _gather._read({"rules"}, warnings.append)
    assert warnings == ["rules: it is on fire."]
    assert (seen.rules, list(seen.links)) == (None, ["br0"])


def test_only_what_is_needed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_gather, "_part", lambda part, _reader, _warn, otherwise: asked.append(part) or otherwise)
    params = {"gather": ["guests"], "networks": None, "guests": None, "agent": False, "timeout": 1.0}
    _gather.gather(params, [])
    assert asked == ["links", "guests", "servers"]


@pytest.mark.parametrize(("option", "value"), [("timeout", 0), ("networks", ["a b"]), ("guests", ["../x"])])
def test_options_that_make_no_sense_are_refused(option: str, value: t.Any) -> None:
    params = {"gather": ["leases"], "networks": None, "guests": None, "agent": False, "timeout": 1.0, option: value}
    with pytest.raises(InvalidInput, match=option):
        _gather.gather(params, [])
