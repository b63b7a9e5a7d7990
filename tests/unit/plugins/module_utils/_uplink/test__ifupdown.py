# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the stanzas of a card are once they are the bridge's; and that a second look changes nothing."""

from __future__ import annotations

import dataclasses
import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _dhcp_clients, _ifupdown
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._ifupdown import Ifupdown, parse, transform
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move
from hypothesis import given
from hypothesis import strategies as st

MOVE = Move("br0", "eth0", "02:00:00:00:00:15", 1500, "move")
STATIC = dataclasses.replace(
    MOVE,
    mode="static",
    addresses=("10.0.0.5/24", "fd00::5/64", "10.0.0.6/24"),
    gateways=("10.0.0.1", "fd00::1"),
    dns=("10.0.0.1",),
)
DEBIAN = """\
# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug eth0
iface eth0 inet dhcp
# This is an autoconfigured IPv6 interface
iface eth0 inet6 auto
"""


def plain(text: str) -> str:
    """Without the lines that are ours."""
    return "".join(line for line in text.splitlines(keepends=True) if _ifupdown.MARK not in line)


def test_the_stanzas_of_debian_become_the_bridges() -> None:
    assert (
        transform(DEBIAN, MOVE)
        == """\
# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface
auto eth0 br0
iface eth0 inet manual
    pre-up [ ! -e /proc/sys/net/ipv6/conf/eth0/disable_ipv6 ] || echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6 \
# labspan.vmnet

iface br0 inet dhcp
    pre-up [ -e /sys/class/net/br0 ] || ip link add name br0 address 02:00:00:00:00:15 type bridge stp_state 0 \
forward_delay 0 mcast_snooping 0 # labspan.vmnet
    pre-up [ ! -e /run/dhclient.br0.pid ] || dhclient -4 -x -pf /run/dhclient.br0.pid -lf /run/dhclient.br0.leases \
br0 || true # labspan.vmnet
    pre-up ip link set dev br0 down # labspan.vmnet
    pre-up ip address flush dev br0 # labspan.vmnet
    pre-up ip link set dev eth0 master br0 # labspan.vmnet
    pre-up ip link set dev eth0 up # labspan.vmnet
# This is an autoconfigured IPv6 interface
iface br0 inet6 auto
"""
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "auto lo eth0\niface eth0 inet static\n  address 10.0.0.5/24\n  gateway 10.0.0.1\n  dns-domain lab",
            "auto lo eth0 br0\niface eth0 inet manual\n\n"
            "iface br0 inet static\n  address 10.0.0.5/24\n  gateway 10.0.0.1\n  dns-domain lab",
            id="static, and no line end at the end",
        ),
        pytest.param(
            "auto eth0\niface eth0 inet static\n\taddress 10.0.0.5/24\n\tmtu 9000\n\tethernet-wol g\n"
            "\tup ethtool -K eth0 gro off\n\tup /sbin/ip link set $IFACE txqueuelen 9\n"
            "\tup ip route add 10.9.0.0/16 dev eth0\n\tpost-up ip -6 rule add iif eth0 table 7\n\tup /usr/bin/notify\n",
            "auto eth0 br0\niface eth0 inet manual\n\tmtu 9000\n\tethernet-wol g\n"
            "\tup ethtool -K eth0 gro off\n\tup /sbin/ip link set $IFACE txqueuelen 9\n\n"
            "iface br0 inet static\n\taddress 10.0.0.5/24\n"
            "\tup ip route add 10.9.0.0/16 dev br0\n\tpost-up ip -6 rule add iif br0 table 7\n\tup /usr/bin/notify\n",
            id="what is the card's stays with it",
        ),
        pytest.param(
            "auto eth0\niface eth0 inet dhcp\n up sysctl -w net.ipv4.conf.eth0.rp_filter=2\n"
            " up sysctl net.ipv6.neigh.eth0.ucast_solicit=1\n"
            " up sysctl -w net/ipv6/conf/eth0/accept_ra=2\n up sysctl -w net.ipv4.conf.eth0/7.rp_filter=2\n",
            "auto eth0 br0\niface eth0 inet manual\n\n"
            "iface br0 inet dhcp\n up sysctl -w net.ipv4.conf.br0.rp_filter=2\n"
            " up sysctl net.ipv6.neigh.br0.ucast_solicit=1\n"
            " up sysctl -w net/ipv6/conf/br0/accept_ra=2\n up sysctl -w net.ipv4.conf.eth0/7.rp_filter=2\n",
            id="settings of the kernel's, dotted or not",
        ),
        pytest.param(
            "auto eth0 eth0:1\niface eth0 inet manual\n\niface eth0:1 inet static\n address 10.0.0.9/24\n\n# end\n",
            "auto eth0 br0 br0:1\niface eth0 inet manual\n\n"
            "iface br0 inet manual\n\niface br0:1 inet static\n address 10.0.0.9/24\n\n# end\n",
            id="a label after its card",
        ),
        pytest.param(
            "auto eth0\niface eth0:1 inet static\n address 10.0.0.9/24\niface eth0 inet dhcp\n",
            "auto eth0 br0\niface eth0 inet manual\n\n"
            "iface br0:1 inet static\n address 10.0.0.9/24\niface br0 inet dhcp\n",
            id="a label before its card",
        ),
        pytest.param(
            "no-auto-down eth0\nauto eth0\niface eth0 inet static\n up ip route add 10.8.0.0/16 \\\n  dev eth0\n",
            "no-auto-down eth0 br0\nauto eth0 br0\niface eth0 inet manual\n\n"
            "iface br0 inet static\n up ip route add 10.8.0.0/16 \\\n  dev br0\n",
            id="other lists, and a line that goes on",
        ),
        pytest.param(
            "allow-hotplug eth1 eth0\niface eth1 inet dhcp\niface eth0 inet6 static\n address fd00::5/64\n",
            "allow-hotplug eth1\niface eth1 inet dhcp\nauto eth0 br0\niface eth0 inet manual\n\n"
            "iface br0 inet6 static\n address fd00::5/64\n",
            id="another card is left alone",
        ),
    ],
)
def test_stanzas_move_and_all_else_stays(before: str, after: str) -> None:
    found = transform(before, MOVE)
    assert plain(found) == after
    assert transform(found, MOVE) == found


