# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one flow of every module: read, plan, apply, read again, say what was done.

The only place that ends a module. C(converge) knows nothing of Ansible beyond "is this check mode".

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight, _locks
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, NotConverged
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible.module_utils.basic import AnsibleModule

State = t.TypeVar("State")

#: How long a run waits for another run on the same host, in seconds.
LOCK_TIMEOUT = 300.0


class Resource(abc.ABC, t.Generic[State]):
    """All items of one kind that a task asks for: the bridges, the taps, the guests."""

    #: Plural result key, such as C(bridges).
    plural: t.ClassVar[str]
    #: Whether the items are part of the result; if not, they show in the diff alone, as files do that go with others.
    returned: t.ClassVar[bool] = True
    #: Singular result key, returned beside the plural one when the task names one item.
    singular: t.ClassVar[str]

    def __init__(self, *, single: bool = False) -> None:
        self.single = single
        #: Filled while planning and applying; the runner hands them to the user.
        self.warnings: list[str] = []

    @abc.abstractmethod
    def read(self) -> State:
        """What is there now, as far as this task is concerned. Reads only."""

    @abc.abstractmethod
    def plan(self, have: State, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        """The changes from C(have) to what is wanted; raises before anything is written when that cannot be done.

        C(ahead) holds the predicted states of the resources before this one in the same run, by their plural key.
        """

    @abc.abstractmethod
    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        """C(have) after C(changes). Pure."""

    @abc.abstractmethod
    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        """Carry out the changes in order, appending each to C(done) as soon as it is in force."""

    @abc.abstractmethod
    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        """The wanted items as plain data by name, for the diff and the result; what is absent is left out."""

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: State) -> None:
        """In a task of many kinds, tell how the host will be; C(then) is the predicted state."""

    def wait(self, state: State) -> State:
        """Wait for what the task waits for, when everything is in force and other runs may go on; the state then.

        What was done stays when this raises.
        """
        return state

    def facts(self, state: State) -> dict[str, t.Any]:
        """More keys for the result, read off the final state."""
        return {}


