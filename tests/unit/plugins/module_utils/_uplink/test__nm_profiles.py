# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the card's profile is as the bridge's; and that a second look changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _nm_profiles
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._nm_profiles import Identity, Keyfile
from hypothesis import given
from hypothesis import strategies as st

MOVE = Move("br0", "eth0", "52:54:00:00:00:16", 1500, "move")
STATIC = dataclasses.replace(
    MOVE,
    mode="static",
    addresses=("10.0.0.5/24", "fd00::5/64", "10.0.0.6/24"),
    gateways=("10.0.0.1", "fd00::1"),
    dns=("10.0.0.1",),
)
UUID = "7d6b0c6e-3f0f-4a57-9a39-3e9f9b3f7a11"
CARD = f"""\
# Made by the installer.
[connection]
id=Wired
uuid={UUID}
type=802-3-ethernet
interface-name=eth0
autoconnect-priority=5
timestamp=1
zone=internal
lldp=1

[802-3-ethernet]
mtu=1480
wake-on-lan=64

[ethtool]
feature-gro=false

[ipv4]
method=manual
address1=10.0.0.9/24,10.0.0.1
route1=192.0.2.0/24,10.0.0.2,50
routing-rule1=priority 5 from 10.0.0.9/32 table 100
dns=10.0.0.1;
may-fail=false

[ipv6]
# By routers.
method=auto
addr-gen-mode=stable-privacy

[proxy]
"""
BRIDGE = f"""\
[connection]
id=br0
uuid={_nm_profiles.bridge_uuid("br0")}
type=bridge
interface-name=br0
zone=internal
lldp=1

[bridge]
mac-address=52:54:00:00:00:16
stp=false
forward-delay=0
multicast-snooping=false

[ethernet]
mtu=1480

[ipv4]
method=manual
address1=10.0.0.9/24,10.0.0.1
route1=192.0.2.0/24,10.0.0.2,50
routing-rule1=priority 5 from 10.0.0.9/32 table 100
dns=10.0.0.1;
may-fail=false

[ipv6]
# By routers.
method=auto
addr-gen-mode=stable-privacy

[proxy]

[user]
labspan.vmnet.profile={UUID}
"""
PORT = f"""\
[connection]
id=br0-eth0
uuid={_nm_profiles.port_uuid("br0", "eth0")}
type=ethernet
interface-name=eth0
autoconnect-priority=999
master={_nm_profiles.bridge_uuid("br0")}
slave-type=bridge

[802-3-ethernet]
mtu=1480
wake-on-lan=64

[ethtool]
feature-gro=false
"""
OF_MAC = "5054:ff:fe00:16"


def test_the_addresses_go_to_the_bridge_and_the_rest_stays_with_the_card() -> None:
    assert _nm_profiles.bridge_profile(CARD, Identity(), MOVE) == BRIDGE
    assert _nm_profiles.port_profile(CARD, MOVE) == PORT


def test_the_old_profile_is_the_same_but_for_one_line() -> None:
    quiet = _nm_profiles.with_autoconnect(CARD, wanted=False)
    assert quiet == CARD.replace("lldp=1\n", "lldp=1\nautoconnect=false\n")
    assert _nm_profiles.with_autoconnect(quiet, wanted=False) == quiet
    assert _nm_profiles.with_autoconnect(quiet, wanted=True) == CARD
    assert _nm_profiles.autoconnects(CARD)
    assert not _nm_profiles.autoconnects(quiet)
    assert not _nm_profiles.autoconnects("[connection]\nautoconnect=no\n")


def section(text: str, name: str) -> dict[str, str]:
    return dict(Keyfile(text).items(name))


def test_the_network_takes_the_bridge_for_who_the_card_was() -> None:
    card = CARD.replace("method=manual\naddress1=10.0.0.9/24,10.0.0.1\n", "method=auto\n")
    identity = Identity(
        client_id="01:52:54:00:00:00:16",
        duid="00:04:aa",
        iaid="2b:50:67:35",
        announced=("2001:db8::1:2:3:4",),
        link_local="fe80::9",
        metric=100,
        metric6=101,
    )
    made = _nm_profiles.bridge_profile(card, identity, MOVE)
    assert section(made, "ipv4").items() >= {"dhcp-client-id": "01:52:54:00:00:00:16", "route-metric": "100"}.items()
    assert section(made, "ipv6") == {
        "method": "auto",
        "addr-gen-mode": "eui64",
        "token": "::1:2:3:4",
        "dhcp-duid": "00:04:aa",
        "dhcp-iaid": "726689589",
        "route-metric": "101",
        "address1": "fe80::9/64",
    }


@pytest.mark.parametrize(
    ("identity", "mode", "token"),
    [
        (Identity(), "stable-privacy", None),
        (Identity(announced=(f"2001:db8::{OF_MAC}",), link_local=f"fe80::{OF_MAC}"), "eui64", None),
        (Identity(announced=(f"2001:db8::{OF_MAC}", "2001:db8:1::7")), "eui64", "::7"),
        (Identity(announced=("2001:db8::7", "2001:db8:1::7")), "eui64", "::7"),
    ],
    ids=["nothing announced", "by the MAC address", "one of two", "the same in two networks"],
)
def test_host_parts(identity: Identity, mode: str, token: str | None) -> None:
    made = section(_nm_profiles.bridge_profile(CARD, identity, MOVE), "ipv6")
    assert (made["addr-gen-mode"], made.get("token")) == (mode, token)
    assert "address1" not in made
    assert _nm_profiles.host_part_refusal(CARD, identity, MOVE.mac) is None


