# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a network may do, whatever its options: nothing gets in by accident, in any backend's language."""

from __future__ import annotations

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _nft_text, _rules, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import (
    Hook,
    HostAccess,
    Network,
    PortForward,
)
from hypothesis import given
from hypothesis import strategies as st

FORWARDS = (
    PortForward("tcp", None, "8080", "10.0.0.5", "80"),
    PortForward("udp", "192.0.2.1", "8000-8010", "10.0.0.5", "8000-8010"),
    PortForward("tcp", None, "8080", "fd00::5", "80"),
)

networks = st.builds(
    Network,
    name=st.sampled_from(["lab", "a-very-long-name-of-a-network"]),
    bridge=st.just("br0"),
    sources=st.lists(st.sampled_from(["10.0.0.0/24", "10.1.0.0/16", "fd00::/64"]), unique=True).map(tuple),
    uplink4=st.sampled_from([None, "eth0"]),
    uplink6=st.sampled_from([None, "eth0", "wlan0"]),
    masquerade=st.booleans(),
    towards_bridge=st.booleans(),
    exclude=st.sampled_from([(), ("192.168.0.0/16",), ("fd01::/48",)]),
    to_ports=st.sampled_from([None, "1024-65535"]),
    random=st.booleans(),
    lan_access=st.booleans(),
    host_access=st.sampled_from(HostAccess),
    host_services=st.booleans(),
    port_forwards=st.lists(st.sampled_from(FORWARDS), unique=True).map(tuple),
)


def chain(network: Network, hook: Hook) -> tuple[_rules.Rule, ...]:
    return next((made.rules for made in _rules.chains(network) if made.hook is hook), ())


@given(networks)
def test_what_crosses_the_bridge_is_dropped_at_the_end(network: Network) -> None:
    last = chain(network, Hook.FORWARD)[-2:]
    assert [(rule.verdict, rule.iif, rule.oif) for rule in last] == [("drop", "br0", None), ("drop", None, "br0")]


@given(networks)
def test_only_answers_port_forwards_and_a_lan_with_access_get_in(network: Network) -> None:
    for rule in _rules.accepts(_rules.Chain(Hook.FORWARD, chain(network, Hook.FORWARD))):
        if rule.oif == "br0" and rule.iif != "br0":
            assert rule.established or rule.translated or (network.lan_access and rule.iif in network.uplinks)


@given(networks)
def test_what_gets_out_comes_from_the_networks_own_subnets(network: Network) -> None:
    for rule in chain(network, Hook.FORWARD):
        if rule.verdict == "accept" and rule.iif == "br0" and rule.oif != "br0" and network.sources:
            assert rule.saddr
            assert set(rule.saddr) <= set(network.sources)


@given(networks)
def test_masquerade_is_never_within_the_bridge(network: Network) -> None:
    for rule in chain(network, Hook.POSTROUTING):
        if rule.verdict == "masquerade" and rule.oif == "br0":
            assert rule.translated or network.towards_bridge
        elif rule.verdict == "masquerade":
            assert network.masquerade
            assert set(rule.saddr) == set(network.sources_of(rule.family or 4))


@given(networks)
def test_a_rule_belongs_to_the_family_of_its_addresses(network: Network) -> None:
    for made in _rules.chains(network):
        for rule in made.rules:
            assert {_rules.family_of(address) for address in (*rule.saddr, *rule.daddr)} <= {rule.family}


@given(networks)
def test_every_rule_of_every_language_carries_its_owner(network: Network) -> None:
    comment = f"labspan.vmnet:{network.name}"
    lines = [line for line in _nft_text.table(network).splitlines() if line.startswith("\t\t") and " hook " not in line]
    assert lines
    assert all(line.endswith(f'comment "{comment}"') for line in lines)
    for made in _rules.chains(network):
        for rule in _xtables.wanted_chain(made.rules, 4, comment) + _xtables.wanted_chain(made.rules, 6, comment):
            assert _xtables.value(rule, "--comment") == comment
            assert _xtables.options(_xtables.arguments(rule)) == rule


@pytest.mark.parametrize(
    ("access", "services"), [(HostAccess.FULL, True), (HostAccess.SERVICES, True), (HostAccess.NONE, False)]
)
def test_host_access(access: HostAccess, services: bool) -> None:
    rules = chain(Network("lab", "br0", ("10.0.0.0/24",), "eth0", None, host_access=access), Hook.INPUT)
    guests = [rule for rule in rules if rule.iif == "br0" and rule.family == 4]
    assert any(rule.dport == "67" for rule in guests) == services
    free = [rule for rule in guests if rule.verdict == "return" and not (rule.established or rule.protocol)]
    assert bool(free) == (access is HostAccess.FULL)
    assert _rules.Rule("drop", iif="br0") in rules
