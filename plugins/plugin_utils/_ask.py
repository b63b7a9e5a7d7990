# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asks lab hosts over their own connections, all at once, by an C(ansible) of its own.

A plugin of an inventory has no task executor. The one of Ansible, C(TaskQueueManager), could be made in this process,
but it belongs to a whole run. It takes its tags, its callbacks, its strategy and where to begin from a command line
that is meant for another play, replaces the signal handlers of a run that reads its inventory anew (C(meta:
refresh_inventory)), lets plugins print where C(ansible-inventory) prints its JSON, and is made differently in each
version of Ansible. The command is the same in all of them, and ends whole. It costs the half of a second that it
takes to start.

What it is told are hosts with the variables of their connections, templated and out of the vault, in a file that only
this user can read, where Ansible keeps what it takes out of vaults itself. So it needs neither the vault's password nor
the inventory.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import typing as t

from ansible import constants
from ansible.utils import collection_loader
from ansible.utils.display import Display
from ansible_collections.labspan.vmnet.plugins.plugin_utils._guest_map import LabHost

#: Ansible makes the names in it as it is loaded.
_settings: t.Any = constants
_loader: t.Any = collection_loader

display = Display()

MODULE = "labspan.vmnet.vmnet_info"

#: What would be a template, if the inventory were read as one.
_TEMPLATE = re.compile(r"\{[{%#]")

_RESULT = re.compile(r"^(?P<host>\S+) \| (?P<state>SUCCESS|CHANGED|FAILED!|UNREACHABLE!) => (?=\{)", re.MULTILINE)

#: The settings by which the command prints what is read here, whatever the user has set for people.
_ENVIRONMENT = {
    "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml",
    "ANSIBLE_STDOUT_CALLBACK": "minimal",
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "false",
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    "ANSIBLE_STRATEGY": "ansible.builtin.linear",
    "ANSIBLE_NOCOLOR": "true",
    "ANSIBLE_FORCE_COLOR": "false",
    "ANSIBLE_VERBOSITY": "0",
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to ask."""

    arguments: t.Mapping[str, t.Any]
    """For the module."""
    forks: t.Optional[int] = None
    timeout: int = 0
    """Seconds for the task on each host; 0 is without end."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """By lab host: what it told, or the sentence why it did not."""

    told: t.Mapping[str, t.Mapping[str, t.Any]]
    problems: t.Mapping[str, str]


def ask(hosts: t.Sequence[LabHost], request: Request) -> Answers:
    """Ask all of them at the same time; whatever happens to one is no matter of the others."""
    if not hosts:
        return Answers({}, {})
    with tempfile.NamedTemporaryFile(
        "w", dir=_settings.DEFAULT_LOCAL_TMP, prefix="lab-hosts-", encoding="utf-8"
    ) as inventory:
        json.dump({"all": {"hosts": {host.name: _untouched(host.connection) for host in hosts}}}, inventory)
        inventory.flush()
        done = subprocess.run(
            command(inventory.name, request),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment(os.environ, map(str, _loader.AnsibleCollectionConfig.collection_paths)),
        )
    display.vvv(f"{MODULE} on {', '.join(host.name for host in hosts)}: status {done.returncode}. {done.stderr}")
    return read([host.name for host in hosts], done.stdout, done.stderr)


def command(inventory: str, request: Request) -> list[str]:
    """The words of the command line."""
    words = [sys.executable, "-m", "ansible", "adhoc", "all", "--inventory", inventory]
    words += ["--module-name", MODULE, "--args", json.dumps(dict(request.arguments))]
    if request.forks:
        words += ["--forks", str(request.forks)]
    if request.timeout:
        words += ["--task-timeout", str(request.timeout)]
    return words


def environment(own: t.Mapping[str, str], collections: t.Iterable[str]) -> dict[str, str]:
    """The environment of the command: the user's own, but for what shapes the output.

    C(collections) is where this process finds them, those beside its playbook included.
    """
    found = {**own, **_ENVIRONMENT}
    if _settings.CONFIG_FILE:
        found["ANSIBLE_CONFIG"] = str(_settings.CONFIG_FILE)
    found["ANSIBLE_COLLECTIONS_PATH"] = os.pathsep.join(collections)
    return found


def read(names: t.Sequence[str], output: str, errors: str) -> Answers:
    """What the command printed."""
    told: dict[str, t.Mapping[str, t.Any]] = {}
    problems: dict[str, str] = {}
    decoder = json.JSONDecoder()
    for match in _RESULT.finditer(output):
        name = match["host"]
        if name not in names or name in told or name in problems:
            continue
        try:
            result, _end = decoder.raw_decode(output, match.end())
        except ValueError:
            continue
        if match["state"] in ("SUCCESS", "CHANGED"):
            told[name] = result
        else:
            problems[name] = _sentence(match["state"], result)
    for name in names:
        if name not in told and name not in problems:
            problems[name] = f"ansible told nothing of it: {_last(errors) or _last(output) or 'no output'}"
    return Answers(told, problems)


def _sentence(state: str, result: t.Mapping[str, t.Any]) -> str:
    message = str(result.get("msg") or "no message").strip().removeprefix("Task failed: ")
    said = _last(str(result.get("module_stderr") or ""))
    if said:
        message = f"{message.rstrip('.')}: {said}"
    return f"it is unreachable: {message}" if state.startswith("UNREACHABLE") else message


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _untouched(value: t.Any) -> t.Any:
    """As data for an inventory, in which nothing is a template any more."""
    if isinstance(value, t.Mapping):
        return {str(key): _untouched(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_untouched(entry) for entry in value]
    if isinstance(value, str):
        return {"__ansible_unsafe": str(value)} if _TEMPLATE.search(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
