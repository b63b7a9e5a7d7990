# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of moving a host's uplink: it comes back over a new connection, or the host goes back.

That an old connection still works proves nothing: firewalls let it live on while every new one is dead. So the module
moves the uplink and arms a dead-man, and only a connection that began after the move tells the dead-man to rest.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
import time
import typing as t

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _internal_options

MODULE = "labspan.vmnet.bridge_uplink"

#: What this plugin and the module say to each other; no business of a task.
INTERNAL = ("step", "transaction", "local")

# The phases of a transaction as the module reports them.
MOVED = "moved"
CONFIRMED = "confirmed"
ROLLED_BACK = "rolled back"
UNDER_WAY = ("prepared", "moving", "rolling back")

#: The module's default of C(confirm_timeout), in seconds.
CONFIRM_TIMEOUT = 90.0
#: Seconds that a run may wait for another one on the same host, and then for its own move, until it answers.
BEGIN_PATIENCE = 420.0
#: Seconds for one question on a new connection; files may have to be written before the answer comes.
STEP_PATIENCE = 60.0
#: Seconds that are added to a deadline that only the host knows.
SLACK = 5.0
#: Seconds in which a host that goes back by itself has to answer again.
RETURN_PATIENCE = 15.0
#: Seconds for which a move whose beginning nobody saw may be about to begin.
START_PATIENCE = 10.0
CONNECT_TIMEOUT = 5

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 2.0
# Hosts shut out who fails to log in too often.
_PAUSE_AFTER_REFUSED_LOGIN = 5.0

# A connection that leads nowhere ends by itself instead of waiting for ever.
_KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
# No connection that is there already is used, whatever the configuration says.
_BY_ITSELF = "-o ControlMaster=no -o ControlPath=none -o ServerAliveInterval=2 -o ServerAliveCountMax=4"

Result = t.Dict[str, t.Any]

_Answer = t.TypeVar("_Answer")

display = Display()


