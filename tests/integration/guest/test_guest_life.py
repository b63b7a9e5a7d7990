# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The life of guests, seen through ps, /proc and QEMU's own words."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import time
import typing as t

import pytest
from support.dying import dies
from support.hosts import HARDENED, await_condition, finish_module

from .conftest import ACCOUNT, RUNTIME, STATE, Guests, make_image

CONSOLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "tiny_guest" / "files" / "guest_console.py"

one_interpreter = pytest.mark.one_interpreter

ACTIVITY = {"running": "running", "restarted": "running", "paused": "paused", "stopped": "stopped", "absent": "stopped"}


def test_a_guest_is_foretold_started_left_alone_and_removed(guests: Guests) -> None:
    before = guests.host.dump()
    foretold = guests.check("cg-a")
    assert guests.host.dump() == before
    assert guests.processes() == {}
    assert foretold["changed"]
    assert foretold["guest"]["state"] == "running"

    started = guests.converge("cg-a")
    assert started["actions"] == foretold["actions"] == ["Define guest cg-a", "Start guest cg-a"]
    pid = guests.pid("cg-a")
    assert started["guest"]["pid"] == pid
    assert guests.activity("cg-a") == "running"

    dump = guests.host.dump()
    with guests.host.monitored() as heard:
        again = guests.converge("cg-a")
    assert (again["changed"], again["actions"], heard) == (False, [], [])
    assert guests.host.dump() == dump
    assert guests.pid("cg-a") == pid

    gone = guests.converge("cg-a", state="absent")
    assert gone["guest"] is None
    assert gone["ended_by"] == {"cg-a": "sigterm"}
    assert guests.processes() == {}
    assert not guests.exists(f"{STATE}/cg-a")
    assert not guests.exists(f"{RUNTIME}/cg-a")
    assert not guests.converge("cg-a", state="absent")["changed"]


@one_interpreter
def test_a_guest_starts_on_a_fresh_host_where_what_root_makes_is_roots_alone(
    guests: Guests, public_directory: pathlib.Path
) -> None:
    guests.host.forget_collection()
    image = make_image(public_directory / "cg-base.qcow2", "1M")
    disks = [{"base_image": f"file://{image}", "size": "2M"}]
    params = guests.params("cg-u", disks=disks, display="vnc", service_manager="none")
    started = guests.host.converge("qemu_guest", params, wrapper=HARDENED)
    assert guests.status(guests.pid("cg-u"))["Uid"].split()[0] != "0"
    assert guests.activity("cg-u") == "running"
    assert guests.host.directories("/var/lib/labspan", "/run/labspan") == {
        "/var/lib/labspan": "755 root",
        "/var/lib/labspan/images": "755 root",
        STATE: "755 root",
        f"{STATE}/cg-u": "711 root",
        "/run/labspan": "755 root",
        RUNTIME: "755 root",
        f"{RUNTIME}/cg-u": "711 root",
        f"{RUNTIME}/cg-u/display": f"700 {ACCOUNT}",
    }
    again = guests.host.converge("qemu_guest", params, wrapper=HARDENED)
    assert (again["changed"], again["guest"]["pid"]) == (False, started["guest"]["pid"])


@one_interpreter
@pytest.mark.parametrize("wanted", ["running", "paused", "stopped", "restarted", "absent"])
@pytest.mark.parametrize("found", ["running", "paused", "stopped", "absent"])
def test_every_state_is_reached_from_every_other(guests: Guests, found: str, wanted: str) -> None:
    guests.converge("cg-s", state=found)
    assert guests.activity("cg-s") == ACTIVITY[found]
    pids = set(guests.processes())
    foretold = guests.check("cg-s", state=wanted)
    assert guests.activity("cg-s") == ACTIVITY[found]
    result = guests.converge("cg-s", state=wanted)
    assert guests.activity("cg-s") == ACTIVITY[wanted]
    assert result["changed"] == foretold["changed"] == (wanted == "restarted" or wanted != found)
    assert result["actions"] == foretold["actions"]
    if found in ("running", "paused") and wanted in ("running", "paused"):
        assert set(guests.processes()) == pids
    if wanted == "restarted":
        assert not set(guests.processes()) & pids
    assert guests.converge("cg-s", state=wanted)["changed"] == (wanted == "restarted")


