# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types
import typing as t

import pytest

pytest.importorskip("ansible", reason="actions run on the controller, which has Ansible")

from ansible_collections.labspan.vmnet.plugins.action.lab_host import ActionModule

DONE = {"changed": True, "actions": ["Create bridge lan0"]}


class Host:
    """What the managed host was asked, and what it answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, has_code: bool) -> None:
        self.asked: list[tuple[dict[str, t.Any], bool]] = []
        self.has_code = has_code
        monkeypatch.setattr(ActionModule, "_execute_module", self._execute)
        monkeypatch.setattr(ActionModule, "_remove_tmp_path", lambda *_arguments: None)

    def _execute(self, module_args: dict[str, t.Any], *, wrap_async: bool, **_more: t.Any) -> dict[str, t.Any]:
        self.asked.append((module_args, wrap_async))
        if wrap_async:
            return {"ansible_job_id": "1"}
        if not self.has_code and "code" not in module_args:
            return {"changed": False, "code_wanted": True}
        return {**DONE, "invocation": {"module_args": dict(module_args)}}


def run(seconds: int = 0, **options: t.Any) -> dict[str, t.Any]:
    task = types.SimpleNamespace(args=options, check_mode=False, async_val=seconds, diff=False, _uuid="1")
    connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir=None))
    action = ActionModule(task, connection, types.SimpleNamespace(remote_addr="h1"), None, None, None)  # type: ignore[arg-type]
    return action.run(task_vars={})


def test_a_host_that_has_the_code_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, has_code=True)
    assert run(account="nobody") == {**DONE, "invocation": {"module_args": {"account": "nobody"}}}
    ((arguments, _wrapped),) = host.asked
    assert (set(arguments), len(arguments["release"])) == ({"account", "release"}, 64)


def test_a_host_that_wants_the_code_is_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, has_code=False)
    assert run(account="nobody") == {**DONE, "invocation": {"module_args": {"account": "nobody"}}}
    (first, _first), (second, _second) = host.asked
    assert second == {**first, "code": second["code"]}


def test_a_task_that_nobody_waits_for_is_sent_the_code_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, has_code=True)
    assert run(60) == {"ansible_job_id": "1"}
    ((arguments, wrapped),) = host.asked
    assert (set(arguments), wrapped) == ({"release", "code"}, True)


@pytest.mark.parametrize("name", ["release", "code"])
def test_what_is_between_controller_and_host_is_no_option(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    host = Host(monkeypatch, has_code=True)
    result = run(**{name: "1"})
    assert result["failed"]
    assert result["msg"].startswith(f"{name}: not an option of a task")
    assert host.asked == []
