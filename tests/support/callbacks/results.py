# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write down how every task ended on every host, one JSON line each, to the file that RESULTS names."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: results
type: aggregate
short_description: Writes down how tasks ended
description: Writes down how tasks ended, for tests that look at all of it.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "results"

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._write("ok", result)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._write("failed", result)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        self._write("unreachable", result)

    @staticmethod
    def _write(end: str, result: t.Any) -> None:
        action = result.task.action.rpartition(".")[2]
        task = {"host": result.host.get_name(), "task": result.task.get_name(), "action": action, "end": end}
        with open(os.environ["RESULTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps({**task, "result": result.result}, default=str) + "\n")
