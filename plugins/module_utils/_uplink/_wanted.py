# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of C(bridge_uplink) as what is wanted.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move

#: Seconds below which a confirmation over a new connection cannot be expected.
MINIMUM_TIMEOUT = 5.0
#: What a port is silent for twice, with spanning tree on, and some seconds for the controller.
_STP_ALLOWANCE = 30.0
_TRANSACTION = re.compile(r"[0-9a-f]{8,64}\Z")


@dataclasses.dataclass(frozen=True)
class WantedUplink:
    """What a task asks for."""

    bridge: str
    interface: str
    network: str
    present: bool
    mode: str
    addresses: tuple[_values.Address, ...]
    gateways: tuple[str, ...]
    dns: tuple[str, ...]
    mac: str
    """C(interface), C(keep), or a MAC address."""
    stp: bool
    forward_delay: float
    confirm_timeout: float
    probe: t.Optional[tuple[str, ...]]
    """Addresses to ask; None for the gateways that the host has."""
    persistent: bool
    accept_risk: bool
    force: bool
    local: bool = False
    """The task runs on the host itself, whoever is logged in there."""

    def move(self, mac: str, mtu: int, taps: t.Sequence[str]) -> Move:
        """What the managers are told."""
        return Move(
            bridge=self.bridge,
            interface=self.interface,
            mac=mac,
            mtu=mtu,
            mode=self.mode,
            addresses=tuple(str(address) for address in self.addresses),
            gateways=self.gateways,
            dns=self.dns,
            taps=tuple(taps),
            stp=self.stp,
            forward_delay=self.forward_delay,
            back=not self.present,
        )


def wanted(params: t.Mapping[str, t.Any]) -> WantedUplink:
    """The task's options, checked; raises with the option's name."""
    bridge = _values.interface_name("bridge", params["bridge"])
    interface = _values.interface_name("interface", params["interface"])
    if bridge == interface:
        raise InvalidInput("bridge", bridge, "is also the interface; give the bridge a name of its own, such as br0.")
    mode = params["address_mode"]
    addresses = tuple(_values.interface_address("addresses", text) for text in params["addresses"] or ())
    gateways = tuple(_host("gateway", text) for text in params["gateway"] or ())
    if mode == "static" and not addresses and params["state"] == "present":
        raise InvalidInput("address_mode", mode, "needs addresses, such as addresses: [192.0.2.10/24].")
    for option in ("addresses", "gateway", "dns"):
        if mode != "static" and params[option]:
            raise InvalidInput(option, params[option], "goes with address_mode: static; the other modes keep theirs.")
    for gateway in gateways:
        if not any(ipaddress.ip_address(gateway) in address.network for address in addresses):
            raise InvalidInput("gateway", gateway, "is in no network of addresses; the host could not reach it.")
    stp = bool(params["stp"])
    forward_delay = float(params["forward_delay"]) if stp else 0.0
    return WantedUplink(
        bridge=bridge,
        interface=interface,
        network=_values.object_name("network", params["network"] or bridge),
        present=params["state"] == "present",
        mode=mode,
        addresses=addresses,
        gateways=gateways,
        dns=tuple(_host("dns", text) for text in params["dns"] or ()),
        mac=_mac(params["mac"]),
        stp=stp,
        forward_delay=forward_delay,
        confirm_timeout=_timeout(float(params["confirm_timeout"]), stp=stp, forward_delay=forward_delay),
        probe=_probe(params["probe"]),
        persistent=bool(params["persistent"]),
        accept_risk=bool(params["accept_risk"]),
        force=bool(params["force"]),
        local=bool(params.get("local")),
    )


def transaction_name(value: t.Optional[str]) -> str:
    """The controller's name for the move; it becomes a directory's name."""
    if value is None or not _TRANSACTION.match(value):
        raise InvalidInput(
            "transaction",
            value,
            "is not what the action plugin labspan.vmnet.bridge_uplink gives. Run the task by Ansible, which confirms "
            "the move from the controller; do not set this option.",
        )
    return value


def _host(option: str, text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidInput(option, text, "is not an IP address; give one without prefix length.") from None


def _mac(text: str) -> str:
    return text if text in ("interface", "keep") else _values.mac_address("mac", text)


def _probe(values: t.Sequence[str]) -> t.Optional[tuple[str, ...]]:
    if list(values) == ["gateway"]:
        return None
    if list(values) == ["none"]:
        return ()
    try:
        return tuple(str(ipaddress.ip_address(text)) for text in values)
    except ValueError:
        raise InvalidInput("probe", list(values), "is none of [gateway], [none], and a list of IP addresses.") from None


def _timeout(seconds: float, *, stp: bool, forward_delay: float) -> float:
    least = 2 * forward_delay + _STP_ALLOWANCE if stp else MINIMUM_TIMEOUT
    if not least <= seconds <= 3600:
        why = "with spanning tree a new port is silent for twice forward_delay, so " if stp else ""
        raise InvalidInput("confirm_timeout", seconds, f"is out of range; {why}give {least:g} to 3600 seconds.")
    return seconds
