# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written before a move is what is read when it must go back; of two who end it, one does."""

from __future__ import annotations

import os
import pathlib
import stat
import threading
import zipfile

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _guard, _journal, _record
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Journal, Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import Snapshot
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import EndProgram, RunProgram, WriteFile

from .test__moves import HOST

CARD = Link(5, "eth0", None, True, True, 1500, "02:00:00:00:00:01", "", None, 0)
JOURNAL = Journal(
    bridge="br0",
    interface="eth0",
    back=False,
    created=True,
    before=Snapshot({"eth0": CARD}, HOST, {"eth0": {"ipv4/conf/rp_filter": "1"}}, 12.5),
    mover=Process(1, 2),
    confirm_timeout=90.0,
    move_timeout=60.0,
    gateways={"192.0.2.1": "192.0.2.10", "fe80::1": None},
    connection="a to b",
    undo_before=(RunProgram(("true",)), WriteFile("/etc/x", None)),
    undo_after=(EndProgram(("sleep", "9"), "KILL"),),
)


@pytest.fixture
def transaction(tmp_path: pathlib.Path) -> Transaction:
    made = Transaction("0123456789abcdef", str(tmp_path))
    made.begin(JOURNAL)
    return made


def test_a_journal_is_read_as_it_was_written(transaction: Transaction) -> None:
    assert transaction.read() == JOURNAL
    phase = transaction.phase()
    assert phase is not None
    assert phase.name == _journal.PREPARED


def test_the_directory_of_a_transaction_is_roots_alone_and_those_above_it_are_not(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o077)
    try:
        Transaction("0123456789abcdef", str(tmp_path / "labspan" / "uplink")).begin(JOURNAL)
    finally:
        os.umask(before)
    paths = ("labspan", "labspan/uplink", "labspan/uplink/0123456789abcdef")
    assert [stat.S_IMODE((tmp_path / path).stat().st_mode) for path in paths] == [0o755, 0o755, 0o700]


def test_only_the_phase_that_is_allowed_goes_on(transaction: Transaction) -> None:
    assert not transaction.advance((_journal.MOVED,), _journal.CONFIRMED)
    assert transaction.advance((_journal.PREPARED,), _journal.MOVED)
    assert not transaction.advance((_journal.MOVED,), _journal.CONFIRMED, before=0.0)
    assert transaction.advance((_journal.MOVED,), _journal.CONFIRMED, before=_journal.now() + 60)
    assert not transaction.advance((_journal.MOVED,), _journal.ROLLING_BACK, "too late")


def test_of_many_who_end_it_exactly_one_does(tmp_path: pathlib.Path) -> None:
    for number in range(200):
        transaction = Transaction(f"{number:016x}", str(tmp_path))
        transaction.begin(JOURNAL)
        won: list[str] = []
        start = threading.Barrier(2)

        def end(to: str) -> None:
            start.wait()  # noqa: B023
            if transaction.advance((_journal.PREPARED,), to):  # noqa: B023
                won.append(to)  # noqa: B023

        threads = [threading.Thread(target=end, args=(to,)) for to in (_journal.CONFIRMED, _journal.ROLLING_BACK)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        phase = transaction.phase()
        assert phase is not None
        assert won == [phase.name]


def test_of_a_move_that_is_over_only_its_end_is_kept(transaction: Transaction, tmp_path: pathlib.Path) -> None:
    assert _journal.unfinished(str(tmp_path))
    transaction.advance((_journal.PREPARED,), _journal.ROLLED_BACK)
    transaction.forget()
    assert sorted(path.name for path in pathlib.Path(transaction.path).iterdir()) == ["lock", "phase"]
    assert not _journal.unfinished(str(tmp_path))
    _journal.sweep(str(tmp_path))
    assert transaction.phase() is None


def test_a_move_that_nobody_knows_is_said_to_be_unknown() -> None:
    with pytest.raises(SystemFailure, match="knows no move"):
        _journal.known("f" * 16)


def test_the_dead_man_carries_all_that_it_imports(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rollback.pyz"
    _guard.pack(str(path))
    prefix = "ansible_collections.labspan.vmnet.plugins.module_utils."
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        for name in names:
            for line in archive.read(name).decode().splitlines():
                words = line.split()
                if words[:1] == ["from"] and words[1].startswith(prefix[:-1]):
                    module = words[1].replace(".", "/")
                    assert f"{module}.py" in names or f"{module}/__init__.py" in names, (name, line)


def test_a_record_keeps_the_first_state_of_a_file(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "interfaces")
    pathlib.Path(path).write_bytes(b"old\r\n")
    record = _record.Record("br0", "eth0", "lan", True).with_files([WriteFile(path, "new")])
    WriteFile(path, "new").perform()
    again = record.with_files([WriteFile(path, "newer")])
    assert again.files[0].before.content == "old\r\n"
    assert again.files[0].digest == _record.digest("newer")
    again.files[0].before.perform()
    assert pathlib.Path(path).read_bytes() == b"old\r\n"
