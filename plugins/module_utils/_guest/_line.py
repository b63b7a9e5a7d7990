# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One command of a task in a guest that has no network to its lab host: the lab host's half of the connection plugin.

The controller sends this file and what it needs, then the request, all on the standard input of one Python; so there is
nothing on the lab host before or after, and nothing of what is asked stands in a command line there.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import sys
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent, _qmp
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._console import Console, ConsoleError, Login
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places

AUTO = "auto"
AGENT = "agent"
CONSOLE = "console"

#: Seconds for which the line to the agent is kept while a command runs; others want to talk to it, too.
HOLD = 2.0
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.5

# The agent is a service: what a login sets is missing.
_AS_LOGIN = (
    "HOME=${HOME:-~root}; PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}; "
    "USER=${USER:-root}; LOGNAME=$USER; SHELL=/bin/sh; export HOME PATH USER LOGNAME SHELL; "
    'cd; exec /bin/sh -c "$1"'
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the controller asks for."""

    guest: str
    transport: str
    timeout: float
    command_timeout: float
    user: t.Optional[str]
    password: t.Optional[str] = dataclasses.field(repr=False)
    command: t.Optional[str] = dataclasses.field(repr=False)
    """None asks for nothing but whether somebody is there."""


class Answer(t.NamedTuple):
    """How the command ended, and what it printed."""

    rc: int
    stdout: bytes
    stderr: bytes
    transport: str


class NoLine(SystemFailure):
    """The guest is out of reach; its next task may find it there again."""


def converse(request: Request, stdin: t.Optional[bytes]) -> Answer:
    """Run the command in the guest."""
    _values.object_name("vmnet_guest", request.guest)
    transport = _choose(request)
    if transport == AGENT:
        return _by_agent(request, stdin)
    return _by_console(request, stdin)


def _choose(request: Request) -> str:
    """The way into the guest; raises where there is none."""
    places = Places(request.guest)
    agent, console = _is_there(places.agent_socket), _is_there(places.console_socket)
    if not agent and not console:
        if not os.path.lexists(places.definition):
            raise NoLine(f"guest {request.guest} is not defined on this lab host.")
        raise NoLine(f"guest {request.guest} does not run: it has neither a line to its agent nor a console. Start it.")
    if request.transport == AGENT and not agent:
        raise NoLine(
            f"guest {request.guest} has no line to an agent. Give it guest_agent: true (qemu_guest) and restart it, or "
            "use its console."
        )
    if request.transport == CONSOLE and not console:
        raise NoLine(f"guest {request.guest} has no serial console. Give it console: true (qemu_guest) and restart it.")
    if request.transport != AUTO:
        return request.transport
    if agent and console:
        return CONSOLE if _agent.is_listening(request.guest, timeout=request.timeout) is False else AGENT
    return AGENT if agent else CONSOLE


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        raise NoLine(
            f"the account {pwd.getpwuid(os.geteuid()).pw_name} may not look at {path}, which belongs to root or the "
            "guest's account. Give vmnet_host_connection ansible_become: true."
        ) from None
    except OSError:
        return False
    return True


def _by_agent(request: Request, stdin: t.Optional[bytes]) -> Answer:
    """A conversation ends soon, and another one asks how the command goes on: the agent is others', too."""
    name = request.guest
    argv = ["/bin/sh", "-c", _AS_LOGIN, "sh", request.command or ":"]
    deadline = time.monotonic() + request.command_timeout
    pause, ended = _FIRST_PAUSE, None
    with _talk(request) as agent:
        try:
            pid = agent.start(argv, stdin)
        except _agent.AgentError as error:
            raise SystemFailure(f"{error} {_remedy(error)}".strip()) from None
        until = time.monotonic() + HOLD
        while ended is None and time.monotonic() < min(until, deadline):
            ended = agent.ended(pid)
            if ended is None:
                time.sleep(pause)
                pause = min(pause * 1.3, _LONGEST_PAUSE)
    while ended is None:
        if time.monotonic() > deadline:
            raise SystemFailure(
                f"the command has not ended in guest {name} within {request.command_timeout:g} seconds. It goes on "
                f"there, with the number {pid}; the agent has no command to end it."
            )
        time.sleep(_LONGEST_PAUSE)
        ended = _look_again(request, pid)
    if ended.truncated:
        raise SystemFailure(
            f"the agent of guest {name} keeps 16 MiB of what a command prints, and this one printed more. Let it print "
            "into a file, and fetch that."
        )
    rc = ended.rc if ended.rc is not None else 128 + (ended.signal or 0)
    return Answer(rc, ended.stdout, ended.stderr, AGENT)


def _look_again(request: Request, pid: int) -> t.Optional[_agent.Ended]:
    with _talk(request) as agent:
        try:
            return agent.ended(pid)
        except _agent.AgentError as error:
            raise NoLine(f"guest {request.guest} was started anew while the command ran in it ({error})") from None


def _talk(request: Request) -> _agent.Agent:
    return _agent.Agent(request.guest, timeout=request.timeout)


def _remedy(error: _agent.AgentError) -> str:
    if "frozen" in str(error):
        return "Thaw the guest (guest_agent, command: thaw)."
    if error.kind == "CommandNotFound" or "disabled" in str(error):
        return (
            "Distributions forbid it in the agent's settings (--allow-rpcs, --block-rpcs, --blacklist; RHEL: "
            "/etc/sysconfig/qemu-ga). Allow guest-exec and guest-exec-status there, or use the console."
        )
    return ""


def _by_console(request: Request, stdin: t.Optional[bytes]) -> Answer:
    console = Console(
        Places(request.guest).console_socket,
        request.timeout,
        login=Login(request.user, request.password),
        queue=request.command_timeout,
        check=_qmp.check_peer,
    )
    with console:
        if request.command is None:
            return Answer(0, b"", b"", CONSOLE)
        result = console.run(request.command, stdin, timeout=request.command_timeout)
        return Answer(result.status, result.stdout, result.stderr, CONSOLE)


def main() -> None:
    """Read one request, and write the answer: a marker of the request's own, a line of JSON, what was printed."""
    stream = sys.stdin.buffer
    asked = json.loads(stream.readline())
    marker, has_stdin = asked.pop("marker"), asked.pop("has_stdin")
    content = stream.read()
    stdout, stderr = b"", b""
    told: dict[str, t.Any] = {}
    try:
        answer = converse(Request(**asked), content if has_stdin else None)
        stdout, stderr = answer.stdout, answer.stderr
        told.update(rc=answer.rc, transport=answer.transport, stdout=len(stdout), stderr=len(stderr))
    except (ConsoleError, NoLine, _agent.AgentSilent) as error:
        told.update(error=str(error), unreachable=True)
    except (LabspanError, OSError) as error:
        told.update(error=str(error), unreachable=False)
    output = sys.stdout.buffer
    output.write(f"\n{marker} {json.dumps(told)}\n".encode("ascii"))
    output.write(stdout)
    output.write(stderr)
    output.flush()
