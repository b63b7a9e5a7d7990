# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import ipaddress
import json
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _bridge_plan, _bridge_state, _links
from ansible_collections.labspan.vmnet.plugins.module_utils._adoption import Record
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_plan import Surroundings, WantedBridge
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import AddressChange, Bridge
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attachment
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Address, Vlan, new_address
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from hypothesis import assume, given
from hypothesis import strategies as st

OURS = "labspan.vmnet:lab"
UNFINISHED = _links.unfinished(OURS)
MAC = "02:00:00:00:00:99"
CLOSED = ("table inet closed", "table arp closed")
AROUND = Surroundings(boot="boot", closed=CLOSED, closed_now=None, owners=dict.fromkeys(["v0", "v1", "t0"]))
CIDR = ("10.0.0.1/24", "10.0.0.2/24", "10.1.0.1/16", "fd00::1/64", "fd01::1/64")


def address(cidr: str) -> Address:
    return new_address("br0", ipaddress.ip_interface(cidr))


def wish(**options: t.Any) -> WantedBridge:
    return WantedBridge(**{"name": "br0", "network": "lab", "default_mac": MAC, **options})


def plan(have: t.Optional[Bridge], want: WantedBridge, around: Surroundings = AROUND) -> list[Change]:
    return _bridge_plan.plan_bridge(have, want, around)


def sentences(changes: t.Iterable[Change]) -> list[str]:
    return [change.sentence for change in changes]


flags = st.booleans()
address_sets = st.lists(st.sampled_from(CIDR), unique=True, max_size=4)
port_sets = st.lists(st.sampled_from(["v0", "v1", "t0"]), unique=True)
vlan_sets = st.frozensets(st.builds(Vlan, st.integers(1, 4), st.just(False), flags), max_size=2)
settings = st.fixed_dictionaries(
    {},
    optional={
        "mtu": st.sampled_from([1500, 1400]),
        "mac_address": st.sampled_from([MAC, "02:00:00:00:00:98"]),
        "stp": flags,
        "forward_delay": st.sampled_from([200, 1500]),
        "priority": st.sampled_from([0, 32768]),
        "ageing_time": st.just(0),
        "multicast_snooping": flags,
        "vlan_filtering": flags,
        "vlan_default_pvid": st.just(0),
    },
)


@st.composite
def bridges(draw: st.DrawFn) -> Bridge:
    ipv6 = draw(flags)
    cidr = [each for each in draw(address_sets) if ipv6 or ":" not in each]
    local = ["fe80::1/64"] if ipv6 and draw(flags) else []
    bridge = Bridge(
        name="br0",
        mac_address=draw(st.sampled_from([MAC, "02:00:00:00:00:97"])),
        alias=draw(st.sampled_from(["", "by hand", OURS, UNFINISHED])),
        enabled=draw(flags),
        mtu=draw(st.sampled_from([1500, 9000])),
        stp=draw(flags),
        multicast_snooping=draw(flags),
        vlan_default_pvid=1,
        ipv6=ipv6,
        addresses=tuple(address(each) for each in [*cidr, *local]),
        ports={port: Attachment("br0") for port in draw(port_sets)},
        index=7,
    )
    if bridge.alias == OURS and draw(flags):
        found = dataclasses.replace(draw(plain_bridges()), name="br0", index=7)
        record = Record("br0", "lab", 7, "boot", json.loads(json.dumps(_bridge_state.found_state(found))))
        bridge = dataclasses.replace(bridge, adopted=record)
    return bridge


def plain_bridges() -> st.SearchStrategy[Bridge]:
    return st.builds(
        Bridge,
        name=st.just("br0"),
        mac_address=st.just(MAC),
        alias=st.sampled_from(["", "by hand"]),
        enabled=flags,
        stp=flags,
        multicast_snooping=flags,
        vlan_default_pvid=st.just(1),
        addresses=address_sets.map(lambda found: tuple(address(each) for each in found)),
        ports=port_sets.map(lambda found: {port: Attachment("br0", isolated=True) for port in found}),
        index=st.just(7),
    )


