# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a task asks of the agents in guests, as a resource of the runner.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import (
    InvalidInput,
    LabspanError,
    Refused,
    SystemFailure,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent, _store
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._agent import FROZEN, THAWED, Interface, Outcome
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource

COMMANDS = ("ping", "addresses", "freeze", "thaw", "exec")

_AT_ONCE = 16

_IN_CHECK_MODE = "In check mode this is only a warning, because an earlier task may change it."


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a task asks of one guest's agent."""

    name: str
    command: str
    argv: tuple[str, ...]
    stdin: t.Optional[str]
    timeout: float
    exec_timeout: float


@dataclasses.dataclass(frozen=True)
class AgentState:
    """What an agent tells."""

    version: t.Optional[str] = None
    """None when it could not be asked, which only check mode forgives."""
    freeze: t.Optional[str] = None
    interfaces: t.Optional[tuple[Interface, ...]] = None


State = t.Mapping[str, AgentState]


@dataclasses.dataclass(frozen=True)
class SetFreeze(Change):
    """The guest's file systems stand still, or do not any more."""

    guest: str
    timeout: float


@dataclasses.dataclass(frozen=True)
class Execute(Change):
    """A program runs in the guest."""

    wish: Wish

    @property
    def reversible(self) -> bool:
        return False


