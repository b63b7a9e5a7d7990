# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cannot be right in the networks of a host, by themselves and beside each other. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _bridge_options,
    _dnsmasq,
    _links,
    _subnets,
    _values,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _options as _rule_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import PortForward
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _language
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._inventory import Inventory, Network
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import L2, NAT, WITH_SUBNET, given
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._problems import Problems

_NOBODY = _dnsmasq.Account("nobody", "nogroup")

Placed = t.Tuple[str, PortForward]
"""A forward, and where it was written."""


def check(inventory: Inventory, problems: Problems) -> None:
    """Take down everything that is wrong with the networks."""
    _check_names(inventory, problems)
    for network in inventory.networks:
        _check_words(network, problems)
    present = [network for network in inventory.networks if network.present]
    for network in present:
        if network.scenario in WITH_SUBNET:
            before = len(problems.found)
            _check_subnets(network, problems)
            if len(problems.found) == before:
                _check_dhcp(network, problems)
        if network.scenario == L2:
            _check_port_security(network, problems)
        else:
            _check_bridge(network, problems)
    _check_overlaps(present, problems)
    _check_uplinks(present, problems)
    _check_forwards(present, problems)


def _check_names(inventory: Inventory, problems: Problems) -> None:
    names: dict[t.Any, str] = {}
    interfaces: dict[t.Any, str] = {}
    for network in inventory.networks:
        before = len(problems.found)
        with problems.of():
            _values.object_name(f"{network.where}.name", network.name)
        problems.once(f"{network.where}.name", network.name, names, "give each network of the host its own name.")
        if len(problems.found) > before and not network.options.get("bridge"):
            continue  # the bridge's name follows from the network's
        option = f"{network.where}.bridge"
        try:
            _values.interface_name(option, network.bridge)
        except LabspanError as error:
            hint = "" if network.options.get("bridge") else " It was made of the network's name; give one."
            problems.tell(f"{error}{hint}")
        if network.present:  # one that goes may leave its bridge and its taps to another one
            problems.once(option, network.bridge, interfaces, "a bridge has one network. Give the other one its own.")
    for network in inventory.networks:
        for number, tap in enumerate(network.taps):
            option = f"{network.where}.taps[{number}].name"
            with problems.of():
                _values.interface_name(option, str(tap.get("name")))
            if network.present:
                problems.once(option, tap.get("name"), interfaces, "give each interface of the host its own name.")
                with problems.of():
                    _links.check_mtu(f"{network.where}.taps[{number}].mtu", tap.get("mtu"))


def _check_words(network: Network, problems: Problems) -> None:
    if network.scenario not in _language.WORDS:
        problems.add(
            f"{network.where}.scenario",
            network.entry.get("scenario"),
            f"is no scenario; choose {', '.join(_language.SCENARIOS[:-1])} or {_language.SCENARIOS[-1]}.",
        )
        return
    for word in sorted(set(network.entry) - set(_language.WORDS[network.scenario])):
        having = [scenario for scenario in _language.SCENARIOS if word in _language.WORDS[scenario]]
        problems.add(
            f"{network.where}.{word}",
            _language.as_written(network.entry[word]),
            f"is nothing that a network of scenario {network.scenario} has"
            + (f"; it is for {' and '.join(having)}. Leave it out, or change the scenario." if having else "."),
        )
    if network.scenario == L2 and network.present and not network.entry.get("interface"):
        problems.tell(
            f"{network.where}.interface: is missing; name the host's network card that leads to the LAN, such as eth0."
        )


def _check_bridge(network: Network, problems: Problems) -> None:
    options = given(network.options.get("bridge_options") or {})
    with problems.of(f"{network.where}.bridge_options."):
        _bridge_options.wanted_bridge({**options, "name": "lab0"})


def subnets(network: Network) -> t.Iterator[tuple[str, _values.Network]]:
    """The subnets that can be read, and where they were written."""
    if network.scenario not in WITH_SUBNET:
        return
    for option in ("subnet", "subnet6"):
        try:
            found = _values.network(option, str(network.options.get(option) or ""))
        except LabspanError:
            continue
        yield f"{network.where}.{option}", found


def _check_subnets(network: Network, problems: Problems) -> None:
    options = network.options
    if not (options.get("subnet") or options.get("subnet6")):
        problems.tell(f"{network.where}.subnet: is empty, and there is no subnet6 either; give one of them.")
    told = options.get("gateway")
    if isinstance(told, (list, tuple)) and len(told) > 1:
        problems.add(f"{network.where}.gateway", told, "is more than one address; gateway6 is the one for IPv6.")
    for version, end, gateway in ((4, "", network.gateway), (6, "6", str(options.get("gateway6") or ""))):
        subnet, places = str(options.get(f"subnet{end}") or ""), (f"{network.where}.subnet{end}",)
        if not subnet:
            if gateway:
                problems.add(f"{network.where}.gateway{end}", gateway, f"is in no subnet; give subnet{end} as well.")
            continue
        with problems.of():
            address = _subnets.bridge_address(subnet, gateway, options=(*places, f"{network.where}.gateway{end}"))
            found = ipaddress.ip_interface(address)
            if found.version != version:
                problems.add(places[0], subnet, f"is of IPv{found.version}; write it as subnet{'' if end else '6'}.")
            elif found.version == 4 and found.ip in (found.network[0], found.network[-1]):
                problems.add(f"{network.where}.gateway", gateway, f"is no host address of the subnet {found.network}.")


