# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import zipfile

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _module_code

FILES = {"_a.py": b"A = 1\n", "_b/__init__.py": b""}


def test_all_that_a_module_may_import_is_in_it() -> None:
    files = _module_code.texts()
    with zipfile.ZipFile(io.BytesIO(_module_code.archive(files))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
    assert {"_runner.py", "_lab/__init__.py", "_lab/_module.py", "_guest/_life.py"} <= set(files)


def test_a_release_is_known_by_all_of_its_files() -> None:
    others = [
        {**FILES, "_a.py": b"A = 2\n"},
        {**FILES, "_c.py": b""},
        {"_a.py": FILES["_a.py"]},
        {"_a.py": b"", "_b/__init__.py": FILES["_a.py"]},
    ]
    assert _module_code.release(dict(FILES)) == _module_code.release(FILES)
    assert len({_module_code.release(files) for files in (FILES, *others)}) == 5
