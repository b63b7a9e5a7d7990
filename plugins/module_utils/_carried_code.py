# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The code of a large module, which comes to a managed host once and not with each task.

Ansible looks through all that a module might import and sends it along, in each run of a playbook and to each host. For
a module with a hundred files that is most of what a rerun costs. Such a module consists of little more than this file;
the rest is in an archive that its action plugin has, and that the host keeps (C(_kept_code)). The module is asked first
for whether the host has the archive; where it has, that was the whole task, and where it has not, the task is done with
the archive sent along.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import re
import sys
import typing as t

from ansible.module_utils import basic
from ansible_collections.labspan.vmnet.plugins.module_utils._kept_code import Store

if t.TYPE_CHECKING:  # what is in no archive of ours; Ansible sends along whatever is named here
    from ansible.module_utils import urls  # noqa: F401

#: The options of a module that work so, which its action plugin sets.
OPTIONS: t.Mapping[str, t.Mapping[str, t.Any]] = {"release": {"type": "str"}, "code": {"type": "str"}}
#: Of these, what need not be shown.
HIDDEN = ("code",)
#: In the result of a module that has done nothing because the code is not there.
WANTED = "code_wanted"

_PACKAGE = __name__.rpartition(".")[0]


def run(name: str) -> None:
    """Call C(main) of a module util, where it can be had; else end the module, and say that the code is wanted."""
    if not _is_here(name):
        options = basic._load_params()
        release, code = str(options.get("release")), options.get("code")
        archive = _open(release, base64.b64decode(code) if code else None)
        if archive is None:
            # Not by AnsibleModule, which would have to know the options, and logs them.
            sys.stdout.write(json.dumps({"changed": False, WANTED: True}))
            raise SystemExit
        # A descriptor, since another run may put another release in the place of the file. It stays open to the end.
        sys.modules[_PACKAGE].__path__.append(f"/proc/self/fd/{archive}")
    importlib.import_module(f"{_PACKAGE}.{name}").main()


def keep(options: t.Mapping[str, t.Any]) -> None:
    """Have the code here for the next run, if it came with this one."""
    if options.get("code"):
        Store().keep_texts(options["release"], base64.b64decode(options["code"]))


def _is_here(name: str) -> bool:
    """Whether it was installed or sent along as any other module's code."""
    return importlib.util.find_spec(f"{_PACKAGE}.{name.partition('.')[0]}") is not None


def _open(release: str, code: t.Optional[bytes]) -> t.Optional[int]:
    if code is not None:
        archive = os.memfd_create("labspan")
        os.write(archive, code)
        return archive
    # No name of another file, whoever called the module.
    return Store().open_texts(release) if re.fullmatch("[0-9a-f]{64}", release) else None
