# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rerun of the nat role on a converged lab host with two running guests."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import typing as t

from benchmark.measure import PING, Contender, Goal, Rounds, race
from lab import hosts

HERE = pathlib.Path(__file__).resolve().parent
PLAYBOOKS = HERE.parents[1] / "playbooks"
LAB = "benchmark"
HOST = "labhost"

ROLE = "the nat role"


@dataclasses.dataclass(frozen=True)
class Found:
    """What the rerun cost."""

    rounds: Rounds
    count: int
    host_tasks: str

    def goals(self) -> list[Goal]:
        """What is expected of it."""
        text = "rerun of the nat role with two guests"
        return [
            Goal(f"{text} / one ping", self.rounds.ratio(ROLE, PING), 5),
            Goal(f"{text}, tasks that reach the host", self.count, 8),
        ]


def measure(rounds: int, say: t.Callable[[str], None]) -> Found:
    """Make a lab, converge it, and measure a rerun beside a ping of the same host."""
    lab = hosts.up(LAB, [HOST], tiny_guest=True)
    try:
        with tempfile.TemporaryDirectory(prefix="labspan-benchmark-") as directory:
            variables = pathlib.Path(directory) / "variables.json"
            variables.write_text(json.dumps(_variables(lab)), encoding="utf-8")
            say("nat role: making the network and its guests")
            _playbook(PLAYBOOKS / "nat.yml", variables)
            say("nat role: checking that a rerun changes nothing")
            output = _playbook(PLAYBOOKS / "nat.yml", variables)
            if not re.search(rf"^{HOST} .*\bchanged=0\b", output, re.MULTILINE):
                raise SystemExit(f"the rerun of the nat role changed something:\n{output}")
            counted = re.search(r"^host tasks: (\d+) \((.*)\)$", output, re.MULTILINE)
            if counted is None:
                raise SystemExit(f"the tasks of the nat role were not counted:\n{output}")
            contenders = [
                Contender(PING, lambda: t.cast("None", _playbook(HERE / "ping.yml", variables))),
                Contender(ROLE, lambda: t.cast("None", _playbook(PLAYBOOKS / "nat.yml", variables))),
            ]
            found = race(contenders, rounds, lambda text: say(f"nat role: {text}"))
            return Found(found, int(counted.group(1)), counted.group(2))
    finally:
        hosts.down(LAB)


def _variables(lab: hosts.Lab) -> dict[str, str]:
    """What the quickstart's inventory leaves to its playbook."""
    return {
        "ansible_netns_pid_file": str(lab.member(HOST).pid_file),
        "tiny_guest_kernel": "/var/lib/labspan/tiny_guest/vmlinux",
        "tiny_guest_initrd": "/var/lib/labspan/tiny_guest/initrd.img",
        "tiny_guest_cmdline": "console=ttyS0 no_timer_check quiet panic=1",
    }


def _playbook(path: pathlib.Path, variables: pathlib.Path) -> str:
    program = pathlib.Path(sys.executable).parent / "ansible-playbook"
    inventory = PLAYBOOKS / "inventory" / "quickstart.yml"
    words = ["--inventory", str(inventory), "--limit", HOST, "--extra-vars", f"@{variables}", str(path)]
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "host_tasks",
        "ANSIBLE_NOCOLOR": "true",
    }
    done = subprocess.run([str(program), *words], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{path.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
