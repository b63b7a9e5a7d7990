# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What administrators write is brought into one form, or refused with a sentence that names the option."""

from __future__ import annotations

import pytest
import yaml
from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput


@pytest.mark.parametrize("name", ["br0", "Gefyra0", "QemuTap1", "lab-nat.7", "a", "x" * 15, "0tap"])
def test_usable_interface_names_are_kept(name: str) -> None:
    assert _values.interface_name("name", name) == name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("x" * 16, "16 characters long"),
        ("v+", "wildcards"),
        ("v*", "wildcards"),
        ("br%d", "wildcards"),
        ("-x", "begin with"),
        ("../x", "begin with"),
        ("a/b", "begin with"),
        ("br0\n", "begin with"),
        ("", "begin with"),
        ("all", "keeps for itself"),
        ("default", "keeps for itself"),
        ("lo", "keeps for itself"),
    ],
)
def test_other_interface_names_are_refused_with_the_reason(name: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as refusal:
        _values.interface_name("taps[].name", name)
    assert str(refusal.value).startswith("taps[].name: ")


def test_mac_addresses_have_one_form() -> None:
    assert _values.mac_address("mac", "52-54-00-AB-CD-EF") == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    ("mac", "complaint"),
    [
        ("52:54:00:12:34", "six hexadecimal pairs"),
        ("52:54:00:12:34:5g", "six hexadecimal pairs"),
        ("525400123456", "six hexadecimal pairs"),
        (str(yaml.safe_load("52:54:00:12:34:56")), 'write "52:54:00:12:34:56"'),
        (str(yaml.safe_load("10:00:00:00:00:00")), 'write "10:00:00:00:00:00"'),
        ("01:00:5e:00:00:01", "multicast"),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("00:00:00:00:00:00", "empty address"),
    ],
)
def test_impossible_mac_addresses_are_refused(mac: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        _values.mac_address("mac_address", mac)


def test_a_derived_mac_is_stable_local_unicast_and_differs_between_names() -> None:
    mac = _values.derived_mac("host", "br0")
    assert mac == _values.derived_mac("host", "br0")
    assert mac != _values.derived_mac("host", "br1")
    assert _values.mac_address("mac_address", mac) == mac
    assert int(mac[:2], 16) & 0b11 == 0b10


def test_addresses_and_networks_need_their_prefix_length() -> None:
    assert str(_values.interface_address("addresses", "192.168.6.10/24")) == "192.168.6.10/24"
    assert str(_values.interface_address("addresses", "FD00::1/64")) == "fd00::1/64"
    with pytest.raises(InvalidInput, match="no prefix length"):
        _values.interface_address("addresses", "192.168.6.10")
    with pytest.raises(InvalidInput, match=r"host bits set; write 192\.168\.6\.0/24"):
        _values.network("sources", "192.168.6.10/24")
    with pytest.raises(InvalidInput, match=r"as in 192\.168\.6\.0/24"):
        _values.network("sources", "192.168.6")
    with pytest.raises(InvalidInput, match=r"as in 192\.168\.6\.10/24"):
        _values.interface_address("addresses", "192.168.6.300/24")
