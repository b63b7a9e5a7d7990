# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What speaks against a move is a sentence that names what was found and what to do; a plain card moves freely."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _preflight
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._namespaces import Child
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._preflight import Facts, LinkFact, Machine

LO = LinkFact("lo", medium="loopback")
ETH0 = LinkFact("eth0")
BR0 = LinkFact("br0", kind="bridge")
PORT = LinkFact("eth0", master="br0", master_kind="bridge")


def facts(*links: LinkFact, **others: t.Any) -> Facts:
    return Facts("eth0", "br0", (LO, *links), **others)


@pytest.mark.parametrize(
    "free",
    [
        pytest.param(facts(ETH0), id="a card"),
        pytest.param(facts(ETH0, LinkFact("eth1")), id="one of two cards"),
        pytest.param(facts(ETH0, BR0), id="with a bridge made by hand"),
        pytest.param(facts(PORT, BR0), id="half made"),
        pytest.param(facts(ETH0, dataclasses.replace(BR0, alias="labspan.vmnet:br0")), id="with our bridge"),
        pytest.param(
            facts(ETH0, dataclasses.replace(BR0, alias="labspan.vmnet:office x"), network="office"), id="by network"
        ),
        pytest.param(facts(ETH0, BR0, LinkFact("tap0", kind="tun", master="br0")), id="with a guest's tap"),
        pytest.param(facts(LinkFact("eth0", kind="bond")), id="a bond"),
        pytest.param(facts(LinkFact("eth0", kind="vlan", parent="eth1"), LinkFact("eth1")), id="a VLAN of a card"),
        pytest.param(
            facts(
                LinkFact("eth0", kind="veth", parent="peer"), LinkFact("peer", kind="veth", parent="eth0", master="lan")
            ),
            id="a veth with its peer beside it",
        ),
        pytest.param(facts(ETH0, LinkFact("mv0", kind="macvlan", parent="eth1")), id="a macvlan elsewhere"),
        pytest.param(facts(ETH0, elsewhere=(Child("uplink", "veth", "lan"),)), id="a veth with its peer elsewhere"),
        pytest.param(
            facts(ETH0, dataclasses.replace(BR0, stp=True), LinkFact("eth1", master="br0")), id="two with STP"
        ),
    ],
)
def test_nothing_is_in_the_way_of_what_can_be_moved(free: Facts) -> None:
    assert _preflight.refusals(free) == []
    assert _preflight.warnings(free) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        pytest.param(facts(LinkFact("eth1")), "there is no eth0; this host has eth1. Give", id="missing"),
        pytest.param(facts(), "there is no eth0; this host has no network card. Give", id="no card"),
        pytest.param(
            facts(LinkFact("enp1s0", other_names=("eth0",))),
            "is another name of enp1s0. Give interface: enp1s0",
            id="other name",
        ),
        pytest.param(facts(LinkFact("eth0", medium="infiniband")), "not Ethernet (but infiniband)", id="InfiniBand"),
        pytest.param(facts(LinkFact("eth0", medium="ppp")), "not Ethernet (but ppp)", id="PPP"),
        pytest.param(facts(LinkFact("eth0", medium="none", kind="wireguard")), "not Ethernet (but none)", id="none"),
        pytest.param(facts(LinkFact("eth0", kind="tun")), "a tun or tap device", id="tap"),
        pytest.param(facts(LinkFact("eth0", kind="bridge")), "is a bridge itself", id="bridge"),
        pytest.param(facts(LinkFact("eth0", kind="macvlan")), "is a macvlan", id="macvlan"),
        pytest.param(facts(LinkFact("eth0", medium="ether", kind="vrf")), "is a VRF", id="VRF"),
        pytest.param(facts(ETH0, wireless=True), "is a Wi-Fi card", id="Wi-Fi"),
        pytest.param(facts(LinkFact("eth0", flags=frozenset())), "is down", id="down"),
        pytest.param(facts(LinkFact("eth0", flags=frozenset({"UP"}))), "has no carrier", id="no carrier"),
        pytest.param(
            facts(LinkFact("eth0", master="bond0", master_kind="bond"), LinkFact("bond0", kind="bond")),
            "is a part of the bond bond0, which has the addresses. Give interface: bond0.",
            id="bond",
        ),
        pytest.param(facts(LinkFact("eth0", master="team0", master_kind="team")), "Give interface: team0.", id="team"),
        pytest.param(
            facts(LinkFact("eth0", master="br9", master_kind="bridge")),
            "is a port of the bridge br9 already. Give bridge: br9",
            id="another bridge",
        ),
        pytest.param(facts(LinkFact("eth0", master="red", master_kind="vrf")), "is in the VRF red", id="in a VRF"),
        pytest.param(facts(LinkFact("eth0", master="x0", master_kind="odd")), "is a part of x0", id="odd master"),
        pytest.param(
            facts(ETH0, LinkFact("mv0", kind="macvlan", parent="eth0"), LinkFact("iv0", kind="ipvlan", parent="eth0")),
            "carries mv0 (macvlan) and iv0 (ipvlan), and the kernel makes no bridge's port",
            id="macvlans",
        ),
        pytest.param(
            facts(ETH0, elsewhere=(Child("mv0", "macvlan", "the network namespace of process 42, nginx"),)),
            "carries mv0 (macvlan, in the network namespace of process 42, nginx), and the kernel makes",
            id="a container's macvlan",
        ),
        pytest.param(
            facts(ETH0, LinkFact("eth0.7", kind="vlan", parent="eth0")), "carries eth0.7 (vlan), and a move", id="VLAN"
        ),
        pytest.param(facts(ETH0, LinkFact("lan1", parent="eth0")), "carries lan1, and a move", id="switch port"),
        pytest.param(
            facts(ETH0, LinkFact("vx0", kind="vxlan", underlay="eth0")),
            "is what vx0 (vxlan) sends its packets through",
            id="VXLAN",
        ),
        pytest.param(facts(ETH0, nexthops=(3, 5, 9)), "has the nexthop objects 3, 5 and 9", id="nexthops"),
        pytest.param(
            facts(ETH0, authenticators=("wpa_supplicant -Dwired -ieth0",)),
            "(802.1X: wpa_supplicant -Dwired -ieth0)",
            id="802.1X",
        ),
        pytest.param(
            facts(ETH0, LinkFact("br0", kind="dummy")),
            "bridge: br0 is there already and is no bridge (dummy)",
            id="kind",
        ),
        pytest.param(facts(ETH0, LinkFact("br0")), "is no bridge (network card)", id="a card with the name"),
        pytest.param(
            facts(ETH0, LinkFact("x", other_names=("br0",))), "bridge: br0 is another name of x", id="altname"
        ),
        pytest.param(
            facts(ETH0, LinkFact("br0", kind="bridge", alias="labspan.vmnet:lab")),
            "bridge: br0 belongs to the network 'lab'",
            id="owner",
        ),
        pytest.param(facts(ETH0, LinkFact("br0", kind="bridge", master="red")), "itself a part of red", id="in VRF"),
        pytest.param(
            facts(ETH0, BR0, LinkFact("eth1", master="br0"), LinkFact("bond0", kind="bond", master="br0")),
            "has eth1 and bond0 as a port already",
            id="loop",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused_with_the_reason(found: Facts, words: str) -> None:
    (refusal,) = _preflight.refusals(found)
    assert words in refusal
    assert refusal.startswith(("interface: ", "bridge: "))
    assert refusal.endswith(".")


def test_a_card_is_not_put_into_a_bridge_of_its_own_name() -> None:
    (refusal,) = _preflight.refusals(Facts("eth0", "eth0", (LO, ETH0)))
    assert "is the name of the card itself" in refusal


def test_every_reason_is_told_at_once() -> None:
    found = facts(LinkFact("eth0", flags=frozenset()), LinkFact("br0", kind="dummy"), nexthops=(1,))
    assert len(_preflight.refusals(found)) == 3


@pytest.mark.parametrize(
    ("bridge", "program"),
    [
        ("docker0", "Docker"),
        ("br-0123456789ab", "Docker"),
        ("virbr0", "libvirt"),
        ("cni-podman0", "Podman"),
        ("lxdbr0", "LXD"),
        ("cni0", "Kubernetes"),
    ],
)
def test_a_programs_own_bridge_is_taken_by_force_alone(bridge: str, program: str) -> None:
    found = Facts("eth0", bridge, (ETH0, LinkFact(bridge, kind="bridge")))
    (refusal,) = _preflight.refusals(found)
    assert f"that {program} makes" in refusal
    assert _preflight.refusals(found, force=True) == []
    ours = dataclasses.replace(found, links=(ETH0, LinkFact(bridge, kind="bridge", alias=f"labspan.vmnet:{bridge}")))
    assert _preflight.refusals(ours) == []


@pytest.mark.parametrize("bridge", ["br0", "br-lan", "vmbr0", "virbridge0", "lan"])
def test_other_names_are_nobodys(bridge: str) -> None:
    assert _preflight.refusals(Facts("eth0", bridge, (ETH0, LinkFact(bridge, kind="bridge")))) == []


def test_force_takes_over_another_networks_bridge_and_nothing_else() -> None:
    foreign = facts(ETH0, LinkFact("br0", kind="bridge", alias="labspan.vmnet:lab"))
    assert _preflight.refusals(foreign, force=True) == []
    assert len(_preflight.refusals(dataclasses.replace(foreign, wireless=True), force=True)) == 1


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine("Amazon EC2", "t3.micro", "Amazon EC2", "ena"), ["in Amazon EC2", "use a nat or routed network"]),
        (Machine("Google", "Google Compute Engine", "", "virtio_net"), ["in Google's cloud"]),
        (
            Machine("Microsoft Corporation", "Virtual Machine", "7783-7084-3265-9085-8269-3286-77", driver="hv_netvsc"),
            ["in Azure", "no switch"],
        ),
        (
            Machine("Microsoft Corporation", "Virtual Machine", "", "hv_netvsc"),
            ["under Hyper-V", "MacAddressSpoofing On"],
        ),
        (Machine("VMware, Inc.", "VMware Virtual Platform", "", "e1000"), ["under VMware", "forged transmits"]),
        (Machine("", "", "", "vmxnet3"), ["under VMware"]),
        (Machine("innotek GmbH", "VirtualBox", "", "e1000"), ["under VirtualBox", "Allow All"]),
        (Machine("DigitalOcean", "Droplet", "", "virtio_net"), ["at DigitalOcean"]),
        (Machine("Hetzner", "vServer", "", "virtio_net"), ["at Hetzner"]),
        (Machine("OpenStack Foundation", "OpenStack Nova", "", "virtio_net"), ["under OpenStack", "port security"]),
        (Machine("Red Hat", "OpenStack Compute", "", "virtio_net"), ["under OpenStack"]),
        (Machine("QEMU", "Standard PC", "OracleCloud.com", "virtio_net"), ["in Oracle's cloud"]),
    ],
)
def test_a_machine_whose_guests_would_not_be_heard_is_warned_of(machine: Machine, words: list[str]) -> None:
    found = facts(ETH0, machine=machine)
    (warning,) = _preflight.warnings(found)
    assert all(word in warning for word in words), warning
    assert warning.endswith(".")
    assert _preflight.refusals(found) == []


