# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the controller makes of every way in which a move can end, a lost answer and a lost host included."""

from __future__ import annotations

import itertools
import signal
import sys
import time
import types
import typing as t

import pytest
from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure, AnsibleError
from ansible_collections.labspan.vmnet.plugins.action import bridge_uplink as action
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _journal
from ansible_collections.labspan.vmnet.plugins.modules import bridge_uplink as module

PENDING = {"transaction": "?", "deadline": 30, "phase": "moved"}
BEGUN = {"changed": True, "actions": ["eth0 becomes a port of br0"], "pending": PENDING, "transaction": "?"}
DONE = {"changed": True, "phase": "confirmed", "actions": ["wrote a file"], "uplink": {"bridge": "br0"}}
BACK = {"failed": True, "phase": "rolled_back", "reason": "The gateway is silent.", "msg": "rolled back: x"}
UNKNOWN = {"failed": True, "msg": "this host knows no move of its uplink by that name."}
SAME = {"failed": True, "same_connection": True, "msg": "This came over the connection of before."}
MOVING = {"failed": True, "phase": "moving", "msg": "The move is under way."}
GARBAGE = {
    "failed": True,
    "msg": "Module result deserialization failed.",
    "module_stdout": "",
    "module_stderr": "sh: x",
}
SSH = {"ssh_args": "-C -o ControlMaster=auto -o ControlPersist=60s", "timeout": 10, "reconnection_retries": 3}

LOST = AnsibleConnectionFailure("Failed to connect to the host via ssh: Connection timed out")

Answer = t.Union[t.Dict[str, t.Any], BaseException]


class Clock:
    """Time that passes only where somebody sleeps, or asks a host that is not there."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Connection:
    """A connection with options, which writes down what they were when a question was asked."""

    transport = "ssh"

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        self.options = dict(options)
        self.resets = 0
        self._shell = types.SimpleNamespace(tmpdir="/tmp/there")

    def has_option(self, name: str) -> bool:
        return name in self.options

    def get_option(self, name: str) -> t.Any:
        return self.options[name]

    def set_option(self, name: str, value: t.Any) -> None:
        self.options[name] = value

    def reset(self) -> None:
        self.resets += 1


class Asked(t.NamedTuple):
    step: str
    arguments: dict[str, t.Any]
    options: dict[str, t.Any]
    resets: int


class Run:
    """One task on a host that gives these answers: the last one for ever, to each step those meant for it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        answers: t.Mapping[str, t.Sequence[Answer]],
        *,
        arguments: t.Optional[t.Mapping[str, t.Any]] = None,
        check: bool = False,
        background: int = 0,
        options: t.Optional[t.Mapping[str, t.Any]] = None,
        takes: float = 0.1,
    ) -> None:
        self.clock = Clock()
        monkeypatch.setattr(action, "time", self.clock)
        self.answers = {step: list(given) for step, given in answers.items()}
        self.asked: list[Asked] = []
        self.commands: list[str] = []
        self.takes = takes
        self.connection = Connection(SSH if options is None else options)
        self.task = types.SimpleNamespace(
            args=dict({"bridge": "br0", "interface": "eth0"} if arguments is None else arguments),
            check_mode=check,
            async_val=background,
            action=action.MODULE,
        )
        context = types.SimpleNamespace(remote_addr="h1")
        self.plugin = action.ActionModule(self.task, self.connection, context, None, None)  # type: ignore[arg-type]
        monkeypatch.setattr(self.plugin, "_execute_module", self._execute)
        monkeypatch.setattr(self.plugin, "_low_level_execute_command", self._command)

    def go(self) -> dict[str, t.Any]:
        return self.plugin.run(task_vars={})

    @property
    def steps(self) -> list[str]:
        return [asked.step for asked in self.asked]

    def of(self, step: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.step == step]

    def _command(self, command: str) -> dict[str, t.Any]:
        self.commands.append(command)
        answer = self.answers.get("preflight", [{"rc": 0}])[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _execute(
        self, module_name: str, module_args: dict[str, t.Any], task_vars: dict[str, t.Any]
    ) -> dict[str, t.Any]:
        assert module_name == "labspan.vmnet.bridge_uplink"
        step = module_args["step"]
        self.asked.append(Asked(step, dict(module_args), dict(self.connection.options), self.connection.resets))
        self.clock.now += self.takes
        given = self.answers[step]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., Run]:
    def make(answers: t.Mapping[str, t.Sequence[Answer]], **more: t.Any) -> Run:
        return Run(monkeypatch, answers, **more)

    return make


