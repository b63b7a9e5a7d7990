# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Locks that other programs may hold, waited for and not for ever.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import fcntl
import time
import typing as t

_LOOK_AGAIN = 0.02


def take(descriptor: int, timeout: float, held: t.Callable[[], Exception]) -> None:
    """Lock an open file for this process (flock(2)); raises what C(held) makes after C(timeout) seconds in vain."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise held() from None
            time.sleep(_LOOK_AGAIN)
