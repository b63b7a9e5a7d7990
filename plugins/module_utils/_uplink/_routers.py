# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Routers that the kernel learnt of by their advertisements, and must hear again on another interface.

Of the standard library alone: the dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _reach
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import Kernel
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3, stands_in

# A router answers at once, or at the latest three and a half seconds after its last advertisement (RFC 4861,
# section 6.2.6). One that is not heard within that is heard later; what stands in for it lasts until its own end.
_PATIENCE = 4.0


def hear(kernel: Kernel, interface: str, index: int, want: Layer3) -> None:
    """Ask the routers to speak, and wait a moment until the kernel has made its own routes of what they say."""
    have = kernel.layer3({index})
    source = next((timed.address.local for timed in have.addresses if timed.address.is_link_local), None)
    if source is None or not stands_in(have, want):
        return
    with contextlib.suppress(OSError):
        _reach.solicit_routers(interface, str(ipaddress.ip_address(source)))
    deadline = time.monotonic() + _PATIENCE
    while stands_in(kernel.layer3({index}), want) and time.monotonic() < deadline:
        time.sleep(0.02)
