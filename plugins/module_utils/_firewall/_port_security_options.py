# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what an administrator writes about the ports of guests to what is to be filtered. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._port_security_text import (
    Address,
    Network,
    Port,
    PortFilter,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

_PORT: Options = {
    "tap": {"type": "str"},
    "guest": {"type": "str"},
    "nic": {"type": "int", "default": 0},
    "mac": {"type": "str"},
    "addresses": {"type": "list", "elements": "str"},
    "allow_bpdu": {"type": "bool", "default": False},
    "allow_ra": {"type": "bool", "default": False},
    "allow_dhcp_server": {"type": "bool", "default": False},
    "allow_ethertypes": {"type": "list", "elements": "str"},
}

#: The argument spec of port_security.
OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "bridge": {"type": "str"},
    "ports": {"type": "list", "elements": "dict", "options": _PORT},
    "protected_addresses": {"type": "list", "elements": "str"},
    "unlisted": {"type": "str", "choices": ["accept", "drop"]},
    "persistent": {"type": "str", "choices": ["auto", "true", "false"]},
}

# linux/if_ether.h. Below the smallest stand lengths (IEEE 802.3, 3.2.6).
_SMALLEST_ETHERTYPE = 0x0600
_LARGEST_ETHERTYPE = 0xFFFF
_NAMED_ETHERTYPES = {"vlan": 0x8100}
_FILTERED_ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6"}


def asked(params: t.Mapping[str, t.Any], where: str, *, identity: str) -> PortFilter:
    """Check one entry; C(where) stands before the option names in errors, such as C(networks[0].).

    C(identity) is the host's, for the MAC addresses of guests that name none.
    """
    name = _values.object_name(f"{where}name", params["name"])
    ports = [
        read_port(f"{where}ports[{number}]", port, identity) for number, port in enumerate(params.get("ports") or ())
    ]
    _check_unique(f"{where}ports[]", ports)
    protected = params.get("protected_addresses") or ()
    return PortFilter(
        network=name,
        bridge=_values.interface_name(f"{where}bridge", params.get("bridge") or name),
        ports=tuple(sorted(ports, key=lambda port: port.tap)),
        protected=tuple(_address(f"{where}protected_addresses", text) for text in protected),
        drop_unlisted=params.get("unlisted") == "drop",
    )


def check_together(filters: t.Sequence[PortFilter]) -> None:
    """Refuse a tap that is in two networks of the task."""
    seen: dict[str, str] = {}
    for wanted in filters:
        for port in wanted.ports:
            if port.tap in seen:
                raise InvalidInput(
                    "ports[].tap", port.tap, f"is listed for both {seen[port.tap]} and {wanted.network}; choose one."
                )
            seen[port.tap] = wanted.network


def read_port(option: str, params: t.Mapping[str, t.Any], identity: str) -> Port:
    """Check the entry of one port."""
    addresses = params.get("addresses")
    tap, mac = params.get("tap"), params.get("mac")
    if params.get("guest"):
        guest, nic = _values.object_name(f"{option}.guest", params["guest"]), params.get("nic") or 0
        tap = tap or _spec.derived_tap(guest, nic)
        mac = mac or _spec.derived_mac(identity, guest, nic)
    for name, value in (("tap", tap), ("mac", mac)):
        if not value:
            raise InvalidInput(
                f"{option}.{name}",
                value,
                "is missing; give it, or with guest the name of the guest of the module qemu_guest that has it by "
                "itself.",
            )
    return Port(
        tap=_values.interface_name(f"{option}.tap", t.cast(str, tap)),
        mac=_values.mac_address(f"{option}.mac", t.cast(str, mac)),
        addresses=None if addresses is None else _addresses(f"{option}.addresses", addresses),
        allow_bpdu=bool(params.get("allow_bpdu")),
        allow_ra=bool(params.get("allow_ra")),
        allow_dhcp_server=bool(params.get("allow_dhcp_server")),
        ethertypes=tuple(
            sorted(
                {_ethertype(f"{option}.allow_ethertypes", text) for text in params.get("allow_ethertypes") or ()},
            )
        ),
    )


def _check_unique(option: str, ports: t.Sequence[Port]) -> None:
    for field in ("tap", "mac"):
        seen: set[str] = set()
        for port in ports:
            value = getattr(port, field)
            if value in seen:
                raise InvalidInput(f"{option}.{field}", value, "is listed twice; each guest port has its own.")
            seen.add(value)


def _addresses(option: str, texts: t.Sequence[str]) -> tuple[Network, ...]:
    """Networks without overlap, IPv4 first; a single address is the network of itself."""
    found = [_network(option, text) for text in texts]
    version4 = [network for network in found if isinstance(network, ipaddress.IPv4Network)]
    version6 = [network for network in found if isinstance(network, ipaddress.IPv6Network)]
    return (*ipaddress.collapse_addresses(version4), *ipaddress.collapse_addresses(version6))


def _network(option: str, text: str) -> Network:
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError:
        pass
    else:
        _check_usable(option, text, network.network_address, network.prefixlen)
        return network
    try:
        meant = ipaddress.ip_interface(text.strip())
    except ValueError:
        raise InvalidInput(
            option, text, "is not an address or a network in CIDR form; write it as in 192.168.1.50 or 2001:db8::/64."
        ) from None
    raise InvalidInput(
        option,
        text,
        f"may be meant as one address or as a network: write {meant.ip} for the one address that the guest has, or "
        f"{meant.network} for any of the network.",
    )


def _address(option: str, text: str) -> Address:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise InvalidInput(
            option, text, "is not an address; write it without prefix length, as in 192.168.1.1 or fe80::1."
        ) from None
    _check_usable(option, text, address, address.max_prefixlen)
    return address


def _check_usable(option: str, text: str, address: Address, length: int) -> None:
    if address.is_multicast or (address.is_unspecified and length == address.max_prefixlen):
        raise InvalidInput(option, text, "is no address that a machine can have.")


def _ethertype(option: str, text: str) -> int:
    try:
        number = _NAMED_ETHERTYPES.get(text) or int(text, 0)
    except ValueError:
        number = 0
    if not _SMALLEST_ETHERTYPE <= number <= _LARGEST_ETHERTYPE:
        raise InvalidInput(
            option, text, "is not an EtherType; write vlan, or a number from 0x0600 to 0xffff such as 0x88cc."
        )
    if number in _FILTERED_ETHERTYPES:
        raise InvalidInput(
            option,
            text,
            f"is {_FILTERED_ETHERTYPES[number]}, which is always allowed from the port's own addresses; name only "
            "what is to pass beside it.",
        )
    return number
