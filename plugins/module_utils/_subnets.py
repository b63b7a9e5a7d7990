# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The arithmetic of subnets that the scenarios need. Pure, and of use on the controller, too.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput


def bridge_address(
    subnet: str, gateway: t.Optional[str] = None, *, options: tuple[str, str] = ("subnet", "gateway")
) -> str:
    """The address that the bridge carries in C(subnet): the gateway's, with the subnet's prefix length.

    C(options) are the names of the two options in errors.
    """
    network = _values.network(options[0], subnet)
    if not gateway:
        if network.prefixlen > network.max_prefixlen - 2:
            raise InvalidInput(
                options[0],
                subnet,
                f"has no room for a gateway and a guest; take a prefix length of {network.max_prefixlen - 2} or less.",
            )
        return f"{network.network_address + 1}/{network.prefixlen}"
    try:
        address = ipaddress.ip_address(gateway.strip())
    except ValueError:
        raise InvalidInput(
            options[1], gateway, f"is not an address; write it as in {network.network_address + 1}."
        ) from None
    if address not in network:
        raise InvalidInput(options[1], gateway, f"is not in the subnet {network}.")
    return f"{address}/{network.prefixlen}"
