# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machine's own network, as far as nothing but an administrator, or a test that leaks, changes it.

Run as a program, this prints it as JSON.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import typing as t

_LINK_KEYS = ("ifindex", "ifname", "address", "mtu", "master", "ifalias", "group")
_SETTINGS = "/proc/sys/net/ipv4/conf/*/forwarding", "/proc/sys/net/ipv6/conf/*/forwarding"


def own_network() -> dict[str, t.Any]:
    """Links, addresses, routes, firewall tables and forwarding of the namespace that this process is in. Reads only."""
    links = _json("ip", "-d", "-j", "addr", "show")
    return {
        "links": {link["ifname"]: {key: link.get(key) for key in _LINK_KEYS} for link in links if link},
        "addresses": sorted(
            (link["ifname"], address["local"], address["prefixlen"])
            for link in links
            if link
            for address in link["addr_info"]
            if not address.get("dynamic")
        ),
        "routes": sorted(
            (route["dst"], route.get("dev", ""), route.get("gateway", ""))
            for route in _json("ip", "-j", "route", "show")
        ),
        "nftables": sorted(
            (entry["table"]["family"], entry["table"]["name"])
            for entry in _json("nft", "-j", "list", "tables")["nftables"]
            if "table" in entry
        ),
        "legacy tables": {
            path: _text(pathlib.Path(path)) for path in ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
        },
        "forwarding": {
            str(path): _text(path) for pattern in _SETTINGS for path in sorted(pathlib.Path("/").glob(pattern[1:]))
        },
    }


def _json(*command: str) -> t.Any:
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout or "[]")


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    print(json.dumps(own_network(), indent=1, sort_keys=True))
