# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore scripts: from any state to any other, and nothing of others is touched."""

from __future__ import annotations

import shlex

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Jump, Own, Saved
from hypothesis import given
from hypothesis import strategies as st

COMMENT = "labspan.vmnet:lab"
FOREIGN = _xtables.options(["-i", "docker0", "-j", "DROP"])
RULES = [
    _xtables.options(shlex.split(line))
    for line in (
        f'-s 10.0.0.0/24 -o eth0 -m comment --comment "{COMMENT}" -j MASQUERADE',
        f'-i br0 -m comment --comment "{COMMENT}" -j DROP',
        f'-p tcp -m tcp --dport 80 -m comment --comment "{COMMENT}" -j ACCEPT',
    )
]

chains = st.dictionaries(
    st.sampled_from(["LABSPAN-lab-FWD", "LABSPAN-lab-IN"]), st.lists(st.sampled_from(RULES), max_size=3).map(tuple)
)
owns = chains.map(
    lambda made: Own(
        tuple(sorted(made.items())),
        tuple(sorted(Jump({"FWD": "FORWARD", "IN": "INPUT"}[name.rsplit("-", 1)[1]], name) for name in made)),
    )
)


def table(own: Own, doubled: bool = False) -> Saved:
    rules: dict[str, tuple[_xtables.Options, ...]] = {"FORWARD": (FOREIGN,), "INPUT": (FOREIGN,), "OUTPUT": ()}
    rules.update(dict(own.chains))
    for jump in own.jumps:
        times = 2 if doubled else 1
        rules[jump.parent] = (_xtables.jump_rule(jump.chain, COMMENT),) * times + rules[jump.parent]
    return Saved({"FORWARD": "ACCEPT", "INPUT": "ACCEPT", "OUTPUT": "ACCEPT"}, rules)


def run(saved: Saved, script: str) -> Saved:
    """What iptables-restore --noflush makes of a script."""
    rules = {chain: list(listed) for chain, listed in saved.rules.items()}
    lines = script.splitlines()
    assert lines[0] == "*filter"
    assert lines[-1] == "COMMIT"
    for line in lines[1:-1]:
        words = shlex.split(line)
        if line.startswith(":"):
            rules[words[0][1:]] = []
        elif words[0] == "-A":
            rules[words[1]].append(_xtables.options(words[2:]))
        elif words[0] == "-I":
            rules[words[1]].insert(int(words[2]) - 1, _xtables.options(words[3:]))
        elif words[0] == "-D":
            rules[words[1]].remove(_xtables.options(words[2:]))
        elif words[0] == "-F":
            rules[words[1]].clear()
        elif words[0] == "-X":
            assert not rules.pop(words[1])
    return Saved(saved.policies, {chain: tuple(listed) for chain, listed in rules.items()})


def own(saved: Saved) -> Own:
    return _xtables.own(saved, "lab", lambda _chain, _position: True)


@given(owns, owns, st.booleans())
def test_any_state_becomes_any_other_and_back(have: Own, want: Own, doubled: bool) -> None:
    before = table(have, doubled)
    after = run(before, _xtables.script("filter", own(before), want, before, COMMENT))
    assert own(after) == want
    assert [rule for rule in after.rules["FORWARD"] if rule == FOREIGN] == [FOREIGN]
    assert [rule for rule in after.rules["INPUT"] if rule == FOREIGN] == [FOREIGN]
    again = _xtables.script("filter", want, want, after, COMMENT)
    assert again == "*filter\nCOMMIT\n"
    back = run(after, _xtables.script("filter", want, have, after, COMMENT))
    assert back.rules == table(have).rules


@pytest.mark.parametrize("network", ["a", "fifteen-letters", "sixteen--letters", "x" * 63, "with-dash-FWD"])
def test_chain_names_are_short_and_known_again(network: str) -> None:
    name = _xtables.chain_name(network, "POST")
    assert len(name) <= 28
    assert _xtables.is_ours(name, network)
    assert not _xtables.is_ours(name, "other")


def test_a_table_is_parsed_without_its_counters() -> None:
    saved = _xtables.parse(
        "# Generated\n*filter\n:FORWARD DROP [5:300]\n:MINE - [0:0]\n"
        '-A FORWARD ! -i br0 -p tcp -m tcp --dport 80 -m comment --comment "a b" -j MINE\nCOMMIT\n'
    )
    assert saved.policies == {"FORWARD": "DROP", "MINE": "-"}
    assert saved.rules["MINE"] == ()
    assert dict(saved.rules["FORWARD"][0]) == {
        "!-i": "br0",
        "-p": "tcp",
        "--dport": "80",
        "--comment": "a b",
        "-j": "MINE",
    }
