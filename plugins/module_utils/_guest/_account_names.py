# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the accounts of guests are called. Pure, and of use on the controller, too.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import re

#: The account of guests that have none of their own.
SHARED = "labspan-qemu"

_PREFIX = "labspan-"
#: useradd(8) takes 32 characters.
_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,23}\Z")


def name_of(guest: str) -> str:
    """The account of a guest: always the same, and one that every system takes."""
    if _PLAIN.match(guest) and guest != "qemu":
        return _PREFIX + guest
    return _PREFIX + hashlib.sha256(guest.encode()).hexdigest()[:12]
