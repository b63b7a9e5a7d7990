# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write down every task that reached a host, one JSON line each, to the file that REACHED names."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: reached
type: aggregate
short_description: Notes which tasks reach a host
description: Notes which tasks reach a host, for tests that count them.
"""

#: Actions that end on the controller.
_CONTROLLER = ("include_role", "include_tasks", "set_fact", "debug", "validate_argument_spec", "assert", "meta")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "reached"

    def v2_runner_on_ok(self, result: t.Any) -> None:
        action = result.task.action.rsplit(".", 1)[-1]
        if action not in _CONTROLLER:
            with open(os.environ["REACHED"], "a", encoding="utf-8") as file:
                changed = bool(result.result.get("changed"))
                file.write(json.dumps({"host": result.host.get_name(), "action": action, "changed": changed}) + "\n")