def test_addresses_of_the_task_take_the_place_of_the_old_ones() -> None:
    wanted = """\
iface br0 inet static
    address 10.0.0.5/24
    gateway 10.0.0.1
    dns-nameservers 10.0.0.1

iface br0 inet static
    address 10.0.0.6/24

iface br0 inet6 static
    address fd00::5/64
    gateway fd00::1
"""
    remark = "# This is an autoconfigured IPv6 interface\n"
    found = plain(transform(DEBIAN, STATIC))
    assert remark in found
    assert found.replace(remark, "").endswith(wanted)
    moved = transform(DEBIAN, MOVE)
    assert plain(transform(moved, STATIC)).replace(remark, "").endswith(wanted)


@pytest.mark.parametrize("mode", ["move", "static", "dhcp", "none"])
@pytest.mark.parametrize("first", ["move", "static", "dhcp", "none"])
def test_a_second_look_changes_nothing(first: str, mode: str) -> None:
    moves = {"static": STATIC}
    start = transform(DEBIAN, moves.get(first, dataclasses.replace(MOVE, mode=first)))
    move = moves.get(mode, dataclasses.replace(MOVE, mode=mode))
    found = transform(start, move)
    assert transform(found, move) == found


def test_spanning_tree_and_big_frames_are_the_bridges_too() -> None:
    found = transform(DEBIAN, dataclasses.replace(MOVE, stp=True, forward_delay=4.0, mtu=9000))
    assert "address 02:00:00:00:00:15 mtu 9000 type bridge stp_state 1 forward_delay 400 " in found
    assert "    mtu 9000 # labspan.vmnet\n" in found


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("mapping eth0\n script x\niface eth0 inet dhcp\n", "mapping eth0"),
        ("auto /eth*\niface eth0 inet dhcp\n", "by a pattern"),
        ("auto eth0=home\niface eth0 inet dhcp\n", "under another name"),
        ("iface eth* inet dhcp\niface eth0 inet dhcp\n", "more interfaces"),
        ("iface eth0 inet dhcp inherits base\n", "inherits"),
        ("iface eth0 inet dhcp\niface eth1 inet dhcp inherits eth0\n", "inherits"),
        ("allow-ovs eth0\niface eth0 inet dhcp\n", "another program"),
        ("iface eth0 inet dhcp\niface eth0.5 inet dhcp\n", "VLAN"),
        ("iface eth0 inet dhcp\niface vlan5 inet dhcp\n vlan-raw-device eth0\n", "built on eth0"),
        ("iface eth0 inet dhcp\n wpa-ssid x\n", "plain Ethernet"),
        ("iface eth0 inet dhcp\n up /root/firewall eth0\n", "Take it out"),
        ("iface eth0 inet dhcp\niface br0 inet manual\n", "a stanza for br0 already"),
        ("auto eth0\n", "no stanza for eth0"),
        ("iface eth0 inet dhcp\nauto eth0\n mtu 9000\n", "in no stanza"),
    ],
)
def test_what_nobody_can_take_apart_is_refused(text: str, because: str) -> None:
    with pytest.raises(Refused, match=because):
        transform(text, MOVE)


LINES = st.sampled_from(
    [
        "auto eth0", "auto lo eth0", "allow-hotplug eth0", "iface eth0 inet dhcp", "iface eth0 inet static",
        "iface eth0 inet6 auto", "iface eth1 inet static", "  address 10.0.0.5/24", "  mtu 1400", "# a remark", "",
        "  up ip route add 10.9.0.0/16 dev eth0", "  up ethtool -K eth0 gro off", "iface eth0:1 inet static",
    ]
)  # fmt: skip


