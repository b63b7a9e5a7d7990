# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs that are run to their end: from a list of arguments, in the C locale, with what they print.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import subprocess
import typing as t


def run(argv: t.Sequence[str], *, stdin: str = "", **options: t.Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, whatever that is; C(options) are those of C(subprocess.run)."""
    # Planners and readers have no AnsibleModule, whose run_command the linter would rather see.
    return subprocess.run(  # pylint: disable=ansible-bad-function
        argv,
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "LC_ALL": "C"},
        **options,
    )
