# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lab hosts for tests of tables and drawings: a sample to look at, and any data of vmnet_info's shape."""

from __future__ import annotations

import pathlib
import typing as t

import yaml
from hypothesis import strategies as st

SAMPLE = pathlib.Path(__file__).parents[1] / "unit" / "plugins" / "plugin_utils" / "fleet.yml"

#: What names are made of, and what must not get out of them.
_NASTY = [
    "<b>&\"'",
    "]]>",
    '"]; click',
    "\x1b[2J",
    "a\nb",
    "日本語の名前",
    "e\u0301\u0301",
    "#35;",
    "`x`",
    "\u202eabc",
    "--x",
]
names = st.one_of(
    st.sampled_from(["web", "db-1", "x" * 15, "x" * 90, *_NASTY]),
    st.text(max_size=12),
    st.text(alphabet="mW@", max_size=30),
)
_bridges = st.sampled_from(["br0", "br1", "br2", "br3", "eth0"])
_macs = st.integers(0, 255).map("52:54:00:00:00:{:02x}".format)
_ips = st.sampled_from(
    ["10.0.0.1", "10.0.0.1/24", "192.168.100.200", "fd00::1", "fe80::1", "2001:db8:1:2:3:4:5:6", "?"]
)
_leases = st.one_of(
    st.none(), st.fixed_dictionaries({"address": _ips, "expires": st.sampled_from([None, "2026-11-21T23:10:02Z", "x"])})
)


def _some(**keys: st.SearchStrategy[t.Any]) -> st.SearchStrategy[dict[str, t.Any]]:
    """A dictionary in which anything may be missing or null."""
    return st.fixed_dictionaries(
        {}, optional={key: st.one_of(value, value, value, st.none()) for key, value in keys.items()}
    )


_neighbours = _some(
    mac=_macs, guest=names, name=names, addresses=st.lists(_ips, max_size=4), lease=_leases, heard=st.booleans()
)
_ports = _some(
    name=st.sampled_from([f"tap{number}" for number in range(9)]),
    kind=st.sampled_from(["tap", "uplink", "other"]),
    guest=names,
    nic=st.integers(0, 3),
    up=st.booleans(),
    carrier=st.booleans(),
    neighbours=st.lists(_neighbours, max_size=2),
)
_nics = _some(
    tap=st.sampled_from([f"tap{number}" for number in range(9)]),
    bridge=_bridges,
    network=names,
    mac=_macs,
    addresses=st.lists(st.fixed_dictionaries({"address": _ips, "source": st.just("lease")}), max_size=5),
)
guests = _some(
    name=names,
    state=st.sampled_from(["running", "paused", "stopped", "broken", "unknown"]),
    nics=st.lists(_nics, max_size=4),
    pending_restart=st.lists(st.just("memory is 1, wanted 2"), max_size=1),
)
_networks = _some(
    name=names,
    scenario=st.sampled_from(["private", "routed", "nat", "l2", "new"]),
    bridge=_bridges,
    addresses=st.lists(_ips, max_size=3),
    uplinks=st.lists(_bridges, max_size=2),
)
_found_bridges = _some(
    name=_bridges, network=names, by=names, addresses=st.lists(_ips, max_size=2), ports=st.lists(_ports, max_size=6)
)
_rules = _some(network=names, world=names, packets=st.integers(0, 2**63), bytes=st.integers(0, 2**63), text=names)
results = st.one_of(
    _some(
        host=_some(kernel=names, service_manager=names),
        networks=st.lists(_networks, max_size=4),
        bridges=st.lists(_found_bridges, max_size=4),
        guests=st.lists(guests, max_size=12),
        rules=st.lists(_rules, max_size=4),
        forward_blockers=st.lists(_some(text=names, chain=names), max_size=2),
    ),
    st.fixed_dictionaries({"unreachable": st.just(True), "msg": names}),
    st.fixed_dictionaries({"failed": st.just(True)}),
)
fleets = st.dictionaries(names, results, max_size=5)


def sample() -> dict[str, t.Any]:
    """Four hosts that show everything once."""
    hosts = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    return {name: host for name, host in hosts.items() if not name.startswith(".")}


def lab(networks: int, guests: int, several: int = 0) -> dict[str, t.Any]:
    """What a host returns that has so many networks and guests; each of the last ones has NICs on several networks."""
    scenarios = ("nat", "private", "l2", "routed")
    made = [
        {
            "name": f"net{number}",
            "scenario": scenarios[number % 4],
            "bridge": f"br{number}",
            "addresses": [f"10.0.{number}.1/24"],
            "uplinks": [] if number % 4 == 1 else ["eth0"],
        }
        for number in range(networks)
    ]
    return {
        "host": {"kernel": "6.12.9", "service_manager": "systemd"},
        "networks": made,
        "bridges": [],
        "guests": [_guest(number, networks, number >= guests - several) for number in range(guests)],
    }


def _guest(number: int, networks: int, has_several: bool) -> dict[str, t.Any]:
    on = range(number % networks, networks) if has_several else [number % networks]
    nics = [
        {
            "tap": f"tap{number}-{place}",
            "bridge": f"br{place}",
            "network": f"net{place}",
            "mac": f"52:54:00:00:{place:02x}:{number:02x}",
            "addresses": [{"address": f"10.0.{place}.{number + 10}", "source": "lease"}],
        }
        for place in on
    ]
    return {"name": f"guest-{number}", "state": "running" if number % 5 else "stopped", "nics": nics}
