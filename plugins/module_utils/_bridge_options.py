# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the options of linux_bridge ask for, checked and in the kernel's units.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _links, _netlink, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_plan import WantedBridge
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import SETTINGS, TIMES
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

_VLANS: Options = {
    "id": {"type": "str", "required": True},
    "port": {"type": "str"},
    "pvid": {"type": "bool"},
    "untagged": {"type": "bool"},
}

#: The argument spec of linux_bridge.
OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "network": {"type": "str"},
    "addresses": {"type": "list", "elements": "str"},
    "exclusive_addresses": {"type": "bool", "default": True},
    "allow_overlap": {"type": "bool", "default": False},
    "host_access": {"type": "bool"},
    "enabled": {"type": "bool"},
    "mtu": {"type": "int"},
    "mac_address": {"type": "str"},
    "stp": {"type": "bool"},
    "priority": {"type": "int"},
    "forward_delay": {"type": "int"},
    "hello_time": {"type": "int"},
    "max_age": {"type": "int"},
    "ageing_time": {"type": "int"},
    "vlan_filtering": {"type": "bool"},
    "vlan_default_pvid": {"type": "int"},
    "multicast_snooping": {"type": "bool"},
    "multicast_querier": {"type": "bool"},
    "group_forward_mask": {"type": "int"},
    "ports": {"type": "list", "elements": "str"},
    "exclusive_ports": {"type": "bool", "default": False},
    "vlans": {"type": "list", "elements": "dict", "options": _VLANS},
    "adopt": {"type": "bool"},
    "force": {"type": "bool"},
    "persistent": {"type": "str", "choices": ["auto", "true", "false"]},
}

#: Option -> smallest and largest value, in the option's own unit.
_RANGES = {
    "forward_delay": (0, 30),
    "hello_time": (1, 10),
    "max_age": (6, 40),
    "ageing_time": (0, 1_000_000),
    "priority": (0, 65535),
    "group_forward_mask": (0, 65535),
    "vlan_default_pvid": (0, 4094),
}

#: Bits of the group forward mask that the kernel never lets through: STP, pause frames, LACP.
_RESTRICTED_GROUPS = 0x7


def wanted_bridge(options: Options) -> WantedBridge:
    """What the options of C(linux_bridge) ask for; raises for what cannot be right."""
    name = _values.interface_name("name", options["name"])
    network = _values.object_name("network", options.get("network") or name)
    addresses = options.get("addresses")
    if options.get("host_access") is False and addresses:
        raise InvalidInput(
            "addresses",
            addresses,
            f"cannot be given to {name} with host_access: false, which closes the host off. Leave out one of them.",
        )
    ports = options.get("ports")
    own_vlans, port_vlans = _wanted_vlans(options.get("vlans"))
    return WantedBridge(
        name=name,
        network=network,
        default_mac=_values.derived_mac(_values.host_identity(), name),
        present=options.get("state", "present") == "present",
        settings=_wanted_settings(options),
        enabled=options.get("enabled"),
        host_access=options.get("host_access"),
        addresses=None if addresses is None else tuple(_wanted_address(address) for address in addresses),
        exclusive_addresses=options.get("exclusive_addresses") is not False,
        ports=None if ports is None else tuple(_values.interface_name("ports", port) for port in ports),
        exclusive_ports=bool(options.get("exclusive_ports")),
        vlans=own_vlans,
        port_vlans=port_vlans,
        adopt=options.get("adopt") is not False,
        force=bool(options.get("force")),
        allow_overlap=bool(options.get("allow_overlap")),
    )


def _wanted_address(value: str) -> _values.Address:
    address = _values.interface_address("addresses", value)
    network = address.network
    if address.ip.is_multicast or address.ip.is_unspecified or address.ip.is_loopback:
        raise InvalidInput("addresses", value, "is not an address that an interface can have.")
    if network.version == 4 and network.prefixlen < 31 and address.ip in (network[0], network[-1]):
        which = "the network's own address" if address.ip == network[0] else "the network's broadcast address"
        raise InvalidInput(
            "addresses", value, f"is {which}; give a host's address, such as {network[1]}/{network.prefixlen}."
        )
    return address


def _wanted_settings(options: Options) -> dict[str, t.Any]:
    settings = {key: options[key] for key in ("mtu", *SETTINGS) if options.get(key) is not None}
    _links.check_mtu("mtu", settings.get("mtu"))
    for key, (smallest, largest) in _RANGES.items():
        if key in settings and not smallest <= settings[key] <= largest:
            raise InvalidInput(key, settings[key], f"is out of range; give {smallest} to {largest}.")
    if settings.get("group_forward_mask", 0) & _RESTRICTED_GROUPS:
        raise InvalidInput(
            "group_forward_mask",
            settings["group_forward_mask"],
            "has one of the lowest three bits (STP, pause frames, LACP), which the kernel never forwards.",
        )
    if options.get("mac_address"):
        settings["mac_address"] = _values.mac_address("mac_address", options["mac_address"])
    return {key: value * 100 if key in TIMES else value for key, value in settings.items()}


def _wanted_vlans(
    entries: t.Optional[t.Sequence[Options]],
) -> tuple[t.Optional[frozenset[_netlink.Vlan]], dict[str, frozenset[_netlink.Vlan]]]:
    """The VLANs of the bridge itself, and those of each port that is named."""
    if entries is None:
        return None, {}
    ports = dict.fromkeys(_values.interface_name("vlans[].port", each["port"]) for each in entries if each.get("port"))
    of_ports = {
        port: _links.wanted_vlans("vlans", [each for each in entries if each.get("port") == port]) for port in ports
    }
    own = [each for each in entries if not each.get("port")]
    return _links.wanted_vlans("vlans", own or None), {port: vlans or frozenset() for port, vlans in of_ports.items()}


def check_list(wanted: t.Sequence[WantedBridge]) -> None:
    """What two bridges of one task must not share."""
    present = [want for want in wanted if want.present]
    owner_of_port: dict[str, str] = {}
    for want in present:
        for port in want.ports or ():
            if owner_of_port.setdefault(port, want.name) != want.name:
                raise InvalidInput("ports", port, f"is listed for the bridges {owner_of_port[port]} and {want.name}.")
            if port in {other.name for other in wanted}:
                raise InvalidInput(
                    "ports", port, "is a bridge of this task, and a bridge cannot be the port of a bridge."
                )
    networks: dict[t.Any, str] = {}
    for want in present:
        for address in want.addresses or ():
            for other, name in networks.items():
                if other.version == address.version and other.overlaps(address.network) and name != want.name:
                    raise InvalidInput(
                        "addresses",
                        str(address),
                        f"overlaps {other} of bridge {name} in the same task; choose another.",
                    )
            networks[address.network] = want.name
    macs: dict[str, str] = {}
    for want in present:
        mac = want.settings.get("mac_address")
        if mac and macs.setdefault(mac, want.name) != want.name:
            raise InvalidInput("mac_address", mac, f"is given to the bridges {macs[mac]} and {want.name}.")
    closed: dict[str, str] = {}
    for want in present:
        if want.closes and closed.setdefault(want.network, want.name) != want.name:
            raise InvalidInput(
                "network",
                want.network,
                f"has two closed bridges, {closed[want.network]} and {want.name}; give one of them a network of its "
                "own.",
            )
