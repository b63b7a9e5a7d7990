# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible's commands as a user runs them in a directory with an inventory.

user = User(tmp_path)
user.write("hosts.yml", {"lab_hosts": {"hosts": {"lab1": by_namespace(host, tmp_path)}}})
user.write("guests.yml", {"plugin": "labspan.vmnet.guests", "sources": ["hosts.yml"]})
user.run("ansible", "-i", "guests.yml", "all", "-m", "ping")
assert user.play("site", "-i", "hosts.yml").changed == []
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import typing as t

from lab import hosts as lab_hosts
from support.hosts import AnyHost

ROOT = pathlib.Path(__file__).resolve().parents[2]

#: Actions that end on the controller.
_CONTROLLER = ("include_role", "include_tasks", "set_fact", "debug", "validate_argument_spec", "assert", "meta", "fail")

Task = t.Dict[str, t.Any]
"""How a task ended on a host: host, task, action, end (ok, failed, unreachable) and result."""


@dataclasses.dataclass(frozen=True)
class Played:
    """How a playbook ended, with all that it printed, and how its tasks ended on their hosts."""

    code: int
    output: str
    tasks: list[Task]

    @property
    def reached(self) -> list[Task]:
        """The tasks that did what they are for on a host."""
        return [task for task in self.tasks if task["end"] == "ok" and task["action"] not in _CONTROLLER]

    @property
    def changed(self) -> list[Task]:
        """Those of them that changed it."""
        return [task for task in self.reached if task["result"].get("changed")]


class Running:
    """A playbook that has been started."""

    def __init__(self, process: subprocess.Popen[bytes], output: pathlib.Path, results: pathlib.Path) -> None:
        self._process = process
        self._output = output
        self._results = results

    def finish(self, timeout: t.Optional[float] = None) -> Played:
        """Wait for its end."""
        code = self._process.wait(timeout)
        lines = self._results.read_text(encoding="utf-8").splitlines() if self._results.exists() else []
        return Played(code, self._output.read_text(encoding="utf-8"), [json.loads(line) for line in lines])


class User:
    """Somebody in a directory of their own."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._numbers = itertools.count()

    def write(self, name: str, content: t.Any) -> pathlib.Path:
        """A file; what is no text becomes JSON, which is YAML."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """One of Ansible's commands."""
        done = subprocess.run(
            [_program(command[0]), *command[1:]],
            cwd=self.directory,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def start(self, book: t.Union[str, t.Sequence[t.Any]], *options: str, **environment: str) -> Running:
        """Start a playbook of the collection by its name, or one that is given as data."""
        number = next(self._numbers)
        path = ROOT / "playbooks" / f"{book}.yml" if isinstance(book, str) else self.write(f"play{number}.yml", book)
        output, results = self.directory / f"output{number}", self.directory / f"results{number}"
        results.unlink(missing_ok=True)
        known = {
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "support" / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "results",
            "RESULTS": str(results),
        }
        with output.open("wb") as file:
            process = subprocess.Popen(
                [_program("ansible-playbook"), *options, str(path)],
                cwd=self.directory,
                env=self._environment({**known, **environment}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Running(process, output, results)

    def play(
        self,
        book: t.Union[str, t.Sequence[t.Any]],
        *options: str,
        code: t.Optional[int] = 0,
        timeout: t.Optional[float] = None,
        **environment: str,
    ) -> Played:
        """Run a playbook, which must end with this code unless it is None."""
        played = self.start(book, *options, **environment).finish(timeout)
        if code not in (None, played.code):
            raise AssertionError(f"ansible-playbook ended with {played.code}: {played.output}")
        return played

    def said(self, source: str, pattern: str, command: str) -> dict[str, str]:
        """What a command that prints one line printed on each host."""
        lines = self.run("ansible", "-i", source, pattern, "-m", "command", "-a", command).stdout.splitlines()
        return {head.split(" | ")[0]: line for head, line in zip(lines[::2], lines[1::2])}

    def graph(self, *arguments: str) -> str:
        """What C(ansible-inventory --graph) prints of the guests."""
        return self.run("ansible-inventory", *arguments, "--graph", "vmnet_guests").stdout

    def listed(self, *arguments: str) -> dict[str, t.Any]:
        """What C(ansible-inventory --list) prints, without the mark of texts that are no templates."""
        printed = self.run("ansible-inventory", *arguments, "--list").stdout
        return t.cast("dict[str, t.Any]", json.loads(printed, object_hook=_unmarked))

    def _environment(self, more: t.Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        return {
            **inherited,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "true",
            **more,
        }


def _program(name: str) -> str:
    """One of the environment that the tests run in."""
    return str(pathlib.Path(sys.executable).with_name(name))


def _unmarked(found: dict[str, t.Any]) -> t.Any:
    return found["__ansible_unsafe"] if set(found) == {"__ansible_unsafe"} else found


def by_namespace(host: AnyHost, directory: pathlib.Path) -> dict[str, t.Any]:
    """The variables of a host of the tests that is entered through its namespaces."""
    pid_file = directory / f"{host.pid}.pid"
    pid_file.write_text(str(host.pid), encoding="ascii")
    return entered(pid_file)


def inventory(
    lab: lab_hosts.Lab, variables: t.Mapping[str, t.Any], of_hosts: t.Optional[t.Mapping[str, t.Any]] = None
) -> dict[str, t.Any]:
    """The hosts of a lab, the variables of all of them, and more of each by its name."""
    hosts = {host.name: {**entered(host.pid_file), **(of_hosts or {}).get(host.name, {})} for host in lab.hosts}
    return {"lab_hosts": {"hosts": hosts, "vars": dict(variables)}}


def entered(pid_file: t.Union[str, pathlib.Path]) -> dict[str, t.Any]:
    """The variables of a host that is entered through the namespaces of a process."""
    return {
        "ansible_connection": "labspan.vmnet.netns",
        "ansible_netns_pid_file": str(pid_file),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
