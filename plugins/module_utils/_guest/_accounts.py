# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The accounts that guests run as: one for each guest, so that none can reach another one's disks, taps or process.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import grp
import os
import pwd
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _foresight, _values, _whole_files
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

_ETC = "/etc"
#: Who works on the accounts holds this with fcntl(2), as lckpwdf(3) does, beside files of its own that last.
_LOCK = ".pwd.lock"
_LASTING_LOCKS = tuple(f"{name}.lock" for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid"))


def default_for(guest: str, *, expected: bool = False) -> str:
    """Whom a new guest runs as when the task does not say: its own account where that exists, else the shared one.

    C(expected) is whether a task before may make accounts. When neither is there, that is its own one.
    """
    own = name_of(guest)
    return own if _is_there(own) or (expected and _find(SHARED) is None) else SHARED


def _is_there(account: str) -> bool:
    """Whether an account is there, or will be."""
    world = _foresight.world()
    return _find(account) is not None or (world is not None and account in world.accounts)


def expect(guests: t.Iterable[str]) -> None:
    """Have these accounts reckoned with in what is planned before they are: those that are not there will be made."""
    world = _foresight.world()
    for account in map(name_of, guests):
        if world is not None and not _is_there(account):
            world.accounts[account] = _free_number(world.accounts.values())


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
    whole: bool = True
    """Whether it has its group and its place among the passwords, which useradd writes last."""


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
        return {
            guest: Entry(entry.pw_uid, entry.pw_gecos, _is_whole(entry.pw_name))
            for guest, entry in found.items()
            if entry is not None
        }

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
                after = Entry(self._number(account), _COMMENT % guest)
                changes.append(SetAccount(f"account {account}", f"Make the account {account}", None, after, guest))
            elif present and entry is not None and not entry.whole:
                sentence = f"Make the account {account} anew, of which there is only a part"
                whole = dataclasses.replace(entry, whole=True)
                changes.append(SetAccount(f"account {account}", sentence, entry, whole, guest))
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

    def _number(self, account: str) -> t.Optional[int]:
        """Chosen beforehand only where something else is planned for it before it is there."""
        world = _foresight.world()
        if world is None:
            return None
        if account not in world.accounts:
            world.accounts[account] = _free_number(world.accounts.values())
        return world.accounts[account]

    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        state = dict(have)
        for change in t.cast("t.Sequence[SetAccount]", changes):
            state.pop(change.guest, None)
            if change.after is not None:
                state[change.guest] = change.after
        return state

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        _remove_dead_locks()
        for change in t.cast("t.Sequence[SetAccount]", changes):
            if change.after is None:
                _run("userdel", name_of(change.guest))
            elif change.before is None:
                _make(change.guest, change.after.uid)
            elif not change.before.whole:
                _run("userdel", name_of(change.guest))
                _make(change.guest, change.before.uid)
            done.append(change)
        if changes:
            # That the programs have let go of their locks is to be on the disk, too.
            _whole_files.sync(_ETC)

    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        return {guest: {"account": name_of(guest), "uid": entry.uid} for guest, entry in state.items()}


def _specs(name: str) -> t.Iterator[t.Any]:
    definition = _store.read_definition(name)
    if definition is not None:
        yield definition.spec


def _free_number(taken: t.Collection[int]) -> int:
    """The highest number that is free for an account of the system and for its group, as useradd would choose."""
    lowest, highest = 100, 999
    with contextlib.suppress(OSError, ValueError), open("/etc/login.defs", encoding="utf-8") as file:
        limits = dict(line.split()[:2] for line in file if line.startswith("SYS_UID_M"))
        lowest, highest = int(limits.get("SYS_UID_MIN", lowest)), int(limits.get("SYS_UID_MAX", highest))
    for number in range(highest, lowest - 1, -1):
        if number not in taken and not _is_taken(number):
            return number
    raise Refused(f"no number from {lowest} to {highest} is free for the account of a guest. Remove old accounts.")


def _is_taken(number: int) -> bool:
    for find in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            find(number)
            return True
    return False


def _is_whole(account: str) -> bool:
    places = (os.path.join(_ETC, name) for name in ("shadow", "gshadow"))
    return _has_group(account) and all(_has_line(place, account) for place in places)


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _has_line(path: str, account: str) -> bool:
    """Whether a file has a line about the account, or cannot be asked."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.startswith(f"{account}:") for line in file)
    except OSError:
        return True


def _remove_dead_locks() -> None:
    """Remove lock files that a power cut has left empty: nobody holds them, and every useradd would wait in vain."""
    locks = [os.path.join(_ETC, name) for name in _LASTING_LOCKS]
    if not any(os.path.exists(lock) for lock in locks):
        return
    with contextlib.suppress(OSError), open(os.path.join(_ETC, _LOCK), "ab") as ours:
        fcntl.lockf(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for lock in locks:
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(lock).st_size == 0:
                    os.unlink(lock)


def _make(guest: str, uid: t.Optional[int] = None) -> None:
    words = ["--system", "--no-create-home", "--home-dir", "/nonexistent"]
    words += ["--gid", name_of(guest)] if _has_group(name_of(guest)) else ["--user-group"]
    words += ["--uid", str(uid)] if uid is not None else []
    words += ["--shell", "/usr/sbin/nologin", "--comment", _COMMENT % guest]
    _run("useradd", *words, name_of(guest))


def _run(program: str, *words: str) -> None:
    path = _deps.program(program, purpose="to manage accounts")
    done = _commands.run([path, *words])
    if done.returncode:
        raise SystemFailure(f"{program} {words[-1]} failed: {(done.stderr or done.stdout).strip()}")