Make = t.Callable[..., Run]


def test_the_phases_are_those_of_the_journal() -> None:
    ours = (action.MOVED, action.CONFIRMED, action.ROLLED_BACK, *action.UNDER_WAY)
    theirs = (_journal.MOVED, _journal.CONFIRMED, _journal.ROLLED_BACK)
    assert ours == (*theirs, _journal.PREPARED, _journal.MOVING, _journal.ROLLING_BACK)


def test_the_time_to_confirm_is_the_modules() -> None:
    assert module.OPTIONS["confirm_timeout"]["default"] == action.CONFIRM_TIMEOUT
    assert set(action.INTERNAL) <= set(module.OPTIONS)


# What the move comes to


def test_a_move_is_begun_and_confirmed_with_one_identity(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]})
    result = run.go()
    assert run.steps == ["begin", "confirm"]
    identities = {asked.arguments["transaction"] for asked in run.asked}
    assert len(identities) == 1
    assert len(identities.pop()) == 16
    assert all(asked.arguments["bridge"] == "br0" for asked in run.asked)
    assert not result.get("failed")
    assert result["changed"] is True
    assert result["actions"] == ["eth0 becomes a port of br0", "wrote a file"]
    assert result["uplink"] == {"bridge": "br0"}
    assert "pending" not in result


def test_each_run_has_an_identity_of_its_own(task: Make) -> None:
    seen = set()
    for _time in range(3):
        run = task({"begin": [{"changed": False}]})
        run.go()
        seen.add(run.asked[0].arguments["transaction"])
    assert len(seen) == 3


@pytest.mark.parametrize(
    "answer",
    [{"changed": False, "actions": []}, {"failed": True, "msg": "eth0 is Wi-Fi."}, {"changed": True, "actions": ["a"]}],
)
def test_what_is_not_pending_is_the_result(task: Make, answer: dict[str, t.Any]) -> None:
    run = task({"begin": [answer]})
    assert run.go() == answer
    assert run.steps == ["begin"]


def test_check_mode_is_one_question_over_the_connection_that_is_there(task: Make) -> None:
    run = task({"begin": [{"changed": True, "actions": ["would move"]}]}, check=True)
    assert run.go() == {"changed": True, "actions": ["would move"]}
    assert run.steps == ["begin"]
    assert run.connection.resets == 0
    assert run.commands == []
    assert run.asked[0].options == SSH


@pytest.mark.parametrize("phase", ["rolled_back", "rolled back"])
def test_a_host_that_went_back_is_a_failure_with_its_reason(task: Make, phase: str) -> None:
    result = task({"begin": [BEGUN], "confirm": [{**BACK, "phase": phase}]}).go()
    assert result["failed"] is True
    assert result["changed"] is False
    assert result["msg"] == "rolled back: The gateway is silent."


@pytest.mark.parametrize("message", ["rolled back: It is silent.", "rolled back, the host is as before: It is silent."])
def test_a_reason_is_not_introduced_twice(task: Make, message: str) -> None:
    answer = {"failed": True, "phase": "rolled_back", "msg": message}
    assert task({"begin": [BEGUN], "confirm": [answer]}).go()["msg"] == message


def test_a_host_that_forgot_the_move_was_rebooted(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [UNKNOWN], "status": [UNKNOWN]})
    result = run.go()
    assert result["failed"] is True
    assert "not confirmed: this host knows no move" in result["msg"]
    assert run.steps == ["begin", "confirm", "status"]


