# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The gate for everything that is not in Python's standard library: imported late, missed with a clear message.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
Must be kept in sync with plugins/doc_fragments/_requirements.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import types
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
    "netplan": "netplan.io",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
    "swtpm": "swtpm",
    "systemctl": "systemd",
}

# sbin is not on the PATH of every account that Ansible logs in to.
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def pyroute2() -> t.Any:
    """The pyroute2 module; imported here because it costs as much as half a task."""
    try:
        import pyroute2 as module
    except ImportError as error:
        raise MissingDependency(
            f"the Python library pyroute2 (>= {PYROUTE2_MINIMUM}) cannot be imported by {sys.executable} on the "
            f"managed host ({error}). Install the package python3-pyroute2, or pyroute2 with pip for this interpreter."
        ) from error
    return module


def pyroute2_netlink() -> t.Any:
    """The module pyroute2.netlink alone: the classes that messages are made of.

    The package imports everything it has when it is imported, 180 ms for what needs 30: a quarter of a whole playbook
    run. So the package itself is stood in for while the one module is imported.
    """
    if "pyroute2" in sys.modules:
        return _netlink_of(pyroute2())
    specification = importlib.util.find_spec("pyroute2")
    if specification is None or specification.submodule_search_locations is None:
        return _netlink_of(pyroute2())
    package = types.ModuleType("pyroute2")
    package.__path__ = list(specification.submodule_search_locations)
    package.__spec__ = specification
    sys.modules["pyroute2"] = package
    try:
        return importlib.import_module("pyroute2.netlink")
    except Exception:  # a version that is laid out otherwise: the slow way is still right
        for name in [name for name in sys.modules if name.startswith("pyroute2.")]:
            del sys.modules[name]
    finally:
        del sys.modules["pyroute2"]
    return _netlink_of(pyroute2())


def _netlink_of(package: t.Any) -> t.Any:
    return importlib.import_module(f"{package.__name__}.netlink")


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


def yaml() -> t.Any:
    """The yaml module, which a host of netplan has for netplan's own sake."""
    try:
        import yaml as module
    except ImportError as error:
        raise MissingDependency(
            f"the Python library PyYAML cannot be imported by {sys.executable} on the managed host ({error}); it is "
            "needed to change netplan's files. Install the package python3-yaml, or PyYAML with pip for this "
            "interpreter."
        ) from error
    return module


def pycdlib() -> t.Any:
    """The pycdlib module: the way to make an image of a CD on a host that has no program for it."""
    try:
        import pycdlib as module
    except ImportError as error:
        raise MissingDependency(
            "an image of a CD has to be made, and the managed host has none of the programs genisoimage, mkisofs and "
            f"xorriso, nor the Python library pycdlib for {sys.executable} ({error}). Install the package genisoimage "
            "(its name in Debian) or one of the others."
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
