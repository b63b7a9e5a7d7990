# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imports out of an archive, in a process of their own, as on a managed host."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import typing as t
import zipfile

import pytest

MODULE_UTILS = pathlib.Path(__file__).resolve().parents[4] / "plugins" / "module_utils"
PACKAGE = "ansible_collections.labspan.vmnet.plugins.module_utils"

# Counts what is compiled, by the name of the file.
_PRELUDE = """
import builtins, json, sys
sys.path.insert(0, sys.argv[1])
compiled = []
def audit(event, arguments):
    if event == "compile" and "module_utils" in str(arguments[1]):
        compiled.append(str(arguments[1]).rpartition("/")[2])
sys.addaudithook(audit)
"""


_RECORDS = """
from __future__ import annotations
import dataclasses, typing as t
@dataclasses.dataclass(frozen=True)
class Base:
    name: str
    known: t.ClassVar[int] = 3
    items: dict = dataclasses.field(default_factory=dict, compare=False)
@dataclasses.dataclass(frozen=True)
class Derived(Base):
    size: int = 1
class Plain(Derived):
    pass
@dataclasses.dataclass
class Unused:
    name: str
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The real thing and two files of a test, zipped as Ansible does."""
    path = tmp_path_factory.mktemp("archive") / "payload.zip"
    directory = PACKAGE.replace(".", "/")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        parts = PACKAGE.split(".")
        for number in range(1, len(parts) + 1):
            file.writestr(f"{'/'.join(parts[:number])}/__init__.py", "")
        for name in ("_as_needed.py", "_kept_code.py", "_whole_files.py"):
            file.write(MODULE_UTILS / name, f"{directory}/{name}")
        file.writestr(f"{directory}/_inner/__init__.py", "")
        file.writestr(f"{directory}/_inner/_seldom.py", "VALUE = 1\n\ndef fail():\n    raise ValueError('here')\n")
        file.writestr(f"{directory}/_user.py", f"from {PACKAGE}._inner import _seldom\nFIRST = 0\n")
        file.writestr(f"{directory}/_records.py", _RECORDS)
    return path


def _run(archive: pathlib.Path, code: str) -> t.Any:
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code, str(archive)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


_INSTALL = f"from {PACKAGE} import _as_needed; _as_needed.install(); del compiled[:]\n"
_USE = f"from {PACKAGE} import _user; _user.FIRST\n"


def test_a_file_is_compiled_when_something_in_it_is_needed_and_only_once(archive: pathlib.Path) -> None:
    before, after = _run(
        archive,
        f"{_INSTALL}{_USE}before = list(compiled); _user._seldom.VALUE; _user._seldom.VALUE\n"
        "print(json.dumps([before, compiled]))",
    )
    assert before.count("_user.py") == 1
    assert "_seldom.py" not in before
    assert after.count("_seldom.py") == 1


def test_kept_code_that_was_kept_spares_the_compiling(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    store = f"import os; _as_needed._store = _as_needed.Store({str(tmp_path / 'code')!r}, os.geteuid())\n"
    use = f"{_INSTALL}{store}{_USE}_user._seldom.VALUE; found = list(compiled); _as_needed.keep()\n"
    runs = [_run(archive, f"{use}print(json.dumps(found))") for _run_ in range(2)]
    assert [[name in run for name in ("_user.py", "_seldom.py")] for run in runs] == [[True, True], [False, False]]
    told = _run(
        archive,
        f"import traceback\n{use}try:\n    _user._seldom.fail()\n"
        "except ValueError:\n    print(json.dumps(traceback.format_exc()))",
    )
    assert "raise ValueError('here')" in told
    assert _run(archive, f"{use}_as_needed.drop(); print(json.dumps(os.listdir({str(tmp_path)!r})))") == []


def test_a_dataclass_is_one_as_soon_as_there_is_an_instance(archive: pathlib.Path) -> None:
    found = _run(
        archive,
        f"import dataclasses\n{_INSTALL}from {PACKAGE} import _records as r\n"
        "assert not dataclasses.is_dataclass(r.Unused) and not dataclasses.is_dataclass(r.Base)\n"
        "one, same, other = r.Derived('a', {1: 2}), r.Derived('a', size=1), r.Plain('a', size=2)\n"
        "assert not dataclasses.is_dataclass(r.Unused) and r.Unused('x') == r.Unused(name='x')\n"
        "assert one == same != other and hash(one) == hash(same) and other.size == 2 and one.known == 3\n"
        "assert dataclasses.replace(one, size=5) == r.Derived('a', size=5) and r.Base('a').items == {}\n"
        "try:\n    one.size = 3\n    raise SystemExit('not frozen')\n"
        "except dataclasses.FrozenInstanceError:\n    pass\n"
        "try:\n    r.Base()\n    raise SystemExit('no argument')\nexcept TypeError:\n    pass\n"
        "print(json.dumps([repr(other), dataclasses.asdict(one)]))",
    )
    assert found == ["Plain(name='a', items={}, size=2)", {"name": "a", "items": {"1": 2}, "size": 1}]


def test_python_alone_compiles_all_and_twice(archive: pathlib.Path) -> None:
    """The reason for it; when this fails, Python has become better."""
    compiled = _run(archive, f"{_USE}print(json.dumps(compiled))")
    assert (compiled.count("_user.py"), compiled.count("_seldom.py")) == (2, 2)


def test_tracebacks_show_the_line(archive: pathlib.Path) -> None:
    told = _run(
        archive,
        f"import traceback\n{_INSTALL}{_USE}"
        "try:\n    _user._seldom.fail()\nexcept ValueError:\n    print(json.dumps(traceback.format_exc()))",
    )
    assert "_inner/_seldom.py" in told
    assert "raise ValueError('here')" in told


def test_a_module_that_is_not_there_is_missed_as_usual(archive: pathlib.Path) -> None:
    told = _run(
        archive,
        f"{_INSTALL}try:\n    from {PACKAGE} import _nothing\nexcept ImportError as error:\n"
        "    print(json.dumps(str(error)))",
    )
    assert "_nothing" in told


def test_files_are_imported_as_ever(tmp_path: pathlib.Path, archive: pathlib.Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    installed = _run(tmp_path, f"count = len(sys.meta_path)\n{_INSTALL}print(json.dumps(len(sys.meta_path) - count))")
    assert installed == 0
