# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a network has in the firewall, as the files that bring it back at boot. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_files
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _parts, _port_security_text, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import owner_comment
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._parts import Plan
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Own, Place


def files(plan: Plan, parts: _parts.Parts, settings: t.Mapping[str, str]) -> dict[str, str]:
    """The files of one network by their names."""
    network = plan.network.name
    key = _parts.table_key(network)
    found: dict[str, str] = {}
    if parts.get(key):
        found[_rules_files.RULES] = _rules_files.nft_text(network, "The rules", {key: parts[key]})
    if settings:
        found[_rules_files.FORWARDING] = _rules_files.settings_text(network, settings)
    worlds: dict[str, dict[str, Own]] = {}
    for part, content in parts.items():
        if isinstance(part, Place) and part.network == network and content:
            kind = "rules" if part.world.flavour == plan.flavour else "accept"
            worlds.setdefault(f"{kind}.{part.world}", {})[part.table] = content
    found.update({name: _chains_text(name, network, tables) for name, tables in worlds.items()})
    return found


def port_files(tables: t.Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The file that guards the ports of each network, given the listing of each table."""
    return {
        network: {
            _rules_files.PORTS: _rules_files.nft_text(
                network, "What guards the ports", {_port_security_text.key(network): listing}
            )
        }
        for network, listing in tables.items()
    }


def _chains_text(name: str, network: str, tables: t.Mapping[str, Own]) -> str:
    kind, program = name.split(".", 1)
    what = "The rules" if kind == "rules" else "What opens others' chains to the packets"
    head = f"# {what} of the network {network}, for {program}-restore --noflush. Made by labspan.vmnet: "
    lines = [f"{head}what is changed here is lost."]
    for table, content in sorted(tables.items()):
        lines += ["", f"*{table}", *(f":{chain} - [0:0]" for chain, _rules in content.chains)]
        lines += [
            f"-A {chain} {' '.join(_xtables.arguments(rule))}" for chain, rules in content.chains for rule in rules
        ]
        comment = owner_comment(network)
        lines += [
            f"-I {jump.parent} 1 {' '.join(_xtables.arguments(_xtables.jump_rule(jump.chain, comment)))}"
            for jump in content.jumps
        ]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])
