# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a connection does with files and input, without the modules that need Python at the other end.

C(put), C(fetch): with C(src) and C(dest). C(run): a command, with C(stdin) as base64.
"""

from __future__ import annotations

import base64
import typing as t

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    def run(self, tmp: t.Optional[str] = None, task_vars: t.Optional[dict[str, t.Any]] = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        given, connection = self._task.args, self._connection
        if "run" in given:
            rc, stdout, stderr = connection.exec_command(given["run"], base64.b64decode(given.get("stdin", "")))
            told = {"stdout": base64.b64encode(stdout).decode(), "stderr": base64.b64encode(stderr).decode()}
            return {"changed": True, "rc": rc, **told}
        move = connection.put_file if given["way"] == "put" else connection.fetch_file
        move(given["src"], given["dest"])
        return {"changed": True}
