# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs a module with a stopwatch at its conversation with the kernel: C(burst.py LOG PYTHON -c CODE MODULE).

What follows the log is the command line that would run the module without this. Into the log goes what was sent in one
go with the most messages: their number, and the seconds from the call to the kernel's last answer.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _kernel

LOG, _PYTHON, _OPTION, CODE, NAME = sys.argv[1:]
send = _kernel.Kernel.send
largest = 0


def timed(self: _kernel.Kernel, messages: t.Sequence[t.Any]) -> t.Any:
    """Send, and look at the watch."""
    global largest
    begin = time.perf_counter()
    answers = send(self, messages)
    seconds = time.perf_counter() - begin
    if len(messages) > largest:
        largest = len(messages)
        pathlib.Path(LOG).write_text(json.dumps([largest, seconds]), encoding="utf-8")
    return answers


_kernel.Kernel.send = timed  # type: ignore[method-assign]
sys.argv = ["-c", NAME]
exec(compile(CODE, "module", "exec"), {"__name__": "__main__"})
