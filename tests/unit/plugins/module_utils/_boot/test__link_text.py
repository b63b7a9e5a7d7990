# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import ipaddress
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _link_text, _managers
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_state import Bridge
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._links import Attachment
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Vlan, new_address
from ansible_collections.labspan.vmnet.plugins.module_utils._tap_plan import Tap
from hypothesis import given
from hypothesis import strategies as st

MAC = "02:00:00:00:00:01"
BRIDGE = Bridge("br0", mac_address=MAC, alias="labspan.vmnet:lab", enabled=True)
TAP = Tap("tap0", 107, alias="labspan.vmnet:lab", mac_address=MAC, attachment=Attachment("br0"))


def test_a_bridge_is_made_with_its_settings_and_set_where_it_is() -> None:
    addresses = tuple(new_address("br0", ipaddress.ip_interface(cidr)) for cidr in ("10.0.0.1/24", "fd00::1/64"))
    assert _link_text.bridge_lines(dataclasses.replace(BRIDGE, addresses=addresses, mtu=9000), has_mtu=True) == [
        f"link add name br0 address {MAC} type bridge forward_delay 1500 hello_time 200 max_age 2000 ageing_time 30000 "
        "stp_state 0 priority 32768 group_fwd_mask 0 mcast_snooping 0 mcast_querier 0",
        'link set dev br0 alias "labspan.vmnet:lab"',
        "link set dev br0 mtu 9000",
        "address replace dev br0 10.0.0.1/24",
        "address replace dev br0 fd00::1/64 nodad",
        "link set dev br0 up",
    ]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stp": True}, " stp_state 1 "),
        ({"multicast_querier": True}, " mcast_querier 1"),
        ({"vlan_filtering": True}, " vlan_filtering 1"),
        ({"vlan_default_pvid": 0}, " vlan_default_pvid 0"),
        ({"group_forward_mask": 8}, " group_fwd_mask 8 "),
    ],
)
def test_a_setting_is_made_with_the_bridge(change: dict[str, t.Any], word: str) -> None:
    assert word in _link_text.bridge_lines(dataclasses.replace(BRIDGE, **change), has_mtu=False)[0]


def test_an_mtu_that_nobody_asked_for_is_the_kernels_to_find() -> None:
    asked = _link_text.bridge_lines(dataclasses.replace(BRIDGE, mtu=1300), has_mtu=True)
    assert _link_text.sets_mtu(asked)
    left = _link_text.bridge_lines(dataclasses.replace(BRIDGE, mtu=1300), has_mtu=False)
    assert not _link_text.sets_mtu(left)
    assert set(asked) - set(left) == {"link set dev br0 mtu 1300"}


def test_what_a_kernel_does_not_have_is_not_said() -> None:
    bare = dataclasses.replace(BRIDGE, vlan_filtering=False, vlan_default_pvid=1, multicast_querier=None, ipv6=None)
    assert "vlan" not in _link_text.bridge_lines(bare, has_mtu=False)[0]
    assert "querier" not in _link_text.bridge_lines(bare, has_mtu=False)[0]
    assert _link_text.bridge_settings(bare) == []


def test_addresses_of_the_kernel_and_such_that_end_are_not_written() -> None:
    own = new_address("br0", ipaddress.ip_interface("fe80::1/64"))
    leased = dataclasses.replace(new_address("br0", ipaddress.ip_interface("10.0.0.1/24")), valid=60)
    lines = _link_text.bridge_lines(dataclasses.replace(BRIDGE, addresses=(own, leased), enabled=False), has_mtu=False)
    assert len(lines) == 2


def test_a_tap_is_made_for_its_owner_and_hung_up() -> None:
    tap = dataclasses.replace(
        TAP, group=5, multi_queue=True, mtu=1400, attachment=Attachment("br0", isolated=True, learning=False)
    )
    assert _link_text.tap_lines(tap, vnet_hdr=True) == [
        "tuntap add name tap0 mode tap user 107 group 5 multi_queue vnet_hdr",
        'link set dev tap0 alias "labspan.vmnet:lab"',
        f"link set dev tap0 address {MAC}",
        "link set dev tap0 mtu 1400",
        "link set dev tap0 master br0",
        "link set dev tap0 type bridge_slave learning off isolated on",
        "link set dev tap0 up",
    ]
    assert _link_text.has_vnet_hdr(_link_text.tap_lines(tap, vnet_hdr=True))
    assert not _link_text.has_vnet_hdr(_link_text.tap_lines(tap, vnet_hdr=False))


