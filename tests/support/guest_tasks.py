# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tasks in guests of a throw-away host, over the connection labspan.vmnet.guest, as Ansible runs them."""

from __future__ import annotations

import pathlib
import typing as t

from support.hosts import Host
from support.users import ROOT, Task, User, by_namespace


class Tasks:
    """Plays on the guests of one host."""

    def __init__(self, host: Host, directory: pathlib.Path) -> None:
        self._user = User(directory)
        self.lab_host = {**by_namespace(host, directory), "ansible_python_interpreter": host.interpreter}

    def play(
        self, tasks: t.Sequence[t.Mapping[str, t.Any]], guests: t.Mapping[str, t.Mapping[str, t.Any]], *options: str
    ) -> list[Task]:
        """How every task ended on every guest.

        Options such as C(-vvv) go to ansible-playbook; all that it printed is in C(printed).
        """
        common = {
            "ansible_connection": "labspan.vmnet.guest",
            "ansible_python_interpreter": "/usr/bin/python3",
            "vmnet_host": "lab1",
            "vmnet_host_connection": self.lab_host,
        }
        self._user.write("hosts.json", {"all": {"hosts": guests, "vars": common}})
        played = self._user.play(
            [{"hosts": "all", "gather_facts": False, "tasks": tasks}],
            *("-i", "hosts.json", *options),
            code=None,
            ANSIBLE_ACTION_PLUGINS=str(ROOT / "tests" / "support" / "action_plugins"),
            ANSIBLE_PIPELINING="false",
        )
        self.printed = played.output
        assert played.tasks, self.printed
        return played.tasks

    def must(self, *arguments: t.Any) -> list[Task]:
        """The same, and nothing may fail."""
        results = self.play(*arguments)
        bad = [one for one in results if one["end"] != "ok"]
        assert not bad, bad
        return results
