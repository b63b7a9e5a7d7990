# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The planner of all that belongs to networks: any state becomes any other, in an order that is safe on the way."""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _nft_text, _parts, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._parts import (
    File,
    Flows,
    Part,
    PartChange,
    Setting,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Network, PortForward
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Jump, Own, Place, World
from hypothesis import given
from hypothesis import strategies as st

TABLE = _parts.table_key("lab")
PLACE = Place(World("nft", 4), "filter", "lab")
RECORD = File("/var/lib/labspan/forwarding.json")
BRIDGE = Setting("net/ipv4/conf/br0/forwarding")
GONE = Setting("net/ipv4/conf/br9/forwarding")
ORDER: tuple[Part, ...] = (GONE, RECORD, BRIDGE)

tables = st.sampled_from(["table one", "table two"])
owns = st.sampled_from(
    [
        Own((("LABSPAN-lab-FWD", ()),), (Jump("FORWARD", "LABSPAN-lab-FWD"),)),
        Own((("LABSPAN-lab-ACC", ()),), (Jump("FORWARD", "LABSPAN-lab-ACC", False),)),
    ]
)


def states() -> st.SearchStrategy[dict[Part, t.Any]]:
    settings: dict[Part, t.Any] = {part: st.sampled_from(["0", "1"]) for part in (BRIDGE, GONE)}
    rest: dict[Part, t.Any] = {TABLE: tables, PLACE: owns, RECORD: st.sampled_from(["a", "b"])}
    return st.fixed_dictionaries(settings, optional=rest)


def applied(state: t.Mapping[Part, t.Any], changes: t.Sequence[PartChange]) -> dict[Part, t.Any]:
    after = dict(state)
    for change in changes:
        assert change.part is not None
        if not isinstance(change.part, Flows):
            assert after.get(change.part) == change.before
            after[change.part] = change.after
    return {part: value for part, value in after.items() if value is not None}


@given(states(), states())
def test_any_state_becomes_any_other_and_back(have: dict[Part, t.Any], want: dict[Part, t.Any]) -> None:
    changes = _parts.changes(have, want, ORDER)
    assert applied(have, changes) == want
    assert _parts.changes(want, want, ORDER) == []
    back = [t.cast(PartChange, change.inverse()) for change in reversed(changes)]
    assert applied(want, back) == have


@given(states(), states())
def test_no_guest_is_open_on_the_way(have: dict[Part, t.Any], want: dict[Part, t.Any]) -> None:
    parts = [change.part for change in _parts.changes(have, want, ORDER)]
    arriving = [part for part in parts if isinstance(part, (Place, type(TABLE))) and want.get(part)]
    leaving = [part for part in parts if isinstance(part, (Place, type(TABLE))) and not want.get(part)]
    if BRIDGE in parts:
        assert all(parts.index(part) < parts.index(BRIDGE) for part in arriving)
        assert all(parts.index(part) > parts.index(BRIDGE) for part in leaving)
    if GONE in parts and RECORD in parts:
        assert parts.index(GONE) < parts.index(RECORD)


def test_flows_of_old_and_new_subnets_and_guests_are_forgotten() -> None:
    forward = PortForward("tcp", None, "80", "10.1.0.5", "80")
    old = _nft_text.table(Network("lab", "br0", ("10.0.0.0/24", "fd00::/64"), "eth0", "eth0"))
    new = _nft_text.table(Network("lab", "br0", ("10.1.0.0/24",), "eth0", None, port_forwards=(forward,)))
    flows = [change.part for change in _parts.changes({TABLE: old}, {TABLE: new}, ()) if isinstance(change.part, Flows)]
    assert {flow.address for flow in flows if flow.direction == "--orig-src"} == {
        "10.0.0.0/24",
        "10.1.0.0/24",
        "fd00::/64",
    }
    assert {flow.address for flow in flows if flow.direction == "--reply-src"} == {"10.1.0.5"}


def test_subnets_and_guests_are_read_from_rules_of_iptables_too() -> None:
    lines = ["-s 10.0.0.0/24 -j ACCEPT", "-s 0.0.0.0/32 -j ACCEPT", "-j DNAT --to-destination 10.0.0.5:80"]
    lines += ["-j DNAT --to-destination [fd00::5]:80", "-j DNAT --to-destination fd00::6"]
    own = Own((("LABSPAN-lab-PRE", tuple(_xtables.options(line.split()) for line in lines)),))
    assert _parts.subnets_in(own) == ["10.0.0.0/24"]
    assert _parts.guests_in(own) == ["10.0.0.5", "fd00::5", "fd00::6"]
