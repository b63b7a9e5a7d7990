# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The uplink moves under a bridge and back, whole; what is not confirmed goes back by itself."""

from __future__ import annotations

import hashlib
import json
import pathlib
import typing as t

import pytest
from support.hosts import Host, await_condition
from support.uplinks import (
    ADDRESS,
    ADDRESS6,
    GATEWAY,
    GATEWAY6,
    LAN_UP,
    MESSY,
    await_phase,
    begin,
    confirm,
    difference,
    identity,
    move,
    options,
    phase,
    reaches,
    state,
    uplink_host,
)


@pytest.fixture
def plain(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    with uplink_host(python_path, interpreter) as host:
        yield host


@pytest.fixture
def messy(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    with uplink_host(python_path, interpreter, MESSY) as host:
        yield host


def renamed(lines: t.Sequence[str], old: str, new: str) -> list[str]:
    return sorted(line.replace(old, new) for line in lines)


def layer3(host: Host) -> list[str]:
    """Routes, rules and neighbours, without those that every interface has."""
    script = "ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; ip neigh show nud permanent; "
    script += "ip -6 neigh show nud permanent; ip neigh show proxy"
    lines = host.out("sh", "-c", script).splitlines()
    return [
        " ".join(line.split()).partition(" expires ")[0]
        for line in lines
        if "ff00::/8" not in line and " dev lo " not in f"{line} "
    ]


def address_lines(host: Host, name: str) -> list[dict[str, t.Any]]:
    shown = host.json("ip", "-d", "-j", "addr", "show", "dev", name)[0]["addr_info"]
    for address in shown:
        for key in ("valid_life_time", "preferred_life_time"):
            address[key] = "ever" if address.get(key) == 2**32 - 1 else "ends"
    return t.cast("list[dict[str, t.Any]]", shown)


def test_everything_is_on_the_bridge_afterwards_exactly(messy: Host) -> None:
    addresses = address_lines(messy, "eth0")
    before = layer3(messy)
    link = messy.link("eth0") or {}
    result = move(messy, accept_risk=True)
    assert result["changed"]
    moved = address_lines(messy, "br0")
    assert [{**each, "label": str(each.get("label")).replace("br0", "eth0")} for each in moved] == [
        {**each, "label": str(each.get("label"))} for each in addresses
    ]
    assert address_lines(messy, "eth0") == []
    assert sorted(layer3(messy)) == renamed(before, "eth0", "br0")
    bridge = messy.link("br0") or {}
    assert (bridge["address"], bridge["mtu"], bridge["ifalias"]) == (link["address"], 1480, "labspan.vmnet:br0")
    assert bridge["linkinfo"]["info_data"]["stp_state"] == bridge["linkinfo"]["info_data"]["mcast_snooping"] == 0
    settings = ("arp_ignore", "rp_filter")
    assert [messy.sysctl(f"net/ipv4/conf/br0/{name}") for name in settings] == ["1", "1"]
    assert messy.sysctl("net/ipv4/neigh/br0/gc_stale_time") == "77"
    assert reaches(messy, GATEWAY)
    assert reaches(messy, GATEWAY6)
    assert messy.link("labspan-c0") is None


def test_there_and_back_is_as_before(messy: Host) -> None:
    before = state(messy)
    move(messy, accept_risk=True)
    assert state(messy) != before
    result = move(messy, state="absent", accept_risk=True)
    assert result["changed"]
    assert state(messy) == before


def test_what_is_not_confirmed_goes_back_by_itself(messy: Host) -> None:
    before = state(messy)
    pending = begin(messy, confirm_timeout=10, accept_risk=True)["pending"]
    assert phase(messy, pending["transaction"]) == "moved"
    assert messy.addresses("eth0") == []
    await_phase(messy, pending["transaction"], "rolled back")
    assert state(messy) == before
    late = messy.module("bridge_uplink", options(transaction=pending["transaction"], step="confirm"))
    assert late["failed"]
    assert "rolled back" in late["msg"]
    assert "not confirmed" in late["msg"]


def test_what_is_confirmed_stays(plain: Host) -> None:
    pending = begin(plain)
    assert confirm(plain, pending)["changed"]
    transaction = pending["pending"]["transaction"]
    # The dead-man looks every tenth of a second, and has nothing more to do.
    await_condition(lambda: "rollback.pyz" not in plain.out("ps", "-eo", "args"), "the end of the dead-man")
    assert phase(plain, transaction) == "confirmed"
    assert plain.addresses("br0")[:1] == [f"{ADDRESS}/24"]
    again = confirm(plain, pending)
    assert (again["changed"], again["phase"]) == (False, "confirmed")


def test_a_rerun_is_silent_and_check_mode_writes_nothing(plain: Host) -> None:
    before = plain.dump()
    predicted = plain.converge("bridge_uplink", options(), check=True)
    assert plain.dump() == before
    result = move(plain)
    assert predicted["actions"] == result["actions"]
    assert predicted["uplink"] == result["uplink"]
    with plain.monitored() as heard:
        again = plain.converge("bridge_uplink", options(transaction=identity()))
    assert (again["changed"], again["actions"], heard) == (False, [], [])
    assert "pending" not in again


def test_the_sentences_tell_the_whole_move(messy: Host) -> None:
    actions = messy.converge("bridge_uplink", options(accept_risk=True), check=True)["actions"]
    for text in (
        f"Move {ADDRESS}/24 from eth0 to br0",
        "Move the route 'default via 192.0.2.1 dev eth0' to br0",
        "Move the rule '900: iif eth0 lookup 100' to br0",
        "Move the neighbour 192.0.2.77 lladdr 02:00:00:00:00:77 to br0",
        "Make eth0 a port of br0",
    ):
        assert text in actions


def test_a_gateway_that_falls_silent_takes_the_host_back_at_once(plain: Host) -> None:
    before = state(plain)
    result = begin(plain, confirm_timeout=60)
    assert result["gateways"] == [GATEWAY, GATEWAY6]
    plain.run("ip", "-n", "lan", "link", "set", "uplink", "down")
    await_phase(plain, result["pending"]["transaction"], "rolled back")
    plain.run("sh", "-c", LAN_UP)
    assert state(plain) == before
    late = confirm(plain, result)
    assert "no longer answer" in late["msg"]


def test_a_second_run_meanwhile_is_refused(plain: Host) -> None:
    pending = begin(plain)
    second = plain.module("bridge_uplink", options(transaction=identity()))
    assert second["failed"]
    assert pending["pending"]["transaction"] in second["msg"]
    assert confirm(plain, pending)["phase"] == "confirmed"


def test_what_was_begun_by_hand_is_finished(plain: Host) -> None:
    """As the notes have it: the card is in the bridge, the address still on the card."""
    plain.run("sh", "-c", "ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0")
    move(plain, mac="keep")
    assert plain.addresses("eth0") == []
    assert set(plain.addresses("br0")) == {f"{ADDRESS}/24", f"{ADDRESS6}/64"}
    assert reaches(plain, GATEWAY)
    assert reaches(plain, GATEWAY6)


def test_a_bridge_that_is_there_gets_the_cards_mac_address_and_its_own_again(plain: Host) -> None:
    own = "52:54:00:00:00:77"
    plain.run("sh", "-c", f"ip link add br0 address {own} type bridge; ip link set br0 up; ip link set eth0 master br0")
    card = (plain.link("eth0") or {})["address"]
    pending = begin(plain, confirm_timeout=10)
    assert (plain.link("br0") or {})["address"] == card
    await_phase(plain, pending["pending"]["transaction"], "rolled back")
    assert (plain.link("br0") or {})["address"] == own
    # The twins: one that is named, and the one that it has.
    move(plain, mac="52:54:00:00:00:78")
    assert (plain.link("br0") or {})["address"] == "52:54:00:00:00:78"
    assert not plain.converge("bridge_uplink", options(transaction=identity(), mac="keep"))["changed"]


def test_static_addresses_take_the_place_of_the_cards(plain: Host) -> None:
    wanted = {"address_mode": "static", "addresses": ["192.0.2.20/24", "2001:db8:1::20/64"]}
    wanted["gateway"] = [GATEWAY, GATEWAY6]
    move(plain, **wanted)
    assert plain.addresses("br0") == ["192.0.2.20/24", "2001:db8:1::20/64"]
    defaults = [route["gateway"] for route in plain.json("ip", "-j", "route", "show", "default")]
    assert defaults == [GATEWAY]
    assert reaches(plain, GATEWAY)
    assert reaches(plain, GATEWAY6)
    again = plain.converge("bridge_uplink", options(transaction=identity(), **wanted))
    assert not again["changed"]
    # Others later come to those, and take nothing from the bridge.
    wanted["addresses"] = ["192.0.2.21/24", "2001:db8:1::21/64"]
    move(plain, **wanted)
    assert set(wanted["addresses"]) <= set(plain.addresses("br0"))
    assert reaches(plain, GATEWAY6)


def test_a_host_may_have_no_address_on_the_lan_of_its_guests(plain: Host) -> None:
    plain.run("sh", "-c", "ip -4 addr flush dev eth0; ip -6 addr flush dev eth0 scope global; ip -6 route flush all")
    plain.settle()
    before = state(plain)
    move(plain, address_mode="none")
    assert plain.addresses("br0") == plain.addresses("eth0", link_local=True) == []
    assert (plain.link("eth0") or {})["master"] == "br0"
    assert not plain.converge("bridge_uplink", options(transaction=identity(), address_mode="none"))["changed"]
    move(plain, state="absent", address_mode="none")
    assert plain.link("br0") is None
    assert difference(state(plain), before) == []


@pytest.mark.slow
def test_with_spanning_tree_the_gateways_are_waited_for(plain: Host) -> None:
    result = move(plain, stp=True, forward_delay=2, confirm_timeout=60)
    assert result["gateways"] == [GATEWAY, GATEWAY6]
    assert (plain.link("br0") or {})["linkinfo"]["info_data"]["stp_state"] == 1
    assert reaches(plain, GATEWAY)


def test_the_bridge_stays_while_guests_are_on_it(plain: Host) -> None:
    move(plain)
    plain.run("sh", "-c", "ip tuntap add tap0 mode tap; ip link set tap0 master br0")
    message = plain.refuse("bridge_uplink", options(transaction=identity(), state="absent"))
    assert "tap0" in message
    # In check mode an earlier task may only have pretended to remove it.
    assert plain.converge("bridge_uplink", options(state="absent"), check=True)["changed"]
    move(plain, state="absent", force=True)
    assert plain.link("br0") is None
    assert plain.addresses("eth0")[:1] == [f"{ADDRESS}/24"]


@pytest.mark.one_interpreter
def test_what_not_everybody_may_read_is_not_shown(plain: Host) -> None:
    """A profile may hold a key; its checksum is enough to see that it changes."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    record = {
        "bridge": "br0",
        "interface": "eth0",
        "network": "br0",
        "created": True,
        "files": [
            {
                "before": {"path": "/run/secret", "content": "psk=SECRET\n", "mode": 0o600},
                "digest": digest("psk=SECRET2\n"),
            },
            {"before": {"path": "/run/open", "content": "one\ntwo\n", "mode": 0o644}, "digest": digest("one\n")},
        ],
    }
    move(plain)
    script = "cat > /var/lib/labspan/uplink/br0.json; install -m 600 /dev/null /run/secret; touch /run/open"
    plain.run("sh", "-c", script, stdin=json.dumps(record))
    plain.run("sh", "-c", "echo psk=SECRET2 > /run/secret; echo one > /run/open")
    shown = plain.converge("bridge_uplink", options(state="absent"), check=True)
    assert "SECRET" not in json.dumps(shown)
    assert shown["diff"]["after"]["uplinks"]["br0"]["files"]["/run/open"] == ["one", "two"]
    assert "Bring back /run/secret" in shown["actions"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"interface": "br0"}, "bridge"),
        ({"interface": "nosuch0"}, "nosuch0"),
        ({"addresses": ["192.0.2.20/24"]}, "addresses"),
        ({"address_mode": "static"}, "addresses"),
        ({"address_mode": "none"}, "address_mode: none"),
        ({"address_mode": "static", "addresses": ["192.0.2.20/24"], "gateway": ["192.0.2.1"]}, "IPv6 gateway"),
        ({"dns": ["192.0.2.1"]}, "dns"),
        ({"probe": ["foo"]}, "probe"),
        ({"confirm_timeout": 1}, "confirm_timeout"),
        ({"stp": True, "confirm_timeout": 30}, "confirm_timeout"),
        ({"persistent": True}, "persistent"),
        ({"transaction": "../x"}, "transaction"),
        ({"bridge": "lo"}, "bridge"),
    ],
)
@pytest.mark.one_interpreter
def test_what_cannot_be_is_refused_with_a_sentence(plain: Host, wrong: dict[str, t.Any], words: str) -> None:
    assert words in plain.refuse("bridge_uplink", options(**{"transaction": identity(), **wrong}))


def test_nobody_guards_a_move_that_its_own_host_begins_in_an_ssh_login(plain: Host) -> None:
    login = {"SSH_CONNECTION": f"192.0.2.7 50022 {ADDRESS.partition('/')[0]} 22"}
    here = options(transaction=identity(), local=True)
    refused = plain.refuse("bridge_uplink", here, environment=login)
    assert "for somebody who came in over SSH (192.0.2.7:50022 to " in refused
    # Its twin: accepted, it is confirmed by itself.
    for more in ({}, {"state": "absent"}):
        asked = {**here, **more, "accept_risk": True, "transaction": identity()}
        assert "pending" in plain.converge("bridge_uplink", asked, environment=login)
        assert plain.module("bridge_uplink", {**asked, "step": "confirm"}, environment=login)["phase"] == "confirmed"
    assert plain.link("br0") is None