@st.composite
def wishes(draw: st.DrawFn, present: bool = True) -> WantedBridge:
    host_access = draw(st.none() | flags)
    cidr = None if host_access is False else draw(st.none() | address_sets)
    return wish(
        present=present,
        settings=draw(settings),
        enabled=draw(st.none() | flags),
        host_access=host_access,
        addresses=None if cidr is None else tuple(ipaddress.ip_interface(each) for each in cidr),
        exclusive_addresses=draw(flags),
        ports=draw(st.none() | port_sets.map(tuple)),
        exclusive_ports=draw(flags),
        vlans=draw(st.none() | vlan_sets),
        force=True,
    )


def seen(bridge: t.Optional[Bridge], want: WantedBridge) -> tuple[t.Optional[Bridge], Surroundings]:
    """What a read would bring for this task: some things are only looked at when somebody asks."""
    closed = () if want.host_access is not None or not want.present else None
    around = dataclasses.replace(AROUND, closed_now=closed, taps=frozenset({"t0"}))
    if bridge is None:
        return None, around
    vlans = bridge.vlans if bridge.vlans is not None or want.vlans is None else frozenset([Vlan(1, True, True)])
    return dataclasses.replace(bridge, closed=bridge.closed or closed, vlans=vlans), around


def comparable(bridge: t.Optional[Bridge]) -> t.Any:
    if bridge is None:
        return None
    plain = dataclasses.replace(bridge, addresses=(), index=0)
    return plain, {_bridge_state.address_key(each) for each in bridge.addresses}


def valid(bridge: t.Optional[Bridge], want: WantedBridge) -> bool:
    delay = want.settings.get("forward_delay", bridge.forward_delay if bridge else 1500)
    stp = want.settings.get("stp", bridge.stp if bridge else False)
    return not stp or 200 <= delay <= 3000


@given(st.none() | bridges(), wishes())
def test_any_bridge_reaches_any_wish_and_then_rests(have: t.Optional[Bridge], want: WantedBridge) -> None:
    assume(valid(have, want))
    have, around = seen(have, want)
    then = _bridge_state.state_after(have, plan(have, want, around))
    assert then is not None
    # Read back, it has an index, and on a kernel with VLANs a default one.
    pvid = 1 if then.vlan_default_pvid is None else 0
    read = dataclasses.replace(then, index=7, vlan_default_pvid=then.vlan_default_pvid or pvid)
    assert sentences(plan(read, want, around)) == []
    assert_fulfilled(then, want, have)


def assert_fulfilled(bridge: Bridge, want: WantedBridge, have: t.Optional[Bridge]) -> None:
    for key, value in want.settings.items():
        assert getattr(bridge, key) == value
    assert want.enabled in (None, bridge.enabled)
    cidr = {each.address for each in bridge.addresses if not _bridge_state.is_link_local(each)}
    if want.addresses is not None:
        assert set(want.addresses) <= cidr
        assert cidr == set(want.addresses) or not want.exclusive_addresses
    if want.ports is not None:
        assert set(want.ports) <= set(bridge.ports)
        assert not want.exclusive_ports or set(bridge.ports) - {"t0"} <= set(want.ports)
    if want.host_access is False:
        assert (bridge.closed, bridge.ipv6, cidr) == (CLOSED, False, set())
    if want.host_access:
        assert bridge.closed == ()
    if have is None and want.enabled is None:
        assert bridge.enabled
    assert want.vlans in (None, bridge.vlans)


@given(st.none() | bridges(), wishes() | wishes(present=False))
def test_undoing_every_change_in_reverse_gives_what_was(have: t.Optional[Bridge], want: WantedBridge) -> None:
    assume(valid(have, want))
    have, around = seen(have, want)
    changes = plan(have, want, around)
    there = _bridge_state.state_after(have, changes)
    back = _bridge_state.state_after(there, [change.inverse() for change in reversed(changes)])
    assert comparable(back) == comparable(have)


