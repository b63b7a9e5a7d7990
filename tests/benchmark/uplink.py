# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is lost while the host's network card goes under a bridge: by the notes' commands, and with bridge_uplink."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import time
import typing as t

from benchmark.measure import Goal, table
from support.hosts import Host, Result, finish_module
from support.uplinks import ADDRESS, GATEWAY, GATEWAY6, PLAIN, await_phase, identity, options, uplink_host

HERE = pathlib.Path(__file__).resolve().parent

#: Behind the gateway: addresses that are reached by the default routes.
FAR, FAR6 = "203.0.113.1", "2001:db8:f::1"
PATHS = {GATEWAY: "IPv4 on-link", FAR: "IPv4 off-link", GATEWAY6: "IPv6 on-link", FAR6: "IPv6 off-link"}
GAMES = {FAR: "TCP IPv4", FAR6: "TCP IPv6"}

STRICT = f"{PLAIN}\nsysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1\n"

_ENSLAVE = ("ip link add br0 type bridge", "ip link set br0 up", "ip link set eth0 master br0")
_ADDRESS = ("ip addr flush dev eth0", f"ip addr add {ADDRESS}/24 dev br0", f"ip route add default via {GATEWAY}")
_STP = "ip link set br0 type bridge stp_state 1"

#: The shortest deadline that the module takes.
DEADLINE = 5
#: Seconds of watching after a move: enough to tell a gap from an end. With STP the port is silent for 30, and TCP,
#: which waits twice as long each time, asks again after 51 to 55.
AFTER, AFTER_HANDS, AFTER_STP = 1.0, 3.0, 56.0

THERE, STRICT_THERE = "bridge_uplink", "bridge_uplink, `rp_filter` 1"
BACK, ROLLBACK = "bridge_uplink back (`state: absent`)", f"its rollback at the deadline ({DEADLINE} s)"
OURS = (THERE, STRICT_THERE, BACK, ROLLBACK)

Report = t.Dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Hands:
    """A way to do it by hand."""

    name: str
    commands: tuple[str, ...]
    pause: float = 0
    """Seconds between two commands, as a task each takes them."""
    state: str = PLAIN
    after: float = AFTER_HANDS
    once: bool = False
    """Whether it takes too long to be done in each round."""


BY_HAND = (
    Hands("the notes, card into the bridge only, `rp_filter` 1", _ENSLAVE, state=STRICT),
    Hands("the notes in one shell, static address", (*_ENSLAVE, *_ADDRESS)),
    Hands("the notes, one command per second", (*_ENSLAVE, *_ADDRESS), pause=1, once=True),
    Hands(
        "the notes, one command per second, STP on",
        (_ENSLAVE[0], _STP, *_ENSLAVE[1:], *_ADDRESS),
        pause=1,
        after=AFTER_STP,
        once=True,
    ),
)


