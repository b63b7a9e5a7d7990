# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _networkd
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import RunProgram, WriteFile
from hypothesis import given
from hypothesis import strategies as st

MOVE = Move("br0", "eth0", "02:00:00:00:00:01", 1500, "move")
OFFICE = """\
# The office.
[Match]
Name=en* eth*

[Link]
MTUBytes=9000
MACAddress=02:00:00:00:00:09
RequiredForOnline=routable

[Network]
Description=a \\
  long one
Address=192.0.2.10/24
Gateway=192.0.2.1
DNS=192.0.2.53
EmitLLDP=yes
KeepMaster=yes
ConfigureWithoutCarrier=yes

[Address]
Address=192.0.2.11/24
Label=web

[Route]
Destination=198.51.100.0/24
Gateway=192.0.2.2

[RoutingPolicyRule]
IncomingInterface=eth0
OutgoingInterface=eth1
Table=7

[FairQueueing]
PacketLimit=1000
"""
DHCP = "[Match]\nName=eth0\n[Network]\nDHCP=yes\n[DHCPv4]\nUseDNS=no\n"


def of_bridge(text: str, *, iaid: t.Optional[int] = None, **more: t.Any) -> str:
    return _networkd.dump(
        _networkd.bridge_sections(_networkd.parse(text), dataclasses.replace(MOVE, **more), iaid=iaid)
    )


def test_the_bridge_gets_layer_3_and_the_card_keeps_the_rest() -> None:
    assert of_bridge(OFFICE) == textwrap.dedent("""\
        [Match]
        Name=br0

        [Link]
        MTUBytes=9000
        RequiredForOnline=routable

        [Network]
        Description=a    long one
        Address=192.0.2.10/24
        Gateway=192.0.2.1
        DNS=192.0.2.53
        IgnoreCarrierLoss=yes

        [Address]
        Address=192.0.2.11/24
        Label=web

        [Route]
        Destination=198.51.100.0/24
        Gateway=192.0.2.2

        [RoutingPolicyRule]
        IncomingInterface=br0
        OutgoingInterface=eth1
        Table=7
        """)
    assert _networkd.dump(_networkd.card_sections(_networkd.parse(OFFICE), MOVE)) == textwrap.dedent("""\
        [Match]
        Name=eth0

        [Link]
        RequiredForOnline=no
        MTUBytes=9000
        MACAddress=02:00:00:00:00:09

        [Network]
        Bridge=br0
        EmitLLDP=yes
        LinkLocalAddressing=no
        IPv6AcceptRA=no

        [FairQueueing]
        PacketLimit=1000
        """)


def test_the_bridge_is_made_as_it_is_now() -> None:
    made = _networkd.dump(_networkd.netdev_sections(dataclasses.replace(MOVE, mtu=9000, stp=True, forward_delay=2.5)))
    assert made == textwrap.dedent("""\
        [NetDev]
        Name=br0
        Kind=bridge
        MACAddress=02:00:00:00:00:01
        MTUBytes=9000

        [Bridge]
        STP=yes
        ForwardDelaySec=2.5
        MulticastSnooping=no
        """)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DHCP, [("DHCPv4", "7"), ("DHCPv6", "7")]),
        (DHCP.replace("UseDNS=no", "IAID=9"), [("DHCPv4", "9"), ("DHCPv6", "7")]),
        (DHCP.replace("UseDNS=no", "ClientIdentifier=mac"), [("DHCPv6", "7")]),
        (DHCP.replace("UseDNS=no", "ClientIdentifier=duid-only"), [("DHCPv6", "7")]),
        (OFFICE, []),
    ],
)
def test_the_bridge_is_the_same_client_to_the_server(text: str, expected: list[tuple[str, str]]) -> None:
    made = _networkd.parse(of_bridge(text, iaid=7))
    found = [(section.name, value) for section in made for value in section.values("IAID")]
    assert found == expected


@pytest.mark.parametrize(
    ("lease", "expected"),
    [
        ("ADDRESS=192.0.2.1\nCLIENTID=ff2389544c00020000ab11e4686e71089ee93f\n", 0x2389544C),
        ("CLIENTID=0152540000000a\n", None),
        ("", None),
    ],
)
def test_the_identity_is_in_the_lease(lease: str, expected: t.Optional[int]) -> None:
    assert _networkd.iaid_of(lease) == expected


def network(text: str, **more: t.Any) -> list[tuple[str, str]]:
    made = _networkd.parse(of_bridge(text, **more))
    return [(section.name, f"{key}={value}") for section in made[1:] for key, value in section.entries]