@given(plain_bridges(), wishes())
def test_an_adopted_bridge_goes_back_to_what_it_was(found: Bridge, want: WantedBridge) -> None:
    assume(valid(found, want))
    have, around = seen(found, want)
    assert have is not None
    changes = plan(have, want, around)
    adopted = t.cast(Bridge, _bridge_state.state_after(have, changes))
    assert adopted.adopted is not None
    gone, around = seen(adopted, wish(present=False, ports=want.ports))
    around = dataclasses.replace(around, attached=adopted.ports, closed_now=gone.closed if gone else ())
    back = _bridge_state.state_after(gone, plan(gone, wish(present=False, ports=want.ports), around))
    assert back is not None
    assert comparable(dataclasses.replace(back, closed=None, vlans=None)) == comparable(
        dataclasses.replace(found, closed=None, vlans=None)
    )
    assert [each.address for each in back.addresses] == [each.address for each in found.addresses]


@given(bridges())
def test_the_record_of_a_bridge_survives_its_file(bridge: Bridge) -> None:
    record = Record("br0", "lab", 7, "boot", json.loads(json.dumps(_bridge_state.found_state(bridge))))
    assert _bridge_state.restored(record) == dataclasses.replace(bridge, adopted=None)


@given(st.none() | bridges(), wishes())
def test_there_is_no_moment_in_which_a_closed_host_answers(have: t.Optional[Bridge], want: WantedBridge) -> None:
    want = dataclasses.replace(want, host_access=False)
    assume(valid(have, want))
    have, around = seen(have, want)
    changes = plan(have, want, around)
    for length in range(len(changes) + 1):
        state = _bridge_state.state_after(have, changes[:length])
        opened = state is not None and state.enabled and state.closed != CLOSED
        assert not opened or (have is not None and have.enabled)
        if state is not None and state.enabled and have is None:
            assert (state.ipv6, state.addresses) == (False, ())


HAVE = Bridge("br0", mac_address=MAC, alias=OURS, enabled=True, vlan_default_pvid=1, index=7)


def test_a_new_bridge_is_made_down_and_comes_up_last() -> None:
    changes = plan(None, wish(addresses=(ipaddress.ip_interface("10.0.0.1/24"),), ports=("v0",)))
    assert sentences(changes) == [
        "Create bridge br0",
        "Add the address 10.0.0.1/24 to bridge br0",
        "Attach interface v0 to bridge br0",
        "Bring bridge br0 up",
    ]
    assert changes[0].after.mac_address == MAC
    assert changes[0].after.multicast_snooping is False


@pytest.mark.parametrize("enabled", [None, True, False])
def test_a_bridge_that_a_killed_run_has_left_is_finished(enabled: t.Optional[bool]) -> None:
    have = dataclasses.replace(HAVE, alias=UNFINISHED, enabled=False, accept_ra=True)
    changes = plan(have, wish(enabled=enabled))
    up = [] if enabled is False else ["Bring bridge br0 up"]
    assert sentences(changes) == [
        "Turn accept ra off on bridge br0",
        *up,
        "Mark bridge br0 as finished, after a run that was ended before it was",
    ]
    for length in range(len(changes)):
        state = _bridge_state.state_after(have, changes[:length])
        assert sentences(plan(state, wish(enabled=enabled))) == sentences(changes[length:])
    assert plan(_bridge_state.state_after(have, changes), wish()) == []


def test_an_existing_bridge_keeps_its_mac_and_snooping() -> None:
    have = dataclasses.replace(HAVE, mac_address="02:00:00:00:00:01", multicast_snooping=True)
    assert plan(have, wish()) == []


def test_removing_a_primary_address_keeps_its_secondaries() -> None:
    have = dataclasses.replace(HAVE, addresses=(address("10.0.0.1/24"), address("10.1.0.1/16")))
    changes = plan(have, wish(addresses=(ipaddress.ip_interface("10.0.0.2/24"), ipaddress.ip_interface("10.1.0.1/16"))))
    assert sentences(changes) == [
        "Add the address 10.0.0.2/24 to bridge br0",
        "Remove the address 10.0.0.1/24 from bridge br0",
    ]
    removal = changes[1]
    assert isinstance(removal, AddressChange)
    assert removal.secondaries == (address("10.0.0.2/24"),)


def test_addresses_that_are_not_listed_stay_when_the_list_is_not_exclusive() -> None:
    have = dataclasses.replace(HAVE, addresses=(address("10.0.0.1/24"),))
    want = wish(addresses=(ipaddress.ip_interface("10.1.0.1/16"),), exclusive_addresses=False)
    assert sentences(plan(have, want)) == ["Add the address 10.1.0.1/16 to bridge br0"]


