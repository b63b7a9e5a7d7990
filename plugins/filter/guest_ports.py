# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role l2 needs to know to filter the ports of guests before the guests are there."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _belongings
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._belongings import uplink_addresses


def guest_ports(guests: _belongings.Entries, bridge: str, ports: _belongings.Entries = ()) -> list[_belongings.Port]:
    """The port of each NIC that the guests have on the bridge, with what C(ports) says of it, and its other entries."""
    try:
        return _belongings.guest_ports(guests, bridge, ports)
    except LabspanError as error:
        raise AnsibleFilterError(f"guest_ports: {error}") from None


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"guest_ports": guest_ports, "uplink_addresses": uplink_addresses}