@one_interpreter
def test_qemu_has_no_rights_and_nobody_else_can_talk_to_it(guests: Guests) -> None:
    guests.converge("cg-u", display="vnc")
    status = guests.status(guests.pid("cg-u"))
    nobody = guests.host.out("id", "-u", ACCOUNT).strip()
    assert status["Uid"].split() == [nobody] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["Seccomp"] == "2"
    for name in ("qmp.sock", "console.sock", "display"):
        mode = "700" if name == "display" else "600"
        assert guests.mode(f"{RUNTIME}/cg-u/{name}") == f"{mode} {ACCOUNT}", name
    assert guests.mode(f"{RUNTIME}/cg-u") == "711 root"
    assert guests.mode(f"{STATE}/cg-u") == "711 root"
    assert guests.mode(f"{STATE}/cg-u/guest.json") == "600 root"
    assert guests.mode(f"{STATE}/cg-u/console.log") == f"600 {ACCOUNT}"
    assert guests.exists(f"{RUNTIME}/cg-u/display/vnc.sock")
    open_files = guests.host.out("ls", "-l", f"/proc/{guests.pid('cg-u')}/fd")
    assert "net:[" not in open_files  # the lock of the run is not held on


@one_interpreter
def test_the_sandbox_can_be_left_out(guests: Guests) -> None:
    guests.converge("cg-u", sandbox=False)
    assert guests.status(guests.pid("cg-u"))["Seccomp"] == "0"


@one_interpreter
def test_a_guest_powers_itself_off(guests: Guests, tiny: dict[str, t.Any]) -> None:
    guests.converge("cg-p", **tiny)
    assert "ready" in guests.host.out("cat", f"{STATE}/cg-p/console.log")
    stopped = guests.converge("cg-p", **tiny, state="stopped")
    assert stopped["ended_by"] == {"cg-p": "powerdown"}
    assert "warnings" not in stopped
    assert guests.activity("cg-p") == "stopped"


@one_interpreter
def test_a_guest_that_ignores_its_power_button_is_ended_after_the_timeout(
    guests: Guests, tiny: dict[str, t.Any]
) -> None:
    options = {**tiny, "cmdline": f"{tiny['cmdline']} labspan.ignore_powerdown", "shutdown_timeout": 1}
    guests.converge("cg-i", **options)
    stopped = guests.converge("cg-i", **options, state="stopped")
    assert stopped["ended_by"] == {"cg-i": "sigterm"}
    assert "was not powered off by its own system" in str(stopped["warnings"])
    assert guests.activity("cg-i") == "stopped"


@one_interpreter
def test_a_guest_that_does_not_become_ready_is_shown_and_its_start_undone(
    guests: Guests, tiny: dict[str, t.Any]
) -> None:
    options = {**tiny, "cmdline": "console=ttyS0", "console_pattern": "labspan: never", "wait_timeout": 10}
    result = guests.host.module("qemu_guest", guests.params("cg-w", **options))
    assert result["failed"]
    assert "guest cg-w did not write 'labspan: never' on its console within 10 seconds" in result["msg"]
    assert "The last lines there: " in result["msg"]
    assert "The last lines there: nothing" not in result["msg"]
    assert result["undone"] == ["Start guest cg-w", "Define guest cg-w"]
    assert guests.processes() == {}


@one_interpreter
def test_what_qemu_says_when_it_does_not_start_is_told_and_nothing_stays(guests: Guests) -> None:
    result = guests.host.module("qemu_guest", guests.params("cg-b", extra_args=["-device", "no-such-device"]))
    assert "guest cg-b did not start. QEMU said:" in result["msg"]
    assert "'no-such-device' is not a valid device model name" in result["msg"]
    assert result["undone"] == ["Start guest cg-b", "Define guest cg-b"]
    assert not guests.exists(f"{STATE}/cg-b/guest.json")


@one_interpreter
def test_one_bad_guest_of_a_list_takes_the_others_back(guests: Guests) -> None:
    entries = [{"name": "cg-g1"}, {"name": "cg-g2", "extra_args": ["-no-such-option"]}]
    result = guests.host.module("qemu_guest", guests.params(None, guests=entries))
    assert "guest cg-g2 did not start" in result["msg"]
    assert guests.processes() == {}


@one_interpreter
def test_many_guests_are_one_task(guests: Guests) -> None:
    entries = [{"name": f"cg-m{number}", "memory": str(16 + number)} for number in range(4)]
    guests.converge(None, guests=entries)
    assert sorted(guests.processes().values()) == ["cg-m0", "cg-m1", "cg-m2", "cg-m3"]
    assert not guests.converge(None, guests=entries)["changed"]
    mixed = [{"name": "cg-m0", "state": "absent"}, {"name": "cg-m1", "state": "paused"}, *entries[2:]]
    result = guests.converge(None, guests=mixed)
    assert result["actions"] == ["Stop guest cg-m0", "Remove guest cg-m0", "Pause guest cg-m1"]
    assert guests.activity("cg-m1") == "paused"
    assert guests.activity("cg-m2") == "running"


