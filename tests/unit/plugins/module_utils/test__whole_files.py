# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import signal
import stat
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _whole_files


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a file in it."""
    (tmp_path / "file").write_text("old\n")
    return tmp_path


def names(directory: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def in_child(act: t.Callable[[], object]) -> int:
    """Have a process of its own do this; its status as wait(2) has it."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        finally:
            os._exit(255)
    return os.waitpid(child, 0)[1]


def die(*_arguments: object) -> t.NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("content", ["new\n", b"new\n"])
def test_a_file_is_replaced_with_its_mode_and_nothing_is_left(
    place: pathlib.Path, content: t.Union[str, bytes]
) -> None:
    path = place / "file"
    before = os.umask(0o077)
    try:
        _whole_files.replace(str(path), content, mode=0o644, owner=(os.getuid(), os.getgid()))
        _whole_files.replace(str(place / "secret"), content, mode=0o600)
    finally:
        os.umask(before)
    assert path.read_text() == "new\n"
    assert [stat.S_IMODE((place / name).stat().st_mode) for name in ("file", "secret")] == [0o644, 0o600]
    assert names(place) == ["file", "secret"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_directories_have_their_modes_whatever_the_umask_and_those_that_were_there_keep_theirs(
    place: pathlib.Path, umask: int
) -> None:
    (place / "theirs").mkdir()
    (place / "theirs").chmod(0o750)
    before = os.umask(umask)
    try:
        _whole_files.make_directories(str(place / "theirs" / "open" / "er"))
        _whole_files.make_directories(str(place / "theirs" / "way" / "through"), 0o711)
        _whole_files.make_directories(str(place / "theirs" / "all" / "private"), 0o700)
        _whole_files.make_directories(str(place / "theirs"), 0o700)
        _whole_files.make_directory(str(place / "alone"), 0o700)
        with pytest.raises(FileExistsError):
            _whole_files.make_directory(str(place / "theirs"), 0o700)
    finally:
        after = os.umask(before)
    directories = [path for path in place.rglob("*") if path.is_dir()]
    assert {path.relative_to(place).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in directories} == {
        "theirs": 0o750,
        "theirs/open": 0o755,
        "theirs/open/er": 0o755,
        "theirs/way": 0o755,
        "theirs/way/through": 0o711,
        "theirs/all": 0o755,
        "theirs/all/private": 0o700,
        "alone": 0o700,
    }
    assert after == umask


def test_a_directory_has_its_mode_from_the_beginning(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed right after it is made leaves none that nobody can enter."""
    mkdir = os.mkdir

    def make_and_die(path: str, mode: int) -> None:
        mkdir(path, mode)
        die()

    def make() -> None:
        os.umask(0o077)
        _whole_files.make_directories(str(place / "new"))

    monkeypatch.setattr(os, "mkdir", make_and_die)
    assert os.WTERMSIG(in_child(make)) == signal.SIGKILL
    assert stat.S_IMODE((place / "new").stat().st_mode) == 0o755


def test_when_the_disk_is_full_in_the_middle_the_old_file_stays(place: pathlib.Path) -> None:
    def write() -> None:
        # The kernel's own refusal in the middle of a file, as that of a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _whole_files.replace(str(place / "file"), "n" * 9000)

    assert os.WEXITSTATUS(in_child(write)) == errno.EFBIG
    assert (place / "file").read_text() == "old\n"
    assert names(place) == ["file"]


def test_a_disk_that_is_full_when_the_content_goes_to_it_leaves_the_old_file(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        _whole_files.replace(str(place / "file"), "new\n")
    assert (place / "file").read_text() == "old\n"
    assert names(place) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "fchmod", "rename"])
def test_a_writer_that_is_killed_leaves_the_old_file_and_the_next_one_cleans_up(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, call, die)
        assert os.WTERMSIG(in_child(lambda: _whole_files.replace(str(place / "file"), "new\n"))) == signal.SIGKILL
    assert (place / "file").read_text() == "old\n"
    left = names(place)
    assert len(left) == 2
    assert left[0].startswith(".file.labspan-")

    _whole_files.replace(str(place / "another"), "new\n")

    assert names(place) == ["another", "file"]


def test_what_is_left_of_an_earlier_boot_goes_and_what_lives_or_is_not_ours_stays(place: pathlib.Path) -> None:
    this_boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    ours = f".file.labspan-{this_boot}-{os.getpid()}"
    for name in (ours, f".file.labspan-00000000-{os.getpid()}", ".file.labspan", "file.labspan-00000000-1"):
        (place / name).touch()

    assert _whole_files.remove(str(place / "file"))

    assert names(place) == sorted([ours, ".file.labspan", "file.labspan-00000000-1"])
    assert not _whole_files.remove(str(place / "file"))
    assert not _whole_files.remove(str(place / "nowhere" / "file"))


def test_a_name_that_somebody_else_put_there_is_not_written_through(place: pathlib.Path) -> None:
    this_boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    (place / "theirs").write_text("theirs\n")
    (place / f".file.labspan-{this_boot}-{os.getpid()}").symlink_to(place / "theirs")
    _whole_files.replace(str(place / "file"), "new\n")
    assert (place / "theirs").read_text() == "theirs\n"
    assert (place / "file").read_text() == "new\n"
    assert not (place / "file").is_symlink()


def test_links_take_the_place_of_files_and_of_links(place: pathlib.Path) -> None:
    for target in ("one", "two"):
        _whole_files.link(str(place / "file"), target)
        assert os.readlink(place / "file") == target
    assert names(place) == ["file"]


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    rename, fsync = os.rename, os.fsync

    def note_rename(before: str, after: str) -> None:
        seen.append("rename")
        rename(before, after)

    def note_fsync(descriptor: int) -> None:
        seen.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(os, "fsync", note_fsync)
    _whole_files.make_directories(str(place / "new" / "er"))
    assert seen == ["directory", "directory"]
    seen.clear()
    _whole_files.make_directories(str(place / "new" / "er"))
    assert seen == []
    _whole_files.replace(str(place / "new" / "er" / "file"), "new\n")
    assert seen == ["file", "rename", "directory"]
