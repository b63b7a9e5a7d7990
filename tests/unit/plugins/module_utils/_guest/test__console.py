# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The shell on a console: what is given and printed arrives exactly, whatever was left there before."""

from __future__ import annotations

import gzip
import os
import pathlib
import re
import shutil
import socket
import threading
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _console
from support.fake_console import GETTY, SHELL, FakeConsole

PATIENCE = 60.0
FORGOTTEN = _console.FORGOTTEN
ROOT = _console.Login("root", "right")

needs_busybox = pytest.mark.skipif(shutil.which("busybox") is None, reason="the program busybox is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the stand-in's shell is ours, and is asked to be root's")


@pytest.fixture(autouse=True)
def _guest(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console, "PLACE", f"{tmp_path}/there-")
    # A busy machine may let us stand still for longer than a guest has to wait for us.
    monkeypatch.setattr(_console, "FORGOTTEN", 20.0)


def noise(pause: float) -> str:
    """The beginning of a command line: the guest says something all the time."""
    return f"(while :; do echo '[ 1.0] kernel: noise'; sleep {pause}; done) & "


def connect(path: pathlib.Path, timeout: float = PATIENCE, **options: t.Any) -> _console.Console:
    return _console.Console(path, timeout, queue=PATIENCE, **options)


@pytest.mark.parametrize("shell", ["sh", pytest.param("busybox ash", marks=needs_busybox)])
def test_what_is_given_and_printed_is_exact(tmp_path: pathlib.Path, shell: str) -> None:
    content = os.urandom(_console.PIECE * 2 + 11)
    with FakeConsole(tmp_path / "s", "sh", "-c", f"PS1='# ' exec {shell} -i") as fake:
        with connect(tmp_path / "s") as console:
            result = console.run("cat; printf 'secret\\0\\r\\n' >&2; exit 7", content)
            assert (result.status, result.stdout == content, result.stderr) == (7, True, b"secret\0\r\n")
            assert console.run("cat; echo $0").text.startswith(f"{tmp_path}/there-")
            # Of the commands before nothing is left, and what is there is its owner's alone.
            shown = console.run(f"ls -ld {tmp_path}/there-*").text.splitlines()
            assert [line.split()[0] for line in shown] == ["drwx------"]
        # What was typed is on nobody's screen.
        assert b"exit 7" not in fake.said
        assert b"there-" in fake.said


def test_what_is_long_is_compressed_on_the_way_and_what_is_compressed_already_is_not(tmp_path: pathlib.Path) -> None:
    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL) as fake, connect(tmp_path / "s") as console:
        for content in (b"x" * 100_000, gzip.compress(b"short"), gzip.compress(os.urandom(5000))):
            assert console.run("cat", content).stdout == content
        assert len(fake.said) < 40_000


def test_more_is_printed_than_is_fetched_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_console, "FETCHED", 1000)
    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL), connect(tmp_path / "s") as console:
        content = os.urandom(4000)
        result = console.run("head -c 2500; cat >&2", content)
    assert (result.stdout, result.stderr) == (content[:2500], content[2500:])


@needs_root
def test_a_login_is_made_once_and_checked(tmp_path: pathlib.Path) -> None:
    with FakeConsole(tmp_path / "s", "sh", "-c", GETTY) as fake:
        with pytest.raises(_console.ConsoleError, match="asks for a login"):
            connect(tmp_path / "s").__enter__()
        with pytest.raises(_console.ConsoleError, match="asks for the password of 'root'"):
            connect(tmp_path / "s", login=_console.Login("root")).__enter__()
        with pytest.raises(_console.ConsoleError, match="does not let 'root' log in"):
            connect(tmp_path / "s", login=_console.Login("root", "wrong")).__enter__()
        for _turn in range(2):
            with connect(tmp_path / "s", login=ROOT) as console:
                assert console.run("id -un").stdout == b"root\n"
        with pytest.raises(_console.ConsoleError, match="'root' is logged in, and not 'ada'"):
            connect(tmp_path / "s", login=_console.Login("ada", "x")).__enter__()
        assert fake.said.count(b"Last login") == 1
        assert b"right" not in fake.said
    assert "right" not in repr(ROOT)


def test_who_comes_after_one_that_was_cut_off_finds_a_shell(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_console, "FORGOTTEN", FORGOTTEN)
    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL):
        with connect(tmp_path / "s") as console:
            cut = console._send

            def send(content: bytes) -> None:
                if len(content) > 1000:  # in the middle of a piece
                    cut(content[:1000])
                    raise _Cut
                cut(content)

            console._send = send  # type: ignore[method-assign]
            with pytest.raises(_Cut):
                console.run("cat", os.urandom(5000))
        with connect(tmp_path / "s") as console:
            assert console.run("echo here").stdout == b"here\n"


