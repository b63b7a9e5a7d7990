# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether what an inventory asks of a host can be right, before the host is looked at. Pure.

Everything that is wrong is told at once, each thing as a sentence that names the place where it was written.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _guest_checks, _network_checks
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._inventory import Inventory
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._problems import InvalidLab, Problems


def problems(inventory: Inventory) -> list[str]:
    """What cannot be right, a sentence each."""
    found = Problems()
    _network_checks.check(inventory, found)
    _guest_checks.check(inventory, found)
    return found.found


def check(inventory: Inventory) -> None:
    """Refuse what cannot be right, with all that is wrong in one message."""
    found = problems(inventory)
    if found:
        raise InvalidLab(found)