@pytest.mark.parametrize(
    ("status", "words", "changed"),
    [
        (
            {"changed": False, "phase": "confirmed"},
            "the move is confirmed and stays, and what was to follow failed",
            True,
        ),
        ({"changed": False, "phase": "moved"}, "The disk is full. The host goes back by itself.", False),
        (LOST, "the move was not confirmed: The disk is full.", False),
    ],
)
def test_a_failure_that_says_nothing_of_the_move_is_looked_into(
    task: Make, status: Answer, words: str, changed: bool
) -> None:
    result = task(
        {"begin": [BEGUN], "confirm": [{"failed": True, "msg": "The disk is full."}], "status": [status]}
    ).go()
    assert result["failed"] is True
    assert words in result["msg"]
    assert result["changed"] is changed


def test_a_host_that_could_not_finish_says_so_itself(task: Make) -> None:
    answer = {"failed": True, "changed": True, "phase": "confirmed", "msg": "The disk is full."}
    assert task({"begin": [BEGUN], "confirm": [answer]}).go() == answer


# New connections


def test_the_confirmation_uses_no_connection_that_was_there_before(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]})
    run.go()
    begin, confirm = run.asked
    assert begin.resets == 1
    assert confirm.resets > begin.resets
    words = confirm.options["ssh_args"]
    assert words.index("ControlPath=none") < words.index("ControlMaster=auto")
    assert words.index("ControlMaster=no") < words.index("ControlMaster=auto")
    assert confirm.options["timeout"] == action.CONNECT_TIMEOUT


def test_the_move_is_not_begun_twice_by_the_connection(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]})
    run.go()
    assert [asked.options["reconnection_retries"] for asked in run.asked] == [0, 0]


def test_a_begin_over_a_dead_connection_ends_by_itself(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]})
    run.go()
    words = run.asked[0].options["ssh_args"]
    assert "ServerAliveInterval" in words
    assert words.endswith(SSH["ssh_args"])


def test_a_shorter_timeout_of_the_users_stays(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]}, options={**SSH, "timeout": 2})
    run.go()
    assert run.asked[1].options["timeout"] == 2


@pytest.mark.parametrize("confirm", [DONE, BACK, LOST])
def test_afterwards_the_connection_is_as_the_user_wants_it(task: Make, confirm: Answer) -> None:
    run = task({"begin": [BEGUN], "confirm": [confirm], "status": [LOST]})
    run.go()
    assert run.connection.options == SSH


def test_a_connection_without_such_options_is_only_reset(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]}, options={})
    assert run.go()["changed"] is True
    assert run.connection.options == {}
    assert run.connection.resets >= 2


def test_ssh_without_arguments_of_the_users_gets_ours_alone(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]}, options={**SSH, "ssh_args": None})
    assert run.go()["changed"] is True
    assert run.asked[1].options["ssh_args"].startswith("-o ControlMaster=no")
    assert run.connection.options["ssh_args"] is None


def test_a_refused_connection_is_made_anew(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [SAME, SAME, DONE]})
    assert run.go()["changed"] is True
    resets = [asked.resets for asked in run.of("confirm")]
    assert resets == sorted(set(resets))


def test_a_reset_that_fails_is_no_reason_to_give_up(task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]})

    def fail() -> None:
        raise AnsibleConnectionFailure("no route")

    monkeypatch.setattr(run.connection, "reset", fail)
    assert run.go()["changed"] is True


# Lost answers


@pytest.mark.parametrize(
    "loss", [LOST, action.OutOfTime(), GARBAGE], ids=["connection lost", "no answer in time", "garbage"]
)
def test_a_lost_answer_to_begin_is_no_answer(task: Make, loss: Answer) -> None:
    run = task({"begin": [loss], "confirm": [MOVING, DONE]})
    result = run.go()
    assert not result.get("failed")
    assert result["changed"] is True
    assert run.steps == ["begin", "confirm", "confirm"]


