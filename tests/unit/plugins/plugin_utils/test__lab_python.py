# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a lab host is sent runs there by itself."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("ansible")

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _lab_python

PYTHONS = sorted({sys.executable, *map(str, pathlib.Path("/usr/bin").glob("python3"))})


@pytest.mark.parametrize("python", PYTHONS)
def test_the_archive_is_complete(python: str, tmp_path: pathlib.Path) -> None:
    archive = _lab_python.pack()
    asked = {"guest": "no such guest", "transport": "auto", "timeout": 1, "command_timeout": 1, "user": None}
    asked.update(password=None, command="true", marker="here", has_stdin=False)
    data = b"%d\n%b%b\n" % (len(archive), archive, json.dumps(asked).encode())
    done = subprocess.run(
        [python, "-I", "-c", _lab_python._BEGIN], input=data, capture_output=True, check=True, cwd=tmp_path
    )
    told = json.loads(done.stdout.partition(b"\nhere ")[2])
    assert told["error"].startswith("vmnet_guest: 'no such guest' is not a usable name")
    assert not list(tmp_path.iterdir())