@dataclasses.dataclass
class Found:
    """What the probes said, and how long the module took."""

    reports: dict[str, list[Report]] = dataclasses.field(default_factory=dict)
    messages: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    burst: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    begin: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    confirm: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    loads: list[float] = dataclasses.field(default_factory=list)

    def goals(self) -> list[Goal]:
        """What is expected of the module, in its worst round."""
        goals = []
        for name in OURS:
            paths = [path for report in self.reports[name] for path in report["udp"].values()]
            for spacing, which in (("10 ms", "sparse"), ("2 ms", "lost")):
                text = f"{name}: of probes every {spacing}, lost on the worst path in the worst round"
                goals.append(Goal(text, max(path[which] for path in paths), 1))
        games = [game for name in OURS for report in self.reports[name] for game in report["tcp"].values()]
        goals.append(Goal("TCP connections that did not live", sum(not game["back"] for game in games), 0))
        return goals

    def text(self) -> str:
        """The tables, and how far they can be trusted."""
        spaces = [report["spaces"] for reports in self.reports.values() for report in reports]
        median = statistics.median(space["median"] for space in spaces) * 1000
        ours = max(report["spaces"]["longest"] for name in OURS for report in self.reports[name]) * 1000
        cores = os.cpu_count() or 1
        quiet = "quiet" if max(self.loads) < cores / 2 else "not quiet"
        text = (
            f"Load averages of {min(self.loads):.1f} to {max(self.loads):.1f} on {cores} cores: the machine was "
            f"{quiet}. A probe went out on each path every {median:.1f} ms (median); the longest pause between two "
            f"during the module's moves was {ours:.0f} ms, for want of a processor.\n\n"
        )
        text += table(["goal", "wanted", "measured", "met"], [goal.row() for goal in self.goals()])
        text += "\nProbes lost (median of the rounds) and the longest gap, and the longest round trip of TCP:\n\n"
        header = ["move", "rounds", *PATHS.values(), *GAMES.values()]
        text += table(header, [self._row(name, reports) for name, reports in self.reports.items()])
        text += "\nWhat the module took, as a process without Ansible around it (medians):\n\n"
        rows = [
            [
                name,
                f"{statistics.median(self.messages[name]):g}",
                f"{statistics.median(self.burst[name]) * 1000:.1f} ms (longest {max(self.burst[name]) * 1000:.1f})",
                f"{statistics.median(self.begin[name]):.2f} s",
                f"{statistics.median(self.confirm[name]):.2f} s",
            ]
            for name in (THERE, STRICT_THERE, BACK)
        ]
        return text + table(["move", "messages in the burst", "burst", "whole move", "confirmation"], rows)

    @staticmethod
    def _row(name: str, reports: list[Report]) -> list[str]:
        udp = [_cell([report["udp"][address] for report in reports], with_lost=True) for address in PATHS]
        tcp = [_cell([report["tcp"][address] for report in reports], with_lost=False) for address in GAMES]
        return [name, str(len(reports)), *udp, *tcp]

    def plain(self) -> dict[str, t.Any]:
        """For a file."""
        return dataclasses.asdict(self)


def _cell(found: t.Sequence[Report], *, with_lost: bool) -> str:
    gone = sum(not each["back"] for each in found)
    if gone:
        return "**not back**" if gone == len(found) else f"**not back** in {gone} of {len(found)}"
    gap = f"{max(each['gap'] for each in found) * 1000:.0f} ms"
    if not with_lost:
        return gap
    lost = [each["lost"] for each in found]
    if not any(lost):
        return "0"
    most = f" (at most {max(lost)})" if max(lost) != statistics.median(lost) else ""
    return f"{statistics.median(lost):g}{most}, {gap}"


class Watch:
    """A host on whose LAN everything answers, and probes of it while something happens."""

    def __init__(self, host: Host) -> None:
        self.host = host
        for address in (FAR, FAR6):
            host.run("ip", "-n", "lan", "address", "add", f"{address}/{128 if ':' in address else 32}", "dev", "lo")
        command = ["ip", "netns", "exec", "lan", *self._python("echo", *PATHS)]
        self._echo = _ready(host.start(*command, stdout=subprocess.PIPE))

    def _python(self, *words: str) -> list[str]:
        return [self.host.interpreter, "-I", str(HERE / "probes.py"), *words]

    def over(self, move: t.Callable[[], None], after: float) -> Report:
        """What the probes say of a move and the time after it."""
        probes = _ready(self.host.start(*self._python("probe", *PATHS, "--", *GAMES), stdout=subprocess.PIPE))
        try:
            move()
            time.sleep(after)
        finally:
            os.kill(self.host.child(probes), signal.SIGTERM)
            output, _errors = probes.communicate(timeout=30)
        return t.cast("Report", json.loads(output))


def _ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise SystemExit("the probes did not get ready: not every path was answered before the move")
    return process


@contextlib.contextmanager
def watched(python_path: pathlib.Path, interpreter: str, state: str) -> t.Iterator[Watch]:
    """A host in the given state."""
    with uplink_host(python_path, interpreter, state) as host:
        yield Watch(host)