def test_a_damaged_piece_is_sent_again(tmp_path: pathlib.Path) -> None:
    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL), connect(tmp_path / "s") as console:
        send, damaged = console._send, []

        def once(content: bytes) -> None:
            if len(content) > 1000 and not damaged:
                damaged.append(True)
                content = b"A" + content[1:]
            send(content)

        console._send = once  # type: ignore[method-assign]
        content = os.urandom(5000)
        assert console.run("cat", content).stdout == content
    assert damaged


def test_what_else_the_guest_says_harms_nothing(tmp_path: pathlib.Path) -> None:
    # No program of the guest ends before there is noise again.
    slow = tmp_path / "sha256sum"
    slow.write_text(f'#!/bin/sh\nsleep 0.1\nexec {shutil.which("sha256sum")} "$@"\n')
    slow.chmod(0o755)
    shell = f"PATH={tmp_path}:$PATH; {noise(0.05)}{SHELL}"
    with FakeConsole(tmp_path / "s", "sh", "-c", shell), connect(tmp_path / "s") as console:
        for size in (0, 1000):
            content = os.urandom(size)
            assert console.run("cat", content).stdout == content


@pytest.mark.parametrize("garbled", range(1, 8))
def test_what_is_garbled_is_asked_for_again_while_the_guest_goes_on_talking(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, garbled: int
) -> None:
    """In each step of a conversation the word that tells of its end comes with noise between its letters."""
    for name, seconds in (("ASK_AGAIN", 0.5), ("FORGOTTEN", 2.0), ("PIECE_PATIENCE", 2.0)):
        monkeypatch.setattr(_console, name, seconds)
    (tmp_path / "garble").write_text(
        f"""n=0; printf() {{
            n=$((n + 1)); [ $n != {garbled} ] || set -- '%s[ 1.0] kernel: noise%s\n' "$2" "$3"
            command printf "$@"
        }}"""
    )
    shell = f"{noise(0.3)}PS1='# ' ENV={tmp_path}/garble exec sh -i"
    with FakeConsole(tmp_path / "s", "sh", "-c", shell) as fake, connect(tmp_path / "s") as console:
        assert console.run("echo here").stdout == b"here\n"
    assert re.search(rb"[0-9a-f]{6}\[ 1.0] kernel: noise[0-9a-f]{6}", fake.said)


def test_what_could_not_be_kept_in_the_guest_is_a_sentence(tmp_path: pathlib.Path) -> None:
    """As on a full disk, where the files of the result are missing or empty."""
    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL):
        with connect(tmp_path / "s") as console, pytest.raises(_console.ConsoleError, match="Is there room in "):
            console.run(f"echo here; rm -r {_console.PLACE}*")
        with connect(tmp_path / "s") as console:
            assert console.run("echo here").stdout == b"here\n"


def test_clients_wait_for_each_other(tmp_path: pathlib.Path) -> None:
    answers: list[bytes] = []

    def ask(number: int) -> None:
        with connect(tmp_path / "s") as console:
            answers.append(console.run(f"sleep 0.1; echo {number}").stdout)

    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [b"0\n", b"1\n", b"2\n"]


def test_a_command_that_does_not_end_is_ended(tmp_path: pathlib.Path) -> None:
    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL):
        with connect(tmp_path / "s") as console, pytest.raises(_console.ConsoleError, match="did not answer"):
            console.run(f"echo $$ >{tmp_path}/stuck; exec sleep 1000", timeout=0.5)
        with connect(tmp_path / "s") as console:
            assert console.run(f"kill -0 $(cat {tmp_path}/stuck)").status != 0


def test_no_shell_and_no_guest_are_sentences(tmp_path: pathlib.Path) -> None:
    with pytest.raises(_console.ConsoleError, match="does the guest run"):
        connect(tmp_path / "s").__enter__()
    with FakeConsole(tmp_path / "s", "sleep", "1000"), pytest.raises(_console.ConsoleError, match="did not answer"):
        connect(tmp_path / "s", timeout=0.5).__enter__()


def test_whoever_answers_is_looked_at_first(tmp_path: pathlib.Path) -> None:
    def refuse(_socket: socket.socket, path: str) -> None:
        raise ValueError(path)

    with FakeConsole(tmp_path / "s", "sh", "-c", SHELL) as fake:
        with pytest.raises(ValueError, match="/s"):
            connect(tmp_path / "s", check=refuse).__enter__()
        assert b"printf" not in fake.said


class _Cut(Exception):
    pass
