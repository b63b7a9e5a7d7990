# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measures the modules against the notes' commands and against Ansible's own cost, side by side in one run.

Everything happens in namespaces that are made here. There are three subjects: C(tasks), what they cost; C(lab_host),
what a whole host costs in one task; and C(uplink), what is lost while the host's network card moves. The result is
tables in C(.build/benchmark.md); with C(--update-docs) they become those of C(docs/performance.md), too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import typing as t

import ansible
import ansible.release

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / ".build"
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tests"))

from benchmark import lab_host, nat, uplink  # noqa: E402
from benchmark.measure import PING, Contender, Goal, Rounds, race, table  # noqa: E402
from support.hosts import Host  # noqa: E402

BRIDGE = "bench0"
#: A link group that nothing else on the benchmark's host is in.
GROUP = "77"
SIZES = (1, 10, 100, 1000)
SUBJECTS = ("tasks", "lab_host", "uplink")

MODULE = "tap_device, whole playbook"
PROCESS = "tap_device, its process alone"
NOTES = "the notes: one ip process per command"
BATCH = "ip -batch"
LOOP = "Ansible loop over command"

_VERSIONS = "import sys, importlib.metadata as m; print(sys.version.split()[0], m.version('pyroute2'))"


class TapBench:
    """The contenders for a number of taps on one bridge."""

    def __init__(self, host: Host, size: int, directory: pathlib.Path, *, loop: bool) -> None:
        self._host = host
        self._loop = loop
        self._size = size
        self._names = [f"bench{number}t" for number in range(size)]
        self._directory = directory

    def contenders(self, operation: str) -> list[Contender]:
        """Who takes part: C(create), C(rerun) or C(delete)."""
        state = "absent" if operation == "delete" else "present"
        ways: dict[str, t.Callable[[], None]] = {
            PING: lambda: self._playbook("ping.yml", {}),
            MODULE: lambda: self._playbook("taps.yml", {"taps": self._entries(), "state": state}),
            PROCESS: lambda: self._module(state),
            NOTES: lambda: self._script(self._commands(operation)),
            BATCH: lambda: self._batch(self._commands(operation)),
        }
        if self._loop:
            ways[LOOP] = lambda: self._playbook("loop.yml", {"names": self._names, "state": state})
        return [
            Contender(name, way, lambda n=name: self._prepare(operation, n), self._clean) for name, way in ways.items()
        ]  # type: ignore[misc]

    def _prepare(self, operation: str, contender: str) -> None:
        """Before a rerun or a deletion, the taps are there, made in the way that is measured."""
        if operation == "create" or contender == PING:
            return
        if contender in (MODULE, PROCESS):
            self._module("present")
        else:
            self._batch(self._commands("create"))

    def _clean(self) -> None:
        """Take away what is left, the quick way."""
        links = self._host.json("ip", "-j", "link", "show", "master", BRIDGE)
        names = [link["ifname"] for link in links if link]
        if names:
            self._batch([f"link set dev {name} group {GROUP}" for name in names] + [f"link delete group {GROUP}"])

    def check(self, operation: str) -> None:
        """Once for each way: it really does what is measured."""
        for contender in self.contenders(operation):
            if contender.name == PING:
                continue
            contender.prepare()
            contender.run()
            links = self._host.json("ip", "-j", "link", "show", "master", BRIDGE, "up")
            expected = 0 if operation == "delete" else self._size
            if len([link for link in links if link]) != expected:
                raise SystemExit(f"{contender.name}: {operation} of {self._size} taps left {len(links)} on the bridge")
            contender.finish()

    def _entries(self) -> list[dict[str, str]]:
        return [{"name": name} for name in self._names]

    def _playbook(self, name: str, variables: dict[str, t.Any]) -> None:
        path = self._directory / "variables.json"
        path.write_text(json.dumps({**variables, "bridge": BRIDGE}), encoding="utf-8")
        playbook = pathlib.Path(sys.executable).parent / "ansible-playbook"
        words = ["--inventory", "localhost,", "--connection", "local", "--extra-vars", f"@{path}"]
        interpreter = ["--extra-vars", f"ansible_python_interpreter={self._host.interpreter}"]
        self._run([str(playbook), *words, *interpreter, str(HERE / name)])

    def _module(self, state: str) -> None:
        self._host.converge("tap_device", {"bridge": BRIDGE, "state": state, "taps": self._entries()})

    def _commands(self, operation: str) -> list[str]:
        lines: list[str] = []
        for name in self._names:
            if operation == "delete":
                lines.append(f"link delete dev {name}")
                continue
            if operation == "create":
                lines.append(f"tuntap add dev {name} mode tap user root")
            lines += [f"link set dev {name} up", f"link set dev {name} master {BRIDGE}"]
        return lines

    def _script(self, commands: t.Sequence[str]) -> None:
        self._run(["sh", "-e"], "".join(f"ip {command}\n" for command in commands))

    def _batch(self, commands: t.Sequence[str]) -> None:
        self._run(["ip", "-batch", "-"], "".join(f"{command}\n" for command in commands))

    def _run(self, command: t.Sequence[str], stdin: str = "") -> None:
        """Host.run gives up after a minute, which a loop over 300 commands takes."""
        subprocess.run(self._host.argv(*command), input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)


