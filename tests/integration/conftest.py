# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of all integration tests: a throw-away host, and each test once for every target interpreter.

A test that does not depend on the target's libraries takes the mark C(one_interpreter).
"""

from __future__ import annotations

import functools
import os
import pathlib
import random
import subprocess
import sys
import typing as t

import ansible
import pytest
from support.debian_guest import DebianGuest, make_debian_guest
from support.hosts import Host

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _interpreters() -> list[str]:
    """The interpreters of the "managed host": this one and the system's, or those of LABSPAN_TEST_INTERPRETERS."""
    named = os.environ.get("LABSPAN_TEST_INTERPRETERS")
    if named:
        return named.split(os.pathsep)
    candidates = [sys.executable, "/usr/bin/python3"]
    return [path for path in candidates if _can_import_pyroute2(path)]


@functools.cache  # asked for every test
def _can_import_pyroute2(interpreter: str) -> bool:
    try:
        return subprocess.run([interpreter, "-c", "import pyroute2"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_interpreter: does not depend on the libraries of the managed host")
    config.addinivalue_line("markers", "long: takes minutes, and is begun first: nobody waits for it at the end")
    config.addinivalue_line("markers", "slow: a long sweep, which `make test-all` runs and `make test` leaves out")
    # Drawn once, before there are workers: each of them has to collect the same tests.
    os.environ.setdefault("LABSPAN_SEED", str(random.randrange(1 << 32)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "interpreter" not in metafunc.fixturenames:
        return
    interpreters = _interpreters()
    if metafunc.definition.get_closest_marker("one_interpreter"):
        interpreters = interpreters[:1]
    names = ["system" if path == "/usr/bin/python3" else "venv" for path in interpreters]
    metafunc.parametrize("interpreter", interpreters, ids=names if len(set(names)) == len(names) else interpreters)


@pytest.fixture(scope="session")
def python_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with Ansible's Python package and this collection alone: the libraries stay the target's own."""
    path = tmp_path_factory.mktemp("python")
    (path / "ansible").symlink_to(pathlib.Path(ansible.__file__).parent)
    collection = path / "ansible_collections" / "labspan" / "vmnet"
    collection.parent.mkdir(parents=True)
    collection.symlink_to(ROOT)
    return path


@pytest.fixture(scope="session")
def debian_guest() -> DebianGuest:
    """A Debian with cloud-init, as the base image of guests; made if it is not there or not current."""
    return make_debian_guest()


@pytest.fixture
def host(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Host]:
    """A throw-away host of the test's own."""
    with Host(python_path, interpreter) as made:
        yield made
