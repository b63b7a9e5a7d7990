# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of guests' ports are the same for one port and for many; the sets hold what differs."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _nft
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_text as text
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._port_security_text import Port, PortFilter
from hypothesis import given
from hypothesis import strategies as st


def port(number: int, *addresses: str, known: bool = True, **fields: t.Any) -> Port:
    networks = tuple(ipaddress.ip_network(address) for address in addresses)
    return Port(f"tap{number}", f"52:54:00:00:00:{number:02x}", networks if known else None, **fields)


def table(*ports: Port, **fields: t.Any) -> str:
    return text.table(PortFilter("lan", "br0", ports, **fields))


def sets(made: str) -> dict[str, list[str]]:
    """The elements of each set of a table."""
    found = {}
    for name, body in re.findall(r"\tset (\w+) \{\n(.*?)\n\t\}", made, re.DOTALL):
        elements = re.search(r"elements = \{ (.*) \}", body)
        found[name] = elements.group(1).split(", ") if elements else []
    return found


def chains(made: str) -> dict[str, list[str]]:
    """The lines of each chain of a table."""
    found = re.findall(r"\tchain (\w+) \{\n(.*?)\n\t\}", made, re.DOTALL)
    return {name: [line.strip() for line in body.splitlines()] for name, body in found}


PORTS = st.builds(
    lambda addresses, known, flags: (addresses if known else None, flags),
    st.lists(st.sampled_from(["10.0.0.1/32", "2001:db8::1/128", "fe80::5/128"]), unique=True),
    st.booleans(),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


@given(st.lists(PORTS, max_size=8), st.booleans())
def test_the_number_of_rules_does_not_depend_on_the_ports(found: list[t.Any], drop: bool) -> None:
    made = [
        port(number, *(addresses or ()), known=addresses is not None, allow_ra=flags[0], allow_bpdu=flags[1])
        for number, (addresses, flags) in enumerate(found)
    ]
    assert chains(table(*made, drop_unlisted=drop)) == chains(table(drop_unlisted=drop))


@given(st.lists(PORTS, min_size=1, max_size=4))
def test_every_set_in_use_is_there_and_every_set_there_is_in_use(found: list[t.Any]) -> None:
    for extra in ((), (port(99, "10.0.0.0/24", "2001:db8::/64"),)):
        made = table(*(port(number, *(addresses or ())) for number, (addresses, _flags) in enumerate(found)), *extra)
        assert set(re.findall(r"@([a-z]\w*)\b(?!,)", re.sub(r"@th,", "", made))) == set(sets(made))
        reached = set(re.findall(r"goto (\w+)", made))
        assert set(chains(made)) - reached == {"prerouting", "input"}


def test_each_port_stands_in_the_sets_that_are_meant_for_it() -> None:
    made = sets(
        table(
            port(1, "10.0.0.1/32", "2001:db8::1/128"),
            port(2, known=False, allow_ra=True),
            port(3, "10.1.0.0/16", "2001:db8:1::/64", "fe80::5/128", ethertypes=(0x8100, 0x88CC), allow_bpdu=True),
            protected=(ipaddress.ip_address("10.0.0.254"), ipaddress.ip_address("fe80::1")),
        )
    )
    assert made["ports"] == ['"tap1"', '"tap2"', '"tap3"']
    assert made["macs"][1] == '"tap2" . 52:54:00:00:00:02'
    assert made["option_macs"][1] == '"tap2" . 0x525400000002'
    assert made["unknown"] == ['"tap2"']
    assert made["any_link_local"] == ['"tap1"', '"tap2"']
    assert made["allow_ra"] == ['"tap2"']
    assert made["allow_bpdu"] == ['"tap3"']
    assert made["allow_dhcp_server"] == []
    assert made["allow_ethertypes"] == ['"tap3" . 0x8100', '"tap3" . 0x88cc']
    assert made["addresses4"] == ['"tap1" . 10.0.0.1']
    assert made["prefixes4"] == ['"tap3" . 10.1.0.0/16']
    assert made["protected4"] == ["10.0.0.1", "10.0.0.254"]
    assert made["addresses6"] == [
        '"tap1" . 2001:db8::1',
        '"tap1" . fe80::5054:ff:fe00:1',
        '"tap2" . fe80::5054:ff:fe00:2',
        '"tap3" . fe80::5',
    ]
    assert made["targets"][0] == '"tap1" . 0x20010db8000000000000000000000001'
    assert made["target_prefixes"] == ['"tap3" . 0x20010db8000100000000000000000000-0x20010db800010000ffffffffffffffff']
    assert made["protected6"] == ["2001:db8::1", "fe80::1", "fe80::5", "fe80::5054:ff:fe00:1", "fe80::5054:ff:fe00:2"]
    assert len(made["protected_targets"]) == len(made["protected6"])


def test_the_link_local_address_of_a_mac_address() -> None:
    assert str(text.eui64("52:54:00:12:34:56")) == "fe80::5054:ff:fe12:3456"


def test_unlisted_taps_are_dropped_only_where_it_is_asked_for() -> None:
    rule = 'meta ibrname "br0" meta iifkind "tun" drop'
    assert table().count(rule) == 0
    assert table(drop_unlisted=True).count(rule) == 2


def test_the_table_is_known_as_ours_even_when_its_rules_were_flushed() -> None:
    whole = table(port(1))
    flushed = re.sub(r"(\tchain \w+ \{\n).*?(\n\t\})", r"\1\2", whole, flags=re.DOTALL)
    assert not _nft.is_strangers(whole, "lan")
    assert not _nft.is_strangers(flushed, "lan")
    assert _nft.is_strangers(whole, "dmz")
