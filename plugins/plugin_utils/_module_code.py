# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The code that managed hosts run, as C(module_utils/_carried_code.py) wants it.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile

_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "module_utils")


@functools.cache
def texts() -> dict[str, bytes]:
    """All files of module_utils, by their paths in there."""
    found = {}
    for directory, _directories, names in os.walk(_DIRECTORY):
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, _DIRECTORY)] = file.read()
    return dict(sorted(found.items()))


def release(files: dict[str, bytes]) -> str:
    """What identifies these files: a SHA-256."""
    digest = hashlib.sha256()
    for name, text in files.items():
        digest.update(f"{name} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def archive(files: dict[str, bytes]) -> bytes:
    """The files as an archive that Python imports from."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in files.items():
            file.writestr(name, text)
    return output.getvalue()
