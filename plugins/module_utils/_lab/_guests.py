# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the guests of a host add to its resources. Imported only where there are any: it brings all of QEMU's along.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _accounts, _resource, _taps_at_boot
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._former import FormerGuests
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import known_guests
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._unit_files import FormerUnitFiles, UnitFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import Lab
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._taps import TapDevices


class RemovedGuests(_resource.Guests):
    """Guests that go, before what they hang on."""

    plural: t.ClassVar[str] = "removed_guests"


class RemovedAccounts(_accounts.Accounts):
    """Accounts of guests that go, after all that was theirs."""

    plural: t.ClassVar[str] = "removed_accounts"


@dataclasses.dataclass(frozen=True)
class Parts:
    """Resources by the place that they have among those of networks, and the options of taps."""

    first: t.Sequence[Resource[t.Any]]
    removed: t.Sequence[Resource[t.Any]]
    main: t.Sequence[Resource[t.Any]]
    last: t.Sequence[Resource[t.Any]]
    coming: t.Sequence[Options]
    """Taps that guests are given."""
    going: t.Sequence[Options]
    """Taps of guests that go."""
    left: t.Sequence[Options]
    """Taps that guests that stay no longer have: they can go when these guests have let go of them."""
    tap_guests: t.Mapping[str, str]
    """Whose taps they are."""
    used: t.Collection[str]
    """All taps of guests that stay."""
    make_left: t.Callable[[t.Sequence[Options]], TapDevices]
    """The resource of those."""


def of(lab: Lab, *, check_mode: bool) -> Parts:
    """The guests and accounts of a host."""
    accounts = [item for item in lab.accounts if item["state"] == "present"]
    former_accounts = [item for item in lab.accounts if item["state"] == "absent"]
    _accounts.expect(item["name"] for item in accounts)
    known = set(known_guests())
    present = _resource.parts([item for item in lab.guests if item["state"] != "absent"], check_mode=check_mode)
    absent = _resource.parts(
        [item for item in lab.guests if item["state"] == "absent" and item["name"] in known],
        check_mode=check_mode,
        kind=RemovedGuests,
    )
    first: list[Resource[t.Any]] = [_accounts.Accounts(accounts)] if accounts else []
    last: list[Resource[t.Any]] = [RemovedAccounts(former_accounts)] if former_accounts else []
    if present.served:
        first.insert(0, UnitFiles())
        last.insert(0, _taps_at_boot.TapsAtBoot())
    elif _systemd.is_running():
        last.insert(0, FormerUnitFiles(lambda state: _resource.is_service_left(present.wishes, state)))
    last.append(FormerGuests([*absent.wishes, *present.wishes]))
    return Parts(
        first=first,
        removed=[absent.guests] if absent.wishes else [],
        main=[present.guests] if present.wishes else [],
        last=last,
        coming=present.coming,
        going=absent.going,
        left=present.going,
        tap_guests={**absent.tap_guests, **present.tap_guests},
        used=present.used,
        make_left=lambda taps: _resource.FormerTaps(taps, check_mode=check_mode, leaving=present.guests.letting_go),
    )