def test_a_tap_without_bridge_owner_or_address_says_nothing_of_them() -> None:
    tap = Tap("tap0", None, alias="labspan.vmnet:lab", enabled=False)
    assert _link_text.tap_lines(tap, vnet_hdr=False) == [
        "tuntap add name tap0 mode tap",
        'link set dev tap0 alias "labspan.vmnet:lab"',
    ]


def test_the_interface_is_the_fourth_word_of_every_line() -> None:
    tap = dataclasses.replace(TAP, attachment=Attachment("br0", hairpin=True))
    lines = [
        *_link_text.bridge_lines(BRIDGE, has_mtu=True),
        *_link_text.vlan_lines("br0", [Vlan(5, True, True)], on_bridge_itself=True),
    ]
    assert {line.split()[3] for line in lines} == {"br0"}
    assert {line.split()[3] for line in _link_text.tap_lines(tap, vnet_hdr=False)} == {"tap0"}
    assert {line.split()[3] for line in _link_text.port_lines("veth0", Attachment("br0"))} == {"veth0"}


@pytest.mark.parametrize("note", ["a # b", "back\\slash", "both \" and '"])
def test_a_note_that_the_file_cannot_hold_is_refused(note: str) -> None:
    with pytest.raises(InvalidInput, match="alias"):
        _link_text.tap_lines(dataclasses.replace(TAP, alias=f"labspan.vmnet:lab {note}"), vnet_hdr=False)


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="#\\\"'"), max_size=20))
def test_any_other_note_is_kept_in_quotes(note: str) -> None:
    line = _link_text.tap_lines(dataclasses.replace(TAP, alias=f"labspan.vmnet:lab {note}"), vnet_hdr=False)[1]
    assert line == f'link set dev tap0 alias "labspan.vmnet:lab {note}"'


def test_a_bridge_that_goes_is_no_ports_master_any_more() -> None:
    lines = _link_text.tap_lines(dataclasses.replace(TAP, attachment=Attachment("br0", isolated=True)), vnet_hdr=False)
    left = _link_text.without_master(lines, "br0")
    assert [line for line in left if "br0" in line or "bridge_slave" in line] == []
    assert len(left) == len(lines) - 2
    assert _link_text.without_master(lines, "br") == tuple(lines)


@given(st.frozensets(st.integers(1, 4094), max_size=6))
def test_vlans_are_named_or_taken_away_and_never_both(numbers: frozenset[int]) -> None:
    lines = _link_text.vlan_lines("tap0", [Vlan(number, False, False) for number in numbers])
    gone: set[int] = set()
    for line in lines:
        words = line.split()
        first, _dash, last = words[5].partition("-")
        if words[1] == "del":
            gone |= set(range(int(first), int(last or first) + 1))
    assert gone == set(range(1, 4095)) - numbers


def test_the_managers_are_told_exact_names(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_managers, "_NETWORK_MANAGER", str(tmp_path / "nm" / "conf.d"))
    monkeypatch.setattr(_managers, "_NETWORKD", str(tmp_path / "networkd"))
    assert _managers.files("lab", ["tap0"]) == {}  # a host that has neither
    (tmp_path / "nm").mkdir()
    (tmp_path / "networkd").mkdir()
    files = _managers.files("lab", ["tap1", "tap0"])
    assert [_managers.names_in(text) for text in files.values()] == [["tap0", "tap1"]] * 2
    manager, networkd = files.values()
    assert manager is not None
    assert networkd is not None
    assert "[device-labspan-lab]\nmatch-device=interface-name:=tap0,interface-name:=tap1\nmanaged=0\n" in manager
    assert "[Match]\nName=tap0\nName=tap1\n\n[Link]\nUnmanaged=yes\n" in networkd
    assert set(_managers.files("lab", []).values()) == {None}


def test_ip_takes_every_line(tmp_path: t.Any) -> None:
    """The words are ip's own: in a namespace that is thrown away."""
    addresses = tuple(new_address("br0", ipaddress.ip_interface(cidr)) for cidr in ("10.0.0.1/24", "fd00::1/64"))
    lines = [
        *_link_text.bridge_lines(dataclasses.replace(BRIDGE, addresses=addresses, mtu=1400), has_mtu=True),
        *_link_text.tap_lines(
            dataclasses.replace(TAP, attachment=Attachment("br0", True, True, False, False, True)), vnet_hdr=False
        ),
    ]
    path = tmp_path / "links"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    done = subprocess.run(
        ["unshare", "--net", "env", "LC_ALL=C", "ip", "-batch", str(path)], capture_output=True, text=True, check=False
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("EPERM: no network namespace can be made here")
    assert (done.returncode, done.stderr) == (0, "")