class NoAnswer(Exception):
    """The host did not answer, or not with what the module says."""

    def __init__(self, reason: str, *, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds to wait at least before asking again."""


class OutOfTime(BaseException):
    """Not an Exception, which connection plugins take as a reason to try again."""


class ActionModule(ActionBase):
    """Begins the move, and confirms it over a new connection."""

    #: Whether the host could not be reached any more.
    _away = False

    def run(self, tmp: t.Optional[str] = None, task_vars: t.Optional[dict[str, t.Any]] = None) -> dict[str, t.Any]:
        """Never reports success for a host that has gone back."""
        refusal = self._refusal()
        if refusal:
            return {"failed": True, "changed": False, "msg": refusal}
        super().run(tmp, task_vars)
        self._identity = secrets.token_hex(8)
        self._variables: dict[str, t.Any] = {} if task_vars is None else task_vars
        if self._task.check_mode:
            return self._execute("begin")
        with self._options() as options:
            return self._move(options)

    def cleanup(self, force: bool = False) -> None:
        """What became of the move is known; a directory that is left behind must not turn it into "unreachable"."""
        if self._away:
            self._connection._shell.tmpdir = None
        with contextlib.suppress(AnsibleConnectionFailure):
            super().cleanup(force)  # type: ignore[no-untyped-call]

    def _refusal(self) -> t.Optional[str]:
        refusal = _internal_options.refusal(self._task.args, INTERNAL)
        if refusal:
            return refusal
        if self._task.async_val:
            return (
                "async: the controller has to be there after the move to confirm it over a new connection, or the host "
                "goes back. Run this task without async."
            )
        return None

    # The order of things

    def _move(self, options: _Options) -> Result:
        """Begin, and see it through."""
        # The connection that is there is not ours to change; a new one notices when it leads nowhere.
        self._reset()
        options.prepend("ssh_args", _KEEP_ALIVE)
        # A host that is not there now is unreachable as for any task, since nothing has been begun.
        self._low_level_execute_command(":")
        # To try again is to begin again, and only this plugin knows whether that is wanted.
        options.override("reconnection_retries", 0)
        begun, lost = self._begin()
        pending = begun.get("pending")
        if not lost and not pending:
            return begun
        wait = _seconds(pending.get("deadline")) if isinstance(pending, dict) else None
        if wait is None:
            wait = (_seconds(self._task.args.get("confirm_timeout")) or CONFIRM_TIMEOUT) + SLACK
        self._reset()
        options.restore("ssh_args")
        options.prepend("ssh_args", _BY_ITSELF)
        options.lower("timeout", CONNECT_TIMEOUT)
        return self._confirm(begun, lost, wait)

    def _begin(self) -> tuple[Result, str]:
        """The module's answer, or why there is none: the move may have happened all the same."""
        try:
            return self._ask("begin", BEGIN_PATIENCE), ""
        except NoAnswer as error:
            display.vv(f"the connection was lost during the move: {error}", host=self._host())
            return {}, str(error)

    def _confirm(self, begun: Result, lost: str, wait: float) -> Result:
        """Ask the host to keep the move, as often as it takes, until it says how it ended."""
        began = time.monotonic()
        seen = lost
        for silence in self._attempts(wait):
            try:
                answer = self._ask_anew("confirm")
            except NoAnswer as error:
                seen = str(error)
                if seen == lost and _is_garbage(lost):
                    # Twice the same over a connection that works: the host cannot run the module at all.
                    return self._failure(f"{lost} If anything was begun, the host goes back by itself.")
                silence(error)
                continue
            ended = self._ended(answer, begun, unknown_is_final=not lost or time.monotonic() - began > START_PATIENCE)
            if ended is not None:
                return _with_attempt(ended, seen)
            seen = _sentence(answer)
            silence(NoAnswer(seen))
        spent = time.monotonic() - began
        return self._await_return(begun, f"no new connection got through within {spent:.0f} seconds", seen)

    def _await_return(self, begun: Result, story: str, seen: str) -> Result:
        """Nothing was confirmed: the host goes back by itself. Say so only when it says so."""
        last = seen
        for silence in self._attempts(RETURN_PATIENCE):
            try:
                answer = self._ask_anew("status")
                if _phase(answer) in (MOVED, CONFIRMED):  # it is still in time, or the answer alone was lost
                    answer = self._ask_anew("confirm")
            except NoAnswer as error:
                last = str(error)
                silence(error)
                continue
            phase = _phase(answer)
            if phase == CONFIRMED:
                return self._ended(answer, begun, unknown_is_final=True) or self._failure(_sentence(answer))
            if phase not in (*UNDER_WAY, MOVED):
                told = str(answer.get("reason") or _sentence(answer))
                if phase == ROLLED_BACK:
                    return self._failure(
                        f"{ROLLED_BACK}: {story} (the last attempt: {_stripped(seen)}), so the host went back by "
                        f"itself and is as it was before. It says: {told}",
                        phase=ROLLED_BACK,
                    )
                return self._failure(
                    f"the move was not confirmed: {story} (the last attempt: {_stripped(seen)}). The host says: {told}",
                    **({"phase": phase} if phase else {}),
                )
            last = _sentence(answer)
            silence(NoAnswer(last))
        # "unreachable" would be the other word for it, but a play's rescue is not entered for unreachable hosts, and
        # ignore_unreachable would go on with a host of which nobody knows how it is.
        self._away = True
        return self._failure(
            f"the move was not confirmed: {story} (the last attempt: {_stripped(seen)}). The host should have gone "
            f"back by itself, and still cannot be reached (the last attempt: {_stripped(last)}). Look at it over its "
            "console.",
            changed=True,
        )

    def _ended(self, answer: Result, begun: Result, *, unknown_is_final: bool) -> t.Optional[Result]:
        """The task's result, if this answer settles it."""
        phase = _phase(answer)
        if not answer.get("failed"):
            return _merged(begun, answer) if phase == CONFIRMED else None
        if answer.get("same_connection") or phase in (*UNDER_WAY, MOVED):
            return None
        if phase == ROLLED_BACK:
            return {**answer, "changed": False, "msg": _reason(answer)}
        if phase:  # confirmed but not to its end, or stuck: the host knows best
            return answer
        return self._failed(answer) if unknown_is_final else None

    def _failed(self, answer: Result) -> Result:
        """A failure that does not say what it means for the move, which the host may know."""
        try:
            phase = _phase(self._ask_anew("status"))
        except NoAnswer:
            phase = ""
        told = _sentence(answer)
        if phase == CONFIRMED:
            message = f"the move is confirmed and stays, and what was to follow failed: {told}"
            return {**answer, "changed": True, "phase": phase, "msg": message}
        if phase in (*UNDER_WAY, MOVED):
            told = f"{told} The host goes back by itself."
        return {**answer, "changed": False, "msg": f"the move was not confirmed: {told}"}

    def _failure(self, message: str, **more: t.Any) -> Result:
        return {"failed": True, "changed": False, "transaction": self._identity, **more, "msg": message}

    # Questions

    def _ask_anew(self, step: str) -> Result:
        self._reset()
        return self._ask(step, STEP_PATIENCE)

    def _ask(self, step: str, patience: float) -> Result:
        """What the module answers, whatever it is; raises when it is not the module that answers."""
        try:
            answer = _within(patience, lambda: self._execute(step))
        except OutOfTime:
            raise NoAnswer(f"no answer within {patience:.0f} seconds") from None
        except AnsibleAuthenticationFailure as error:
            raise NoAnswer(_last_line(error), pause=_PAUSE_AFTER_REFUSED_LOGIN) from error
        except AnsibleConnectionFailure as error:
            raise NoAnswer(_last_line(error)) from error
        except AnsibleError as error:
            if step == "begin":  # it did not come as far as the host
                raise
            raise NoAnswer(_last_line(error)) from error
        if "module_stdout" in answer:
            raise NoAnswer(f"{_GARBAGE}: {_stripped(_output(answer))}.")
        return answer

    def _execute(self, step: str) -> Result:
        local = self._connection.transport == "local"
        arguments = {**self._task.args, "step": step, "transaction": self._identity, "local": local}
        return t.cast(
            Result, self._execute_module(module_name=MODULE, module_args=arguments, task_vars=self._variables)
        )

    def _attempts(self, seconds: float) -> t.Iterator[t.Callable[[NoAnswer], None]]:
        """One turn after the other until the time is over, each with what is to be called when it was in vain."""
        until = time.monotonic() + seconds
        pause = _FIRST_PAUSE

        def silence(error: NoAnswer) -> None:
            nonlocal pause
            display.vv(f"not there yet: {error}", host=self._host())
            time.sleep(max(0.0, min(max(pause, error.pause), until - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)

        while True:
            yield silence
            if time.monotonic() >= until:
                return

    def _reset(self) -> None:
        """Part with the connection; the next command makes a new one."""
        try:
            _within(STEP_PATIENCE, self._connection.reset)
        except (OutOfTime, Exception) as error:  # pylint: disable=broad-except  # the next command tells what is wrong
            display.vv(f"the connection could not be reset: {error}", host=self._host())

    def _host(self) -> t.Optional[str]:
        return t.cast("t.Optional[str]", self._play_context.remote_addr)

    @contextlib.contextmanager
    def _options(self) -> t.Iterator[_Options]:
        options = _Options(self._connection)
        try:
            yield options
        finally:
            options.restore_all()


class _Options:
    """Options of the connection that differ for a while, as far as its plugin has them."""

    def __init__(self, connection: t.Any) -> None:
        self._connection = connection
        self._original: dict[str, t.Any] = {}

    def override(self, name: str, value: t.Any) -> None:
        """Have another value for it."""
        if self._has(name):
            self._original.setdefault(name, self._connection.get_option(name))
            self._connection.set_option(name, value)

    def prepend(self, name: str, words: str) -> None:
        """Have these words first: of two that contradict each other, ssh obeys the first."""
        if self._has(name):
            self.override(name, f"{words} {self._connection.get_option(name) or ''}".strip())

    def lower(self, name: str, value: int) -> None:
        """Have this value, unless it is lower already."""
        if self._has(name):
            self.override(name, min(value, _seconds(self._connection.get_option(name)) or value))

    def restore(self, name: str) -> None:
        """Have what was there before."""
        if name in self._original:
            self._connection.set_option(name, self._original.pop(name))

    def restore_all(self) -> None:
        """Have everything as it was before."""
        for name in list(self._original):
            self.restore(name)

    def _has(self, name: str) -> bool:
        try:
            return bool(self._connection.has_option(name))
        except (AnsibleError, AttributeError, KeyError):
            return False


def _within(seconds: float, work: t.Callable[[], _Answer]) -> _Answer:
    """What the work returns; raises OutOfTime when it takes longer.

    The task's own C(timeout) goes on counting meanwhile, and does so afterwards wherever the alarm came. No context
    manager: an alarm in its own first or last steps would leave what it holds as it is.
    """
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    if threading.current_thread() is not threading.main_thread() or 0 < left <= seconds:
        return work()
    armed = False

    def ring(_signal: int, _frame: t.Any) -> None:
        if armed:
            raise OutOfTime

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return work()
        finally:
            armed = False
    finally:
        # Here it has rung, which it does once, or is not heard any more.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)))


# What answers say

_GARBAGE = "the host answered, but not as the module does"


def _merged(begun: Result, confirmed: Result) -> Result:
    """Both halves of the module's work as one result."""
    merged = {**begun, **confirmed, "changed": True}
    for key in ("actions", "warnings", "deprecations"):
        both = [*begun.get(key, ()), *confirmed.get(key, ())]
        if both:
            merged[key] = both
    diff = _merged_diff(begun.get("diff"), confirmed.get("diff"))
    if diff:
        merged["diff"] = diff
    merged.pop("pending", None)
    return merged


def _merged_diff(first: t.Any, second: t.Any) -> t.Any:
    """One before and one after where both halves have them by name; otherwise one diff after the other."""
    if not first or not second:
        return first or second
    sides = ("before", "after")
    if all(isinstance(diff, dict) and isinstance(diff.get(side), dict) for diff in (first, second) for side in sides):
        before = {**second["before"], **first["before"]}
        return {**first, **second, "before": before, "after": {**first["after"], **second["after"]}}
    return [*_listed(first), *_listed(second)]


def _listed(value: t.Any) -> list[t.Any]:
    return list(value) if isinstance(value, list) else [value]


def _phase(answer: Result) -> str:
    return str(answer.get("phase") or "").replace("_", " ")


def _reason(answer: Result) -> str:
    """Why it went back, as a sentence that says first that it did."""
    reason = str(answer.get("reason") or _sentence(answer)).strip()
    return reason if reason.startswith(ROLLED_BACK) else f"{ROLLED_BACK}: {reason}"


def _with_attempt(ended: Result, seen: str) -> Result:
    """The result of a move that went back, with what had kept the controller out until then."""
    if _phase(ended) != ROLLED_BACK or not seen:
        return ended
    return {**ended, "msg": f"{ended['msg'].rstrip()} The controller's last attempt before that: {_stripped(seen)}."}


def _sentence(answer: Result) -> str:
    text = str(answer.get("msg") or "").strip()
    return text or f"the host says that the move is in the phase '{_phase(answer) or 'unknown'}'."


def _output(answer: Result) -> str:
    """The last line of what came in the place of an answer."""
    for key in ("module_stderr", "module_stdout", "msg"):
        lines = str(answer.get(key) or "").strip().splitlines()
        if lines:
            return lines[-1]
    return "nothing"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _is_garbage(reason: str) -> bool:
    return reason.startswith(_GARBAGE)


def _stripped(text: str) -> str:
    return text.strip().rstrip(".")


def _seconds(value: t.Any) -> t.Optional[float]:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if seconds > 0 else None
