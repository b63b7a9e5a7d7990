# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A network's rules in nft's language, written as nft 1.0 lists them. Pure.

Interfaces are matched by name (C(iifname)), so that the rules load before the bridge exists.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey, owner_comment
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Chain, Hook, Network, Rule, chains

_IP = {4: "ip", 6: "ip6"}
#: The names that nft has for priorities at a hook of ours; elsewhere it lists the number.
_PRIORITIES = {
    Hook.PREROUTING: ("dstnat", -100),
    Hook.POSTROUTING: ("srcnat", 100),
    Hook.FORWARD: ("filter", 0),
    Hook.INPUT: ("filter", 0),
}
_ICMP_TYPES = {
    "icmp": {8: "echo-request"},
    "icmpv6": {
        128: "echo-request",
        131: "mld-listener-report",
        132: "mld-listener-done",
        133: "nd-router-solicit",
        135: "nd-neighbor-solicit",
        136: "nd-neighbor-advert",
        143: "mld2-listener-report",
    },
}


def key(network: str) -> TableKey:
    """The table that a network owns."""
    return TableKey("inet", f"labspan_{network}")


def table(network: Network) -> str:
    """The whole table of a network."""
    comment = owner_comment(network.name)
    body = "\n".join(_chain(chain, comment) for chain in chains(network))
    return f"table {key(network.name)} {{\n{body}}}\n"


def _chain(chain: Chain, comment: str) -> str:
    hook = chain.hook
    rules = "".join(f'\t\t{_rule(rule)} comment "{comment}"\n' for rule in chain.rules)
    header = f"type {hook.table} hook {hook.hook} priority {_priority(hook)}; policy accept;"
    return f"\tchain {hook.hook} {{\n\t\t{header}\n{rules}\t}}\n"


def _priority(hook: Hook) -> str:
    if hook not in _PRIORITIES:
        return str(hook.priority)
    name, number = _PRIORITIES[hook]
    offset = hook.priority - number
    return f"{name} {'-' if offset < 0 else '+'} {abs(offset)}" if offset else name


def _rule(rule: Rule) -> str:
    return " ".join([*_matches(rule), "counter", _verdict(rule)])


def _matches(rule: Rule) -> t.Iterator[str]:
    if rule.iif:
        yield f'iifname "{rule.iif}"'
    if rule.oif:
        yield f'oifname "{rule.oif}"'
    if rule.family and not (rule.saddr or rule.daddr):
        yield f"meta nfproto ipv{rule.family}"
    if rule.family and rule.saddr:
        yield f"{_IP[rule.family]} saddr {_addresses(rule.saddr)}"
    if rule.family and rule.daddr:
        yield f"{_IP[rule.family]} daddr {_addresses(rule.daddr)}"
    if rule.local:
        yield "fib daddr type local"
    if rule.icmp_types and rule.protocol:
        names = _ICMP_TYPES[rule.protocol]
        yield f"{rule.protocol} type {_set([names[number] for number in sorted(rule.icmp_types)])}"
    elif rule.dport:
        yield f"{rule.protocol} dport {rule.dport}"
    elif rule.protocol:
        yield f"meta l4proto {rule.protocol}"
    if rule.established:
        yield "ct state established,related"
    if rule.translated:
        yield "ct status dnat"


def _addresses(values: t.Sequence[str]) -> str:
    networks = [ipaddress.ip_network(value) for value in values]
    networks.sort(key=lambda network: (int(network.network_address), network.prefixlen))
    return _set([str(network.network_address if network.num_addresses == 1 else network) for network in networks])


def _set(values: t.Sequence[str]) -> str:
    if len(values) == 1:
        return values[0]
    return f"{{ {', '.join(values)} }}"


def _verdict(rule: Rule) -> str:
    if rule.verdict == "dnat" and rule.family:
        return f"dnat {_IP[rule.family]} to {rule.to}"
    if rule.verdict == "masquerade":
        return "masquerade" + (f" to :{rule.to}" if rule.to else "") + (" random" if rule.random else "")
    return rule.verdict
