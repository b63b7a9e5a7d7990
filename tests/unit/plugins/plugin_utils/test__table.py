# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.plugin_utils._table import lease_left, table
from ansible_collections.labspan.vmnet.plugins.plugin_utils._text import columns
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import read_hosts
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lab_views import fleets, sample

NOW = "2026-11-21T14:50:00Z"


def lines(hosts: t.Any, width: int = 120) -> list[str]:
    return table(read_hosts(hosts), width, NOW)


def test_a_host_with_everything() -> None:
    assert lines({"birch": sample()["birch"]}, 106) == [
        "birch  5 guests, 4 running  Linux 6.12.9 · systemd",
        "  campus  routed  campus0  10.40.0.1/24  2001:db8:40::1/64  out by enp3s0",
        "    PORT    GUEST     MAC                ADDRESSES                    LEASE   STATE",
        "    mail0   mail      52:54:00:00:01:11  10.40.0.25  2001:db8:40::25  8h 20m  running",
        "    dns0    dns       52:54:00:00:01:12  10.40.0.53                           running",
        "  build   nat     build0   10.98.0.1/24                     out by enp3s0",
        "    ci1     runner-1  52:54:00:00:01:21  10.98.0.21                   8h 20m  running, needs a restart",
        "    ci2     runner-2  52:54:00:00:01:22  10.98.0.22                   8h 20m  running",
        "    ci3     runner-3  52:54:00:00:01:23                                       broken",
        "    spare0                                                                    free",
        "    rules nftables 1 (4021 packets, 500 KiB)",
        "  do not run: runner-3 (broken)",
        "  ! The chain FORWARD of iptables-nft (filter) drops what the network campus forwards, and nothing of that",
        "    network stands in front of the drop. Run nat_masquerade with forward: true, or accept what enters and",
        "    leaves campus0 there.",
    ]


def test_a_fleet_ends_with_its_sum_and_tells_who_did_not_answer() -> None:
    found = lines(sample())
    assert found[-1] == "4 hosts, 6 networks, 14 guests, 11 running, 1 host without an answer"
    silent = found.index("dogwood  unreachable")
    assert found[silent + 1] == "  Failed to connect to the host via ssh: No route to host"


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    heading = next(line for line in lines({"cedar": sample()["cedar"]}) if "PORT" in line)
    assert "LEASE" not in heading
    assert "LEASE" in next(line for line in lines({"alder": sample()["alder"]}) if "PORT" in line)


def test_addresses_take_more_lines_where_there_is_little_room() -> None:
    narrow = lines({"birch": sample()["birch"]}, 82)
    first = next(number for number, line in enumerate(narrow) if "mail0" in line)
    assert narrow[first].index("10.40.0.25") == narrow[first + 1].index("2001:db8:40::25")


def test_columns_stay_aligned_with_wide_letters() -> None:
    alder = sample()["alder"]
    next(guest for guest in alder["guests"] if guest["name"] == "desk")["name"] = "日本語デスク"
    found = lines({"alder": alder})
    before = [columns(line[: line.index("52:54:")]) for line in found if "52:54:" in line]
    assert len(set(before)) == 1


def test_guests_without_a_network_are_not_lost() -> None:
    guest = {"name": "alone", "state": "running", "nics": [{"tap": None, "mac": "52:54:00:00:00:01"}]}
    assert "  on no network: alone" in lines({"lab": {"guests": [guest]}})


@pytest.mark.parametrize(
    ("expires", "now", "expected"),
    [
        ("2026-11-21T15:50:00Z", NOW, "1h 00m"),
        ("2026-11-23T16:50:00Z", NOW, "2d 2h"),
        ("2026-11-21T14:55:59Z", NOW, "5m"),
        ("2026-11-21T14:50:30Z", NOW, "< 1m"),
        ("2026-11-21T14:49:00Z", NOW, "over"),
        ("2026-11-21T15:50:00Z", "", "11-21 15:50"),
        ("unlimited", NOW, "no end"),
        ("", NOW, ""),
        ("some day", NOW, "some day"),
    ],
)
def test_leases_are_told_by_what_is_left_of_them(expires: str, now: str, expected: str) -> None:
    assert lease_left(expires, now) == expected


def test_a_width_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 39, and has to be 40 at least"):
        lines(sample(), 39)


@settings(max_examples=40, deadline=None)
@given(fleets, st.integers(40, 200))
def test_no_line_is_wider_than_it_may_be(fleet: dict[str, t.Any], width: int) -> None:
    assert all(columns(line) <= width for line in lines(fleet, width))


@settings(max_examples=40, deadline=None)
@given(fleets)
def test_every_host_is_there(fleet: dict[str, t.Any]) -> None:
    found = lines(fleet, 400)
    assert all(any(line.startswith(host.name) for line in found) for host in read_hosts(fleet))
