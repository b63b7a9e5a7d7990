# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A network's rules in nft's language. Pure.

Interfaces are matched by name (C(iifname)), so that the rules load before the bridge exists.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey, owner_comment
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Chain, Network, Rule, chains

_IP = {4: "ip", 6: "ip6"}


def key(network: str) -> TableKey:
    """The table that a network owns."""
    return TableKey("inet", f"labspan_{network}")


def table(network: Network) -> str:
    """The whole table of a network."""
    comment = owner_comment(network.name)
    body = "".join(_chain(chain, comment) for chain in chains(network))
    return f"table {key(network.name)} {{\n{body}}}\n"


def _chain(chain: Chain, comment: str) -> str:
    hook = chain.hook
    rules = "".join(f'\t\t{_rule(rule)} comment "{comment}"\n' for rule in chain.rules)
    header = f"type {hook.table} hook {hook.hook} priority {hook.priority}; policy accept;"
    return f"\tchain {hook.hook} {{\n\t\t{header}\n{rules}\t}}\n"


def _rule(rule: Rule) -> str:
    return " ".join([*_matches(rule), _verdict(rule)])


def _matches(rule: Rule) -> t.Iterator[str]:
    if rule.iif:
        yield f'iifname "{rule.iif}"'
    if rule.oif:
        yield f'oifname "{rule.oif}"'
    if rule.family and not (rule.saddr or rule.daddr):
        yield f"meta nfproto ipv{rule.family}"
    if rule.family and rule.saddr:
        yield f"{_IP[rule.family]} saddr {_set(rule.saddr)}"
    if rule.family and rule.daddr:
        yield f"{_IP[rule.family]} daddr {_set(rule.daddr)}"
    if rule.local:
        yield "fib daddr type local"
    if rule.icmp_types:
        yield f"{rule.protocol} type {_set(rule.icmp_types)}"
    elif rule.dport:
        yield f"{rule.protocol} dport {rule.dport}"
    elif rule.protocol:
        yield f"meta l4proto {rule.protocol}"
    if rule.established:
        yield "ct state established,related"
    if rule.translated:
        yield "ct status dnat"


def _set(values: t.Sequence[object]) -> str:
    if len(values) == 1:
        return str(values[0])
    return f"{{ {', '.join(str(value) for value in values)} }}"


def _verdict(rule: Rule) -> str:
    if rule.verdict == "dnat" and rule.family:
        return f"dnat {_IP[rule.family]} to {rule.to}"
    if rule.verdict == "masquerade":
        return "masquerade" + (f" to :{rule.to}" if rule.to else "") + (" random" if rule.random else "")
    return rule.verdict
