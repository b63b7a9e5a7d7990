# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ansible moves the uplink over the very SSH connection that it uses, and comes back over a new one, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
import typing as t

import pytest
from support.hosts import TIMEOUT, Host, await_condition
from support.ssh import Door, Ssh
from support.uplinks import ADDRESS, ADDRESS6, state, uplink_host
from support.users import Played, User

pytestmark = pytest.mark.one_interpreter

UPLINK = {"bridge": "br0", "interface": "eth0", "persistent": False, "confirm_timeout": 30}
IMPATIENT = {**UPLINK, "confirm_timeout": 5, "accept_risk": True}

# As an administrator writes it who thinks of the card: after the move, nothing comes in by it any more.
_FIREWALL = """
add table inet site
add chain inet site input {{ type filter hook input priority 0; policy drop; }}
add rule inet site input ct state established,related accept
add rule inet site input meta l4proto ipv6-icmp accept
add rule inet site input iifname lo accept
add rule inet site input iifname {interfaces} tcp dport 22 accept
"""


@dataclasses.dataclass(frozen=True)
class Remote:
    """A host that is managed over SSH, from its LAN."""

    host: Host
    ssh: Ssh

    @property
    def door(self) -> Door:
        return self.door_to(ADDRESS)

    def door_to(self, address: str) -> Door:
        """The way in from the host's LAN, which is a namespace that only the host knows by name."""
        return Door(self.ssh.directory, address, f"/proc/{self.host.pid}/root/run/netns/lan")

    @property
    def variables(self) -> dict[str, t.Any]:
        return {**self.door.variables, "ansible_python_interpreter": self.host.interpreter}

    def firewall(self, interfaces: str) -> None:
        """Let SSH in by these interfaces only; connections that are there stay."""
        self.host.run("nft", "-f", "-", stdin=_FIREWALL.format(interfaces=interfaces))


@contextlib.contextmanager
def remote_host(python_path: pathlib.Path, interpreter: str) -> t.Iterator[Remote]:
    with uplink_host(python_path, interpreter) as host, Ssh() as ssh:
        ssh.serve(host)
        yield Remote(host, ssh)


@pytest.fixture
def remote(interpreter: str, python_path: pathlib.Path) -> t.Iterator[Remote]:
    with remote_host(python_path, interpreter) as made:
        yield made


class Moved(Played):
    """How a playbook ended that moves uplinks."""

    def uplinks(self, name: str = "h1") -> list[dict[str, t.Any]]:
        """The results of the tasks that move a host's uplink."""
        found = [task for task in self.tasks if task["host"] == name and task["action"] == "bridge_uplink"]
        return [{**task["result"], "end": task["end"]} for task in found]

    def uplink(self, name: str = "h1") -> dict[str, t.Any]:
        """The result of the only one."""
        (found,) = self.uplinks(name)
        return found

    def went_on(self, name: str = "h1") -> bool:
        """Whether the play came to the task after them."""
        return any(task["host"] == name and task["action"] == "command" for task in self.tasks)


def play(
    tmp_path: pathlib.Path,
    remotes: t.Mapping[str, Remote],
    *moves: t.Mapping[str, t.Any],
    pipelining: bool = True,
    **keywords: t.Any,
) -> Moved:
    """Move the uplinks with ansible-playbook as anybody would, and then do something else there."""
    tasks: list[dict[str, t.Any]] = [
        {
            "name": "Move the uplink",
            "labspan.vmnet.bridge_uplink": {name: value for name, value in move.items() if name != "check_mode"},
            "check_mode": move.get("check_mode", False),
        }
        for move in moves
    ]
    tasks.append({"name": "Go on", "ansible.builtin.command": {"argv": ["true"]}})
    book = [{"hosts": "all", "gather_facts": False, "tasks": tasks, **keywords}]
    user = User(tmp_path)
    user.write("hosts.json", {"all": {"hosts": {name: remote.variables for name, remote in remotes.items()}}})
    played = user.play(book, "-i", "hosts.json", code=None, timeout=2 * TIMEOUT, ANSIBLE_PIPELINING=str(pipelining))
    assert played.tasks, played.output
    return Moved(played.code, played.output, played.tasks)


def where(host: Host) -> dict[str, list[str]]:
    """Which interface has which addresses, and by which one leads the default route."""
    routes = host.json("ip", "-j", "route", "show", "default") + host.json("ip", "-6", "-j", "route", "show", "default")
    return {
        "eth0": host.addresses("eth0"),
        "br0": host.addresses("br0"),
        "default": sorted({route["dev"] for route in routes}),
    }


ON_CARD = {"eth0": [f"{ADDRESS}/24", f"{ADDRESS6}/64"], "br0": [], "default": ["eth0"]}
ON_BRIDGE = {"eth0": [], "br0": [f"{ADDRESS}/24", f"{ADDRESS6}/64"], "default": ["br0"]}


