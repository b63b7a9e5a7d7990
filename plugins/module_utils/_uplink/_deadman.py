# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The dead-man: a process of its own that takes the host back when the move is not confirmed in time.

It runs from one file in /run, beside the journal, with nothing but Python's standard library, outside the controller's
connection and outside the process that moves. It goes back when that process dies or takes too long, when the gateways
that answered before are silent for good, when the time for the confirmation is over, and when it is told to end: a
move without its guard is none.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _journal, _putback, _reach
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Journal, Phase, Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import now

#: The file that says who watches: number and start time.
ARMED = "armed"
#: Seconds of silence of every gateway after which nobody needs to wait for the confirmation.
SILENCE = 10.0
_TICK = 0.1
_ASK_EVERY = 2.0
_ATTEMPTS = 5


class _Order:
    """Whether somebody told the dead-man to end: an administrator, or a host that shuts down."""

    given = False

    def note(self, _number: int, _frame: t.Any) -> None:
        self.given = True


def main() -> None:
    """Watch over the transaction whose directory is the first argument."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    end = _Order()
    signal.signal(signal.SIGTERM, end.note)
    directory, identity = os.path.split(os.path.abspath(sys.argv[1]))
    transaction = Transaction(identity, directory)
    try:
        journal = transaction.read()
        process = _process.identify(os.getpid())
        if process is not None:
            _process.write_pid_file(transaction.file(ARMED), process)
        transaction.read()  # when it is over and forgotten meanwhile, that file has no place
    except FileNotFoundError:  # it was over before this process, started again, could see it
        with contextlib.suppress(OSError):
            os.unlink(transaction.file(ARMED))
        return
    reason = _watch(transaction, journal, end)
    if reason:
        _go_back(transaction, reason, end)


def _watch(transaction: Transaction, journal: Journal, end: _Order) -> t.Optional[str]:
    """Wait until it is over (None) or must go back (why)."""
    heard = asked = now()
    while True:
        # In this order: what a process that is dead by now has written is what we read.
        mover_alive = journal.mover.alive
        phase = transaction.phase()
        if phase is None or phase.name in _journal.OVER:
            return None
        if phase.name == _journal.STUCK or (phase.name == _journal.ROLLING_BACK and not mover_alive):
            return phase.reason
        if end.given:
            return phase.reason or "The dead-man that watched over the move was told to end."
        reason = _overdue(phase, journal, mover_alive=mover_alive)
        if reason:
            return reason
        if phase.name == _journal.MOVED and journal.gateways and now() - asked >= _ASK_EVERY:
            asked = now()
            if _gateways_answer(journal):
                heard = now()
            elif now() - max(heard, phase.since) > SILENCE:
                return f"The gateways {', '.join(journal.gateways)} no longer answer on {_target(journal)}."
        time.sleep(_TICK)


def _overdue(phase: Phase, journal: Journal, *, mover_alive: bool) -> t.Optional[str]:
    if phase.name == _journal.MOVED:
        if now() - phase.since > journal.confirm_timeout:
            return (
                f"The move was not confirmed over a new connection within {journal.confirm_timeout:g} seconds "
                "(confirm_timeout)."
            )
        return None
    if phase.name in (_journal.PREPARED, _journal.MOVING):
        if not mover_alive:
            return f"The process that moved the uplink died in the phase '{phase.name}'."
        if now() - phase.since > journal.move_timeout:
            return f"The move took longer than {journal.move_timeout:g} seconds."
    if phase.name == _journal.ROLLING_BACK and now() - phase.since > journal.move_timeout:
        return phase.reason  # whoever goes back is stuck
    return None


def _target(journal: Journal) -> str:
    return journal.interface if journal.back else journal.bridge


def _gateways_answer(journal: Journal) -> bool:
    """Whether any of them does; true also when they cannot be asked, which proves nothing."""
    try:
        return bool(_reach.answers(_target(journal), journal.gateways, sources=journal.gateways, timeout=1.0))
    except OSError:
        return True


def _go_back(transaction: Transaction, reason: str, end: _Order) -> None:
    with contextlib.suppress(OSError):  # to the journal of the host, or the log
        sys.stdout.write(f"Going back: {reason}\n")
        sys.stdout.flush()
    for _attempt in range(_ATTEMPTS):
        try:
            _putback.stop_mover(transaction.read())
            _putback.put_back(transaction, reason)
            return
        except FileNotFoundError:  # somebody else was there first, and has forgotten the journal
            return
        except Exception:  # pylint: disable=broad-except  # whatever it was, the next attempt may fare better
            with contextlib.suppress(OSError):
                traceback.print_exc()
            if end.given:  # a host that shuts down comes up with the old network in any case
                return
            time.sleep(1.0)


if __name__ == "__main__":
    main()
