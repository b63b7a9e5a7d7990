# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who drops: judged from the rules alone."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _forward, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import BaseChain, TableKey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Hook, Network, PortForward
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import World

NETWORK = Network("lab", "br0", ("10.0.0.0/24",), "eth0", "eth0")


def saved(*rules: str, policy: str = "ACCEPT") -> _xtables.Saved:
    chains = "".join(f":{rule.split()[1]} - [0:0]\n" for rule in rules)
    return _xtables.parse(f"{chains}:FORWARD {policy} [0:0]\n" + "".join(f"{rule}\n" for rule in rules))


@pytest.mark.parametrize(
    ("table", "drops"),
    [
        (saved(), False),
        (saved(policy="DROP"), True),
        (saved("-A FORWARD -j REJECT --reject-with icmp-port-unreachable"), True),
        (saved("-A FORWARD -i br0 -j DROP"), True),
        (saved("-A FORWARD -i br+ -j DROP"), True),
        (saved("-A FORWARD ! -i docker0 -j DROP"), True),
        (saved("-A FORWARD -o docker0 -j DROP"), False),
        (saved("-A FORWARD -i virbr0 -j REJECT"), False),
        (saved("-A FORWARD -m conntrack --ctstate INVALID -j DROP"), False),
        (saved("-A FORWARD -j MINE", "-A MINE -j INNER", "-A INNER -o eth0 -j DROP"), True),
        (saved("-A FORWARD -j MINE", "-A MINE -j FORWARD"), False),
        (saved("-A FORWARD -j LABSPAN-x-FWD", "-A LABSPAN-x-FWD -j DROP"), False),
    ],
)
def test_a_drop_that_can_meet_our_packets_is_found(table: _xtables.Saved, drops: bool) -> None:
    assert _forward.drops(table, Hook.FORWARD, ("br0", "eth0")) == drops


_BR0_DROPS = "-A FORWARD -i br0 -j DROP"
_LINK = "-A FORWARD -j DOCKER-USER"


@pytest.mark.parametrize(
    ("rules", "parent"),
    [
        ((_LINK, "-A DOCKER-USER -j RETURN"), "DOCKER-USER"),
        (("-A DOCKER-USER -j RETURN",), "FORWARD"),
        ((_LINK, _BR0_DROPS), "DOCKER-USER"),
        ((_BR0_DROPS, _LINK), "FORWARD"),
        (("-A FORWARD -i eth7 -j DROP", _LINK), "DOCKER-USER"),
        (("-A FORWARD -j MINE", _LINK, "-A MINE -o eth0 -j REJECT"), "FORWARD"),
        (("-A FORWARD -j MINE", _LINK, "-A MINE -o eth0 -j RETURN"), "DOCKER-USER"),
        (("-A FORWARD -g MINE", _LINK, "-A MINE -o eth0 -j ACCEPT"), "FORWARD"),
        (("-A FORWARD -i br0 -j RETURN", _LINK), "FORWARD"),
        (("-A FORWARD -i docker0 -j DOCKER-USER",), "FORWARD"),
        (("-A FORWARD -j LABSPAN-lab-ACC", _LINK, "-A LABSPAN-lab-ACC -i br0 -j ACCEPT"), "DOCKER-USER"),
    ],
)
def test_the_jump_stands_in_dockers_chain_only_when_all_our_packets_reach_that(
    rules: tuple[str, ...], parent: str
) -> None:
    assert _forward.parent(saved(*rules, policy="DROP"), Hook.FORWARD, ("br0", "eth0")) == parent


_ANSWERS_RETURN = "-A DOCKER-USER -i eth0 -m conntrack --ctstate ESTABLISHED -j RETURN"
_JUMP = "-A DOCKER-USER -j LABSPAN-lab-ACC"


