# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way through a lab host is what ssh(1) and the shell below it make of the words."""

from __future__ import annotations

import re
import shlex
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _ways
from ansible_collections.labspan.vmnet.plugins.plugin_utils._ways import Door
from hypothesis import given
from hypothesis import strategies as st

ALONE = ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
TEXT = st.text(st.characters(codec="ascii", exclude_characters="\0\n\r"), min_size=1, max_size=12)


def options(arguments: str) -> dict[str, str]:
    """What ssh(1) is told, as Ansible splits it."""
    words = shlex.split(arguments)
    assert words[::2] == ["-o"] * (len(words) // 2)
    return dict(word.split("=", 1) for word in words[1::2])


def expanded(proxy: str, host: str = "192.168.6.11", port: str = "22") -> list[str]:
    """The words of the command that ssh(1) has its shell run (ssh_config(5), TOKENS)."""
    filled = re.sub(r"%(.)", lambda token: {"%": "%", "h": host, "p": port}[token[1]], proxy)
    return shlex.split(filled)


def way(door: Door, address: str = "192.168.6.11", **options_: t.Any) -> dict[str, str]:
    return options(_ways.arguments(door, address, "vm1.lab1", **{"jump": True, **options_}))


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (Door("ssh", "lab1"), ["ssh", *ALONE, "-W", "[192.168.6.11]:22", "lab1"]),
        (
            Door("ssh", "192.0.2.10", port=2222, user="ada", key="/keys/a b"),
            ["ssh", *ALONE, "-i", "/keys/a b", "-p", "2222", "-l", "ada", "-W", "[192.168.6.11]:22", "192.0.2.10"],
        ),
        (
            Door("paramiko", "lab1", args=("-F", "x"), check_host_key=False, executable="/opt/ssh"),
            ["/opt/ssh", *ALONE, "-F", "x", "-o", "StrictHostKeyChecking=no", "-W", "[192.168.6.11]:22", "lab1"],
        ),
        (
            Door(_ways.NETNS, netns="blue"),
            ["nsenter", "--net=/run/netns/blue", "--", "socat", "-", "TCP4:192.168.6.11:22"],
        ),
    ],
)
def test_the_way_leads_through_the_lab_host(door: Door, words: list[str]) -> None:
    found = way(door)
    assert found["HostKeyAlias"] == "vm1.lab1"
    assert expanded(found["ProxyCommand"]) == words


def test_a_process_s_namespace_is_looked_up_by_the_shell_each_time() -> None:
    proxy = way(Door(_ways.NETNS, pid_file="/run/the lab.pid"))["ProxyCommand"]
    number = '"$(cut -d " " -f 1 \'/run/the lab.pid\')"'
    assert proxy == f"nsenter --target {number} --net -- socat - TCP4:%h:%p"


def test_ipv6_has_brackets() -> None:
    assert way(Door(_ways.NETNS, netns="blue"), "fd00::2")["ProxyCommand"].endswith("'TCP6:[%h]:%p'")


@pytest.mark.parametrize("door", [Door("local"), Door("ssh", "lab1")])
def test_nothing_is_jumped_through_without_need(door: Door) -> None:
    found = way(door, jump=not door.is_here)
    assert ("ProxyCommand" in found) == (door.connection == "ssh")
    assert way(door, jump=False) == {"HostKeyAlias": "vm1.lab1"}


@given(st.lists(TEXT, max_size=3), TEXT, TEXT)
def test_words_arrive_as_they_were_through_every_shell(args: list[str], user: str, key: str) -> None:
    door = Door("ssh", "lab1", user=user, key=key, args=tuple(args))
    words = ["ssh", *ALONE, *args, "-i", key, "-l", user, "-W", "[192.168.6.11]:22", "lab1"]
    assert expanded(way(door)["ProxyCommand"]) == words


def test_a_lab_host_behind_another_is_reached_through_both() -> None:
    inner = Door(
        "ssh", "192.168.9.2", args=tuple(shlex.split(_ways.arguments(Door("ssh", "outer"), "x", "i", jump=True)))
    )
    words = expanded(way(inner)["ProxyCommand"])
    (proxy,) = [word for word in words if word.startswith("ProxyCommand=")]
    assert expanded(proxy.partition("=")[2], "192.168.9.2") == ["ssh", *ALONE, "-W", "[192.168.9.2]:22", "outer"]


@pytest.mark.parametrize(
    ("door", "leads"),
    [
        (Door("ssh", "lab1"), True),
        (Door("ssh", "lab1", password=True), False),
        (Door("local"), True),
        (Door(_ways.NETNS, netns="blue"), True),
        (Door("community.docker.docker"), False),
    ],
)
def test_what_cannot_be_passed_through_is_known(door: Door, leads: bool) -> None:
    assert door.leads_through == leads


def test_guests_with_one_address_behind_two_lab_hosts_share_no_connection() -> None:
    paths = {_ways.control_path(lab, "vm1", "192.168.6.11") for lab in ("lab1", "lab2")}
    assert len(paths) == 2
    for path in paths:
        # As Ansible fills it in; ssh(1) adds port and user.
        assert re.fullmatch(r"/cp/[0-9a-f]{10}-%p-%r", path % {"directory": "/cp"})
