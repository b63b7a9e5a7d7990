# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module some of whose options are shown nowhere: not in results, not in the log, not when its arguments are wrong.

C(no_log) in the argument specification is no help with data: every word in it becomes a secret, and the name of a guest
that is also its host name in C(user_data) would be starred out of all that the task says.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

#: What Ansible itself writes in place of a value that is not to be shown.
NOT_SHOWN = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"

Options = t.Mapping[str, t.Any]


class DiscreetModule(AnsibleModule):
    """An AnsibleModule that never shows the options C(hidden), at whatever depth they are.

    The way out is closed in what is public of AnsibleModule, and before its constructor begins: it logs the invocation,
    and ends the module when an argument is wrong.
    """

    def __init__(self, *, hidden: t.Collection[str], **keywords: t.Any) -> None:
        self._hidden = frozenset(hidden)
        super().__init__(**keywords)  # type: ignore[no-untyped-call]

    def exit_json(self, **kwargs: t.Any) -> t.NoReturn:
        """End the module well."""
        super().exit_json(**{**kwargs, "invocation": self._invocation()})

    def fail_json(self, msg: str, **kwargs: t.Any) -> t.NoReturn:
        """End the module with an error."""
        super().fail_json(msg, **{**kwargs, "invocation": self._invocation()})

    def log(self, msg: t.Any, log_args: t.Optional[Options] = None) -> None:
        """Write to the system's log; the only thing that is written there is how the module was invoked."""
        args = self._invocation()["module_args"]
        words = " ".join(f"{name}={value}" for name, value in args.items())
        text = {name: str(value) for name, value in args.items()}
        super().log(f"Invoked with {words}", log_args=text)  # type: ignore[no-untyped-call]

    def _invocation(self) -> dict[str, t.Any]:
        return {"module_args": shown(self.params, self.argument_spec, self._hidden)}


def shown(params: Options, specification: Options, hidden: t.Collection[str]) -> dict[str, t.Any]:
    """The parameters without what is hidden. An option that does not exist may be a misspelt one, and is not shown."""
    return {
        name: _show(name, value, specification.get(name), hidden) if value is not None else None
        for name, value in params.items()
    }


def _show(name: str, value: t.Any, option: t.Optional[Options], hidden: t.Collection[str]) -> t.Any:
    if option is None or name in hidden:
        return NOT_SHOWN
    suboptions = option.get("options")
    if not suboptions:
        return value
    if isinstance(value, dict):
        return shown(value, suboptions, hidden)
    if isinstance(value, list):
        return [shown(entry, suboptions, hidden) if isinstance(entry, dict) else NOT_SHOWN for entry in value]
    return NOT_SHOWN  # a text that is data, or should have been