@pytest.mark.parametrize(
    ("rules", "effective"),
    [
        ((_LINK, _JUMP), True),
        ((_LINK, _JUMP, _ANSWERS_RETURN), True),
        ((_LINK, _ANSWERS_RETURN, _JUMP), False),
        ((_LINK, _ANSWERS_RETURN.replace("eth0", "eth7"), _JUMP), True),
        ((_LINK, "-A DOCKER-USER -g MINE", _JUMP, "-A MINE -i eth7 -j DROP"), False),
        ((_LINK, "-A DOCKER-USER -j MINE", _JUMP, "-A MINE -j RETURN"), True),
        ((_BR0_DROPS, _LINK, _JUMP), False),
        ((_JUMP,), False),
    ],
)
def test_a_jump_in_dockers_chain_is_judged_with_all_that_comes_before_it(
    rules: tuple[str, ...], effective: bool
) -> None:
    table = saved(*rules, policy="DROP")
    (jump,) = _xtables.own(table, "lab", _forward.in_front(table, ("br0", "eth0"))).jumps
    assert jump.effective == effective


@pytest.mark.parametrize(("policy", "effective"), [("DROP", False), ("ACCEPT", True)])
def test_what_returns_from_a_built_in_chain_meets_its_policy(policy: str, effective: bool) -> None:
    table = saved("-A FORWARD -i br0 -j RETURN", "-A FORWARD -j LABSPAN-lab-ACC", policy=policy)
    assert _forward.in_front(table, ("br0", "eth0"))("FORWARD", 1) == effective


def chain(family: str, table: str, policy: str, hook: str = "forward", name: str = "mine") -> BaseChain:
    return BaseChain(TableKey(family, table), name, hook, policy)


@pytest.mark.parametrize(
    ("made", "blocked"),
    [
        (chain("inet", "mine", "drop"), True),
        (chain("inet", "mine", "accept"), False),
        (chain("inet", "mine", "drop", hook="input"), False),
        (chain("ip6", "mine", "drop"), False),
        (chain("bridge", "mine", "drop"), True),
        (chain("ip", "filter", "drop", name="FORWARD"), False),
        (chain("inet", "firewalld", "accept"), True),
    ],
)
def test_native_chains_that_drop_are_named(made: BaseChain, blocked: bool) -> None:
    survey = Survey((made,), {World("nft", 4): saved(policy="DROP")})
    found = _forward.blockers(survey, NETWORK)
    assert bool(found) == blocked
    assert all(made.table.name in sentence for sentence in found)


UFW = Survey((), {World("nft", 4): saved("-A FORWARD -j ufw-before-forward", "-A ufw-before-forward", policy="DROP")})
FORWARD = PortForward("tcp", None, "80", "10.0.0.5", "80")
OUT, IN, HOST = "ufw route allow in on br0 out on eth0", "ufw route allow in on eth0 out on br0", "ufw allow in on br0"


@pytest.mark.parametrize(
    ("network", "commands"),
    [
        (NETWORK, [OUT, HOST]),
        (dataclasses.replace(NETWORK, lan_access=True), [OUT, IN, HOST]),
        (dataclasses.replace(NETWORK, port_forwards=(FORWARD,)), [OUT, IN, HOST]),
        (dataclasses.replace(NETWORK, host_services=False), [OUT]),
        (dataclasses.replace(NETWORK, uplink6="wlan0"), [OUT, OUT.replace("eth0", "wlan0"), HOST]),
        (dataclasses.replace(NETWORK, uplink4=None, uplink6=None), ["ufw route allow in on br0", HOST]),
    ],
)
def test_ufw_is_to_be_told_all_that_the_network_needs(network: Network, commands: list[str]) -> None:
    (sentence,) = _forward.blockers(UFW, network)
    assert sentence == f"ufw drops what the network lab forwards. Allow it there: {'; '.join(commands)}."


def test_a_table_of_iptables_that_cannot_be_read_blocks() -> None:
    survey = Survey((chain("ip", "filter", "drop", name="FORWARD"),), {World("nft", 4): None})
    assert _forward.blockers(survey, NETWORK)