def test_link_local_addresses_are_never_removed() -> None:
    have = dataclasses.replace(HAVE, addresses=(address("fe80::1/64"),))
    assert plan(have, wish(addresses=())) == []


def test_an_ipv6_address_is_not_lost_when_the_bridge_goes_down() -> None:
    have = dataclasses.replace(HAVE, addresses=(address("fd00::1/64"),))
    assert sentences(plan(have, wish(enabled=False))) == [
        "Remove the address fd00::1/64 from bridge br0",
        "Bring bridge br0 down",
        "Add the address fd00::1/64 to bridge br0",
    ]


def test_stp_goes_off_before_a_delay_that_it_does_not_allow() -> None:
    have = dataclasses.replace(HAVE, stp=True)
    assert sentences(plan(have, wish(settings={"stp": False, "forward_delay": 0}))) == [
        "Turn stp off on bridge br0",
        "Set the forward delay of bridge br0 from 15 to 0 seconds",
    ]


def test_taps_are_not_taken_off_by_an_exclusive_list_of_ports() -> None:
    have = dataclasses.replace(HAVE, ports={port: Attachment("br0") for port in ("t0", "v0")})
    around = dataclasses.replace(AROUND, taps=frozenset({"t0"}))
    changes = plan(have, wish(ports=("v1",), exclusive_ports=True), around)
    assert sentences(changes) == ["Take interface v0 off bridge br0", "Attach interface v1 to bridge br0"]


def test_a_bridge_with_ports_of_others_is_not_removed() -> None:
    have = dataclasses.replace(HAVE, ports={"v0": Attachment("br0"), "t0": Attachment("br0")})
    around = dataclasses.replace(AROUND, owners={"v0": None, "t0": "lab"})
    with pytest.raises(Refused, match="v0") as caught:
        plan(have, wish(present=False), around)
    assert caught.value.details["foreign_ports"] == ["v0"]
    for accepted in (wish(present=False, force=True), wish(present=False, ports=("v0",))):
        assert sentences(plan(have, accepted, around))[-1] == "Delete bridge br0"


@pytest.mark.parametrize(
    ("have", "want", "words"),
    [
        (dataclasses.replace(HAVE, alias="labspan.vmnet:other"), wish(), "belongs to the network 'other'"),
        (dataclasses.replace(HAVE, alias=""), wish(adopt=False), "did not make it"),
        (
            dataclasses.replace(HAVE, vlan_default_pvid=None),
            wish(settings={"vlan_filtering": True}),
            "CONFIG_BRIDGE_VLAN_FILTERING",
        ),
        (
            dataclasses.replace(HAVE, multicast_querier=None),
            wish(settings={"multicast_querier": True}),
            "built without what bridge br0 needs",
        ),
        (
            dataclasses.replace(HAVE, ipv6=None),
            wish(addresses=(ipaddress.ip_interface("fd00::1/64"),)),
            "has no IPv6",
        ),
    ],
)
def test_what_is_not_ours_or_not_possible_is_refused(have: Bridge, want: WantedBridge, words: str) -> None:
    with pytest.raises(Refused, match=words):
        plan(have, want)


def test_a_forward_delay_that_stp_does_not_allow_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="forward_delay"):
        plan(HAVE, wish(settings={"stp": True, "forward_delay": 100}))
    assert plan(HAVE, wish(settings={"stp": True, "forward_delay": 200}))


def test_a_stale_record_is_forgotten_before_the_bridge_is_made() -> None:
    around = dataclasses.replace(AROUND, stale=Record("br0", "lab", 3, "boot", {}))
    assert sentences(plan(None, wish(), around))[:2] == ["Forget how bridge br0 was found", "Create bridge br0"]


def test_a_bridge_that_somebody_removed_leaves_no_closing_rules_behind() -> None:
    around = dataclasses.replace(AROUND, closed_now=CLOSED)
    assert sentences(plan(None, wish(present=False), around)) == ["Open the host on bridge br0"]