def test_a_host_that_was_never_there_is_unreachable_as_for_any_task(task: Make) -> None:
    run = task({"preflight": [LOST]})
    with pytest.raises(AnsibleConnectionFailure):
        run.go()
    assert run.asked == []
    assert run.connection.options == SSH


def test_what_does_not_come_as_far_as_the_host_is_an_error_as_for_any_task(task: Make) -> None:
    run = task({"begin": [AnsibleError("Missing sudo password")]})
    with pytest.raises(AnsibleError, match="sudo"):
        run.go()
    assert run.connection.options == SSH


def test_a_move_that_was_lost_may_be_about_to_begin(task: Make) -> None:
    run = task({"begin": [LOST], "confirm": [UNKNOWN, UNKNOWN, MOVING, DONE]})
    assert run.go()["changed"] is True


def test_a_move_that_was_lost_and_never_began_is_soon_given_up(task: Make) -> None:
    run = task({"begin": [LOST], "confirm": [UNKNOWN], "status": [UNKNOWN]})
    result = run.go()
    assert result["failed"] is True
    assert "knows no move" in result["msg"]
    assert run.clock.now < 1000 + action.START_PATIENCE + 5


def test_a_host_that_cannot_run_the_module_at_all_is_not_asked_for_long(task: Make) -> None:
    run = task({"begin": [GARBAGE], "confirm": [GARBAGE]})
    result = run.go()
    assert result["failed"] is True
    assert "sh: x" in result["msg"]
    assert run.steps == ["begin", "confirm"]


@pytest.mark.parametrize("loss", [LOST, GARBAGE, AnsibleError("the file could not be copied"), action.OutOfTime()])
def test_questions_are_asked_until_one_gets_through(task: Make, loss: Answer) -> None:
    run = task({"begin": [BEGUN], "confirm": [loss] * 5 + [DONE]})
    assert run.go()["changed"] is True
    assert len(run.of("confirm")) == 6
    assert run.clock.pauses[:3] == [0.2, 0.4, 0.8]
    assert max(run.clock.pauses) <= 2.0


def test_refused_logins_are_not_tried_so_often_that_the_host_shuts_us_out(task: Make) -> None:
    refused = AnsibleAuthenticationFailure("Invalid/incorrect password")
    run = task({"begin": [BEGUN], "confirm": [refused], "status": [refused]})
    assert run.go()["failed"] is True
    assert len(run.asked) < 15


def test_a_lost_answer_to_the_confirmation_is_asked_for_again(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [LOST, DONE]})
    assert run.go()["actions"][-1] == "wrote a file"


# Nothing gets through


def test_what_could_not_be_confirmed_went_back_and_says_what_was_seen(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [LOST], "status": [LOST, BACK]})
    result = run.go()
    assert result["failed"] is True
    assert result["changed"] is False
    assert result["msg"].startswith("rolled back: no new connection got through within 30 seconds")
    assert "Connection timed out" in result["msg"]
    assert "The gateway is silent." in result["msg"]


def test_a_host_that_stays_away_is_a_failure_and_not_unreachable(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [LOST], "status": [LOST]})
    result = run.go()
    assert result["failed"] is True
    assert "unreachable" not in result
    assert "still cannot be reached" in result["msg"]
    assert "console" in result["msg"]
    assert run.clock.now < 1000 + 30 + action.RETURN_PATIENCE + 5


