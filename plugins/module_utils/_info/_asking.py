# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of a host: their definitions and processes, and what QEMU and the agents say when they are asked.

All guests are asked at the same time, and those that have not answered in time are not waited for.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _places,
    _qmp,
    _services,
    _store,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import UNKNOWN
from ansible_collections.labspan.vmnet.plugins.module_utils._info._readers import Processes
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Guest

_AGENT = "agent"


def defined(processes: t.Callable[[], Processes]) -> dict[str, Guest]:
    """The guests that there is a definition or a process of."""
    finder = _store.Processes(processes, patience=0)
    as_root = os.geteuid() == 0
    found = {}
    for name in sorted({*_places.known_guests(), *_running()}):
        process = finder.find(name)
        definition = _store.read_definition_of(name, process)
        if definition is None and process is None and as_root:
            continue  # nothing but the disks that a guest left
        disks = definition.spec.disks if definition is not None else ()
        found[name] = Guest(
            name,
            definition,
            process,
            as_defined=process is None or definition is None or _store.is_as_defined(process, definition),
            hidden=process is None and not as_root,
            enabled=_services.is_enabled(name),
            sizes={disk.path: size for disk in disks for size in _allocated(disk.path)},
        )
    return found


def ask(
    guests: t.Mapping[str, Guest], *, agent: bool, timeout: float, warn: t.Callable[[str], None]
) -> dict[str, Guest]:
    """The guests with what their QEMUs, and their agents, say within the seconds."""
    answers: dict[str, dict[str, t.Any]] = {name: {} for name, guest in guests.items() if guest.process is not None}
    with_agent = {name for name in answers if agent and _has_agent(guests[name])}
    threads = []
    for name, answer in answers.items():
        thread = threading.Thread(target=_converse, args=(name, answer, name in with_agent, timeout), daemon=True)
        thread.start()
        threads.append(thread)
    # A guest that makes each answer as late as it can is no reason to wait several times.
    deadline = time.monotonic() + timeout * (2 if agent else 1) + 0.2
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    told = dict(guests)
    for name, answer in answers.items():
        answer = dict(answer)  # a late thread may still write to the other one
        said, silence = answer.get("error"), f"no answer within {timeout:g} seconds."
        if "run_state" not in answer:
            warn(f"guests: the state of guest {name} is not known: {said or silence}")
        elif said:
            warn(f"guests: {said}")
        elif name in with_agent and "told" not in answer:
            warn(f"guests: the addresses in guest {name} are not known: {silence}")
        run_state, addresses = answer.get("run_state", UNKNOWN), answer.get("told", {})
        told[name] = dataclasses.replace(guests[name], run_state=run_state, told=addresses)
    return told


def _converse(name: str, answer: dict[str, t.Any], with_agent: bool, timeout: float) -> None:
    try:
        with _qmp.Qmp(Places(name).qmp_socket, timeout=timeout) as qmp:
            qmp.greet()
            answer["run_state"] = qmp.status()
            listening = with_agent and any(
                device.get("label") == _AGENT and device.get("frontend-open") for device in qmp.execute("query-chardev")
            )
        if listening:
            answer["told"] = _ask_agent(name, timeout)
        elif with_agent:
            answer["error"] = f"no agent runs in guest {name} (the package qemu-guest-agent in Debian)."
    except (LabspanError, OSError) as error:
        answer["error"] = str(error)


def _ask_agent(name: str, timeout: float) -> dict[str, tuple[str, ...]]:
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent

    with _agent.Agent(name, timeout=timeout) as conversation:
        interfaces = conversation.interfaces()
    found: dict[str, list[str]] = collections.defaultdict(list)
    for interface in interfaces:
        if interface.mac is not None:
            found[interface.mac] += [address.partition("/")[0] for address in interface.addresses]
    return {mac: tuple(filter(_values.counts, addresses)) for mac, addresses in found.items()}


def _has_agent(guest: Guest) -> bool:
    return guest.definition is not None and guest.definition.spec.guest_agent


def _running() -> list[str]:
    try:
        return sorted(os.listdir(_places.RUNTIME_ROOT))
    except OSError:
        return []


def _allocated(path: str) -> t.Iterator[int]:
    if path:
        with contextlib.suppress(OSError):
            yield os.stat(path).st_blocks * 512
