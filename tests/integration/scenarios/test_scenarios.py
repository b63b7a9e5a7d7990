# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Scenarios as their users run them: up with real guests, again without a change, down without a trace."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from lab import hosts
from lab.processes import wait_until
from support.traces import dump

ROOT = pathlib.Path(__file__).resolve().parents[3]
PLAYBOOKS = ROOT / "playbooks"

GUEST = {
    "memory": 128,
    "kernel": "/var/lib/labspan/tiny_guest/vmlinux",
    "initrd": "/var/lib/labspan/tiny_guest/initrd.img",
    "wait_for": "console",
    "console_pattern": "labspan: .* ready",
}


def guest(name: str, *words: str) -> dict[str, t.Any]:
    """A tiny guest with one NIC on the network of its scenario."""
    cmdline = ["console=ttyS0", "no_timer_check", "quiet", "panic=1", f"labspan.hostname={name}", *words]
    return {**GUEST, "name": name, "cmdline": " ".join(cmdline)}


SCENARIOS = {
    "private": {"private_guests": [guest("one", "labspan.address=10.1.0.1/24")], "private_taps": [{"name": "tap0"}]},
    "routed": {"routed_guests": [guest("one")], "routed_subnet6": "fd00:98::/64"},
    "nat": {"nat_guests": [guest("one"), guest("two")], "nat_subnet6": "fd00:97::/64"},
    "l2": {
        "l2_guests": [guest("one", "labspan.address=192.0.2.51/24")],
        "l2_interface": hosts.UPLINK,
        "l2_persistent": False,
    },
}


@dataclasses.dataclass(frozen=True)
class Played:
    """How a playbook ended, and which tasks reached the host."""

    output: str
    reached: list[dict[str, t.Any]]

    @property
    def changed(self) -> list[str]:
        return [task["action"] for task in self.reached if task["changed"]]


@pytest.fixture(scope="module")
def lab() -> t.Iterator[hosts.Lab]:
    """One lab host on its LAN."""
    name = f"scenarios-{os.getpid()}"
    made = hosts.up(name, ["labhost"], tiny_guest=True)
    tentative = "ip", "-6", "address", "show", "tentative"
    wait_until(lambda: not made.hosts[0].run(*tentative).stdout, 10, "the end of duplicate address detection")
    yield made
    hosts.down(name)


def play(lab: hosts.Lab, playbook: str, variables: t.Mapping[str, t.Any], path: pathlib.Path, *options: str) -> Played:
    """Run one of the collection's playbooks on the lab host."""
    host = lab.hosts[0]
    inventory = path / "inventory.json"
    connection = {
        "ansible_connection": "labspan.vmnet.netns",
        "ansible_netns_pid_file": str(host.pid_file),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    inventory.write_text(json.dumps({"lab_hosts": {"hosts": {host.name: connection}, "vars": dict(variables)}}))
    reached = path / "reached"
    reached.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
        "ANSIBLE_HOME": str(path / "ansible"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_CALLBACK_PLUGINS": str(pathlib.Path(__file__).parent / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "reached",
        "ANSIBLE_NOCOLOR": "true",
        "REACHED": str(reached),
    }
    command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), *options]
    done = subprocess.run(
        [*command, str(PLAYBOOKS / f"{playbook}.yml")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert reached.exists(), f"no task reached the host:\n{done.stdout}"
    return Played(done.stdout, [json.loads(line) for line in reached.read_text().splitlines()])


@pytest.mark.long
@pytest.mark.parametrize(
    "scenario",
    # Molecule brings up the others, too.
    [pytest.param(name, marks=() if name in ("nat", "l2") else pytest.mark.slow) for name in SCENARIOS],
)
def test_up_is_idempotent_and_down_leaves_what_was_there(scenario: str, lab: hosts.Lab, tmp_path: pathlib.Path) -> None:
    host, variables = lab.hosts[0], SCENARIOS[scenario]
    before = dump(host)

    assert play(lab, scenario, variables, tmp_path, "--check", "--diff").changed
    assert dump(host) == before, "check mode has written"

    assert play(lab, scenario, variables, tmp_path).changed
    up = dump(host)
    assert up["links"] != before["links"]
    assert up["firewall"] != before["firewall"]
    assert "qemu-system" in up["programs"]

    again = play(lab, scenario, variables, tmp_path)
    assert again.changed == []
    assert len(again.reached) <= 8, again.reached
    assert dump(host) == up, "a run that reports no change has changed something"

    down = play(lab, "teardown", {**variables, "vmnet_scenarios": [scenario]}, tmp_path)
    assert "qemu_guest" in down.changed
    assert dump(host) == before
    assert play(lab, "teardown", {**variables, "vmnet_scenarios": [scenario]}, tmp_path).changed == []
