# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which accounts the guests of a network run as, and whose its taps therefore are, before either is there."""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._lab._belongings import guest_accounts, owned_taps


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"guest_accounts": guest_accounts, "owned_taps": owned_taps}
