# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is left of guests that go, as a resource of the runner: the last to go, after their taps, units and accounts.

The definition of a guest that goes is kept under another name until then, so that a run that is killed is taken up by
the next one: it tells which taps are still to be removed, and that there was such a guest.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _services, _store
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._change import GuestChange
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places, is_former
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

Names = t.FrozenSet[str]


@dataclasses.dataclass(frozen=True)
class RemoveRest(GuestChange):
    """What a run that was killed has left of a guest goes."""

    @property
    def reversible(self) -> bool:
        return False


class FormerGuests(Resource[Names]):
    """Guests that went in this run, or in one that was killed."""

    plural: t.ClassVar[str] = "former_guests"
    singular: t.ClassVar[str] = "former_guest"
    returned: t.ClassVar[bool] = False

    def __init__(self, wishes: t.Sequence[Wish]) -> None:
        super().__init__()
        self._absent = {wish.name for wish in wishes if wish.state == "absent"}
        self._present = {wish.name for wish in wishes} - self._absent

    def read(self) -> Names:
        again = {name for name in self._present if os.path.exists(Places(name).former)}
        return frozenset(again.union(filter(is_former, self._absent)))

    def plan(self, have: Names, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        return [
            RemoveRest(f"guest {name}", f"Remove what is left of guest {name}", name, None, name)
            for name in sorted(have)
        ]

    def predict(self, have: Names, changes: t.Sequence[Change]) -> Names:
        return have.difference(change.before for change in changes)

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        """Also ends the removals of this very run, which have been told of as such."""
        _services.prune(sorted(self._absent))
        for name in sorted(self._absent | self._present):
            _store.end_removal(name)
        done += changes

    def render(self, state: Names) -> dict[str, dict[str, t.Any]]:
        return {}
