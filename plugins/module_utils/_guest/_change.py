# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The base of all changes to guests.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses

from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change


@dataclasses.dataclass(frozen=True)
class GuestChange(Change):
    """A step about one guest."""

    guest: str
