# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads the lease file of a network's DHCP server."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import parse_leases


def dhcp_leases(text: str) -> list[dict[str, t.Any]]:
    """The leases in the text of a lease file."""
    if not isinstance(text, str):
        raise AnsibleFilterError(f"dhcp_leases: the text of a lease file is needed, not {type(text).__name__}.")
    return [dataclasses.asdict(lease) for lease in parse_leases(text)]


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"dhcp_leases": dhcp_leases}