def measure_taps(
    sizes: t.Sequence[int], rounds: int, interpreter: str, largest_loop: int
) -> dict[tuple[str, int], Rounds]:
    """All operations on all sizes."""
    found: dict[tuple[str, int], Rounds] = {}
    with tempfile.TemporaryDirectory(prefix="labspan-benchmark-") as name:
        directory = pathlib.Path(name)
        python_path = _python_path(directory)
        for size in sizes:
            with Host(python_path, interpreter) as host:
                host.run("ip", "link", "add", "name", BRIDGE, "type", "bridge", "mcast_snooping", "0")
                host.run("ip", "link", "set", "dev", BRIDGE, "up")
                bench = TapBench(host, size, directory, loop=size <= largest_loop)
                for operation in ("create", "rerun", "delete"):
                    label = f"{operation} {size} taps"
                    _say(f"{label}: checking that every way does it")
                    bench.check(operation)
                    found[operation, size] = race(
                        bench.contenders(operation),
                        rounds,
                        lambda text, label=label: _say(f"{label}: {text}"),  # type: ignore[misc]
                    )
    return found


def _python_path(directory: pathlib.Path) -> pathlib.Path:
    """Ansible's Python package and the collection, for a module that runs without Ansible around it."""
    path = directory / "python"
    collection = path / "ansible_collections" / "labspan" / "vmnet"
    collection.parent.mkdir(parents=True)
    collection.symlink_to(ROOT)
    (path / "ansible").symlink_to(pathlib.Path(ansible.__file__).parent)
    return path


def tap_goals(found: t.Mapping[tuple[str, int], Rounds]) -> list[Goal]:
    """What is expected of the bulk module, as far as it was measured."""
    wanted: list[tuple[str, int, str, str, float, bool, str]] = [
        ("rerun", 10, MODULE, PING, 1.25, False, "rerun of 10 taps / one ping"),
        ("rerun", 1000, MODULE, PING, 2, False, "rerun of 1000 taps / one ping"),
        ("create", 1000, MODULE, PING, 3, False, "creation of 1000 taps / one ping"),
        ("create", 10, LOOP, MODULE, 8, True, "loop over command / bulk task, creation of 10 taps"),
        ("delete", 100, NOTES, PROCESS, 12, True, "one by one / bulk, deletion of 100 taps, without Ansible"),
        ("delete", 1000, NOTES, PROCESS, 20, True, "one by one / bulk, deletion of 1000 taps, without Ansible"),
        ("delete", 100, LOOP, MODULE, 12, True, "loop over command / bulk task, deletion of 100 taps"),
    ]
    return [
        Goal(text, found[operation, size].ratio(name, base), limit, at_least)
        for operation, size, name, base, limit, at_least, text in wanted
        if (operation, size) in found and name in found[operation, size].seconds
    ]


