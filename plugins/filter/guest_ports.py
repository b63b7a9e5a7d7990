# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role l2 needs to know to filter the ports of guests before the guests are there."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec

_VIA = re.compile(r"\bvia (\S+)")

Port = dict[str, t.Any]


def guest_ports(
    guests: t.Sequence[t.Mapping[str, t.Any]], bridge: str, ports: t.Sequence[t.Mapping[str, t.Any]] = ()
) -> list[Port]:
    """The port of each NIC that the guests have on the bridge, with what C(ports) says of it, and its other entries."""
    made = [port for guest in guests for port in _ports_of(guest, bridge)]
    for number, given in enumerate(ports):
        meant = [port for port in made if _is_meant(given, port)]
        if meant:
            meant[0].update({key: value for key, value in given.items() if key not in ("guest", "nic", "tap")})
        elif given.get("tap"):
            made.append(dict(given))
        else:
            raise AnsibleFilterError(
                f"guest_ports: ports[{number}] names no tap and no guest that has a NIC number {given.get('nic', 0)} "
                f"on {bridge}: {dict(given)}."
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
        tap = nic.get("tap") or _spec.derived_tap(guest["name"], number, int(nic.get("queues") or 1))
        port = {"tap": tap, "guest": guest["name"], "nic": number}
        yield {**port, "mac": nic["mac"]} if nic.get("mac") else port


def _is_meant(given: t.Mapping[str, t.Any], port: Port) -> bool:
    if given.get("tap"):
        return bool(given["tap"] == port["tap"])
    return bool(given.get("guest") == port["guest"] and int(given.get("nic", 0)) == port["nic"])


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"guest_ports": guest_ports, "uplink_addresses": uplink_addresses}