@given(st.lists(LINES, max_size=20), st.sampled_from([MOVE, STATIC, dataclasses.replace(MOVE, mode="dhcp")]))
def test_any_file_is_kept_or_refused(lines: list[str], move: Move) -> None:
    text = "".join(f"{line}\n" for line in lines)
    assert "".join(line for block in parse(text) for line in block.lines) == text
    try:
        found = transform(text, move)
    except Refused:
        return
    assert transform(found, move) == found
    if move.mode == "move":
        assert found.count("# a remark") == lines.count("# a remark")
    assert found.count("eth1") == text.count("eth1")
    assert found.count("iface eth0 inet manual") == 1


def test_files_that_are_taken_in_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "interfaces.d").mkdir()
    (tmp_path / "other").mkdir()
    main = tmp_path / "interfaces"
    main.write_text("source interfaces.d/*\nsource-directory other\nauto lo\n", encoding="ascii")
    (tmp_path / "interfaces.d" / "eth0.cfg").write_text("iface eth0 inet dhcp\n", encoding="ascii")
    (tmp_path / "other" / "eth1").write_text("iface eth1 inet dhcp\n", encoding="ascii")
    (tmp_path / "other" / "eth2.bak").write_text("iface eth2 inet dhcp\n", encoding="ascii")
    found = _ifupdown.read_files(str(main))
    assert [pathlib.Path(path).name for path in found] == ["interfaces", "eth0.cfg", "eth1"]
    assert _ifupdown.read_files(str(tmp_path / "none")) == {}


@pytest.fixture
def files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., dict[str, str]]:
    """Puts files in place; the keys are paths below a root of the test's own."""

    def place(**contents: str) -> dict[str, str]:
        paths = {name: str(tmp_path / name) for name in contents}
        for name, text in contents.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.setattr(_ifupdown, "read_files", lambda: {paths[name]: contents[name] for name in contents})
        return paths

    monkeypatch.setattr(_dhcp_clients, "running", lambda interface: [])
    monkeypatch.setattr(_ifupdown, "boot_lease_file", lambda interface: str(tmp_path / f"{interface}.leases"))
    return place


def test_the_lease_is_there_before_the_stanza_that_needs_it(
    files: t.Callable[..., dict[str, str]], tmp_path: pathlib.Path
) -> None:
    paths = files(interfaces=DEBIAN)
    duid = 'default-duid "\\001\\002";\n'
    (tmp_path / "eth0.leases").write_text(f'{duid}lease {{\n  interface "eth0";\n}}\n', encoding="ascii")
    written = Ifupdown().files(MOVE)
    assert [file.path for file in written] == [str(tmp_path / "br0.leases"), paths["interfaces"]]
    assert written[0].content == f'{duid}lease {{\n  interface "br0";\n}}\n'
    # What the client writes there later is not taken back, unless it is another client's.
    (tmp_path / "br0.leases").write_text(f"{duid}", encoding="ascii")
    assert Ifupdown().files(MOVE)[0].content == duid
    (tmp_path / "br0.leases").write_text('default-duid "\\003";\n', encoding="ascii")
    assert Ifupdown().files(MOVE)[0].content == written[0].content


def test_cloud_init_is_told_to_keep_off_its_file(files: t.Callable[..., dict[str, str]]) -> None:
    paths = files(**{"50-cloud-init": "auto eth0\niface eth0 inet static\n address 10.0.0.5/24\n"})
    assert [file.path for file in Ifupdown().files(MOVE)] == [
        "/etc/cloud/cloud.cfg.d/99-labspan-network.cfg",
        paths["50-cloud-init"],
    ]


def test_two_files_are_refused(files: t.Callable[..., dict[str, str]]) -> None:
    paths = files(one="auto eth0\n", two="iface eth0 inet dhcp\n")
    refusal = str(Ifupdown().refusal(MOVE, persistent=True))
    assert f"{paths['one']} and {paths['two']}" in refusal
    assert list(Ifupdown().files(MOVE)) == []
    assert Ifupdown().refusal(MOVE, persistent=False) is None


def test_a_file_that_cannot_be_changed_is_no_reason_against_a_move_until_the_reboot(
    files: t.Callable[..., dict[str, str]],
) -> None:
    files(interfaces="iface eth0 inet dhcp inherits base\n")
    assert "inherits" in str(Ifupdown().refusal(MOVE, persistent=True))
    assert Ifupdown().refusal(MOVE, persistent=False) is None
    assert list(Ifupdown().files(MOVE)) == []


def test_ifupdown_is_found_by_its_stanza_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ifupdown, "_PROGRAMS", ("/bin/sh",))
    for text in (DEBIAN, transform(DEBIAN, MOVE)):
        monkeypatch.setattr(_ifupdown, "read_files", lambda text=text: {"/etc/network/interfaces": text})
        assert isinstance(_ifupdown.find("eth0"), Ifupdown)
        assert _ifupdown.find("eth1") is None
    monkeypatch.setattr(_ifupdown, "_PROGRAMS", ("/nowhere",))
    assert _ifupdown.find("eth0") is None