def test_static_takes_the_place_of_all_addresses_and_the_default_route() -> None:
    text = OFFICE + "[Route]\nGateway=192.0.2.3\n"
    made = network(
        text, mode="static", addresses=("192.0.2.77/24",), gateways=("192.0.2.99",), dns=("192.0.2.98", "192.0.2.97")
    )
    assert [entry for entry in made if "192.0.2" in entry[1]] == [
        ("Network", "Address=192.0.2.77/24"),
        ("Network", "Gateway=192.0.2.99"),
        ("Network", "DNS=192.0.2.98"),
        ("Network", "DNS=192.0.2.97"),
        ("Route", "Gateway=192.0.2.2"),
    ]
    assert ("Network", "DHCP=yes") not in network(DHCP, mode="static", addresses=("192.0.2.77/24",))


def test_static_without_a_gateway_keeps_the_one_there_is() -> None:
    assert ("Network", "Gateway=192.0.2.1") in network(OFFICE, mode="static", addresses=("192.0.2.77/24",))


def test_dhcp_is_switched_on_where_it_was_off_and_left_where_it_was_on() -> None:
    made = network(OFFICE, mode="dhcp")
    assert ("Network", "DHCP=ipv4") in made
    assert not [entry for entry in made if entry[1].startswith("Address=") or entry[1] == "Gateway=192.0.2.1"]
    assert ("Network", "DHCP=yes") in network(DHCP, mode="dhcp")


def test_none_is_none() -> None:
    made = network(OFFICE, mode="none")
    assert not [entry for entry in made if entry[1].startswith(("Address=", "DHCP="))]
    assert {("Network", "LinkLocalAddressing=no"), ("Network", "IPv6AcceptRA=no")} <= set(made)


@pytest.mark.parametrize("key", ["VLAN", "MACVLAN", "Bond", "Bridge", "VRF", "Tunnel"])
def test_what_is_tied_to_others_is_found(key: str) -> None:
    assert _networkd.stacked(_networkd.parse(f"[Network]\n{key}=x\n")) == [(key, "x")]
    assert _networkd.stacked(_networkd.parse(f"[Network]\n{key}=\nVLANs=x\n")) == []


@pytest.mark.parametrize(
    ("match", "takes_tap"),
    [
        ("Name=eth0", False),
        ("Name=en* eth*", False),
        ("Name=*", True),
        ("Name=!eth*", True),
        ("Type=ether", True),
        ("Type=!wlan", True),
        ("Type=ether\nName=eth*", False),
        ("Type=ether\nHost=lab", True),
        ("Driver=virtio_net", False),
        ("Kind=tun", True),
        ("MACAddress=02:00:00:00:00:01", False),
        ("Path=pci-*", False),
        ("", False),
    ],
)
def test_files_that_take_taps_are_known(match: str, takes_tap: bool) -> None:
    sections = _networkd.parse(f"[Match]\n{match}\n")
    assert _networkd.matches(sections, names=["tap0"], mac="", kind="tun", types="ether") == takes_tap


def test_the_cards_mac_address_matches_the_bridge_too() -> None:
    sections = _networkd.parse("[Match]\nMACAddress=02-00-00-00-00-01\n")
    assert _networkd.matches(sections, names=["br0"], mac=MOVE.mac, kind="bridge", types="bridge")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Network]\nDHCP=ipv6\n", True),
        ("[Network]\nAddress=192.0.2.1/24\n", True),
        ("[Network]\nAddress=192.0.2.1/24\nIPv6AcceptRA=no\n", False),
        ("[Network]\nDHCP=no\nIPv6AcceptRA=false\n", False),
    ],
)
def test_what_comes_from_the_network_is_leased(text: str, expected: bool) -> None:
    assert _networkd.is_dynamic(_networkd.parse(text)) == expected


words = st.text("abcXYZ019/.:- ", min_size=1, max_size=12).map(str.strip).filter(bool)
sections = st.lists(
    st.builds(
        _networkd.Section,
        st.sampled_from(["Match", "Link", "Network", "Route", "DHCPv4", "CAKE"]),
        st.lists(st.tuples(st.sampled_from(["Name", "DHCP", "MTUBytes", "DNS"]), words), max_size=3).map(tuple),
    ),
    max_size=5,
)


@given(sections)
def test_a_file_is_read_as_it_was_written(made: list[_networkd.Section]) -> None:
    assert _networkd.parse(_networkd.dump(made)) == made


@given(sections)
def test_every_entry_of_the_card_is_somewhere(made: list[_networkd.Section]) -> None:
    both = [*_networkd.bridge_sections(made, MOVE, iaid=None), *_networkd.card_sections(made, MOVE)]
    kept = {(section.name, entry) for section in both for entry in section.entries}
    assert {(section.name, entry) for section in made if section.name != "Match" for entry in section.entries} <= kept