def test_a_host_that_stays_away_is_not_asked_to_tidy_up(task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[t.Any] = []
    for answers in ({"begin": [BEGUN], "confirm": [LOST], "status": [LOST]}, {"begin": [BEGUN], "confirm": [DONE]}):
        run = task(answers)
        monkeypatch.setattr(run.plugin, "_remove_tmp_path", removed.append)
        run.go()
        run.plugin.cleanup()
    assert removed == [None, "/tmp/there"]


def test_a_directory_that_cannot_be_removed_does_not_make_a_host_unreachable(
    task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = task({"begin": [BEGUN], "confirm": [DONE]})

    def fail(_path: str) -> None:
        raise AnsibleConnectionFailure("gone")

    monkeypatch.setattr(run.plugin, "_remove_tmp_path", fail)
    assert run.go()["changed"] is True
    run.plugin.cleanup()


def test_without_a_word_of_the_host_the_tasks_own_time_counts(task: Make) -> None:
    arguments = {"bridge": "br0", "interface": "eth0", "confirm_timeout": "7"}
    for given, seconds in ((arguments, 7.0), (None, action.CONFIRM_TIMEOUT)):
        run = task({"begin": [LOST], "confirm": [LOST], "status": [LOST]}, arguments=given)
        run.go()
        waited = run.of("status")[0]
        assert waited
        spent = sum(run.clock.pauses) + run.takes * len(run.asked)
        expected = seconds + action.SLACK + action.RETURN_PATIENCE
        assert expected - 1 <= spent <= expected + 3


def test_an_answer_alone_was_lost(task: Make) -> None:
    """The host kept the move, and the controller hears of it late: that is a success."""
    run = task(
        {"begin": [BEGUN], "confirm": [*[LOST] * 200, DONE], "status": [{"changed": False, "phase": "confirmed"}]}
    )
    run.answers["confirm"] = [LOST]

    def late(module_name: str, module_args: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        if run.of("status"):
            run.answers["confirm"] = [DONE]
        return execute(module_name, module_args, task_vars)

    execute, run.plugin._execute_module = run.plugin._execute_module, late
    result = run.go()
    assert not result.get("failed")
    assert result["phase"] == "confirmed"


def test_a_host_that_went_back_and_was_rebooted_says_what_it_can(task: Make) -> None:
    run = task({"begin": [BEGUN], "confirm": [LOST], "status": [UNKNOWN]})
    result = run.go()
    assert result["failed"] is True
    assert "knows no move" in result["msg"]


def test_a_host_that_is_still_on_its_way_back_is_waited_for(task: Make) -> None:
    under_way = {"changed": False, "phase": "rolling_back"}
    run = task({"begin": [BEGUN], "confirm": [LOST], "status": [under_way, under_way, BACK]})
    assert run.go()["msg"].startswith("rolled back: ")


@pytest.mark.parametrize(
    "confirm", [LOST, GARBAGE, SAME, MOVING, UNKNOWN, BACK, {"changed": False}, {"phase": "moved"}]
)
@pytest.mark.parametrize("status", [LOST, GARBAGE, UNKNOWN, BACK, {"phase": "moved"}, {"changed": True}, {}])
@pytest.mark.parametrize("begin", [BEGUN, LOST, GARBAGE])
def test_without_a_confirmation_nothing_is_a_success(
    task: Make, begin: Answer, confirm: Answer, status: Answer
) -> None:
    result = task({"begin": [begin], "confirm": [confirm], "status": [status]}).go()
    assert result["failed"] is True
    assert len(result["msg"]) > 20


# What is refused


@pytest.mark.parametrize("name", ["step", "transaction", "local"])
def test_what_the_two_halves_say_to_each_other_is_no_option(task: Make, name: str) -> None:
    result = task({}, arguments={"bridge": "br0", name: "confirm"}).go()
    assert result["failed"] is True
    assert result["msg"].startswith(f"{name}: not an option of a task")


@pytest.mark.parametrize(("transport", "local"), [("ssh", False), ("local", True)])
def test_the_host_is_told_whether_the_controller_is_there(task: Make, transport: str, local: bool) -> None:
    run = task({"begin": [{"changed": False}]})
    run.connection.transport = transport
    run.go()
    assert [asked.arguments["local"] for asked in run.asked] == [local]


def test_the_guard_needs_the_controller(task: Make) -> None:
    result = task({}, background=60).go()
    assert result["failed"] is True
    assert result["msg"].startswith("async: ")


# Diffs


def test_both_halves_diffs_are_one(task: Make) -> None:
    first = {"before": {"eth0": "address"}, "after": {"br0": "address"}}
    second = {"before": {"files": {}}, "after": {"files": {"05": "x"}}}
    result = task({"begin": [{**BEGUN, "diff": first}], "confirm": [{**DONE, "diff": second}]}).go()
    assert result["diff"] == {
        "before": {"eth0": "address", "files": {}},
        "after": {"br0": "address", "files": {"05": "x"}},
    }


def test_diffs_as_text_stand_one_after_the_other(task: Make) -> None:
    first, second = {"before": "a", "after": "b"}, [{"before": "c", "after": "d"}]
    result = task({"begin": [{**BEGUN, "diff": first}], "confirm": [{**DONE, "diff": second}]}).go()
    assert result["diff"] == [first, *second]
    result = task({"begin": [BEGUN], "confirm": [{**DONE, "diff": second}]}).go()
    assert result["diff"] == second


def test_both_halves_warnings_are_told(task: Make) -> None:
    result = task({"begin": [{**BEGUN, "warnings": ["a"]}], "confirm": [{**DONE, "warnings": ["b"]}]}).go()
    assert result["warnings"] == ["a", "b"]


# The clock of the real time


class TaskOver(BaseException):
    """What Ansible's own handler raises when the task's C(timeout) is over."""


def over(_signal: int, _frame: t.Any) -> None:
    raise TaskOver


@pytest.fixture
def timed() -> t.Iterator[None]:
    """A task with a timeout of its own."""
    handler = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 500)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


def is_still_timed() -> bool:
    return signal.getsignal(signal.SIGALRM) is over and 400 < signal.getitimer(signal.ITIMER_REAL)[0] < 500


def test_work_that_takes_too_long_is_left() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(action.OutOfTime):
        action._within(0.01, lambda: time.sleep(5))
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert action._within(60, lambda: "done") == "done"
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.usefixtures("timed")
def test_the_tasks_own_timeout_goes_on_counting() -> None:
    with pytest.raises(action.OutOfTime):
        action._within(0.01, lambda: time.sleep(5))
    assert is_still_timed()
    with pytest.raises(TaskOver):  # noqa: PT012  # it may come as soon as the timer is set
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        action._within(5, lambda: time.sleep(5))


@pytest.mark.usefixtures("timed")
def test_an_alarm_before_the_work_has_begun_is_as_good_as_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timer = signal.setitimer

    def slowly(which: int, seconds: float) -> None:
        set_timer(which, seconds)
        time.sleep(0.05)

    monkeypatch.setattr(signal, "setitimer", slowly)
    with pytest.raises(action.OutOfTime):
        action._within(0.01, lambda: pytest.fail("there is no time left"))
    assert is_still_timed()


@pytest.mark.usefixtures("timed")
def test_an_alarm_may_come_at_any_step() -> None:
    """At every instruction between the two at which the handler is changed."""
    outcomes: list[str] = []
    while not outcomes or outcomes[-1] != "no alarm":
        outcomes.append(outcome_with_alarm_at(len(outcomes)))
        assert is_still_timed(), f"after the alarm at step {len(outcomes) - 1}: {outcomes[-1]}"
    # It is not heard any more at the first and the last of them.
    assert outcomes[0] == outcomes[-2] == "done"
    assert outcomes.count("out of time") > 5


def outcome_with_alarm_at(number: int) -> str:
    """How the work ends when this instruction under the handler of the plugin's own is the one that the alarm meets."""
    seen = itertools.count()
    outcome = "no alarm"

    def watch(frame: types.FrameType, event: str, _argument: t.Any) -> t.Any:
        nonlocal outcome
        if frame.f_code is not action._within.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and signal.getsignal(signal.SIGALRM) is not over and next(seen) == number:
            outcome = "done"
            signal.raise_signal(signal.SIGALRM)
        return watch

    tracer = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it on the way into settrace
    sys.settrace(watch)
    try:
        action._within(60, lambda: None)
    except action.OutOfTime:
        outcome = "out of time"
    finally:
        sys.settrace(tracer)
    return outcome
