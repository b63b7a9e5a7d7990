# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a set of drawings: of all hosts together, and of each.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
import typing as t

from ansible_collections.labspan.vmnet.plugins.plugin_utils import _mermaid, _svg
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Host, read_hosts

FLEET = "fleet"


def drawings(hosts: t.Any, title: str = "") -> dict[str, str]:
    """Names of files and what stands in them."""
    read = read_hosts(hosts)
    made = _pair(FLEET, read, title)
    for host in read:
        made.update(_pair(_free_name(host.name, made), [host], ""))
    return made


def _pair(name: str, hosts: t.Sequence[Host], title: str) -> dict[str, str]:
    return {f"{name}.svg": _svg.draw(hosts, title), f"{name}.mmd": _mermaid.draw(hosts)}


def _free_name(host: str, taken: t.Container[str]) -> str:
    """The host's name as one that a file may have, and that no other has."""
    name = re.sub(r"[^\w.-]", "_", host).lstrip(".") or "_"
    while f"{name}.svg" in taken:
        name += "_"
    return name


def to_write(directory: pathlib.Path, files: t.Mapping[str, str]) -> list[pathlib.Path]:
    """The files that are not there, or not as they should be."""
    return [directory / name for name, text in files.items() if _read(directory / name) != text.encode()]


def _read(path: pathlib.Path) -> t.Optional[bytes]:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: pathlib.Path, text: str) -> None:
    """Put the text into the file, which is the old one or the new one at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False
    ) as new:
        try:
            new.write(text)
            new.flush()
            os.chmod(new.name, 0o644)
            os.replace(new.name, path)
        except BaseException:
            os.unlink(new.name)
            raise
