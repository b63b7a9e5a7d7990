# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which accounts the guests of a network run as, and whose its taps therefore are, before either is there."""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _account_names

Entries = t.Sequence[t.Mapping[str, t.Any]]


def guest_accounts(guests: Entries) -> list[dict[str, t.Any]]:
    """The guests that run as an account of their own, as guest_account takes them."""
    return [{"name": guest["name"]} for guest in guests if not guest.get("user")]


def owned_taps(taps: Entries, guests: Entries, account: str = "") -> list[dict[str, t.Any]]:
    """The taps, each with the account of the guest that is plugged into it for its owner.

    C(account) is that of guests that name none; empty if each has its own. A tap that no guest has belongs to it, too,
    or to root.
    """
    owners = {
        nic["tap"]: guest.get("user") or account or _account_names.name_of(guest["name"])
        for guest in guests
        for nic in guest.get("nics") or ()
        if nic.get("tap")
    }
    return [{"owner": owners.get(tap.get("name"), account or "root"), **tap} for tap in taps]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"guest_accounts": guest_accounts, "owned_taps": owned_taps}