def _check_overlaps(networks: t.Sequence[Network], problems: Problems) -> None:
    placed = [(network, where, subnet) for network in networks for where, subnet in subnets(network)]
    for position, (network, where, subnet) in enumerate(placed):
        for other, elsewhere, rival in placed[:position]:
            if other is not network and rival.version == subnet.version and subnet.overlaps(rival):
                default = "" if "subnet" in network.entry or where.endswith("6") else " It is the scenario's default."
                problems.add(
                    where,
                    str(subnet),
                    f"overlaps {rival} of network {other.name} ({elsewhere}); each network of a host needs addresses "
                    f"of its own.{default}",
                )


def _check_uplinks(networks: t.Sequence[Network], problems: Problems) -> None:
    bridges = {network.bridge: network for network in networks}
    cards: dict[t.Any, str] = {}
    for network in networks:
        uplink = network.options.get("uplink")
        if network.scenario in WITH_SUBNET and uplink != _rule_options.AUTO:
            with problems.of():
                _values.interface_name(f"{network.where}.uplink", str(uplink))
            if uplink == network.bridge:
                problems.add(f"{network.where}.uplink", uplink, "is the network's own bridge, which leads nowhere.")
        card = network.options.get("interface")
        if network.scenario == L2 and card:
            option = f"{network.where}.interface"
            with problems.of():
                _values.interface_name(option, str(card))
            problems.once(option, card, cards, "a network card is the port of one bridge.")
            if card in bridges:
                problems.add(option, card, f"is the bridge of network {bridges[card].name}, and no network card.")


def _check_dhcp(network: Network, problems: Problems) -> None:
    """What its server would refuse; addresses of guests are looked at where the guests are."""
    if not network.serves:
        return
    where = f"{network.where}.dhcp."
    addresses = []
    for option, gateway in (("subnet", network.gateway), ("subnet6", network.options.get("gateway6"))):
        subnet = network.options.get(option)
        if subnet:
            addresses.append(ipaddress.ip_interface(_subnets.bridge_address(subnet, gateway)))
    advertises = bool(network.options.get("subnet6"))
    told = {
        "router_advertisements": advertises,
        "ipv6_default_route": advertises,
        **given(network.options.get("dhcp") or {}),
        "name": network.name,
        "bridge": network.bridge,
        "state": "present",
    }
    try:
        _values.interface_name("bridge", network.bridge)
    except LabspanError:
        return  # has been told
    with problems.of():
        _dnsmasq.settle(where, _dnsmasq.read_wish(where, told), addresses, _NOBODY)


def _check_forwards(networks: t.Sequence[Network], problems: Problems) -> None:
    placed: list[Placed] = []
    for network in networks:
        if network.scenario != NAT:
            continue
        with problems.of():
            for text in network.options.get("exclude_destinations") or ():
                _values.network(f"{network.where}.exclude_destinations", str(text))
        inside = [subnet for _where, subnet in subnets(network)]
        for number, entry in enumerate(network.options.get("port_forwards") or ()):
            where = f"{network.where}.port_forwards[{number}]"
            try:
                forward = _rule_options.port_forward(where, given(entry))
            except LabspanError as error:
                problems.tell(str(error))
                continue
            placed.append((where, forward))
            guest = ipaddress.ip_address(forward.guest_address)
            if inside and not any(guest in subnet for subnet in inside):
                problems.add(
                    f"{where}.guest_address",
                    forward.guest_address,
                    f"is in none of the network's subnets: {', '.join(map(str, inside))}.",
                )
    for position, (where, forward) in enumerate(placed):
        for elsewhere, rival in placed[:position]:
            if _rule_options.same_port(forward, rival):
                problems.add(
                    f"{where}.host_port",
                    forward.host_port,
                    f"({forward.protocol}) is forwarded by {elsewhere} as well, which has {rival.host_port}; give each "
                    "port of the host one guest.",
                )


def _check_port_security(network: Network, problems: Problems) -> None:
    options = given(network.options.get("port_security_options") or {})
    # Which guests and taps the ports are is looked at when they are known.
    known = {"tap": "lab0", "mac": "02:00:00:00:00:01"}
    for number, port in enumerate(options.get("ports") or ()):
        entry = {**known, **{name: value for name, value in given(port).items() if name not in ("guest", "nic")}}
        with problems.of():
            where = f"{network.where}.port_security_options.ports[{number}]"
            _port_security_options.read_port(where, entry, identity="")
    with problems.of():
        _port_security_options.asked(
            {**options, "name": "lab", "bridge": "lab0", "ports": []},
            f"{network.where}.port_security_options.",
            identity="",
        )
