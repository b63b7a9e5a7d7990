# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The accounts that guests run as: one for each guest, so that none can reach another one's disks, taps or process.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import pwd
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _store
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._account_names import SHARED, name_of
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import defined_guests
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

#: The argument spec of guest_account.
OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

#: In the field for the full name, by which an account is known as made here.
_COMMENT = "guest %s of labspan.vmnet"


def default_for(guest: str, *, expected: bool = False) -> str:
    """Whom a new guest runs as when the task does not say: its own account where that exists, else the shared one.

    C(expected) is whether a task before may make accounts. When neither is there, that is its own one.
    """
    own = name_of(guest)
    return own if _find(own) is not None or (expected and _find(SHARED) is None) else SHARED


def _find(account: str) -> t.Optional[pwd.struct_passwd]:
    try:
        return pwd.getpwnam(account)
    except KeyError:
        return None


@dataclasses.dataclass(frozen=True)
class Entry:
    """An account as it is found, as far as it matters here."""

    uid: t.Optional[int]
    """None for one that is not made yet."""
    comment: str


State = t.Mapping[str, Entry]


@dataclasses.dataclass(frozen=True)
class SetAccount(Change):
    """An account comes or goes; states are Entry or None."""

    guest: str


class Accounts(Resource[State]):
    """The accounts of the guests that a task names."""

    plural: t.ClassVar[str] = "accounts"
    singular: t.ClassVar[str] = "account"

    def __init__(self, items: t.Sequence[Options], *, single: bool = False) -> None:
        super().__init__(single=single)
        self._wanted = {_values.object_name("name", item["name"]): item["state"] == "present" for item in items}

    def read(self) -> State:
        found = {guest: _find(name_of(guest)) for guest in self._wanted}
        return {guest: Entry(entry.pw_uid, entry.pw_gecos) for guest, entry in found.items() if entry is not None}

    def plan(self, have: State, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes = []
        for guest, present in self._wanted.items():
            account, entry = name_of(guest), have.get(guest)
            if entry is not None and entry.comment != _COMMENT % guest:
                raise Refused(
                    f"name: the account {account} of guest {guest} exists and was not made for it (its full name is "
                    f"{entry.comment!r}). It is left as it is; rename it, or run the guest as another account (user)."
                )
            if present and entry is None:
                after = Entry(None, _COMMENT % guest)
                changes.append(SetAccount(f"account {account}", f"Make the account {account}", None, after, guest))
            elif not present and entry is not None and self._may_go(guest, account):
                sentence = f"Remove the account {account}"
                changes.append(SetAccount(f"account {account}", sentence, entry, None, guest))
        return changes

    def _may_go(self, guest: str, account: str) -> bool:
        """Whether nothing of the account is left: the next one would get its number, and all that with it."""
        reason = None
        if _store.read_made_disks(guest):
            reason = f"the disks of guest {guest}"
        users = [name for name in defined_guests() for spec in _specs(name) if spec.user == account]
        if users:
            reason = f"the guest {users[0]}"
        if reason:
            self.warnings.append(f"the account {account} stays, because it has {reason}.")
        return reason is None

    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        state = dict(have)
        for change in t.cast("t.Sequence[SetAccount]", changes):
            state.pop(change.guest, None)
            if change.after is not None:
                state[change.guest] = change.after
        return state

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in t.cast("t.Sequence[SetAccount]", changes):
            if change.after is None:
                _run("userdel", name_of(change.guest))
            else:
                _make(change.guest)
            done.append(change)

    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        return {guest: {"account": name_of(guest), "uid": entry.uid} for guest, entry in state.items()}


def _specs(name: str) -> t.Iterator[t.Any]:
    definition = _store.read_definition(name)
    if definition is not None:
        yield definition.spec


def _make(guest: str) -> None:
    words = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    words += ["--shell", "/usr/sbin/nologin", "--comment", _COMMENT % guest]
    _run("useradd", *words, name_of(guest))


def _run(program: str, *words: str) -> None:
    path = _deps.program(program, purpose="to manage accounts")
    done = _commands.run([path, *words])
    if done.returncode:
        raise SystemFailure(f"{program} {words[-1]} failed: {(done.stderr or done.stdout).strip()}")
