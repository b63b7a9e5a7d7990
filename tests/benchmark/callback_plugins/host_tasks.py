# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Counts the tasks, and items of loops, that run something on a host; those that stay on the controller cost little."""

from __future__ import annotations

import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: host_tasks
type: aggregate
short_description: Count what reaches a host
description:
  - Counts the tasks, and items of loops, that run something on a host.
"""

ON_THE_CONTROLLER = frozenset(
    [
        "ansible.builtin.assert",
        "ansible.builtin.debug",
        "ansible.builtin.fail",
        "ansible.builtin.include_role",
        "ansible.builtin.include_tasks",
        "ansible.builtin.meta",
        "ansible.builtin.set_fact",
        "ansible.builtin.validate_argument_spec",
    ]
)


class CallbackModule(CallbackBase):
    """Prints one line at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "host_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []

    def _count(self, result: t.Any) -> None:
        task = getattr(result, "task", None) or result._task
        values = getattr(result, "result", None) or result._result
        if task.resolved_action not in ON_THE_CONTROLLER:
            self._names += [task.get_name()] * len(values.get("results", [None]))

    v2_runner_on_ok = _count
    v2_runner_on_failed = _count

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """Print the number, and the names."""
        self._display.display(f"host tasks: {len(self._names)} ({'; '.join(self._names)})")