@pytest.mark.parametrize(
    "machine",
    [
        Machine("QEMU", "Standard PC (Q35 + ICH9, 2009)", "", "virtio_net"),
        Machine("Dell Inc.", "PowerEdge R640", "", "i40e"),
        Machine("Microsoft Corporation", "Surface Pro", "", "r8152"),
        Machine("Google", "Kevin", "", "r8152"),
        Machine(),
    ],
)
def test_a_machine_with_a_plain_network_is_not_warned_of(machine: Machine) -> None:
    assert _preflight.warnings(facts(ETH0, machine=machine)) == []


def test_receive_offload_and_a_filtered_bridge_are_warned_of() -> None:
    offload, filtered = _preflight.warnings(facts(ETH0, lro=True, dropping=("chain FORWARD of table ip filter",)))
    assert "ethtool -K eth0 lro off" in offload
    assert "chain FORWARD of table ip filter drops" in filtered
    assert "DOCKER-USER -i br0 -o br0" in filtered


LISTED = [
    {"ifname": "lo", "link_type": "loopback", "flags": ["LOOPBACK", "UP", "LOWER_UP"]},
    {"ifname": "eth0", "link_type": "ether", "flags": ["UP", "LOWER_UP"], "altnames": ["enp1s0"], "master": "br0"},
    {
        "ifname": "br0",
        "link_type": "ether",
        "flags": ["UP"],
        "ifalias": "labspan.vmnet:br0",
        "linkinfo": {"info_kind": "bridge", "info_data": {"stp_state": 1}},
    },
    {
        "ifname": "eth1",
        "link_type": "ether",
        "master": "bond0",
        "linkinfo": {"info_slave_kind": "bond", "info_slave_data": {"state": "ACTIVE"}},
    },
    {
        "ifname": "eth0.7",
        "link": "eth0",
        "link_type": "ether",
        "linkinfo": {"info_kind": "vlan", "info_data": {"id": 7}},
    },
    {"ifname": "vx", "link_type": "ether", "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 4, "link": "eth0"}}},
    {
        "ifname": "v0",
        "link": "eth0",
        "link_netnsid": 0,
        "link_type": "ether",
        "linkinfo": {"info_kind": "macvlan"},
    },
    {"ifname": "v1", "link": None, "link_index": 3, "link_netnsid": 0, "linkinfo": {"info_kind": "veth"}},
    {},
]


def test_links_are_read_from_what_ip_lists() -> None:
    lo, eth0, br0, eth1, vlan, vxlan, elsewhere, _pair = _preflight.parse_links(json.dumps(LISTED))
    assert (lo.medium, eth0.medium) == ("loopback", "ether")
    assert (eth0.master, eth0.master_kind, eth0.other_names) == ("br0", "bridge", ("enp1s0",))
    assert (br0.kind, br0.stp, br0.alias) == ("bridge", True, "labspan.vmnet:br0")
    assert (eth1.master, eth1.master_kind) == ("bond0", "bond")
    assert (vlan.kind, vlan.parent) == ("vlan", "eth0")
    assert (vxlan.parent, vxlan.underlay) == ("", "eth0")
    assert elsewhere.parent == "", "another namespace's eth0"
    assert _preflight.parse_links("") == ()


def test_nexthops_are_read_from_what_ip_lists() -> None:
    assert _preflight.parse_nexthops('[{"id":7,"dev":"p"},{"id":5,"gateway":"192.0.2.3","dev":"p"}]') == (5, 7)
    assert _preflight.parse_nexthops("") == ()


@pytest.mark.parametrize(
    ("command", "so"),
    [
        ("/sbin/wpa_supplicant -c/etc/wpa.conf -Dwired -ieth0", True),
        ("wpa_supplicant -D wired -i eth0 -c x", True),
        ("wpa_supplicant -c y -i wlan0 -N -i eth0", True),
        ("wpa_supplicant -u -s -O /run/wpa_supplicant", False),
        ("wpa_supplicant -ieth00", False),
        ("grep wpa_supplicant -ieth0", False),
        ("", False),
    ],
)
def test_a_supplicant_of_the_card_is_known_by_its_command(command: str, so: bool) -> None:
    assert _preflight.authenticates(command.split(), "eth0") is so


@pytest.mark.parametrize(
    ("text", "so"),
    [
        ("[connection]\ntype=ethernet\ninterface-name=eth0\n\n[802-1x]\neap=tls;\n", True),
        ("[connection]\ntype=ethernet\n[802-1x]\neap=peap;\n", True),
        ("[connection]\ntype=ethernet\ninterface-name=eth1\n[802-1x]\neap=tls;\n", False),
        ("[connection]\ntype=wifi\n[802-1x]\neap=peap;\n", False),
        ("[connection]\ntype=ethernet\ninterface-name=eth0\n[ethernet]\n", False),
        ("# [802-1x]\n# eap=tls;\n", False),
        ("", False),
    ],
)
def test_a_profile_with_8021x_is_known_by_its_section(text: str, so: bool) -> None:
    assert _preflight.profile_authenticates(text, "eth0") is so
