# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module of few files, whose other files are kept on the host or come with the task, in a process of its own."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import subprocess
import sys
import typing as t
import zipfile

import pytest

MODULE_UTILS = pathlib.Path(__file__).resolve().parents[4] / "plugins" / "module_utils"
PACKAGE = "ansible_collections.labspan.vmnet.plugins.module_utils"
RELEASE = "0123456789abcdef" * 4
OTHER = RELEASE[::-1]

#: Of Ansible, which the oldest environment is without.
_BASIC = """
import json, sys

def _load_params():
    return json.loads(sys.argv[3])
"""

_MAIN = f"""
from {PACKAGE} import _carried_code
from {PACKAGE}._inner import _seldom

def main():
    from ansible.module_utils import basic
    options = basic._load_params()
    if options.get("keep"):
        _carried_code.keep(options)
    print(_seldom.__file__.rpartition("/")[2], "ran")
"""

_RUN = f"""
import os, sys
sys.path.insert(0, sys.argv[1])
from {PACKAGE} import _as_needed, _carried_code, _kept_code
_as_needed.install()
_carried_code.Store = lambda: _kept_code.Store(sys.argv[2], os.geteuid())
_carried_code.run("_inner._main")
"""


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What Ansible sends: the files that the module names."""
    path = tmp_path_factory.mktemp("payload") / "payload.zip"
    with zipfile.ZipFile(path, "w") as file:
        parts = PACKAGE.split(".")
        for number in range(1, len(parts) + 1):
            file.writestr(f"{'/'.join(parts[:number])}/__init__.py", "")
        file.writestr("ansible/__init__.py", "")
        file.writestr("ansible/module_utils/__init__.py", "")
        file.writestr("ansible/module_utils/basic.py", _BASIC)
        for name in ("_as_needed.py", "_carried_code.py", "_kept_code.py", "_whole_files.py"):
            file.write(MODULE_UTILS / name, f"{'/'.join(parts)}/{name}")
    return path


@pytest.fixture(scope="module")
def code() -> str:
    """What the action plugin sends: the rest."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as file:
        file.writestr("_inner/__init__.py", "")
        file.writestr("_inner/_main.py", _MAIN)
        file.writestr("_inner/_seldom.py", "")
    return base64.b64encode(output.getvalue()).decode()


def _run(payload: pathlib.Path, store: pathlib.Path, **options: t.Any) -> str:
    command = [sys.executable, "-c", _RUN, str(payload), str(store), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def _asks(answer: str) -> bool:
    return bool(json.loads(answer) == {"changed": False, "code_wanted": True}) if answer.startswith("{") else False


def test_the_code_is_asked_for_once(payload: pathlib.Path, code: str, tmp_path: pathlib.Path) -> None:
    store = tmp_path / "code"
    assert _asks(_run(payload, store, release=RELEASE))
    assert not store.exists()
    assert _run(payload, store, release=RELEASE, code=code, keep=True) == "_seldom.py ran"
    assert _run(payload, store, release=RELEASE) == "_seldom.py ran"
    assert _asks(_run(payload, store, release=OTHER))


def test_nothing_is_kept_unless_it_is_said(payload: pathlib.Path, code: str, tmp_path: pathlib.Path) -> None:
    assert _run(payload, tmp_path / "code", release=RELEASE, code=code) == "_seldom.py ran"
    assert not (tmp_path / "code").exists()


def test_a_release_takes_the_place_of_the_other(payload: pathlib.Path, code: str, tmp_path: pathlib.Path) -> None:
    for release in (RELEASE, OTHER):
        _run(payload, tmp_path / "code", release=release, code=code, keep=True)
    assert [path.name for path in (tmp_path / "code").iterdir()] == [f"{OTHER}.zip"]
    assert (tmp_path / "code" / f"{OTHER}.zip").stat().st_mode & 0o777 == 0o600


def test_what_others_could_have_put_there_is_not_run(payload: pathlib.Path, code: str, tmp_path: pathlib.Path) -> None:
    _run(payload, tmp_path / "code", release=RELEASE, code=code, keep=True)
    (tmp_path / "code").chmod(0o755)
    assert _asks(_run(payload, tmp_path / "code", release=RELEASE))
    (tmp_path / "code").chmod(0o700)
    assert not _asks(_run(payload, tmp_path / "code", release=RELEASE))
    kept = tmp_path / "code" / f"{RELEASE}.zip"
    os.replace(kept, tmp_path / "elsewhere.zip")
    kept.symlink_to(tmp_path / "elsewhere.zip")
    assert _asks(_run(payload, tmp_path / "code", release=RELEASE))


@pytest.mark.parametrize("release", [None, "", "../elsewhere", RELEASE.upper()])
def test_a_release_is_no_path(
    payload: pathlib.Path, code: str, tmp_path: pathlib.Path, release: t.Optional[str]
) -> None:
    _run(payload, tmp_path / "code", release=RELEASE, code=code, keep=True)
    (tmp_path / "code" / f"{RELEASE}.zip").rename(tmp_path / "elsewhere.zip")
    assert _asks(_run(payload, tmp_path / "code", release=release))


def test_code_that_is_there_anyhow_is_what_runs(payload: pathlib.Path, code: str, tmp_path: pathlib.Path) -> None:
    whole = tmp_path / "whole"
    with zipfile.ZipFile(payload) as file:
        file.extractall(whole)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(code))) as file:
        file.extractall(whole / PACKAGE.replace(".", "/"))
    assert _run(whole, tmp_path / "code") == "_seldom.py ran"