def tap_tables(found: t.Mapping[tuple[str, int], Rounds]) -> str:
    """One table for each operation: times the playbook of one ping took."""
    text = ""
    sizes = sorted({size for _operation, size in found})
    for operation in ("create", "rerun", "delete"):
        rows = []
        for name in (MODULE, PROCESS, NOTES, BATCH, LOOP):
            cells = [
                f"{found[operation, size].ratio(name, PING):.2f}"
                if name in found[operation, size].seconds
                else "not run"
                for size in sizes
            ]
            rows.append([name, *cells])
        text += f"\n{operation.capitalize()}, in playbooks of one ping:\n\n"
        text += table([operation, *(str(size) for size in sizes)], rows)
    return text


def machine(interpreter: str) -> str:
    """What it was measured on."""
    versions = subprocess.run(
        [interpreter, "-c", _VERSIONS],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ping = "ansible-core {}, controller Python {}; managed host: Python {}, pyroute2 {}; kernel {}, {} cores"
    return ping.format(
        ansible.release.__version__, platform.python_version(), *versions, platform.release(), os.cpu_count()
    )


def _say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def tasks(options: argparse.Namespace) -> str:
    """What tasks cost."""
    found = measure_taps(options.sizes, options.rounds, options.interpreter, options.largest_loop)
    network = nat.measure(options.rounds, _say)
    goals = [*tap_goals(found), *network.goals()]
    text = f"{machine(options.interpreter)}. Medians of {options.rounds} interleaved rounds.\n\n"
    text += table(["ratio", "wanted", "measured", "met"], [goal.row() for goal in goals])
    text += f"\nTasks of the `nat` role that reached the host: {network.host_tasks}.\n"
    text += tap_tables(found)
    (BUILD / "benchmark.json").write_text(
        json.dumps([{"operation": key[0], "taps": key[1], "seconds": value.seconds} for key, value in found.items()]),
        encoding="utf-8",
    )
    return text


def whole_host(options: argparse.Namespace) -> str:
    """What a whole host, and a fleet of hosts, cost."""
    load = os.getloadavg()[0]
    found = lab_host.measure(options.rounds, options.fleet, options.interpreter, _say)
    text = f"{machine(options.interpreter)}. Medians of {options.rounds} interleaved rounds. "
    text += f"The load average was {load:.1f} when it began and {os.getloadavg()[0]:.1f} when it ended.\n\n"
    (BUILD / "benchmark-lab_host.json").write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    return text + found.text()


def move_of_the_uplink(options: argparse.Namespace) -> str:
    """What is lost while the uplink moves."""
    with tempfile.TemporaryDirectory(prefix="labspan-benchmark-") as name:
        directory = pathlib.Path(name)
        _python_path(directory)
        found = uplink.measure(options.uplink_rounds, options.interpreter, directory, _say)
    (BUILD / "benchmark-uplink.json").write_text(json.dumps(found.plain()), encoding="utf-8")
    return f"{machine(options.interpreter)}. {found.text()}"


def update_docs(subject: str, text: str) -> None:
    """Put the result between the subject's marks."""
    path = ROOT / "docs" / "performance.md"
    begin, end = f"<!-- benchmark {subject}: begin -->\n", f"<!-- benchmark {subject}: end -->\n"
    head, _begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _old, _end, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=lambda text: [int(word) for word in text.split(",")], default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--interpreter", default="/usr/bin/python3", help="the Python of the managed host")
    parser.add_argument(
        "--largest-loop", type=int, default=100, help="the most taps that a loop over commands makes: a minute for 100"
    )
    parser.add_argument("--fleet", type=int, default=50, help="the number of hosts in the fleet; 0 leaves it out")
    parser.add_argument("--uplink-rounds", type=int, default=3)
    parser.add_argument("--only", choices=SUBJECTS, help="one subject alone; by default all of them")
    parser.add_argument("--update-docs", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()

    texts = {}
    if options.only in (None, "tasks"):
        texts["tasks"] = tasks(options)
    if options.only in (None, "lab_host"):
        texts["lab_host"] = whole_host(options)
    if options.only in (None, "uplink"):
        texts["uplink"] = move_of_the_uplink(options)
    text = "\n".join(texts.values())
    (BUILD / "benchmark.md").write_text(text, encoding="utf-8")
    if options.update_docs:
        for subject, result in texts.items():
            update_docs(subject, result)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
