# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which manager runs the host's network card.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import (
    _ifupdown,
    _netplan,
    _network_manager,
    _networkd,
    _plain,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager

# netplan before those that it writes for.
_FINDERS: tuple[t.Callable[[str], t.Optional[Manager]], ...] = (
    _netplan.find,
    _networkd.find,
    _network_manager.find,
    _ifupdown.find,
)


def find(interface: str) -> Manager:
    """The one that configures this card, or the stand-in for none."""
    for finder in _FINDERS:
        manager: t.Optional[Manager] = finder(interface)
        if manager is not None:
            return manager
    return _plain.find(interface)
