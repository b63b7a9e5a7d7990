# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the module lab_host by the code that the host has, and sends the code where it has none, or other code."""

from __future__ import annotations

import base64
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.labspan.vmnet.plugins.module_utils import _carried_code
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _internal_options, _module_code

Result = dict[str, t.Any]

# Here, since Ansible imports this once and then forks for each host.
_RELEASE = _module_code.release(_module_code.texts())


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _supports_async = True

    def run(self, tmp: t.Any = None, task_vars: t.Optional[dict[str, t.Any]] = None) -> Result:
        """One task for the user, whether the code had to be sent or not."""
        result: Result = super().run(tmp, task_vars)
        refusal = _internal_options.refusal(self._task.args, _carried_code.OPTIONS)
        if refusal:
            return {"failed": True, "msg": refusal}
        if self._task.async_val:  # nobody waits here for what the host says
            return {**result, **self._execute(task_vars, with_code=True)}
        told = self._execute(task_vars)
        if told.get(_carried_code.WANTED):
            told = self._execute(task_vars, with_code=True)
        self._remove_tmp_path(self._connection._shell.tmpdir)  # type: ignore[no-untyped-call]
        return {**result, **told}

    def _execute(self, task_vars: t.Optional[dict[str, t.Any]], *, with_code: bool = False) -> Result:
        arguments = {**self._task.args, "release": _RELEASE}
        if with_code:
            arguments["code"] = base64.b64encode(_module_code.archive(_module_code.texts())).decode("ascii")
        told: Result = self._execute_module(
            module_args=arguments, task_vars=task_vars, wrap_async=bool(self._task.async_val)
        )
        for name in _carried_code.OPTIONS:
            told.get("invocation", {}).get("module_args", {}).pop(name, None)
        return told
