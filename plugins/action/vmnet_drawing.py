# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Draws lab hosts into files of the controller. No host is asked, and however many files there are, it is one task."""

from __future__ import annotations

import pathlib
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _drawings

OPTIONS: dict[str, dict[str, t.Any]] = {
    "hosts": {"type": "dict", "required": True},
    "path": {"type": "path", "required": True},
    "title": {"type": "str", "default": ""},
}


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: t.Any = None, task_vars: t.Optional[dict[str, t.Any]] = None) -> dict[str, t.Any]:
        """Write what is not drawn yet."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        validate = t.cast("t.Callable[..., t.Any]", self.validate_argument_spec)
        _validation, options = validate(argument_spec=OPTIONS)
        directory = pathlib.Path(options["path"]).absolute()
        try:
            files = _drawings.drawings(options["hosts"], options["title"])
            changed = _drawings.to_write(directory, files)
            for path in changed if not self._task.check_mode else ():
                _drawings.write(path, files[path.name])
        except ValueError as error:
            raise AnsibleActionFail(f"vmnet_drawing: hosts {error}") from error
        except OSError as error:
            raise AnsibleActionFail(f"vmnet_drawing: path is {directory}, where {error}.") from error
        result.update(
            changed=bool(changed),
            actions=[f"Draw {path}" for path in changed],
            files=[str(directory / name) for name in files],
        )
        return result