class Disk:
    """Stands for the host's directories."""

    def __init__(self, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.etc, self.run, self.state = (str(root / name) for name in ("etc", "run", "state"))
        monkeypatch.setattr(_networkd, "ETC", self.etc)
        monkeypatch.setattr(_networkd, "RUN", self.run)
        monkeypatch.setattr(_networkd, "_STATE", self.state)
        monkeypatch.setattr(_networkd, "_DIRECTORIES", (self.etc, self.run))
        monkeypatch.setattr(_networkd, "_index", lambda name: {"eth0": "2", "br0": "3"}[name])

    def write(self, path: str, text: str) -> str:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return str(file)

    def run_by(self, index: int, path: t.Optional[str]) -> None:
        chosen = f"ADMIN_STATE=configured\nNETWORK_FILE={path}\n" if path else "ADMIN_STATE=unmanaged\n"
        self.write(f"state/links/{index}", chosen)


@pytest.fixture
def disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


@pytest.fixture
def manager() -> _networkd.Networkd:
    return _networkd.Networkd()


def test_the_files_are_the_same_once_they_are_there(disk: Disk, manager: _networkd.Networkd) -> None:
    own = disk.write("etc/20-wired.network", DHCP)
    disk.write("etc/20-wired.network.d/dns.conf", "[Network]\nDNS=192.0.2.53\n")
    disk.run_by(2, own)
    disk.write("state/leases/2", "CLIENTID=ff00000007000200001234\n")
    files = manager.files(MOVE)
    names = [pathlib.Path(file.path).name for file in files]
    assert names == ["06-labspan-br0.netdev", "06-labspan-br0.network", "06-labspan-eth0.network"]
    assert "DNS=192.0.2.53\n" in str(files[1].content)
    assert "IAID=7\n" in str(files[1].content)
    for file in files:
        file.perform()
    disk.run_by(2, files[2].path)
    disk.run_by(3, files[1].path)
    (disk.root / "state/leases/2").unlink()
    assert manager.files(MOVE) == files
    assert manager.refusal(MOVE, persistent=True) is None


def test_taps_are_kept_from_a_file_for_any_ethernet(disk: Disk, manager: _networkd.Networkd) -> None:
    disk.run_by(2, disk.write("etc/80-all.network", "[Match]\nType=ether\n[Network]\nDHCP=yes\n"))
    names = [pathlib.Path(file.path).name for file in manager.files(MOVE)]
    assert names[2:] == ["06-labspan-taps.network", "06-labspan-eth0.network"]


def test_networkd_is_told_after_the_files_are_as_they_were(disk: Disk, manager: _networkd.Networkd) -> None:
    disk.run_by(2, disk.write("etc/20-wired.network", DHCP))
    undo: tuple[t.Any, ...] = ()
    for step in manager.before(MOVE):
        assert isinstance(step.action, WriteFile)
        undo = (*step.undo, *undo)
    kinds = [type(action) for action in undo]
    assert kinds == [WriteFile, WriteFile, WriteFile, RunProgram, RunProgram, WriteFile]
    # What others gave the card must outlive this start of networkd.
    assert undo[2].path == f"{disk.run}/20-wired.network.d/05-labspan.conf"
    assert "KeepConfiguration=static" in undo[2].content
    undo[2].perform()
    assert manager.before(MOVE)[1].undo[1] == undo[2]
    assert [type(step.action) for step in manager.after(MOVE)] == [RunProgram]


def test_on_the_way_back_the_card_is_let_go_of_first(disk: Disk, manager: _networkd.Networkd) -> None:
    own = disk.write("etc/20-wired.network", DHCP)
    ours = disk.write("etc/06-labspan-eth0.network", f"# Written by labspan.vmnet.\n# In the place of: {own}\n")
    disk.run_by(2, ours)
    disk.run_by(3, disk.write("etc/06-labspan-br0.network", "[Match]\nName=br0\n[Network]\nDHCP=yes\n"))
    back = dataclasses.replace(MOVE, back=True)
    before, after = manager.before(back), manager.after(back)
    assert [type(step.action) for step in before] == [WriteFile, WriteFile, WriteFile, RunProgram]
    assert "KeepConfiguration=static" in str(t.cast(WriteFile, before[1].action).content)
    assert "Unmanaged=yes" in str(t.cast(WriteFile, before[2].action).content)
    card, bridge = (str(t.cast(WriteFile, step.action).content) for step in after[:2])
    assert "DHCP=yes" in card
    assert "KeepConfiguration=static" in card
    assert "Unmanaged=yes" in bridge


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Match]\nName=eth0\n[Network]\nVLAN=eth0.5\n", "VLAN=eth0.5"),
        ("[Match]\nName=eth0\n[Bridge]\nCost=4\n", "settings of a bridge port"),
        ("[Match]\nMACAddress=02:00:00:00:00:01\n[Network]\nAddress=192.0.2.1/24\n", "is for br0, too"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    disk: Disk, manager: _networkd.Networkd, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    disk.run_by(2, disk.write("etc/20-wired.network", text))
    monkeypatch.setattr(_networkd, "_index", lambda name: {"eth0": "2"}.get(name, ""))
    assert expected in (manager.refusal(MOVE, persistent=True) or "")


def test_a_card_without_a_file_is_refused(disk: Disk, manager: _networkd.Networkd) -> None:
    disk.run_by(2, None)
    assert "was not found" in (manager.refusal(MOVE, persistent=True) or "")