def test_there_and_back_over_the_connection_that_is_moved(remote: Remote, tmp_path: pathlib.Path) -> None:
    before = state(remote.host)
    there = play(tmp_path, {"h1": remote}, {**UPLINK, "check_mode": True}, UPLINK, UPLINK)
    assert there.code == 0, there.output
    foreseen, moved, again = there.uplinks()
    assert [result["changed"] for result in (foreseen, moved, again)] == [True, True, False], there.output
    assert (moved["phase"], again["actions"]) == ("confirmed", [])
    assert "Confirm the move over a new connection" in moved["actions"]
    assert "pending" not in moved
    assert where(remote.host) == ON_BRIDGE
    assert (remote.host.link("eth0") or {})["master"] == "br0"
    assert there.went_on()

    # As Ansible works unless it is told otherwise: a connection for every file and every command.
    back = play(tmp_path, {"h1": remote}, {**UPLINK, "state": "absent"}, pipelining=False)
    assert (back.code, back.uplink()["changed"], back.uplink()["phase"]) == (0, True, "confirmed"), back.output
    assert where(remote.host) == ON_CARD
    assert state(remote.host) == before
    assert back.went_on()


def test_a_firewall_that_thinks_of_the_card_takes_the_host_back(remote: Remote, tmp_path: pathlib.Path) -> None:
    remote.firewall("eth0")
    before = state(remote.host)
    played = play(tmp_path, {"h1": remote}, IMPATIENT)
    result = played.uplink()
    assert played.code == 2, played.output
    assert (result["end"], result["changed"]) == ("failed", False)
    # By a connection that got through to what was there before, or by none.
    assert result["msg"].startswith("rolled back"), result
    assert "was not confirmed over a new connection within 5 seconds" in result["msg"]
    assert not played.went_on()
    assert remote.door.open()
    assert remote.door_to(ADDRESS6).open()
    assert where(remote.host) == ON_CARD
    assert state(remote.host) == before


def test_a_connection_that_dies_in_the_move_is_replaced(remote: Remote, tmp_path: pathlib.Path) -> None:
    """The answer to the first half is lost with it. The host is fine, so the move is confirmed all the same."""
    moved: list[bool] = []

    def cut() -> None:
        await_condition(lambda: remote.host.addresses("br0") != [], "the move", timeout=TIMEOUT)
        # Ansible may be between two logins.
        await_condition(lambda: _kill_sessions(remote.host), "a session")
        moved.append(True)

    cutter = threading.Thread(target=cut)
    cutter.start()
    played = play(tmp_path, {"h1": remote}, UPLINK)
    cutter.join()
    assert moved == [True]
    result = played.uplink()
    assert played.code == 0, played.output
    assert (result["changed"], result["phase"]) == (True, "confirmed")
    assert where(remote.host) == ON_BRIDGE


def test_the_play_stops_at_the_host_that_cannot_come_back(
    interpreter: str, python_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The first host's firewall is the second one's, but that it thinks of the bridge, too."""
    with contextlib.ExitStack() as stack:
        fleet = {name: stack.enter_context(remote_host(python_path, interpreter)) for name in ("h1", "h2", "h3")}
        fleet["h1"].firewall("{ eth0, br0 }")
        fleet["h2"].firewall("eth0")
        before = {name: state(remote.host) for name, remote in fleet.items()}
        played = play(tmp_path, fleet, IMPATIENT, serial=1, any_errors_fatal=True)
        assert played.code == 2, played.output
        assert (played.uplink("h1")["changed"], played.uplink("h1")["phase"]) == (True, "confirmed")
        assert played.went_on("h1")
        assert played.uplink("h2")["msg"].startswith("rolled back")
        assert "rolled back" in played.output
        assert {task["host"] for task in played.tasks} == {"h1", "h2"}
        assert where(fleet["h1"].host) == ON_BRIDGE
        assert {name: state(fleet[name].host) == before[name] for name in ("h2", "h3")} == {"h2": True, "h3": True}
        assert all(remote.door.open() for remote in fleet.values())


@pytest.mark.slow
def test_a_host_that_stays_away_is_told_from_one_that_went_back(remote: Remote, tmp_path: pathlib.Path) -> None:
    """The LAN lets nobody in any more, over no connection: the host goes back, and nobody hears of it."""
    before = state(remote.host)

    def cut() -> None:
        await_condition(lambda: remote.host.addresses("br0") != [], "the move", timeout=TIMEOUT)
        rules = "add table ip cut; add chain ip cut out { type filter hook output priority 0; }; "
        remote.host.run("ip", "netns", "exec", "lan", "nft", f"{rules} add rule ip cut out tcp dport 22 drop")

    cutter = threading.Thread(target=cut)
    cutter.start()
    played = play(tmp_path, {"h1": remote}, IMPATIENT)
    cutter.join()
    result = played.uplink()
    assert (played.code, result["end"]) == (2, "failed"), played.output
    assert "still cannot be reached" in result["msg"]
    assert not remote.door.open()
    remote.host.run("ip", "netns", "exec", "lan", "nft", "delete table ip cut")
    assert remote.door.open()
    assert state(remote.host) == before


def _kill_sessions(host: Host) -> bool:
    """Kill every sshd of the host but the one that listens, whose parent is not on the host; whether there was one."""
    listed = host.out("ps", "-C", "sshd,sshd-session", "-o", "pid=,ppid=").splitlines()
    sessions = [pid for pid, parent in (line.split() for line in listed) if parent != "0"]
    for pid in sessions:
        host.run("kill", "-KILL", pid, check=False)
    return bool(sessions)
