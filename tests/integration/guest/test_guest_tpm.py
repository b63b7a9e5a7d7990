# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The TPM of a guest, by QEMU's own words, in ps and in the files that it keeps."""

from __future__ import annotations

import shutil

import pytest
from support.hosts import await_condition

from .conftest import ACCOUNT, RUNTIME, STATE, Guests

pytestmark = [
    pytest.mark.one_interpreter,
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="the program swtpm is not installed"),
]


def tpms(guests: Guests) -> dict[int, str]:
    """Number -> account of each swtpm on the host."""
    found = {}
    for line in guests.host.out("ps", "-e", "-o", "pid=,stat=,user=,comm=").splitlines():
        pid, state, user, name = line.split()
        if name == "swtpm" and not state.startswith("Z"):
            found[int(pid)] = user
    return found


def test_a_guest_has_a_tpm_that_ends_with_it_and_is_the_same_next_time(guests: Guests) -> None:
    foretold = guests.check("cg-t", tpm=True)
    started = guests.converge("cg-t", tpm=True)
    assert started["actions"] == foretold["actions"] == ["Define guest cg-t", "Start guest cg-t"]
    assert [tpm["model"] for tpm in guests.qmp("cg-t", "query-tpm")] == ["tpm-crb"]
    assert list(tpms(guests).values()) == [ACCOUNT]
    assert guests.mode(f"{STATE}/cg-t/tpm") == f"700 {ACCOUNT}"
    assert guests.mode(f"{RUNTIME}/cg-t/tpm.sock") == f"600 {ACCOUNT}"
    kept = f"{STATE}/cg-t/tpm/tpm2-00.permall"
    assert guests.mode(kept) == f"600 {ACCOUNT}"
    assert not guests.converge("cg-t", tpm=True)["changed"]

    guests.converge("cg-t", state="stopped")
    assert tpms(guests) == {}
    seeds = guests.host.out("sha256sum", kept)
    guests.converge("cg-t", state="paused")
    assert guests.host.out("sha256sum", kept) == seeds

    guests.converge("cg-t", state="absent")
    assert tpms(guests) == {}
    assert guests.host.out("sha256sum", kept) == seeds
    guests.converge("cg-t", state="absent", remove_disks=True)
    assert not guests.exists(f"{STATE}/cg-t")


def test_without_the_option_there_is_no_tpm_and_it_comes_with_a_restart(guests: Guests) -> None:
    guests.converge("cg-t")
    assert guests.qmp("cg-t", "query-tpm") == []
    assert tpms(guests) == {}
    pending = guests.converge("cg-t", tpm=True)
    assert pending["guest"]["pending_restart"] == ["tpm is False, wanted True"]
    guests.converge("cg-t", tpm=True, restart="if_needed")
    assert len(tpms(guests)) == 1


def test_a_tpm_ends_when_its_guest_is_killed_and_when_its_guest_never_comes_up(guests: Guests) -> None:
    guests.converge("cg-t", tpm=True)
    assert tpms(guests)
    guests.kill("cg-t")
    await_condition(lambda: not tpms(guests), "the end of swtpm")
    assert guests.converge("cg-t", tpm=True)["actions"] == ["Start guest cg-t"]
    assert len(tpms(guests)) == 1
    guests.converge("cg-t", state="absent", remove_disks=True)

    result = guests.host.module("qemu_guest", guests.params("cg-t", tpm=True, extra_args=["-device", "no-such-device"]))
    assert "guest cg-t did not start" in result["msg"]
    assert tpms(guests) == {}


def test_what_is_not_the_tpms_stays(guests: Guests) -> None:
    guests.converge("cg-t", tpm=True)
    guests.host.run("sh", "-c", f"echo mine > {STATE}/cg-t/tpm/notes")
    guests.converge("cg-t", state="absent", remove_disks=True)
    assert guests.host.out("cat", f"{STATE}/cg-t/tpm/notes") == "mine\n"


def test_a_host_without_swtpm_is_told_what_to_install(guests: Guests) -> None:
    guests.host.run("mount", "--bind", "/dev/null", str(shutil.which("swtpm")))
    refused = guests.refuse("cg-t", tpm=True)
    assert "tpm: guest cg-t needs the program swtpm" in refused
    assert "Install the package swtpm" in refused
    guests.converge("cg-t")
