# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever runs, one change brings it to what is wanted, and says truly which."""

from __future__ import annotations

import dataclasses
import ipaddress
import types
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._dhcp import (
    Bridge,
    Server,
    Servers,
    build,
    foreseen_bridges,
    plan_server,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import Files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from hypothesis import given
from hypothesis import strategies as st

FILES = Files("interface=br0\n", "a\n", "b\n")
PROCESS = Process(4711, 1)
RUNS = Server("lab", FILES, True, True, True, PROCESS, "leases")
WANT = Server("lab", FILES, True, True, True)

texts = st.sampled_from(["interface=br0\n", "interface=br1\n"])
all_files = st.builds(Files, texts, st.sampled_from(["", "a\n"]), st.sampled_from(["", "b\n"]))
wanted = st.none() | st.builds(Server, st.just("lab"), all_files, st.just(True), st.just(True), st.just(True))


def _there(files: t.Optional[Files], running: bool, configured: bool, informed: bool) -> Server:
    process = PROCESS if running else None
    return Server("lab", files, running, running and configured, running and informed, process, "leases")


there = st.none() | st.builds(_there, st.none() | all_files, st.booleans(), st.booleans(), st.booleans())


@given(there, wanted)
def test_one_change_brings_anything_to_what_is_wanted_and_back(
    have: t.Optional[Server], want: t.Optional[Server]
) -> None:
    change = plan_server("lab", have, want)
    if change is None:
        assert have == want
        return
    assert change.before == have
    assert change.after == want
    assert plan_server("lab", change.after, want) is None
    back = change.inverse()
    assert (back.before, back.after) == (change.after, have)


@given(there, wanted)
def test_the_process_is_kept_exactly_when_it_has_the_configuration(
    have: t.Optional[Server], want: t.Optional[Server]
) -> None:
    change = plan_server("lab", have, want)
    if change is None or have is None or want is None or change.after is None:
        return
    assert have.files is None or want.files is not None
    same = have.files is not None and want.files is not None and have.files.configuration == want.files.configuration
    kept = have.running and have.configured and same
    assert (change.after.process == PROCESS) is kept
    assert change.sentence.startswith("Let ") is kept
    assert change.sentence.startswith("Restart ") is (have.running and not kept)


@pytest.mark.parametrize(
    ("have", "want", "sentence"),
    [
        (None, WANT, "Start the DHCP server of network lab on bridge br0"),
        (RUNS, None, "Stop the DHCP server of network lab and remove its configuration and its lease file"),
        (_there(FILES, False, False, False), WANT, "Start the DHCP server of network lab with its configuration"),
        (_there(FILES, True, False, False), WANT, "Restart the DHCP server of network lab with its configuration"),
        (_there(FILES, True, False, True), WANT, "Restart the DHCP server of network lab for its bridge made again"),
        (_there(FILES, True, True, False), WANT, "Let the DHCP server of network lab read its changed static leases"),
        (
            dataclasses.replace(RUNS, files=dataclasses.replace(FILES, reservations="")),
            WANT,
            "Let the DHCP server of network lab read its changed static leases",
        ),
        (
            dataclasses.replace(RUNS, files=dataclasses.replace(FILES, configuration="x")),
            WANT,
            "Restart the DHCP server of network lab with its changed configuration",
        ),
    ],
)
def test_the_sentence_says_what_happens(have: t.Optional[Server], want: t.Optional[Server], sentence: str) -> None:
    change = plan_server("lab", have, want)
    assert change is not None
    assert change.sentence == sentence


def test_a_server_that_runs_as_wanted_is_left_alone() -> None:
    assert plan_server("lab", RUNS, WANT) is None
    assert plan_server("lab", None, None) is None


def test_a_bridge_has_one_server() -> None:
    servers = [{"name": "a", "bridge": "br0"}, {"name": "b", "bridge": "br0"}]
    with pytest.raises(InvalidInput, match=r"servers\[1\].bridge: 'br0' is also the bridge of server a"):
        build({"name": None, "state": "present", "servers": servers}, check_mode=False)
    servers[0]["state"] = "absent"
    assert isinstance(build({"name": None, "state": "present", "servers": servers}, check_mode=False)[0], Servers)


def test_entries_take_what_they_leave_out_from_the_top() -> None:
    with pytest.raises(InvalidInput, match=r"servers\[0\].lease_time: 'soon'"):
        build({"name": None, "state": "present", "lease_time": "soon", "servers": [{"name": "a"}]}, check_mode=False)


def test_a_bridge_that_the_same_run_makes_is_served_with_its_coming_addresses() -> None:
    address = ipaddress.ip_interface("10.97.8.1/24")
    coming = types.SimpleNamespace(addresses=(types.SimpleNamespace(address=address),))
    ahead = {"bridges": types.SimpleNamespace(bridges={"br0": coming, "br1": coming, "br2": None})}
    there = {"br1": Bridge("bridge", (), default_route=True, hears_itself=True)}
    assert foreseen_bridges(there, ahead) == {
        "br0": Bridge("bridge", (address,), default_route=False, hears_itself=False),
        "br1": Bridge("bridge", (address,), default_route=True, hears_itself=True),
    }
    assert foreseen_bridges(there, {}) == {}
