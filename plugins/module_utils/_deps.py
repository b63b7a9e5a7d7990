# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The gate for everything that is not in Python's standard library: imported late, missed with a clear message.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
Must be kept in sync with plugins/doc_fragments/_requirements.py.
"""

from __future__ import annotations

import os
import shutil
import sys
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import MissingDependency

#: Oldest pyroute2 that is tested (Debian 12 ships it).
PYROUTE2_MINIMUM = "0.7.2"

#: Program -> Debian package that carries it.
PACKAGES = {
    "conntrack": "conntrack",
    "dnsmasq": "dnsmasq-base",
    "ip6tables-restore": "iptables",
    "iptables-restore": "iptables",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
}

# sbin is not on the PATH of every account that Ansible logs in to.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def pyroute2() -> t.Any:
    """The pyroute2 module; imported here because it costs as much as half a task."""
    try:
        import pyroute2 as module
    except ImportError as error:
        raise MissingDependency(
            f"the Python library pyroute2 (>= {PYROUTE2_MINIMUM}) cannot be imported by {sys.executable} on the managed "
            f"host ({error}). Install the package python3-pyroute2, or pyroute2 with pip for this interpreter."
        ) from error
    return module


def iptc() -> t.Any:
    """The iptc module of python-iptables. Importing it loads no kernel table; using it does."""
    try:
        import iptc as module
    except Exception as error:  # its import runs ldconfig and raises whatever that meets, not only ImportError
        raise MissingDependency(
            f"the Python library python-iptables (iptc) cannot be imported by {sys.executable} on the managed host "
            f"({type(error).__name__}: {error}). Install the package python3-iptables, or use backend: nftables."
        ) from error
    return module


def find_program(name: str) -> t.Optional[str]:
    """The program's path, or None."""
    return shutil.which(name, path=_SEARCH_PATH)


def program(name: str, *, purpose: str) -> str:
    """The program's path; raises with the package to install when the host lacks it."""
    path = find_program(name)
    if path is None:
        raise MissingDependency(
            f"the program {name} is needed {purpose} and is not on the managed host. "
            f"Install the package {PACKAGES.get(name, name)} (its name in Debian)."
        )
    return path