def test_two_host_parts_that_nobody_could_choose_again_are_refused() -> None:
    identity = Identity(announced=("2001:db8::7", "2001:db8:1::8"))
    assert "ipv6.addr-gen-mode eui64" in (_nm_profiles.host_part_refusal(CARD, identity, MOVE.mac) or "")


def test_a_metric_that_was_given_stays() -> None:
    card = CARD.replace("may-fail=false\n", "route-metric=7\n")
    made = _nm_profiles.bridge_profile(card, Identity(metric=100, metric6=100), MOVE)
    assert section(made, "ipv4")["route-metric"] == "7"
    assert section(made, "ipv6")["route-metric"] == "100"


def test_before_the_burst_only_own_addresses_are_given_and_their_routes_stand_behind() -> None:
    final = _nm_profiles.bridge_profile(CARD, Identity(metric=100, link_local="fe80::9"), MOVE)
    early = _nm_profiles.before_burst(final)
    assert section(early, "connection")["autoconnect"] == "false"
    assert section(early, "ipv4") == {
        "method": "manual",
        "address1": "10.0.0.9/24,10.0.0.1",
        "dns": "10.0.0.1;",
        "may-fail": "false",
        "route-metric": "20100",
    }
    assert not [key for key in section(early, "ipv6") if key.startswith(("address", "route1"))]
    assert _nm_profiles.metrics_behind(early) == {"ipv4": "20100"}


def test_given_addresses_take_the_place_of_the_cards() -> None:
    made = _nm_profiles.bridge_profile(CARD, Identity(), STATIC)
    assert section(made, "ipv4") == {
        "method": "manual",
        "address1": "10.0.0.5/24",
        "address2": "10.0.0.6/24",
        "gateway": "10.0.0.1",
        "dns": "10.0.0.1;",
        "route1": "192.0.2.0/24,10.0.0.2,50",
        "routing-rule1": "priority 5 from 10.0.0.9/32 table 100",
        "may-fail": "false",
    }
    assert section(made, "ipv6") == {
        "method": "manual",
        "addr-gen-mode": "stable-privacy",
        "address1": "fd00::5/64",
        "gateway": "fd00::1",
    }


def test_dhcp_and_none() -> None:
    dhcp = section(_nm_profiles.bridge_profile(CARD, Identity(), dataclasses.replace(MOVE, mode="dhcp")), "ipv4")
    assert dhcp["method"] == "auto"
    assert "address1" not in dhcp
    none = _nm_profiles.bridge_profile(CARD, Identity(), dataclasses.replace(MOVE, mode="none"))
    assert section(none, "ipv4") == {"method": "disabled", "may-fail": "false"}
    assert section(none, "ipv6")["method"] == "link-local"


def test_spanning_tree() -> None:
    options = section(_nm_profiles.bridge_profile(CARD, Identity(), dataclasses.replace(MOVE, stp=True)), "bridge")
    assert (options["stp"], options["forward-delay"]) == ("true", "2")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("type=802-3-ethernet", "type=wifi"), "type wifi"),
        (("[proxy]", "[802-1x]\neap=tls;"), "802.1X"),
        (("zone=internal", "master=bond0"), "port of bond0"),
        (("zone=internal", "controller=bond0"), "port of bond0"),
        (("zone=internal", f"secondaries={UUID};"), "VPN"),
        (("method=manual", "method=shared"), "ipv4.method=shared"),
    ],
)
def test_what_cannot_be_a_bridges_is_refused(change: tuple[str, str], reason: str) -> None:
    assert _nm_profiles.refusal(CARD) is None
    assert reason in (_nm_profiles.refusal(CARD.replace(*change)) or "")


def test_a_card_without_a_profile_gets_one_as_networkmanager_makes_them() -> None:
    plain = _nm_profiles.plain_profile("eth0", UUID)
    assert _nm_profiles.refusal(plain) is None
    assert _nm_profiles.is_for_one(plain, "eth0")
    assert section(plain, "ipv4") == {"method": "auto"}


def test_a_lease_of_dhclient_is_renamed_and_one_of_the_internal_client_is_as_it_was() -> None:
    lease = 'lease {\n  interface "eth0";\n  fixed-address 10.0.0.9;\n}\n'
    assert _nm_profiles.renamed_lease(lease, "eth0", "br0") == lease.replace("eth0", "br0")
    assert _nm_profiles.renamed_lease("ADDRESS=10.0.0.9\n", "eth0", "br0") == "ADDRESS=10.0.0.9\n"


LINES = st.lists(
    st.sampled_from(
        """
[connection]
[ipv4]
[ipv6]
# c
; c
method=auto
method = manual
dns=1.1.1.1;
address1=10.0.0.5/24
address2=fd00::5/64
route1=192.0.2.0/24
autoconnect=no
autoconnect=true
""".splitlines()
    ),
    max_size=12,
)


@given(LINES)
def test_what_nobody_changes_stays_byte_for_byte(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    assert Keyfile(text).text() == text


@given(LINES, st.booleans())
def test_a_second_look_changes_nothing(lines: list[str], static: bool) -> None:
    text = "[connection]\nid=x\n" + "".join(f"{line}\n" for line in lines)
    move = STATIC if static else MOVE
    made = _nm_profiles.bridge_profile(text, Identity(metric=100, link_local="fe80::9"), move)
    assert _nm_profiles.addressed(made, move) == made
    early = _nm_profiles.before_burst(made)
    assert not [key for key, _value in Keyfile(early).items("ipv4") if key.startswith("route1")]
    quiet = _nm_profiles.with_autoconnect(text, wanted=False)
    assert not _nm_profiles.autoconnects(quiet)
    assert _nm_profiles.with_autoconnect(quiet, wanted=False) == quiet
