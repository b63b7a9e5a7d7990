# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The arithmetic of subnets that the scenario roles need."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.module_utils import _subnets
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError


def bridge_address(subnet: str, gateway: t.Optional[str] = None) -> str:
    """The address that the bridge carries in C(subnet): the gateway's, with the subnet's prefix length."""
    try:
        return _subnets.bridge_address(str(subnet), gateway)
    except LabspanError as error:
        raise AnsibleFilterError(f"bridge_address: {error}") from None


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"bridge_address": bridge_address}