class Bench:
    """Everything that is measured, round by round."""

    def __init__(self, python_path: pathlib.Path, interpreter: str, log: pathlib.Path) -> None:
        self._python_path = python_path
        self._interpreter = interpreter
        self._log = log
        self.found = Found()

    def by_hand(self, hands: Hands) -> None:
        """One way of the notes, on a host of its own, for what is lost may stay lost."""
        script = f"\nsleep {hands.pause}\n".join(hands.commands) if hands.pause else "\n".join(hands.commands)
        with watched(self._python_path, self._interpreter, hands.state) as watch:
            self._note(hands.name, watch.over(lambda: _do(watch.host, script), hands.after))

    def module(self, state: str, *, rounds: int) -> None:
        """There and back, and there and back at the deadline, on one host."""
        there = STRICT_THERE if state == STRICT else THERE
        with watched(self._python_path, self._interpreter, state) as watch:
            self._move(watch.host, None)
            self._move(watch.host, None, state="absent")
            for _number in range(rounds):
                self._note(there, watch.over(lambda: self._move(watch.host, there), AFTER))
                _expect(watch.host, "br0")
                if state == STRICT:
                    self._move(watch.host, None, state="absent")
                    continue
                self._note(BACK, watch.over(lambda: self._move(watch.host, BACK, state="absent"), AFTER))
                _expect(watch.host, "eth0")
                pending = self._run(watch.host, transaction=identity(), confirm_timeout=DEADLINE)["pending"]
                _expect(watch.host, "br0")
                name = pending["transaction"]
                self._note(ROLLBACK, watch.over(lambda: await_phase(watch.host, name, "rolled back"), AFTER))  # noqa: B023
                _expect(watch.host, "eth0")

    def _move(self, host: Host, name: t.Optional[str], **more: t.Any) -> None:
        clock = time.perf_counter()
        transaction = identity()
        self._run(host, transaction=transaction, **more)
        moved = time.perf_counter()
        self._run(host, transaction=transaction, step="confirm", **more)
        confirmed = time.perf_counter()
        if name is not None:
            messages, burst = json.loads(self._burst)
            for where, value in (
                (self.found.messages, messages),
                (self.found.burst, burst),
                (self.found.begin, moved - clock),
                (self.found.confirm, confirmed - moved),
            ):
                t.cast("dict[str, list[t.Any]]", where).setdefault(name, []).append(value)

    def _run(self, host: Host, **more: t.Any) -> Result:
        beginning = more.get("step") is None
        wrapper = (host.interpreter, str(HERE / "burst.py"), str(self._log)) if beginning else ()
        result = finish_module(host.start_module("bridge_uplink", options(**more), wrapper=wrapper))
        if result.get("failed") or (beginning and "pending" not in result):
            raise SystemExit(f"the module did not move the uplink: {result}")
        if beginning:
            self._burst = self._log.read_text(encoding="utf-8")
        return result

    def _note(self, name: str, report: Report) -> None:
        self.found.reports.setdefault(name, []).append(report)
        self.found.loads.append(os.getloadavg()[0])


def _do(host: Host, script: str) -> None:
    host.run("sh", "-e", "-c", script)


def _expect(host: Host, name: str) -> None:
    """What is measured is what happened."""
    if f"{ADDRESS}/24" not in host.addresses(name):
        raise SystemExit(f"{name} does not have the host's address after the move: {host.out('ip', 'address')}")


def measure(rounds: int, interpreter: str, directory: pathlib.Path, say: t.Callable[[str], None]) -> Found:
    """All ways; C(directory) has Ansible and the collection in its directory C(python)."""
    bench = Bench(directory / "python", interpreter, directory / "burst.json")
    bench.found.loads.append(os.getloadavg()[0])
    for hands in BY_HAND:
        say(f"uplink: {hands.name}")
        for _number in range(1 if hands.once else rounds):
            bench.by_hand(hands)
    for state in (PLAIN, STRICT):
        say(f"uplink: the module, {'strict' if state == STRICT else 'plain'}")
        bench.module(state, rounds=rounds)
    return bench.found