@one_interpreter
def test_drift_is_named_and_waits_for_permission(guests: Guests) -> None:
    guests.converge("cg-d")
    pid = guests.pid("cg-d")
    wanted = {"memory": "48", "cpus": 2, "disks": [{"bus": "ide", "size": "1M"}]}
    pending = guests.converge("cg-d", **wanted)
    assert not pending["changed"]
    path = f"{STATE}/cg-d/disk0.qcow2"
    assert pending["guest"]["pending_restart"] == [
        "cpus is 1, wanted 2",
        "memory is 32, wanted 48",
        f"disk 0 ({path}) is not attached: disks on ide are not plugged in while a guest runs",
    ]
    assert "need a restart" in str(pending["warnings"])
    assert guests.pid("cg-d") == pid

    restarted = guests.converge("cg-d", **wanted, restart="if_needed")
    assert restarted["actions"] == [
        "Stop guest cg-d",
        "Change the definition of guest cg-d: memory is 32, wanted 48; cpus is 1, wanted 2; "
        f"disk 0 ({path}) is not attached",
        f"Make the disk {path} for guest cg-d",
        "Start guest cg-d",
    ]
    assert restarted["guest"]["pending_restart"] == []
    assert guests.pid("cg-d") != pid
    assert "48M" in guests.host.out("cat", f"/proc/{guests.pid('cg-d')}/cmdline")
    assert not guests.converge("cg-d", **wanted, restart="if_needed")["changed"]


@one_interpreter
def test_options_that_are_left_out_leave_the_guest_as_it_is(guests: Guests) -> None:
    guests.converge("cg-l", memory="48", cmdline=None)
    result = guests.host.converge("qemu_guest", {"name": "cg-l"})
    assert not result["changed"]
    assert result["guest"]["memory"] == 48
    assert result["guest"]["pending_restart"] == []


@one_interpreter
def test_a_guest_whose_process_died_is_stopped_whatever_the_files_say(guests: Guests) -> None:
    guests.converge("cg-k")
    guests.kill("cg-k")
    await_condition(lambda: guests.processes() == {}, "the end of QEMU")
    assert guests.check("cg-k", state="stopped")["changed"] is False
    assert guests.converge("cg-k")["actions"] == ["Start guest cg-k"]
    assert guests.activity("cg-k") == "running"


@one_interpreter
def test_a_guest_is_found_by_its_name_when_its_pid_file_is_lost_or_names_a_stranger(guests: Guests) -> None:
    guests.converge("cg-f")
    pid = guests.pid("cg-f")
    pid_file = f"{RUNTIME}/cg-f/qemu.pid"
    stranger = guests.host.out("sh", "-c", "echo 1 $(cut -d ' ' -f 22 /proc/1/stat)")
    for spoil in (["rm", pid_file], ["sh", "-c", f"echo '{stranger.strip()}' > {pid_file}"]):
        guests.host.run(*spoil)
        result = guests.converge("cg-f")
        assert not result["changed"]
        assert result["guest"]["pid"] == pid
    guests.converge("cg-f", state="absent")
    assert guests.processes() == {}
    assert guests.host.run("true").returncode == 0  # process 1, which the file named, was left alone


@one_interpreter
def test_a_guest_started_by_other_words_is_pending(guests: Guests) -> None:
    guests.converge("cg-o")
    path = f"{STATE}/cg-o/guest.json"
    definition = json.loads(guests.host.out("cat", path))
    definition["argv"].append("-snapshot")
    guests.host.run("sh", "-c", f"cat > {path}", stdin=json.dumps(definition))
    result = guests.converge("cg-o")
    assert not result["changed"]
    assert result["guest"]["pending_restart"] == [
        "the running guest was started with another command line than the recorded one"
    ]
    guests.host.run("rm", path)
    lost = guests.converge("cg-o")["guest"]
    assert lost["pending_restart"] == ["how the running guest was started is not recorded"]
    assert guests.converge("cg-o", restart="if_needed")["guest"]["pending_restart"] == []


