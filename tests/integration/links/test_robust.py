# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds whatever happens: runs that are killed, runs side by side, and others who change things in between."""

from __future__ import annotations

import random
import typing as t

import pytest
from support.hosts import Host, finish_module

BRIDGE = {
    "name": "br0",
    "addresses": ["10.0.0.1/24", "fd00::1/64"],
    "stp": True,
    "mtu": 1400,
    "enabled": True,
    "mac_address": "02:00:00:00:00:b0",
}
TAPS = {
    "bridge": "br0",
    "enabled": True,
    "mtu": 1500,
    "taps": [{"name": f"t{n}", "isolated": n % 2 == 0, "mac_address": f"02:00:00:00:00:{n:02x}"} for n in range(12)],
}


def plain(host: Host) -> t.Any:
    """What the host has, without what numbers and carriers tell of the way there."""
    found = []
    for link in host.json("ip", "-d", "-j", "addr", "show"):
        kept = {key: link.get(key) for key in ("ifname", "address", "mtu", "master", "ifalias")}
        kept["up"] = "UP" in link["flags"]
        kept["addresses"] = sorted(each["local"] for each in link["addr_info"] if each["scope"] != "link")
        kept["isolated"] = link.get("linkinfo", {}).get("info_slave_data", {}).get("isolated")
        kept["stp"] = link.get("linkinfo", {}).get("info_data", {}).get("stp_state")
        found.append(kept)
    return sorted(found, key=lambda link: str(link["ifname"]))


def converge(host: Host) -> None:
    host.converge("linux_bridge", BRIDGE)
    host.converge("tap_device", TAPS)


def remove(host: Host) -> None:
    host.converge("tap_device", {**TAPS, "state": "absent"})
    host.converge("linux_bridge", {**BRIDGE, "state": "absent"})


@pytest.fixture
def wanted(host: Host) -> t.Any:
    """The state that the tasks lead to, on a host that is clean again."""
    before = host.dump()
    converge(host)
    state = plain(host)
    remove(host)
    assert host.dump() == before
    return state


@pytest.mark.one_interpreter
def test_a_killed_run_is_made_good_by_the_next(host: Host, wanted: t.Any) -> None:
    # Where a run is killed is where the kernel hears from it: after each of its first system calls of this kind.
    unfinished = 0
    for calls in range(1, 12):
        process = host.start_module(
            "tap_device" if calls % 2 else "linux_bridge",
            TAPS if calls % 2 else BRIDGE,
            wrapper=(
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                f"inject=sendto,sendmsg,ioctl:signal=KILL:when={calls}",
            ),
        )
        if calls == 1:
            process.communicate()
            host.converge("linux_bridge", BRIDGE)
            continue
        process.communicate()
        unfinished += plain(host) != wanted
        converge(host)
        assert plain(host) == wanted
        if calls % 3 == 0:
            remove(host)
            host.converge("linux_bridge", {"name": "br0"})
    assert unfinished > 3, "the runs were killed too late to leave anything half-made"


ACCEPTS = "/proc/sys/net/ipv6/conf/br1/accept_ra"
KILLED: list[tuple[str, dict[str, t.Any], tuple[str, ...]]] = [
    ("linux_bridge", {"name": "br1", "addresses": ["10.0.1.1/24"]}, ("-e", "inject=sendto:signal=KILL:when={}")),
    ("linux_bridge", {"name": "br1"}, ("-P", ACCEPTS, "-e", "inject=openat:signal=KILL:when={}")),
    ("tap_device", {"taps": [{"name": "t0"}, {"name": "t1"}]}, ("-e", "inject=sendto:signal=KILL:when={}")),
]


def plain_and_advertised(host: Host) -> t.Any:
    """What the host has, and whether it heeds router advertisements."""
    return plain(host), host.run("cat", ACCEPTS, check=False).stdout


@pytest.mark.one_interpreter
@pytest.mark.parametrize(("module", "options", "where"), KILLED)
def test_what_a_killed_run_has_left_becomes_what_a_new_one_is_though_the_task_does_not_say(
    host: Host, module: str, options: t.Any, where: tuple[str, ...]
) -> None:
    host.converge(module, options)
    wanted = plain_and_advertised(host)
    unfinished = 0
    for calls in range(1, 40):
        host.converge(module, {**options, "state": "absent"})
        injection = [word.format(calls) for word in where]
        process = host.start_module(module, options, wrapper=("strace", "-f", "-qq", "-o", "/dev/null", *injection))
        process.communicate()
        if process.returncode == 0:
            break
        left = plain_and_advertised(host)
        unfinished += left != wanted and "(unfinished)" in str(left)
        host.converge(module, options)
        assert plain_and_advertised(host) == wanted
        assert not host.converge(module, options)["changed"]
    else:
        pytest.fail("every run was killed")
    assert unfinished, "no run was killed while it was making something"


@pytest.mark.one_interpreter
def test_runs_side_by_side_converge(host: Host, wanted: t.Any) -> None:
    host.converge("linux_bridge", {"name": "br0"})
    halves = [{**TAPS, "taps": TAPS["taps"][:8]}, {**TAPS, "taps": TAPS["taps"][4:]}]
    running = [
        *(host.start_module("linux_bridge", BRIDGE) for _bridge in range(2)),
        *(host.start_module("tap_device", half) for half in halves),
    ]
    results = [finish_module(process) for process in running]
    assert [result.get("msg") for result in results if result.get("failed")] == []
    assert plain(host) == wanted
    created = [action for result in results for action in result["actions"] if action.startswith("Create tap")]
    assert len(created) == len(set(created)) == 12, "two runs made the same tap"


FOREIGN: list[list[str]] = [
    ["ip", "link", "set", "t3", "nomaster"],
    ["ip", "link", "del", "t5"],
    ["ip", "link", "del", "br0"],
    ["ip", "link", "set", "br0", "down"],
    ["ip", "addr", "flush", "dev", "br0"],
    ["ip", "addr", "add", "10.9.9.9/24", "dev", "br0"],
    ["ip", "link", "set", "t1", "mtu", "1300"],
    ["ip", "link", "set", "br0", "type", "bridge", "stp_state", "0"],
    ["ip", "link", "set", "t2", "down"],
    ["bridge", "link", "set", "dev", "t4", "isolated", "off"],
]


@pytest.mark.one_interpreter
@pytest.mark.parametrize("seed", range(4))
def test_whatever_others_do_in_between_a_run_converges_and_leaves_theirs_alone(
    host: Host, wanted: t.Any, seed: int
) -> None:
    host.run("ip", "link", "add", "theirs", "type", "bridge")
    host.run("ip", "tuntap", "add", "dev", "foreign", "mode", "tap")
    host.run("ip", "link", "set", "foreign", "master", "theirs")
    host.run("nft", "add", "table", "inet", "theirs")

    def others() -> t.Any:
        links = [link for link in plain(host) if link["ifname"] in ("theirs", "foreign", "lo")]
        return links, host.out("nft", "list", "ruleset")

    chosen, before = random.Random(seed), others()
    for _step in range(5):
        step = chosen.choice(["present", "absent", "foreign", "foreign"])
        if step == "absent":
            remove(host)
            assert others() == before
            continue
        if step == "foreign":
            for command in chosen.sample(FOREIGN, 3):
                host.run(*command, check=False)
        converge(host)
        ours = [link for link in plain(host) if link["ifname"] not in ("theirs", "foreign")]
        assert ours == wanted
        assert others() == before
        for module, options in (("linux_bridge", BRIDGE), ("tap_device", TAPS)):
            assert not host.converge(module, options)["changed"]
    remove(host)
    assert others() == before
