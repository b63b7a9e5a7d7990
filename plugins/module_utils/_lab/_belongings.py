# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What comes with guests before they are there: the ports they will have, their accounts, whose their taps are. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _account_names, _spec

_VIA = re.compile(r"\bvia (\S+)")

Port = t.Dict[str, t.Any]
Entries = t.Sequence[t.Mapping[str, t.Any]]


def guest_ports(guests: Entries, bridge: str, ports: Entries = (), *, option: str = "ports") -> list[Port]:
    """The port of each NIC that the guests have on the bridge, with what C(ports) says of it, and its other entries."""
    made = [port for guest in guests for port in _ports_of(guest, bridge)]
    for number, given in enumerate(ports):
        meant = [port for port in made if _is_meant(given, port)]
        if meant:
            meant[0].update({key: value for key, value in given.items() if key not in ("guest", "nic", "tap")})
        elif given.get("tap"):
            made.append(dict(given))
        else:
            raise InvalidInput(
                f"{option}[{number}]",
                dict(given),
                f"names no tap and no guest that has a NIC number {given.get('nic', 0)} on {bridge}.",
            )
    return made


def uplink_addresses(uplink: t.Mapping[str, t.Any]) -> list[str]:
    """The addresses of the host and of the gateways of its routes, which no guest may take for its own."""
    own = (word.split()[0].split("/")[0] for word in uplink.get("addresses", ()))
    gateways = (found.group(1) for route in uplink.get("routes", ()) for found in _VIA.finditer(route))
    return sorted({str(ipaddress.ip_address(address)) for address in (*own, *gateways)})


def _ports_of(guest: t.Mapping[str, t.Any], bridge: str) -> t.Iterator[Port]:
    for number, nic in enumerate(guest.get("nics", ({"bridge": bridge},))):
        if nic.get("user") or (nic.get("bridge") or bridge) != bridge:
            continue
        port = {"tap": tap_of(guest["name"], number, nic), "guest": guest["name"], "nic": number}
        yield {**port, "mac": nic["mac"]} if nic.get("mac") else port


def tap_of(guest: str, number: int, nic: t.Mapping[str, t.Any]) -> str:
    """The tap of a NIC: the one that it names, or the one that will be made for it."""
    return str(nic.get("tap") or _spec.derived_tap(guest, number, int(nic.get("queues") or 1)))


def _is_meant(given: t.Mapping[str, t.Any], port: Port) -> bool:
    if given.get("tap"):
        return bool(given["tap"] == port["tap"])
    return bool(given.get("guest") == port["guest"] and int(given.get("nic") or 0) == port["nic"])


def guest_accounts(guests: Entries) -> list[dict[str, t.Any]]:
    """The guests that run as an account of their own, as guest_account takes them."""
    return [{"name": guest["name"]} for guest in guests if not guest.get("user")]


def owned_taps(taps: Entries, guests: Entries, account: str = "") -> list[dict[str, t.Any]]:
    """The taps, each with the account of the guest that is plugged into it for its owner.

    C(account) is that of guests that name none; empty if each has its own. A tap that no guest has belongs to it, too,
    or to root.
    """
    owners = {
        nic["tap"]: account_of(guest, account) for guest in guests for nic in guest.get("nics") or () if nic.get("tap")
    }
    return [{"owner": owners.get(tap.get("name"), account or "root"), **tap} for tap in taps]


def account_of(guest: t.Mapping[str, t.Any], account: str = "") -> str:
    """The account that a guest runs as; C(account) is that of guests that name none."""
    return str(guest.get("user") or account or _account_names.name_of(guest["name"]))
