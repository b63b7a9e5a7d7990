# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib
import types
import typing as t

import pytest
from support.lab_views import sample

pytest.importorskip("ansible", reason="actions run on the controller, which has Ansible")

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible_collections.labspan.vmnet.plugins.action.vmnet_drawing import OPTIONS, ActionModule
from ansible_collections.labspan.vmnet.plugins.modules import vmnet_drawing as module

yaml = pytest.importorskip("yaml")


def run(*, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    task = types.SimpleNamespace(args=options, check_mode=check, async_val=0, diff=False, _uuid="1")
    connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir=None))
    action = ActionModule(task, connection, types.SimpleNamespace(remote_addr="h1"), None, None, None)  # type: ignore[arg-type]
    return action.run(task_vars={})


def test_a_second_run_changes_nothing(tmp_path: pathlib.Path) -> None:
    first = run(hosts=sample(), path=str(tmp_path / "new"))
    assert first["changed"]
    assert sorted(first["files"]) == sorted(map(str, (tmp_path / "new").iterdir()))
    assert len(first["actions"]) == 10
    again = run(hosts=sample(), path=str(tmp_path / "new"))
    assert (again["changed"], again["actions"]) == (False, [])


def test_check_mode_tells_the_same_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    told = run(hosts=sample(), path=str(tmp_path / "new"), check=True)
    assert not (tmp_path / "new").exists()
    assert told["actions"] == run(hosts=sample(), path=str(tmp_path / "new"))["actions"]


def test_where_nothing_can_be_written_the_path_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AnsibleActionFail, match=f"path is {tmp_path}/file, where .*Not a directory"):
        run(hosts=sample(), path=str(tmp_path / "file"))


def test_options_are_checked() -> None:
    with pytest.raises(AnsibleError, match="missing required arguments: path"):
        run(hosts=sample())


def test_the_options_are_the_documented_ones() -> None:
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert {
        name: {key: value for key, value in option.items() if key != "description"}
        for name, option in documented.items()
    } == OPTIONS
