# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tasks in guests of a throw-away host, over the connection labspan.vmnet.guest, as Ansible runs them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

from support.hosts import Host

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALLBACKS = ROOT / "tests" / "integration" / "uplink" / "callbacks"

Result = t.Dict[str, t.Any]


class Tasks:
    """Plays on the guests of one host."""

    def __init__(self, host: Host, directory: pathlib.Path) -> None:
        self._directory = directory
        pid_file = directory / "host.pid"
        pid_file.write_text(str(host.pid), encoding="ascii")
        self.lab_host: dict[str, t.Any] = {
            "ansible_connection": "labspan.vmnet.netns",
            "ansible_netns_pid_file": str(pid_file),
            "ansible_python_interpreter": host.interpreter,
        }

    def play(
        self, tasks: t.Sequence[t.Mapping[str, t.Any]], guests: t.Mapping[str, t.Mapping[str, t.Any]], *options: str
    ) -> list[Result]:
        """How every task ended on every guest: host, action, end (ok, failed, unreachable) and result.

        Options such as C(-vvv) go to ansible-playbook; all that it printed is in C(printed).
        """
        results = self._directory / "results"
        results.unlink(missing_ok=True)
        common = {
            "ansible_connection": "labspan.vmnet.guest",
            "ansible_python_interpreter": "/usr/bin/python3",
            "vmnet_host": "lab1",
            "vmnet_host_connection": self.lab_host,
        }
        inventory = {"all": {"hosts": {name: dict(one) for name, one in guests.items()}, "vars": common}}
        play = [{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]
        for name, content in (("hosts.json", inventory), ("play.yml", play)):
            (self._directory / name).write_text(json.dumps(content), encoding="utf-8")
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
            "ANSIBLE_ACTION_PLUGINS": str(ROOT / "tests" / "support" / "action_plugins"),
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "results",
            "ANSIBLE_NOCOLOR": "true",
            "RESULTS": str(results),
        }
        environment.pop("ANSIBLE_PIPELINING", None)
        command = [str(pathlib.Path(sys.executable).with_name("ansible-playbook")), "--inventory", "hosts.json"]
        done = subprocess.run(
            [*command, *options, "play.yml"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=self._directory,
        )
        self.printed = done.stdout + done.stderr
        if not results.exists():
            raise AssertionError(self.printed)
        return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]

    def must(self, *arguments: t.Any) -> list[Result]:
        """The same, and nothing may fail."""
        results = self.play(*arguments)
        bad = [one for one in results if one["end"] != "ok"]
        assert not bad, bad
        return results
