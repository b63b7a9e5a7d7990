# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The arithmetic of subnets that the scenario roles need."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible.errors import AnsibleFilterError


def bridge_address(subnet: str, gateway: t.Optional[str] = None) -> str:
    """The address that the bridge carries in C(subnet): the gateway's, with the subnet's prefix length."""
    try:
        network = ipaddress.ip_network(subnet)
    except ValueError as error:
        raise AnsibleFilterError(
            f"bridge_address: {subnet!r} is not a network in CIDR form ({error}); write it as in 192.168.223.0/24."
        ) from None
    if not gateway:
        if network.prefixlen > network.max_prefixlen - 2:
            raise AnsibleFilterError(
                f"bridge_address: {subnet} has no room for a gateway and a guest; take a prefix length of "
                f"{network.max_prefixlen - 2} or less."
            )
        return f"{network.network_address + 1}/{network.prefixlen}"
    try:
        address = ipaddress.ip_address(gateway)
    except ValueError as error:
        raise AnsibleFilterError(f"bridge_address: the gateway {gateway!r} is not an address ({error}).") from None
    if address not in network:
        raise AnsibleFilterError(f"bridge_address: the gateway {gateway} is not in the subnet {subnet}.")
    return f"{address}/{network.prefixlen}"


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"bridge_address": bridge_address}