@one_interpreter
def test_a_program_on_the_control_socket_is_no_reason_to_pull_the_plug(guests: Guests) -> None:
    guests.converge("cg-q")
    person = guests.host.start(
        "socat", "-", f"UNIX-CONNECT:{RUNTIME}/cg-q/qmp.sock", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert person.stdout is not None
        assert "QMP" in person.stdout.readline()
        result = guests.converge("cg-q")
        assert not result["changed"]
        assert "does not answer on its control socket" in str(result["warnings"])
        refused = guests.host.module("qemu_guest", guests.params("cg-q", state="stopped"))
        assert "cannot be asked to power off" in refused["msg"]
        assert guests.processes()
        guests.converge("cg-q", state="stopped", force=True)
        assert guests.processes() == {}
    finally:
        person.kill()
        person.wait()
        for pipe in (person.stdin, person.stdout):
            if pipe is not None:
                pipe.close()


@one_interpreter
def test_a_guest_that_cannot_be_asked_keeps_the_others_of_its_task_running(
    guests: Guests, tiny: dict[str, t.Any]
) -> None:
    guests.converge("cg-qa", **tiny)
    guests.converge("cg-qb")
    before = guests.processes()
    listener = f"UNIX-CONNECT:{RUNTIME}/cg-qb/qmp.sock"
    person = guests.host.start("socat", "-", listener, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert person.stdout is not None
        assert "QMP" in person.stdout.readline()
        both = [{"name": name, "state": "restarted"} for name in ("cg-qa", "cg-qb")]
        message = guests.refuse(None, guests=both)
        assert "guest cg-qb cannot be asked to power off" in message
        assert "Nothing had been changed before." in message
        # It has not been asked either: nothing is going on in it.
        console = f"{RUNTIME}/cg-qa/console.sock"
        answer = guests.host.out("python3", str(CONSOLE), "--timeout", "30", console, "--", "echo", "still here")
        assert "still here" in answer
        assert guests.processes() == before
    finally:
        person.kill()
        person.communicate()


@one_interpreter
def test_without_a_console_nobody_waits_for_it(guests: Guests) -> None:
    guests.converge("cg-nc", console=False, state="stopped")
    message = guests.refuse("cg-nc", wait_for="console", console_pattern="ready")
    assert "wait_for: console of guest cg-nc needs a console" in message


@one_interpreter
def test_two_runs_at_once_start_one_process(guests: Guests) -> None:
    runs = [guests.host.start_module("qemu_guest", guests.params("cg-2")) for _number in range(2)]
    results = [finish_module(run) for run in runs]
    assert not any(result.get("failed") for result in results)
    assert sorted(result["changed"] for result in results) == [False, True]
    assert list(guests.processes().values()) == ["cg-2"]


@pytest.mark.slow
@one_interpreter
def test_killed_at_any_moment_the_next_run_has_one_guest(guests: Guests) -> None:
    options = {"disks": [{"size": "1M"}]}
    begin = time.monotonic()
    guests.converge("cg-x", **options)
    duration = time.monotonic() - begin
    for step in range(6):
        guests.converge("cg-x", **options, state="absent", remove_disks=True)
        run = guests.host.start_module("qemu_guest", guests.params("cg-x", **options))
        module = guests.host.child(run)
        # The moments are spread over the second half of a run, where everything is written.
        time.sleep(duration * (0.4 + 0.11 * step))
        with contextlib.suppress(ProcessLookupError):
            os.kill(module, signal.SIGKILL)
        run.communicate()
        before = guests.processes()
        guests.converge("cg-x", **options)
        assert list(guests.processes().values()) == ["cg-x"]
        if before:
            assert guests.processes() == before
        assert not guests.converge("cg-x", **options)["changed"]
        leftovers = guests.host.out("find", f"{STATE}/cg-x", "-name", ".*")
        assert leftovers == ""


@pytest.mark.slow
@one_interpreter
def test_killed_anywhere_in_a_removal_the_next_run_ends_it(guests: Guests) -> None:
    guests.host.converge("linux_bridge", {"name": "cgbr", "addresses": ["10.0.0.1/24"]})
    wanted: dict[str, t.Any] = {"nics": [{"bridge": "cgbr"}], "disks": [{"size": "1M"}], "console": True}
    gone = guests.params("cg-y", state="absent", remove_disks=True)

    def left() -> tuple[set[str], str]:
        links = {link["ifname"] for link in guests.host.json("ip", "-j", "link", "show")}
        return links - {"lo", "cgbr"}, guests.host.out("find", STATE, RUNTIME, "-mindepth", "1")

    tapless = 0
    for step in itertools.count(1):
        guests.converge("cg-y", **wanted)
        if not dies(guests.host, "qemu_guest", gone, step):
            break
        taps, files = left()
        tapless += not taps and bool(files)
        foretold = guests.host.converge("qemu_guest", gone, check=True)
        assert guests.host.converge("qemu_guest", gone)["actions"] == foretold["actions"], step
        assert left() == (set(), ""), step
        assert not guests.host.converge("qemu_guest", gone)["changed"]
    assert left() == (set(), "")
    assert tapless, "no run was killed after the taps had gone"
    assert step > 10
    assert guests.processes() == {}


@one_interpreter
def test_the_log_of_the_run_before_is_kept(guests: Guests, tiny: dict[str, t.Any]) -> None:
    guests.converge("cg-h", **tiny)
    guests.converge("cg-h", **tiny, state="restarted", force=True)
    for name in ("console.log", "console.log.1"):
        assert guests.host.out("grep", "-c", "ready", f"{STATE}/cg-h/{name}").strip() != "0"
