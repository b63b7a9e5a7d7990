# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed runs, runs at once, others' objects under our names, and tasks that cannot be right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import typing as t

import pytest
from support.hosts import finish_module

from .conftest import BRIDGE, GUEST4, HOST4, LAN4, UPLINK, Lab

pytestmark = pytest.mark.one_interpreter


def test_a_killed_run_leaves_nothing_half_and_a_rerun_converges(lab: Lab) -> None:
    lab.serve("lan")
    before = lab.dump()
    lab.host.converge("nat_masquerade", lab.nat())
    whole = lab.host.out("nft", "-s", "list", "table", "inet", "labspan_lab")
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    for _attempt in range(6):
        process = lab.host.start_module("nat_masquerade", lab.nat())
        victim = lab.host.child(process)
        try:  # a run takes about a third of a second, so this is anywhere in it
            process.wait(timeout=random.uniform(0.1, 0.4))
        except subprocess.TimeoutExpired:
            os.kill(victim, signal.SIGKILL)
        process.communicate()
        table = lab.host.run("nft", "-s", "list", "table", "inet", "labspan_lab", check=False)
        assert table.stdout in ("", whole)
    lab.host.converge("nat_masquerade", lab.nat())
    assert lab.seen("guest", LAN4) == HOST4
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert lab.dump() == before


def test_four_writers_at_once_lose_nothing(lab: Lab, backend: str) -> None:
    bridges = [BRIDGE, "lsfw1", "lsfw2", "lsfw3"]
    for bridge in bridges[1:]:
        lab.host.run("ip", "link", "add", bridge, "type", "bridge")
    before = lab.dump()

    def all_at_once(tasks: t.Sequence[dict[str, t.Any]]) -> None:
        running = [lab.host.start_module("nat_masquerade", task) for task in tasks]
        results = [finish_module(process) for process in running]
        assert not [result for result in results if result.get("failed")]

    tasks = [
        lab.nat(name=f"net{number}", bridge=bridge, sources=[f"10.8{number}.0.0/24"], backend=backend)
        for number, bridge in enumerate(bridges)
    ]
    tasks[0]["sources"] = ["10.77.0.0/24"]
    all_at_once(tasks)
    for task in tasks:
        assert not lab.host.converge("nat_masquerade", task)["changed"]
    all_at_once([{"name": task["name"], "state": "absent"} for task in tasks])
    assert lab.dump() == before


@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_table_of_another_owner_is_refused(lab: Lab, state: str) -> None:
    lab.host.run(
        "nft", "add table inet labspan_lab; add chain inet labspan_lab mine; add rule inet labspan_lab mine counter"
    )
    assert "somebody else made it" in lab.host.refuse("nat_masquerade", lab.nat(state=state))


def test_foreign_rules_in_our_table_are_seen_and_replaced(lab: Lab) -> None:
    lab.host.converge("nat_masquerade", lab.nat())
    lab.host.run("nft", "insert", "rule", "inet", "labspan_lab", "forward", "accept")
    assert lab.host.converge("nat_masquerade", lab.nat())["changed"]
    lab.host.run("nft", "flush", "chain", "inet", "labspan_lab", "forward")
    assert lab.host.converge("nat_masquerade", lab.nat())["changed"]
    assert not lab.host.converge("nat_masquerade", lab.nat())["changed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out_interface": "lsnone0"}, "does not exist"),
        ({"out_interface": "eth+"}, "wildcards"),
        ({"sources": ["10.77.0.1/24"]}, "CIDR"),
        ({"sources": ["10.77.0.0/24", "10.77.0.128/25"]}, "overlaps"),
        ({"sources": ["198.51.100.0/25"]}, UPLINK),
        ({"bridge": UPLINK}, "is no bridge"),
        ({"to_ports": "high"}, "not a port"),
        ({"name": "a b"}, "usable name"),
    ],
)
def test_a_task_that_cannot_be_right_is_refused(lab: Lab, options: dict[str, t.Any], words: str) -> None:
    assert words in lab.host.refuse("nat_masquerade", lab.nat(**options))


def test_the_whole_list_is_checked_before_the_first_write(lab: Lab) -> None:
    networks = [{"name": "lab", "bridge": BRIDGE}, {"name": "second", "bridge": UPLINK}]
    assert "is no bridge" in lab.host.refuse("nat_masquerade", {"out_interface": UPLINK, "networks": networks})
    twice = [{"name": "lab", "bridge": BRIDGE}, {"name": "second", "bridge": BRIDGE}]
    assert "both" in lab.host.refuse("nat_masquerade", {"out_interface": UPLINK, "networks": twice})


def test_without_conntrack_there_is_a_warning(lab: Lab) -> None:
    lab.host.run("mount", "--bind", "/dev/null", "/usr/sbin/conntrack")
    made = lab.host.converge("nat_masquerade", lab.nat())
    assert "conntrack is missing" in str(made["warnings"])


def test_what_was_done_before_a_failure_is_undone(lab: Lab) -> None:
    before = lab.dump()
    lab.host.run("mount", "-o", "remount,ro", "/etc/sysctl.d")
    result = lab.host.module("nat_masquerade", lab.nat())
    assert result["failed"]
    assert "60-labspan-lab.conf cannot be written" in result["msg"]
    assert "Create the nftables table inet labspan_lab" in result["undone"]
    assert lab.dump() == before


MEDDLING: list[list[str]] = [
    ["nft", "flush table inet labspan_lab"],
    ["nft", "delete table inet labspan_lab"],
    ["nft", "insert rule inet labspan_lab forward accept"],
    ["nft", "flush ruleset"],
    ["iptables", "-F", "LABSPAN-lab-FWD"],
    ["iptables", "-t", "nat", "-F"],
    ["sysctl", "-qw", f"net.ipv4.conf.{BRIDGE}.forwarding=0"],
    ["sh", "-c", "rm -f /etc/sysctl.d/60-labspan-lab.conf"],
]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_whatever_happens_in_between_a_run_converges(lab: Lab, current_backend: str, seed: int) -> None:
    """Random wishes, removals and meddling: guests get out, the LAN does not get in, what is others' stays."""
    lab.serve("lan")
    lab.serve("guest")
    lab.route_to_guests()
    chosen = random.Random(seed)

    def others() -> list[str]:
        chain = lab.host.run("iptables", "-S", "FOREIGN", check=False).stdout
        return [chain, lab.host.run("nft", "list", "table", "inet", "theirs", check=False).stdout]

    for _step in range(4):
        for command in chosen.sample(MEDDLING, 2):
            lab.host.run(*command, check=False)
        lab.host.run("iptables", "-N", "FOREIGN", check=False)
        lab.host.run("nft", "add table inet theirs; add chain inet theirs kept")
        before = others()
        if chosen.random() < 0.3:
            lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
            assert "labspan" not in lab.host.out("nft", "list", "ruleset").lower()
        wish = lab.nat(
            backend=current_backend,
            host_access=chosen.choice(["full", "services"]),
            random=chosen.choice([True, False]),
            to_ports=chosen.choice([None, "1024-65535"]),
        )
        lab.host.converge("nat_masquerade", wish)
        assert others() == before
        assert "FOREIGN" in before[0]
        assert lab.seen("guest", LAN4) == HOST4
        assert lab.refused("lan", GUEST4)
        assert not lab.host.converge("nat_masquerade", wish)["changed"]
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert "labspan" not in lab.host.out("nft", "list", "ruleset").lower()
    # With the rules gone the LAN gets in, where somebody forwards: the refusals above were theirs.
    lab.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    assert lab.seen("lan", GUEST4) is not None
