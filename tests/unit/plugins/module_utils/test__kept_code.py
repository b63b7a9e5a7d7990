# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Byte code that is kept: used for what it was made of, and only where nobody else could have put it."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._kept_code import Store

TEXT = b"VALUE = 1\n"
OTHER = b"VALUE = 2\n"


def _store(path: pathlib.Path) -> Store:
    return Store(str(path / "code"), os.geteuid())


def _value(store: Store, name: str, text: bytes) -> int:
    found: dict[str, int] = {}
    exec(store.code(name, text, "file.py"), found)
    return found["VALUE"]


def _keep(path: pathlib.Path, **texts: bytes) -> None:
    store = _store(path)
    for name, text in texts.items():
        _value(store, name, text)
    store.keep()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is compiled."""
    seen: list[bytes] = []

    def watch(text: bytes, path: str, mode: str, **options: bool) -> object:
        seen.append(text)
        return compile(text, path, mode, **options)

    module = "ansible_collections.labspan.vmnet.plugins.module_utils._kept_code"
    monkeypatch.setattr(f"{module}.compile", watch, raising=False)
    return seen


def test_what_was_kept_is_not_compiled_again(tmp_path: pathlib.Path, compiled: list[bytes]) -> None:
    _keep(tmp_path, a=TEXT)
    assert compiled == [TEXT]
    assert _value(_store(tmp_path), "a", TEXT) == 1
    assert compiled == [TEXT]


def test_another_text_is_compiled_and_takes_the_place_of_what_was_kept(
    tmp_path: pathlib.Path, compiled: list[bytes]
) -> None:
    _keep(tmp_path, a=TEXT, b=TEXT)
    store = _store(tmp_path)
    assert _value(store, "a", OTHER) == 2
    store.keep()
    del compiled[:]
    again = _store(tmp_path)
    assert (_value(again, "a", OTHER), compiled) == (2, [])
    assert (_value(again, "b", TEXT), compiled) == (1, [TEXT])


def test_nothing_is_written_that_was_kept_already(tmp_path: pathlib.Path) -> None:
    _keep(tmp_path, a=TEXT)
    (file,) = (tmp_path / "code").iterdir()
    before = file.stat()
    _keep(tmp_path, a=TEXT)
    assert (before.st_ino, before.st_mtime_ns) == (file.stat().st_ino, file.stat().st_mtime_ns)


def test_the_directory_is_the_users_alone(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o077)
    try:
        _keep(tmp_path / "labspan", a=TEXT)
    finally:
        os.umask(before)
    modes = [(tmp_path / path).stat().st_mode & 0o777 for path in ("labspan", "labspan/code")]
    assert modes == [0o755, 0o700]  # others have what is theirs in the one above


@pytest.mark.parametrize("mode", [0o770, 0o701, 0o777])
def test_a_directory_that_others_can_reach_is_not_used(
    tmp_path: pathlib.Path, compiled: list[bytes], mode: int
) -> None:
    _keep(tmp_path, a=TEXT)
    (tmp_path / "code").chmod(mode)
    (file,) = (tmp_path / "code").iterdir()
    before = file.stat().st_mtime_ns
    _keep(tmp_path, a=TEXT, b=TEXT)
    assert compiled == [TEXT] * 3
    assert file.stat().st_mtime_ns == before
    _store(tmp_path).drop()
    assert file.exists()


def test_a_link_to_a_directory_is_not_used(tmp_path: pathlib.Path, compiled: list[bytes]) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "code").symlink_to("elsewhere")
    _keep(tmp_path, a=TEXT)
    _keep(tmp_path, a=TEXT)
    assert compiled == [TEXT] * 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_of_another_user_nothing_is_used(tmp_path: pathlib.Path, compiled: list[bytes]) -> None:
    _keep(tmp_path, a=TEXT)
    assert _value(Store(str(tmp_path / "code"), os.geteuid() + 1), "a", TEXT) == 1
    assert compiled == [TEXT] * 2


@pytest.mark.parametrize("content", [b"", b"nonsense", b"i\x01\x00\x00\x00"])
def test_what_cannot_be_read_is_made_anew(tmp_path: pathlib.Path, compiled: list[bytes], content: bytes) -> None:
    _keep(tmp_path, a=TEXT)
    (file,) = (tmp_path / "code").iterdir()
    file.write_bytes(content)
    _keep(tmp_path, a=TEXT)
    assert compiled == [TEXT] * 2
    assert _value(_store(tmp_path), "a", TEXT) == 1
    assert compiled == [TEXT] * 2


def test_nothing_is_left_when_it_is_dropped(tmp_path: pathlib.Path) -> None:
    _keep(tmp_path, a=TEXT)
    _store(tmp_path).drop()
    assert list(tmp_path.iterdir()) == []
    _store(tmp_path).drop()
