# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host closed off on a bridge: nothing that arrives from it reaches the host, ARP included, or goes on through it.

The drop is in the input hook. In prerouting it would also cut guest to guest, where br_netfilter hands bridged
frames to the IP hooks.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _nft
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._nft import TableKey

#: The listings of a network's two tables; empty where the host is open.
Closed = t.Tuple[str, ...]

OPEN: Closed = ()


def keys(network: str) -> tuple[TableKey, TableKey]:
    """The tables that close the host off from a network."""
    name = f"labspan_{network}_closed"
    return TableKey("inet", name), TableKey("arp", name)


def read(networks: t.Sequence[str]) -> dict[str, Closed]:
    """What closes the host off from each of the networks now. Tables that are not ours are refused."""
    found = _nft.live(key for network in networks for key in keys(network))
    closed: dict[str, Closed] = {}
    for network in networks:
        closed[network] = tuple(found[key] for key in keys(network) if key in found)
        for key in keys(network):
            if key in found and _nft.is_strangers(found[key], network):
                raise Refused(
                    f"the nftables table {key} exists and none of its rules carries the comment "
                    f"{_nft.owner_comment(network)}: somebody else made it. Remove it, or name the network differently."
                )
    return closed


def want(bridges: t.Mapping[str, str], closed: t.Mapping[str, Closed]) -> dict[str, Closed]:
    """What closes the host off, for each network and its bridge, as the host's nft will list it; C(closed) is now."""
    texts = {key: _text(key, network, bridge) for network, bridge in bridges.items() for key in keys(network)}
    listed = _nft.canonical(
        texts, {key: _of(key, closed.get(network, OPEN)) for network in bridges for key in keys(network)}
    )
    return {network: tuple(listed[key] for key in keys(network)) for network in bridges}


def apply(network: str, closed: Closed) -> None:
    """Put the state in force that C(read) or C(want) has given, in one transaction."""
    _nft.load(script(network, closed))


def script(network: str, closed: Closed) -> str:
    """The script for nft that puts the state in force, whatever there is."""
    # One of the two may have been missing when it was read.
    return "".join(_nft.replacement(key, _of(key, closed)) for key in keys(network))


def _of(key: TableKey, closed: Closed) -> t.Optional[str]:
    return next((listing for listing in closed if listing.startswith(f"table {key} ")), None)


def _text(key: TableKey, network: str, bridge: str) -> str:
    mark = f'counter drop comment "{_nft.owner_comment(network)}"'
    chains = _chain("input", f'iifname "{bridge}" {mark}')
    if key.family == "inet":
        # The host needs no address on a bridge to route what a guest sends to the bridge's MAC address. From the bridge
        # to itself is guest to guest, which br_netfilter shows to this hook.
        chains += "\n" + _chain(
            "forward",
            f'iifname "{bridge}" oifname != "{bridge}" {mark}',
            f'oifname "{bridge}" iifname != "{bridge}" {mark}',
        )
    return f"table {key} {{\n{chains}}}\n"


def _chain(hook: str, *rules: str) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {hook} {{\n\t\ttype filter hook {hook} priority filter; policy accept;\n{lines}\t}}\n"
