# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs of modules that are killed, by kill -9, before one of the things that they do to the host.

Python tells of most of them itself (PEP 578): processes that are ended, files that are renamed and removed, and from
the first of these on, programs that are run and, by a socket of the run's own, what is sent to the kernel.
"""

from __future__ import annotations

import typing as t

from support.hosts import AnyHost, finish_module

_DIRECTORY = "/run/dying"

_DYING = """
import os, signal, socket, sys

FIRST = {"os.kill", "signal.pidfd_send_signal", "os.rename", "os.remove", "os.rmdir"}
THEN = {*FIRST, "subprocess.Popen", "os.posix_spawn", "socket.send"}
count, end, process = 0, int(os.environ["DYING"]), os.getpid()

def watch(event, arguments):
    global count
    if os.getpid() == process and event in (THEN if count else FIRST):
        count += 1
        if count == end:
            os.kill(process, signal.SIGKILL)

class Socket(socket.socket):
    def send(self, *arguments):
        watch("socket.send", arguments)
        return super().send(*arguments)

sys.addaudithook(watch)
socket.socket = Socket
"""


def dies(host: AnyHost, name: str, params: t.Mapping[str, t.Any], step: int) -> bool:
    """Run a module that is killed before this step, counted from 1; whether it had that many."""
    host.run("sh", "-c", f"mkdir -p {_DIRECTORY} && cat >{_DIRECTORY}/sitecustomize.py", stdin=_DYING)
    environment = {"PYTHONPATH": f"{_DIRECTORY}:{host.module_environment()['PYTHONPATH']}", "DYING": str(step)}
    process = host.start_module(name, params, environment=environment)
    if process.wait() in (-9, 137):
        process.communicate()
        return True
    result = finish_module(process)
    assert not result.get("failed"), result
    return False
