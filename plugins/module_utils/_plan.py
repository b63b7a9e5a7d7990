# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes as data: what a planner returns, what the runner applies, shows and undoes.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Change:
    """One step that takes C(subject) from C(before) to C(after); C(None) stands for "is not there".

    Kinds of changes are subclasses. A change is as small as what can fail on its own, so that undoing the finished ones
    restores what was there.
    """

    subject: str
    """What is changed, as the administrator calls it: C(bridge br0)."""
    sentence: str
    """The whole step in English: C(Set the MTU of bridge br0 from 1500 to 9000)."""
    before: t.Any
    after: t.Any

    @property
    def reversible(self) -> bool:
        """False for what cannot be taken back, such as the run of a guest that was stopped."""
        return True

    def inverse(self) -> Change:
        """The change that takes the subject back."""
        return dataclasses.replace(self, sentence=f"Undo: {self.sentence}", before=self.after, after=self.before)
