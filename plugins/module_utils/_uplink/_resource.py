# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The part of a move that a run of the module is asked for.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._confirmation import Confirmation, Status
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._uplinks import Uplink
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._wanted import transaction_name, wanted

# In check mode nothing is begun, so no name is needed.
_NAMELESS = "0" * 16


def build(params: t.Mapping[str, t.Any], *, check_mode: bool) -> Resource[t.Any]:
    """The resource for the task's options."""
    want = wanted(params)
    name = params["transaction"]
    transaction = Transaction(_NAMELESS if check_mode and name is None else transaction_name(name))
    if params["step"] == "confirm":
        return Confirmation(want, transaction)
    if params["step"] == "status":
        return Status(want, transaction)
    return Uplink(want, transaction, check_mode=check_mode)
