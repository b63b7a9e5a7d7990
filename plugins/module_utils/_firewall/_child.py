# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work in a child process that dies afterwards, with a network namespace of its own or without.

What a library or a program leaves behind in a process or a namespace is gone with it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import ctypes
import json
import os
import traceback
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _errors
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure

_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.unshare came with Python 3.12


def call(work: t.Callable[[], t.Any], *, purpose: str, throw_away_namespace: bool = False) -> t.Any:
    """What C(work) returns, as JSON carries it, computed in a child; a LabspanError that it raises is raised here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(writing, work, throw_away_namespace)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    _pid, status = os.waitpid(child, 0)
    if not text:
        raise SystemFailure(f"a child process that was to {purpose} ended without an answer (wait status {status}).")
    answer = json.loads(text)
    if "error" in answer:
        kind = getattr(_errors, answer["kind"], SystemFailure)
        error = SystemFailure(answer["error"]) if kind is _errors.InvalidInput else kind(answer["error"])
        raise error
    return answer["value"]


def _answer(descriptor: int, work: t.Callable[[], t.Any], throw_away_namespace: bool) -> t.NoReturn:
    try:
        if throw_away_namespace:
            _leave_network()
        answer = {"value": work()}
    except LabspanError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    except BaseException as error:  # the child must never run on into the parent's code
        answer = {
            "error": f"{type(error).__name__}: {error} ({traceback.format_exc(limit=-1)})",
            "kind": "SystemFailure",
        }
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
    finally:
        os._exit(0)


def _leave_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise SystemFailure(
            f"no network namespace of its own can be made for comparing firewall rules ({os.strerror(code)}). "
            "Run the task as root (become: true) with the capability CAP_SYS_ADMIN."
        )