class Remark(Resource[None]):
    """What the user is told while planning (C(warnings)). Nothing is done about it."""

    singular: t.ClassVar[str] = "remark"
    returned: t.ClassVar[bool] = False

    def read(self) -> None:
        return None

    def predict(self, have: None, changes: t.Sequence[Change]) -> None:
        return None

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        """There is nothing to do."""

    def render(self, state: None) -> dict[str, dict[str, t.Any]]:
        return {}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found, planned and left, each list in the order of the resources."""

    resources: t.Sequence[Resource[t.Any]]
    have: t.Sequence[t.Any]
    plans: t.Sequence[t.Sequence[Change]]
    final: t.Sequence[t.Any]
    """In check mode the predicted states."""

    @property
    def actions(self) -> list[str]:
        """What was done, one sentence each."""
        return [change.sentence for changes in self.plans for change in changes]


#: What becomes of an outcome for the user.
Present = t.Callable[[Outcome], t.Dict[str, t.Any]]


class Undone(t.NamedTuple):
    """What became of the finished changes after a failure."""

    undone: list[str]
    left: list[str]


def run(
    module: AnsibleModule,
    build: t.Callable[[dict[str, t.Any]], t.Sequence[Resource[t.Any]]],
    *,
    present: t.Optional[Present] = None,
) -> t.NoReturn:
    """Converge the resources that C(build) makes of the module's parameters, and end the module.

    With C(present) the resources are of many kinds, and planned in one world; it makes the result.
    """
    warnings: list[str] = []
    try:
        result = converge(
            lambda: build(module.params),
            check_mode=module.check_mode,
            warnings=warnings,
            present=present,
            foresight=present is not None,
        )
    except LabspanError as error:
        for warning in warnings:
            module.warn(warning)
        module.fail_json(msg=str(error), **error.details)
    for warning in warnings:
        module.warn(warning)
    module.exit_json(**result)


def run_reader(module: AnsibleModule, read: t.Callable[[dict[str, t.Any], list[str]], dict[str, t.Any]]) -> t.NoReturn:
    """End a module that only looks, with what C(read) finds; it appends what it could not see to the warnings.

    It takes no lock: looking is possible while another run is at work.
    """
    warnings: list[str] = []
    try:
        result = read(module.params, warnings)
    except LabspanError as error:
        module.fail_json(msg=str(error), **error.details)
    for warning in dict.fromkeys(warnings):
        module.warn(warning)
    module.exit_json(changed=False, **result)


def converge(
    build: t.Callable[[], t.Sequence[Resource[t.Any]]],
    *,
    check_mode: bool,
    warnings: list[str],
    present: t.Optional[Present] = None,
    foresight: bool = False,
) -> dict[str, t.Any]:
    """Bring every resource to the wanted state, in order, or leave all as it was.

    Everything is read, checked and planned before the first write. Check mode stops there and answers with the
    predicted state. With C(foresight) each resource is read as those before it will leave the host.
    """
    planning: t.Callable[[], t.ContextManager[t.Any]] = _foresight.planning if foresight else contextlib.nullcontext
    present = present or result_of
    with contextlib.nullcontext() if check_mode else host_lock():
        with planning():
            resources = build()
            have, plans, predicted = _plan_all(resources)
            _collect_warnings(resources, warnings)
            if check_mode:
                return present(Outcome(resources, have, plans, predicted))
        final = have
        if any(plans):
            try:
                _apply_all(resources, plans)
                with planning():
                    final = _verify(resources)
            finally:
                _collect_warnings(resources, warnings)
    return present(Outcome(resources, have, plans, _wait_all(resources, plans, final)))


def _wait_all(
    resources: t.Sequence[Resource[t.Any]], plans: t.Sequence[t.Sequence[Change]], final: t.Sequence[t.Any]
) -> list[t.Any]:
    try:
        return [resource.wait(state) for resource, state in zip(resources, final)]
    except LabspanError as error:
        actions = [change.sentence for changes in plans for change in changes]
        error.details = {"changed": bool(actions), "actions": actions, **error.details}
        raise


def _collect_warnings(resources: t.Sequence[Resource[t.Any]], warnings: list[str]) -> None:
    """Each warning once: what planning says, it says again when the result is verified."""
    for resource in resources:
        warnings.extend(warning for warning in resource.warnings if warning not in warnings)
        resource.warnings.clear()


def _plan_all(
    resources: t.Sequence[Resource[t.Any]],
) -> tuple[list[t.Any], list[t.Sequence[Change]], list[t.Any]]:
    """What is there, what is to be done, and what is there then, for each resource."""
    have: list[t.Any] = []
    plans: list[t.Sequence[Change]] = []
    predicted: list[t.Any] = []
    ahead: dict[str, t.Any] = {}
    world = _foresight.world()
    for resource in resources:
        have.append(resource.read())
        plans.append(resource.plan(have[-1], ahead))
        predicted.append(resource.predict(have[-1], plans[-1]))
        ahead[resource.plural] = predicted[-1]
        if world is not None:
            resource.foresee(world, plans[-1], predicted[-1])
    return have, plans, predicted


def _apply_all(resources: t.Sequence[Resource[t.Any]], plans: t.Sequence[t.Sequence[Change]]) -> None:
    finished: list[tuple[Resource[t.Any], list[Change]]] = []
    try:
        for resource, changes in zip(resources, plans):
            done: list[Change] = []
            finished.append((resource, done))
            resource.apply(changes, done)
    except Exception as error:  # whatever it was, a bug included: first put back what was there
        outcome = _undo(finished)
        message = f"{error or type(error).__name__}{_tell(outcome)}"
        details = error.details if isinstance(error, LabspanError) else {}
        raise LabspanError(message, **{**details, "undone": outcome.undone, "not_undone": outcome.left}) from error


def _undo(finished: t.Sequence[tuple[Resource[t.Any], list[Change]]]) -> Undone:
    outcome = Undone([], [])
    for resource, done in reversed(finished):
        for change in reversed(done):
            if not change.reversible:
                outcome.left.append(change.sentence)
                continue
            try:
                resource.apply([change.inverse()], [])
            except Exception as error:  # the first error is the one to report; this one is told beside it
                outcome.left.append(f"{change.sentence} ({error})")
            else:
                outcome.undone.append(change.sentence)
    return outcome


def _tell(outcome: Undone) -> str:
    text = ""
    if outcome.undone:
        text += f" What had been done before was undone: {'; '.join(outcome.undone)}."
    if outcome.left:
        text += f" Could not be undone: {'; '.join(outcome.left)}."
    return text or " Nothing had been changed before."


def _verify(resources: t.Sequence[Resource[t.Any]]) -> list[t.Any]:
    """What is there now, which is what was wanted."""
    final, plans, _predicted = _plan_all(resources)
    left = [change.sentence for changes in plans for change in changes]
    if left:
        raise NotConverged(
            f"did not converge: everything was applied, and the host still lacks: {'; '.join(left)}.", actions_left=left
        )
    return final


def result_of(outcome: Outcome) -> dict[str, t.Any]:
    """The result of a task of one kind, with the files that go with it."""
    result: dict[str, t.Any] = {"changed": bool(outcome.actions), "actions": outcome.actions}
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    for resource, had, has in zip(outcome.resources, outcome.have, outcome.final):
        items = resource.render(has)
        if resource.returned:
            result[resource.plural] = [{"name": name, **item} for name, item in items.items()]
        if resource.returned and resource.single:
            result[resource.singular] = result[resource.plural][0] if items else None
        result.update(resource.facts(has))
        before[resource.plural] = resource.render(had)
        after[resource.plural] = items
    result["diff"] = {"before": before, "after": after}
    return result


@contextlib.contextmanager
def host_lock() -> t.Iterator[None]:
    """Let one run at a time change this network namespace.

    The lock is on the namespace itself (flock(2) on its file in /proc): two hosts that are namespaces of one machine do
    not wait for each other, nothing is written anywhere, and the kernel lets go when the process dies.
    """
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _locks.take(
            descriptor,
            LOCK_TIMEOUT,
            lambda: LabspanError(
                f"another task of labspan.vmnet has been changing this host for {LOCK_TIMEOUT:.0f} seconds. "
                "Wait for it to end, or end it, and run again."
            ),
        )
        yield
    finally:
        os.close(descriptor)
