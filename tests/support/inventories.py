# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible's commands as a user runs them in a directory with an inventory.

user = User(tmp_path)
user.write("hosts.yml", {"lab_hosts": {"hosts": {"lab1": by_namespace(host, tmp_path)}}})
user.write("guests.yml", {"plugin": "labspan.vmnet.guests", "sources": ["hosts.yml"]})
user.run("ansible", "-i", "guests.yml", "all", "-m", "ping")
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

from support.hosts import AnyHost

ROOT = pathlib.Path(__file__).resolve().parents[2]


class User:
    """Somebody in a directory of their own."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def write(self, name: str, content: t.Any) -> pathlib.Path:
        """A file; what is no text becomes JSON, which is YAML."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """One of Ansible's commands, of the environment that the tests run in."""
        program = str(pathlib.Path(sys.executable).with_name(command[0]))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        done = subprocess.run(
            [program, *command[1:]],
            cwd=self.directory,
            env={
                **inherited,
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
                "ANSIBLE_HOME": str(self.directory / "home"),
                "ANSIBLE_PIPELINING": "true",
                "ANSIBLE_NOCOLOR": "true",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

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


def _unmarked(found: dict[str, t.Any]) -> t.Any:
    return found["__ansible_unsafe"] if set(found) == {"__ansible_unsafe"} else found


def by_namespace(host: AnyHost, directory: pathlib.Path) -> dict[str, t.Any]:
    """The variables of a host of the tests that is entered through its namespaces."""
    pid_file = directory / f"{host.pid}.pid"
    pid_file.write_text(str(host.pid), encoding="ascii")
    return {
        "ansible_connection": "labspan.vmnet.netns",
        "ansible_netns_pid_file": str(pid_file),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
