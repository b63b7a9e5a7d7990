# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Flows that began under other rules: forgotten, so that the next packet meets the rules of now.

The kernel decides about translation once for each flow. A flow older than the masquerade would stay without it, and one
older than its removal would keep it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure


def available() -> bool:
    """Whether the host can forget flows."""
    return _deps.find_program("conntrack") is not None


def forget(direction: str, address: str) -> None:
    """Forget every flow whose C(direction), an option of conntrack such as C(--orig-src), is the address or subnet."""
    conntrack = _deps.program("conntrack", purpose="to forget flows")
    command = [conntrack, "-D", "-f", "ipv6" if ":" in address else "ipv4", direction, address]
    result = _commands.run(command)
    # It ends with 1 when there was nothing to forget.
    if result.returncode != 0 and "0 flow entries" not in result.stderr:
        raise SystemFailure(f"conntrack does not forget the flows of {address}: {' '.join(result.stderr.split())}")