class Agents(Resource[State]):
    """The agents of the guests that a task names."""

    plural: t.ClassVar[str] = "guests"
    singular: t.ClassVar[str] = "guest"

    def __init__(self, wishes: t.Sequence[Wish], *, single: bool = False, check_mode: bool = False) -> None:
        super().__init__(single=single)
        self._wishes = wishes
        self._check_mode = check_mode
        self._outcomes: dict[str, Outcome] = {}

    def read(self) -> State:
        processes = _store.Processes()
        return {wish.name: self._ask(wish, processes) for wish in self._wishes}

    def plan(self, have: State, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes: list[Change] = []
        for wish in self._wishes:
            name, state = wish.name, have[wish.name]
            if wish.command in ("freeze", "thaw"):
                changes += self._plan_freeze(wish, state)
            elif wish.command == "exec" and name not in self._outcomes:
                changes.append(Execute(f"guest {name}", f"Run {wish.argv[0]} in guest {name}", None, "run", wish))
        return changes

    def _plan_freeze(self, wish: Wish, state: AgentState) -> list[Change]:
        wanted = FROZEN if wish.command == "freeze" else THAWED
        if state.version is not None and state.freeze is None:
            raise Refused(f"the agent of guest {wish.name} cannot freeze file systems, or was told not to.")
        if state.freeze == wanted:
            return []
        sentence = f"{'Freeze' if wanted == FROZEN else 'Thaw'} the file systems of guest {wish.name}"
        before = THAWED if wanted == FROZEN else FROZEN
        return [SetFreeze(f"guest {wish.name}", sentence, before, wanted, wish.name, wish.timeout)]

    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        state = dict(have)
        for change in changes:
            if isinstance(change, SetFreeze):
                state[change.guest] = dataclasses.replace(state[change.guest], freeze=change.after)
        return state

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in changes:
            if isinstance(change, SetFreeze):
                _set_freeze(change)
                done.append(change)
        self._execute([change for change in changes if isinstance(change, Execute)], done)

    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        return {wish.name: _render(state[wish.name], wish) for wish in self._wishes}

    def facts(self, state: State) -> dict[str, t.Any]:
        executed = [_render_outcome(name, outcome) for name, outcome in self._outcomes.items()]
        first = executed[0] if self.single and executed else {}
        return {"executed": executed, **{key: first[key] for key in ("rc", "stdout", "stderr") if key in first}}

    def _ask(self, wish: Wish, processes: _store.Processes) -> AgentState:
        try:
            check_line(wish.name, processes)
            with _agent.Agent(wish.name, timeout=wish.timeout) as agent:
                interfaces = tuple(agent.interfaces()) if wish.command == "addresses" else None
                return AgentState(agent.version(), agent.freeze_status(), interfaces)
        except LabspanError as error:
            if not self._check_mode:
                raise
            self.warnings.append(f"{error} {_IN_CHECK_MODE}")
            return AgentState()

    def _execute(self, changes: t.Sequence[Execute], done: list[Change]) -> None:
        """Run all programs at the same time; each is let come to its end before a failure of another is told."""
        problems: list[str] = []
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            runs = [(change, pool.submit(_run, change.wish)) for change in changes]
            for change, run in runs:
                name = change.wish.name
                try:
                    outcome = run.result()
                except LabspanError as error:
                    problems.append(str(error))
                    continue
                self._outcomes[name] = outcome
                done.append(change)
                if outcome.rc != 0:
                    problems.append(_tell_end(change.wish, outcome))
        if problems:
            raise SystemFailure(" ".join(problems), **self.facts({}))


def check_line(name: str, processes: _store.Processes) -> None:
    """Raise when there is no line to an agent in the guest at all."""
    definition = _store.read_definition(name)
    if definition is None:
        raise Refused(f"guest {name} is not defined on this host.")
    if processes.find(name) is None:
        raise Refused(f"guest {name} does not run, so there is no agent to ask. Start it first.")
    if not definition.spec.guest_agent:
        raise Refused(f"guest {name} has no line to an agent. Give it guest_agent: true (qemu_guest), and restart it.")


def build(items: t.Sequence[t.Mapping[str, t.Any]], *, single: bool, check_mode: bool) -> t.Sequence[Resource[t.Any]]:
    """The resource that a task's items ask for."""
    return [Agents([_wish(options) for options in items], single=single, check_mode=check_mode)]


def _wish(options: t.Mapping[str, t.Any]) -> Wish:
    command, argv = options["command"], options.get("argv") or ()
    if command == "exec" and not (argv and argv[0]):
        raise InvalidInput("argv", list(argv), "names no program; with command: exec give it and its arguments.")
    for option in ("argv", "stdin"):
        if command != "exec" and options.get(option) is not None:
            raise InvalidInput("command", command, f"does not go with {option}, which is for command: exec.")
    for option in ("timeout", "exec_timeout"):
        if options[option] <= 0:
            raise InvalidInput(option, options[option], "leaves no time for an answer; give seconds, more than 0.")
    return Wish(
        name=_values.object_name("name", options["name"]),
        command=command,
        argv=tuple(str(word) for word in argv),
        stdin=options.get("stdin"),
        timeout=options["timeout"],
        exec_timeout=options["exec_timeout"],
    )


def _run(wish: Wish) -> Outcome:
    return _agent.run(wish.name, wish.argv, stdin=wish.stdin, timeout=wish.exec_timeout, answer_timeout=wish.timeout)


def _set_freeze(change: SetFreeze) -> None:
    if change.after == FROZEN:
        freeze(change.guest, change.timeout)
        return
    with _agent.Agent(change.guest, timeout=change.timeout) as agent:
        agent.thaw(timeout=change.timeout)


def freeze(guest: str, timeout: float) -> None:
    """Freeze the guest's file systems; one that does not say whether it did is let go."""
    try:
        with _agent.Agent(guest, timeout=timeout) as agent:
            agent.freeze(timeout=timeout)
    except _agent.AgentSilent as error:  # the line is free again here
        outcome = "Its file systems are thawed." if let_go(guest, timeout) else may_be_frozen(guest)
        raise SystemFailure(f"{error} {outcome}") from error


def let_go(guest: str, timeout: float) -> bool:
    """Thaw a guest of which nobody knows whether it is frozen; whether it is known not to be now."""
    with contextlib.suppress(LabspanError), _agent.Agent(guest, timeout=timeout) as agent:
        agent.thaw(timeout=timeout)
        return agent.freeze_status() == THAWED
    return False


def may_be_frozen(guest: str) -> str:
    """What to do about a guest that could not be thawed."""
    return (
        f"Guest {guest} may still be frozen, or come to be: look with guest_agent, command: ping, and thaw it with "
        "command: thaw. What writes in it stands still until then."
    )


def _tell_end(wish: Wish, outcome: Outcome) -> str:
    how = f"exit status {outcome.rc}" if outcome.rc is not None else f"signal {outcome.signal}"
    lines = [line.strip() for line in (outcome.stderr or outcome.stdout).splitlines() if line.strip()]
    said = "".join(filter(str.isprintable, lines[-1]))[:300] if lines else ""
    return f"{wish.argv[0]} in guest {wish.name} ended with {how}{f': {said}' if said else ''}."


def _render(state: AgentState, wish: Wish) -> dict[str, t.Any]:
    rendered: dict[str, t.Any] = {
        "version": state.version,
        "frozen": None if state.freeze is None else state.freeze == FROZEN,
    }
    if wish.command == "addresses":
        rendered["interfaces"] = [
            {"name": interface.name, "mac": interface.mac, "addresses": list(interface.addresses)}
            for interface in state.interfaces or ()
        ]
    return rendered


def _render_outcome(name: str, outcome: Outcome) -> dict[str, t.Any]:
    return {"name": name, **dataclasses.asdict(outcome)}
