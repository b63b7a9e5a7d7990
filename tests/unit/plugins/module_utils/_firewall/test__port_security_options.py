# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What administrators write about ports becomes a filter, or a sentence about the option that is wrong."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_options as options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._port_security_text import Port, PortFilter
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec

GUEST = {"name": "web", "state": "running", "restart": "never", "wait_for": "qmp", "force": False}
GUEST.update(shutdown_timeout=1.0, live_timeout=1.0, wait_timeout=1.0, remove_disks=False)
PORT = {"tap": "tap0", "mac": "52:54:00:00:00:01"}


def asked(*ports: dict[str, t.Any], **params: t.Any) -> PortFilter:
    return options.asked({"name": "lan", "ports": list(ports), **params}, "networks[0].", identity="host")


def port(**params: t.Any) -> Port:
    return asked({**PORT, **params}).ports[0]


def texts(made: Port) -> t.Optional[list[str]]:
    return None if made.addresses is None else [str(network) for network in made.addresses]


def test_what_is_left_out() -> None:
    assert port() == Port("tap0", "52:54:00:00:00:01")
    assert asked() == PortFilter("lan", "lan", ())
    assert options.asked({"name": "lan", "ports": None, "protected_addresses": None}, "", identity="") == asked()


def test_unknown_addresses_are_not_the_same_as_none() -> None:
    assert texts(port()) is None
    assert texts(port(addresses=None)) is None
    assert texts(port(addresses=[])) == []


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        (["192.168.1.50"], ["192.168.1.50/32"]),
        (["2001:DB8::50", "192.168.1.50/32"], ["192.168.1.50/32", "2001:db8::50/128"]),
        (["10.0.0.5", "10.0.0.0/24", "10.0.1.0/24"], ["10.0.0.0/23"]),
        (["::/0", "2001:db8::1"], ["::/0"]),
        ([" fe80::1 "], ["fe80::1/128"]),
    ],
)
def test_addresses_in_canonical_form(written: list[str], canonical: list[str]) -> None:
    assert texts(port(addresses=written)) == canonical


def test_a_guests_port_is_what_the_guest_gets() -> None:
    nics = [{"bridge": "br0"}, {"bridge": "br0"}]
    for number, nic in enumerate(_spec.wish({**GUEST, "nics": nics}, identity="host").given["nics"]):
        assert asked({"guest": "web", "nic": number}).ports == (Port(nic.tap, nic.mac),)
    assert asked({"guest": "web", "tap": "tap0"}).ports[0].tap == "tap0"
    assert asked({"guest": "web", **PORT}).ports[0] == port()


@pytest.mark.parametrize("option", ["tap", "mac"])
def test_a_port_without_guest_has_tap_and_mac(option: str) -> None:
    with pytest.raises(LabspanError, match=rf"networks\[0\].ports\[0\].{option}: .*is missing"):
        asked({**PORT, option: None})


def test_ports_come_in_one_order_and_in_one_form() -> None:
    second = {"tap": "tap1", "mac": "52-54-00-00-00-0A", "allow_ethertypes": ["0x88cc", "vlan", "33024"]}
    made = asked(second, PORT)
    assert made == asked(PORT, second)
    assert made.ports[1] == Port("tap1", "52:54:00:00:00:0a", ethertypes=(0x8100, 0x88CC))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"tap": "lo"}, "networks[0].ports[0].tap: 'lo' is a name that the kernel keeps"),
        ({"mac": "01:00:00:00:00:01"}, "networks[0].ports[0].mac: '01:00:00:00:00:01' is a multicast address"),
        ({"addresses": ["192.168.1.50/24"]}, "write 192.168.1.50 for the one address that the guest has, or 192.168.1"),
        ({"addresses": ["web"]}, "addresses: 'web' is not an address or a network"),
        ({"addresses": ["224.0.0.1"]}, "is no address that a machine can have"),
        ({"addresses": ["ff02::/16"]}, "is no address that a machine can have"),
        ({"addresses": ["::"]}, "is no address that a machine can have"),
        ({"allow_ethertypes": ["46"]}, "allow_ethertypes: '46' is not an EtherType"),
        ({"allow_ethertypes": ["0x10000"]}, "is not an EtherType"),
        ({"allow_ethertypes": ["0x86dd"]}, "is IPv6, which is always allowed"),
    ],
)
def test_what_cannot_be_right(params: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(LabspanError) as error:
        port(**params)
    assert sentence in str(error.value)


@pytest.mark.parametrize("address", ["192.168.1.0/24", "gateway", "ff02::1", "0.0.0.0"])
def test_only_addresses_are_protected(address: str) -> None:
    with pytest.raises(LabspanError, match="protected_addresses"):
        asked(PORT, protected_addresses=[address])


def test_a_tap_and_a_mac_address_belong_to_one_port() -> None:
    with pytest.raises(LabspanError, match=r"ports\[\].tap: 'tap0' is listed twice"):
        asked(PORT, {**PORT, "mac": "52:54:00:00:00:02"})
    with pytest.raises(LabspanError, match=r"ports\[\].mac: '52:54:00:00:00:01' is listed twice"):
        asked(PORT, {**PORT, "tap": "tap1"})
    with pytest.raises(LabspanError, match="is listed for both lan and dmz"):
        options.check_together([asked(PORT), options.asked({"name": "dmz", "ports": [PORT]}, "", identity="host")])
