# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a move: the controller's confirmation over a new connection, then what makes it outlive a reboot.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _connection, _journal, _managers, _uplinks
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Phase, Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._uplinks import Done, UplinkState
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._wanted import WantedUplink


@dataclasses.dataclass(frozen=True)
class Unconfirmed:
    """How far the move is, and the uplink."""

    phase: Phase
    uplink: UplinkState


class Confirmation(Resource[Unconfirmed]):
    """Of one transaction. To ask again, such as when the first answer was lost, does no harm."""

    plural = "uplinks"
    singular = "uplink"

    def __init__(self, want: WantedUplink, transaction: Transaction) -> None:
        super().__init__(single=True)
        self.want = want
        self.transaction = transaction
        self.manager: Manager = _managers.find(want.interface)

    def read(self) -> Unconfirmed:
        return Unconfirmed(_phase(self.transaction), _uplinks.read(self.want, self.manager))

    def plan(self, have: Unconfirmed, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes: list[Change] = []
        created = None
        if have.phase.name == _journal.MOVED:
            journal = self.transaction.read()
            self._refuse_old_connection(journal)
            created = journal.created
            changes.append(Done("confirmation", "Confirm the move over a new connection", None, None))
        elif have.phase.name != _journal.CONFIRMED:
            raise Refused(_why_not(have.phase), phase=have.phase.name)
        rest = _uplinks.rest_of_plan(self.want, self.manager, have.uplink, self.warnings, created=created)
        return [*changes, *rest]

    @staticmethod
    def _refuse_old_connection(journal: _journal.Journal) -> None:
        peer = _connection.ssh_peer()
        if peer is not None and str(peer) == journal.connection:
            raise Refused(
                f"the confirmation came over the same connection ({peer}) as the move. That proves nothing, since old "
                "connections live on where no new one can be made.",
                same_connection=True,
            )

    def predict(self, have: Unconfirmed, changes: t.Sequence[Change]) -> Unconfirmed:
        return have

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in changes:
            if change.subject == "confirmation":
                self._confirm()
            else:
                _uplinks.apply_rest(change)
            done.append(change)

    def _confirm(self) -> None:
        journal = self.transaction.read()
        phase = _phase(self.transaction)
        deadline = phase.since + journal.confirm_timeout
        if not self.transaction.advance((_journal.MOVED,), _journal.CONFIRMED, before=deadline):
            phase = _phase(self.transaction)
            raise Refused(f"the confirmation came too late. {_why_not(phase)}", phase=phase.name)
        self.transaction.forget()

    def render(self, state: Unconfirmed) -> dict[str, dict[str, t.Any]]:
        return _uplinks.render(self.want, self.manager, state.uplink)

    def facts(self, state: Unconfirmed) -> dict[str, t.Any]:
        return {"phase": state.phase.name, "transaction": self.transaction.identity}


class Status(Confirmation):
    """What became of a transaction; changes nothing."""

    def plan(self, have: Unconfirmed, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        return []

    def facts(self, state: Unconfirmed) -> dict[str, t.Any]:
        return {**super().facts(state), "reason": state.phase.reason}


def _why_not(phase: Phase) -> str:
    """Why a move in this phase cannot be confirmed."""
    if phase.name == _journal.ROLLED_BACK:
        return f"rolled back, the host is as it was before: {phase.reason}"
    if phase.name == _journal.STUCK:
        return f"the host could not be put back wholly: {phase.reason} The next run of the task tries again."
    if phase.name == _journal.ROLLING_BACK:
        return f"the host is just going back: {phase.reason}"
    if phase.name == _journal.MOVED:
        return "its time is over, and the host goes back now."
    return f"the move is still under way (phase '{phase.name}')."


def _phase(transaction: Transaction) -> Phase:
    phase = _journal.known(transaction.identity).phase()
    if phase is None:
        raise Refused(f"the move {transaction.identity} is not known here any more.")
    return phase
