# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cannot be right is found before a host is looked at, all of it, by the place where it was written."""

from __future__ import annotations

import contextlib
import re
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _bridge_options, _dnsmasq
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _options as _rule_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_options
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _inventory, _language, _scenarios, _validation
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._problems import InvalidLab
from hypothesis import given
from hypothesis import strategies as st

Options = t.Dict[str, t.Any]

MAC = "52:54:00:00:00:01"
PRIVATE: Options = {"name": "closed", "scenario": "private"}
NAT: Options = {"name": "lan", "scenario": "nat", "subnet": "10.1.0.0/24"}
ROUTED: Options = {"name": "far", "scenario": "routed", "subnet": "10.2.0.0/24"}
L2: Options = {"name": "out", "scenario": "l2", "interface": "eth0"}
WEB: Options = {"name": "web", "nics": [{"network": "lan"}]}


def found(*networks: Options, guests: t.Sequence[Options] = (), **options: t.Any) -> list[str]:
    return _validation.problems(_inventory.read(list(networks), list(guests), identity="host", **options))


def nat(**options: t.Any) -> Options:
    return {**NAT, **options}


def web(*nics: Options, **options: t.Any) -> Options:
    return {"name": "web", "nics": list(nics), **options}


def forward(port: str, **options: str) -> Options:
    return {"host_port": port, "guest_address": "10.1.0.5", **options}


def test_a_host_that_is_right_has_no_problems() -> None:
    lan = nat(
        subnet6="fd00:1::/64",
        port_forwards=[forward("80"), forward("80", protocol="udp"), forward("8000-8009")],
        dhcp={"range": {"start": "10.1.0.100", "end": "10.1.0.199"}, "leases": [{"mac": MAC, "name": "web"}]},
        taps=[{"name": "tap0"}],
        guests=[{"name": "plain"}, web({"mac": MAC, "address": "10.1.0.5"}, {"tap": "tap0"}, {"user": True})],
    )
    both = {"name": "both", "nics": [{"network": "closed", "address": "192.0.2.1"}, {"bridge": "far0"}]}
    assert found(lan, PRIVATE, ROUTED, L2, guests=[both, {"name": "gone", "state": "absent", "nics": [{}]}]) == []


WRONG: t.Mapping[str, tuple[t.Sequence[Options], t.Sequence[Options], str]] = {
    "a name twice": ([PRIVATE, PRIVATE], [], r"networks\[1\]\.name: 'closed' is also at networks\[0\]\.name"),
    "a name that is none": ([{**PRIVATE, "name": "-x"}], [], r"networks\[0\]\.name: '-x' is not a usable name"),
    "a bridge that is none": ([{**PRIVATE, "bridge": "br+"}], [], r"networks\[0\]\.bridge: 'br\+' is not a usable"),
    "a name too long for a bridge": (
        [{**PRIVATE, "name": "a-rather-long-name"}],
        [],
        r"networks\[0\]\.bridge: 'a-rather-long-name0' is 19 characters .* made of the network's name; give one",
    ),
    "two networks on a bridge": (
        [PRIVATE, nat(bridge="closed0")],
        [],
        r"networks\[1\]\.bridge: 'closed0' is also at networks\[0\]\.bridge; a bridge has one network",
    ),
    "a scenario that is none": ([{**PRIVATE, "scenario": "nut"}], [], r"\.scenario: 'nut' is no scenario; choose pri"),
    "a word of another scenario": (
        [{**PRIVATE, "port_forwards": []}],
        [],
        r"networks\[0\]\.port_forwards: \[\] is nothing that a network of scenario private has; it is for nat\.",
    ),
    "a word of two others": ([{**L2, "subnet": "10.1.0.0/24"}], [], r"\.subnet: .* it is for routed and nat\. "),
    "l2 without a card": ([{"name": "out", "scenario": "l2"}], [], r"networks\[0\]\.interface: is missing"),
    "a card of two": ([L2, {**L2, "name": "b", "bridge": "br1"}], [], r"networks\[1\]\.interface: 'eth0' is also at"),
    "a card that is a bridge": ([PRIVATE, {**L2, "interface": "closed0"}], [], r"\.interface: 'closed0' is the bridge"),
    "a subnet with host bits": ([nat(subnet="10.1.0.1/24")], [], r"networks\[0\]\.subnet: '10.1.0.1/24' is not .*bits"),
    "a subnet that is none": ([nat(subnet="here")], [], r"networks\[0\]\.subnet: 'here' is not a network"),
    "a subnet without room": ([nat(subnet="10.1.0.0/31")], [], r"\.subnet: '10.1.0.0/31' has no room"),
    "no subnet": ([nat(subnet="")], [], r"\.subnet: is empty, and there is no subnet6"),
    "a subnet of the other version": ([nat(subnet6="10.3.0.0/24")], [], r"\.subnet6: .* IPv4; write it as subnet\."),
    "a gateway elsewhere": ([nat(gateway="10.9.0.1")], [], r"networks\[0\]\.gateway: '10.9.0.1' is not in the subnet"),
    "a gateway at the end": ([nat(gateway="10.1.0.255")], [], r"\.gateway: '10.1.0.255' is no host address"),
    "two gateways": ([nat(gateway=["10.1.0.1", "10.1.0.2"])], [], r"\.gateway: .* is more than one address"),
    "a gateway without subnet": ([nat(gateway6="fd00::1")], [], r"\.gateway6: 'fd00::1' is in no subnet"),
    "subnets that overlap": (
        [NAT, {**ROUTED, "subnet": "10.1.0.0/16"}],
        [],
        r"networks\[1\]\.subnet: '10.1.0.0/16' overlaps 10.1.0.0/24 of network lan \(networks\[0\]\.subnet\)",
    ),
    "IPv6 subnets that overlap": (
        [nat(subnet6="fd00::/64"), {**ROUTED, "subnet6": "fd00:0::/64"}],
        [],
        r"networks\[1\]\.subnet6: 'fd00::/64' overlaps fd00::/64",
    ),
    "two defaults": (
        [{"name": "a", "scenario": "nat"}, {"name": "b", "scenario": "nat"}],
        [],
        r"networks\[1\]\.subnet: '10.97.0.0/24' overlaps .* It is the scenario's default",
    ),
    "an uplink that is its own": ([nat(uplink="lan0")], [], r"\.uplink: 'lan0' is the network's own bridge"),
    "an option of the bridge": (
        [nat(bridge_options={"mtu": 9})],
        [],
        r"networks\[0\]\.bridge_options\.mtu: 9 is not a usable MTU",
    ),
    "a tap of two": (
        [nat(taps=[{"name": "tap0"}]), {**PRIVATE, "taps": [{"name": "tap0"}]}],
        [],
        r"networks\[1\]\.taps\[0\]\.name: 'tap0' is also at networks\[0\]\.taps\[0\]\.name",
    ),
    "a tap that is a bridge": ([nat(taps=[{"name": "lan0"}])], [], r"\.taps\[0\]\.name: 'lan0' is also at .*\.bridge"),
    "a tap that is none": ([nat(taps=[{"name": "a b"}])], [], r"networks\[0\]\.taps\[0\]\.name: 'a b' is not a usable"),
    "a range outside": (
        [nat(dhcp={"range": {"start": "10.9.0.1", "end": "10.9.0.2"}})],
        [],
        r"networks\[0\]\.dhcp\.range\.start: '10.9.0.1' is outside",
    ),
    "a range backwards": (
        [nat(dhcp={"ranges": [{"start": "10.1.0.9", "end": "10.1.0.2"}]})],
        [],
        r"networks\[0\]\.dhcp\.ranges\[0\]\.end: '10.1.0.2' comes before",
    ),
    "a lease outside": (
        [nat(dhcp={"leases": [{"mac": MAC, "address": "10.9.0.1"}]})],
        [],
        r"networks\[0\]\.dhcp\.leases\[0\]\.address: '10.9.0.1' is outside",
    ),
    "a port of two networks": (
        [
            nat(port_forwards=[forward("80"), forward("8000-8010")]),
            {**NAT, "name": "b", "subnet": "10.3.0.0/24", "port_forwards": [forward("8010", guest_address="10.3.0.2")]},
        ],
        [],
        r"networks\[1\]\.port_forwards\[0\]\.host_port: '8010' \(tcp\) is forwarded by .*\[0\]\.port_forwards\[1\]",
    ),
    "a port twice": ([nat(port_forwards=[forward("80"), forward("80")])], [], r"\.port_forwards\[1\]\.host_port: '80'"),
    "a port that is none": ([nat(port_forwards=[forward("0")])], [], r"networks\[0\]\.port_forwards\[0\]\.host_port"),
    "a forward elsewhere": (
        [nat(port_forwards=[forward("80", guest_address="10.9.0.1")])],
        [],
        r"networks\[0\]\.port_forwards\[0\]\.guest_address: '10.9.0.1' is in none of the network's subnets: 10",
    ),
    "a destination that is none": ([nat(exclude_destinations=["x"])], [], r"\.exclude_destinations: 'x' is not a net"),
    "a port's address": (
        [{**L2, "port_security_options": {"ports": [{"guest": "web", "addresses": ["x"]}]}}],
        [],
        r"networks\[0\]\.port_security_options\.ports\[0\]\.addresses: 'x' is not an address",
    ),
    "a protected address": (
        [{**L2, "port_security_options": {"protected_addresses": ["x"]}}],
        [],
        r"networks\[0\]\.port_security_options\.protected_addresses: 'x'",
    ),
    "a guest twice": (
        [nat(guests=[WEB])],
        [WEB],
        r"guests\[0\]\.name: 'web' is also at networks\[0\]\.guests\[0\]\.name",
    ),
    "a network that is not there": (
        [NAT],
        [web({"network": "lam"})],
        r"guests\[0\]\.nics\[0\]\.network: 'lam' is no network of this host; its networks are: lan\.",
    ),
    "a network that goes": (
        [nat(state="absent")],
        [WEB],
        r"guests\[0\]\.nics\[0\]\.network: 'lan' is to be absent, and the guest web is not",
    ),
    "nowhere": ([NAT], [web({})], r"guests\[0\]\.nics\[0\]: leads nowhere"),
    "two places": (
        [NAT, PRIVATE],
        [web({"network": "lan", "bridge": "closed0"})],
        r"\.bridge: 'closed0' is not that of",
    ),
    "its own network and one of ours": (
        [NAT],
        [web({"user": True, "network": "lan"})],
        r"\.network: 'lan' does not go",
    ),
    "a tap of another network": (
        [nat(taps=[{"name": "tap0"}]), PRIVATE],
        [web({"network": "closed", "tap": "tap0"})],
        r"guests\[0\]\.nics\[0\]\.tap: 'tap0' is a tap of network lan, and the NIC is on closed",
    ),
    "a bridge for a tap": ([NAT], [web({"tap": "lan0"})], r"guests\[0\]\.nics\[0\]\.tap: 'lan0' is the bridge of"),
    "a tap of two guests": (
        [nat(taps=[{"name": "tap0"}])],
        [web({"tap": "tap0"}), {"name": "b", "nics": [{"tap": "tap0"}]}],
        r"guests\[1\]\.nics\[0\]\.tap: 'tap0' is also at guests\[0\]\.nics\[0\]\.tap",
    ),
    "an address outside": (
        [NAT],
        [web({"network": "lan", "address": "10.9.0.1"})],
        r"guests\[0\]\.nics\[0\]\.address: '10.9.0.1' is not in the subnet of network lan, 10.1.0.0/24",
    ),
    "the host's address": ([NAT], [web({"network": "lan", "address": "10.1.0.1"})], r"\.address: .* the host's own"),
    "the subnet's address": ([NAT], [web({"network": "lan", "address": "10.1.0.0"})], r"\.address: .* no host address"),
    "an address that is none": ([NAT], [web({"network": "lan", "address": "10.1.0.5/24"})], r"without prefix length"),
    "an IPv6 address": ([NAT], [web({"network": "lan", "address": "fd00::5"})], r"\.address: 'fd00::5' cannot be leas"),
    "an address nowhere": ([NAT], [web({"bridge": "br9", "address": "10.1.0.5"})], r"\.address: .* belongs to no netw"),
    "an address twice": (
        [PRIVATE],
        [web(*2 * [{"network": "closed", "address": "192.0.2.1"}])],
        r"guests\[0\]\.nics\[1\]\.address: '192.0.2.1' is also at guests\[0\]\.nics\[0\]\.address",
    ),
    "an address of a lease": (
        [nat(dhcp={"leases": [{"mac": MAC, "address": "10.1.0.5"}]})],
        [web({"network": "lan", "address": "10.1.0.5"})],
        r"guests\[0\]\.nics\[0\]\.address: '10.1.0.5' is also at networks\[0\]\.dhcp\.leases\[0\]\.address",
    ),
    "a MAC address twice": (
        [nat(taps=[{"name": "tap0", "mac_address": MAC}])],
        [web({"network": "lan", "mac": "52-54-00-00-00-01"})],
        r"guests\[0\]\.nics\[0\]\.mac: '52:54:00:00:00:01' is also at networks\[0\]\.taps\[0\]\.mac_address",
    ),
    "a MAC address that is none": (
        [NAT],
        [web({"network": "lan", "mac": "x"})],
        r"guests\[0\]\.nics\[0\]\.mac: 'x' is",
    ),
    "a guest's option": ([], [{"name": "web", "memory": "0"}], r"guests\[0\]\.memory: '0' is no memory"),
    "a disk of two": (
        [],
        [{"name": "a", "disks": [{"path": "/d/x"}]}, {"name": "b", "disks": [{"path": "/d//x"}]}],
        r"guests\[1\]\.disks\[0\]\.path: '/d/x' is also the disk at guests\[0\]\.disks\[0\]; two guests",
    ),
    "a disk others are built on": (
        [],
        [{"name": "a", "disks": [{"path": "/d/x"}]}, {"name": "b", "disks": [{"base_image": "/d/x"}]}],
        r"guests\[0\]\.disks\[0\]\.path: '/d/x' is the base image of guests\[1\]\.disks\[0\]",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_cannot_be_right_is_told_by_its_place(case: str) -> None:
    networks, guests, sentence = WRONG[case]
    problems = found(*networks, guests=guests)
    assert len(problems) == 1, problems
    assert re.search(sentence, problems[0]), problems[0]
    assert problems[0].endswith(".")


RIGHT: t.Mapping[str, tuple[t.Sequence[Options], t.Sequence[Options]]] = {
    "the same ports of two addresses of the host": (
        [nat(port_forwards=[forward("80", host_address="192.0.2.1"), forward("80", host_address="192.0.2.2")])],
        [],
    ),
    "a lease for the very card": (
        [nat(dhcp={"leases": [{"mac": MAC.upper(), "address": "10.1.0.5"}]})],
        [web({"network": "lan", "mac": MAC, "address": "10.1.0.5"})],
    ),
    "a CD in two drives": (
        [],
        [{"name": name, "disks": [{"path": "/d/x.iso", "media": "cdrom"}]} for name in ("a", "b")],
    ),
    "two overlays on a base image": (
        [],
        [{"name": name, "disks": [{"base_image": "/d/base.qcow2", "size": "1G"}]} for name in ("a", "b")],
    ),
    "what an absent guest had": ([NAT], [WEB, {"name": "b", "state": "absent", "nics": [{"network": "gone"}]}]),
    "what an absent network had": ([nat(state="absent", subnet="?"), {**ROUTED, "subnet": "10.1.0.0/24"}], []),
    "the same address on two closed networks": (
        [PRIVATE, {**PRIVATE, "name": "other"}],
        [web(*({"network": name, "address": "192.0.2.1"} for name in ("closed", "other")))],
    ),
    "a subnet that ends where another begins": ([NAT, {**ROUTED, "subnet": "10.1.1.0/24"}], []),
}


@pytest.mark.parametrize("case", list(RIGHT))
def test_what_is_right_is_not_told(case: str) -> None:
    networks, guests = RIGHT[case]
    assert found(*networks, guests=guests) == []


def test_everything_is_told_at_once_and_by_the_inventorys_names() -> None:
    places = [f"vmnet_networks[{number}]" for number in range(3)], ["vmnet_guests[0]"]
    inventory = _inventory.read([nat(subnet="x"), PRIVATE, PRIVATE], [web({"network": "y"})], places=places)
    with pytest.raises(InvalidLab) as raised:
        _validation.check(inventory)
    message = str(raised.value)
    assert message.startswith("3 things cannot be right in what is asked of this host. (1) vmnet_networks[2].name: ")
    for place in ("vmnet_networks[0].subnet:", "vmnet_guests[0].nics[0].network:"):
        assert place in message
    assert raised.value.details["problems"] == _validation.problems(inventory)


def test_one_problem_stands_by_itself() -> None:
    with pytest.raises(InvalidLab, match=r"^networks\[0\]\.subnet: 'x' is not a network"):
        _validation.check(_inventory.read([nat(subnet="x")], []))


# Laws

_names = st.sampled_from(["a", "b", "lan", "x" * 20, "-"])
_macs = st.sampled_from([MAC, "52:54:00:00:00:02", "x"])
_subnets = st.sampled_from(["10.1.0.0/24", "10.1.0.0/16", "10.2.0.0/24", "fd00::/64", "10.1.0.0/31", "x", ""])
_addresses = st.sampled_from(["10.1.0.1", "10.1.0.5", "10.1.0.255", "10.2.0.9", "fd00::5", "x", ""])
_interfaces = st.sampled_from(["br0", "a0", "tap0", "tap1", "eth0", "*"])


def _some(**values: st.SearchStrategy[t.Any]) -> st.SearchStrategy[Options]:
    return st.fixed_dictionaries({}, optional=values)


_nics = _some(network=_names, bridge=_interfaces, tap=_interfaces, user=st.booleans(), mac=_macs, address=_addresses)
_guests = st.builds(
    lambda name, more: {**more, "name": name},
    _names,
    _some(
        state=st.sampled_from(["running", "absent"]),
        nics=st.lists(_nics, max_size=2),
        user=st.just("bob"),
        disks=st.lists(_some(path=st.sampled_from(["/x", "/y", "z"]), base_image=st.just("/x")), max_size=2),
    ),
)
_networks = st.builds(
    lambda name, scenario, more: {**more, "name": name, "scenario": scenario},
    _names,
    st.sampled_from(_language.SCENARIOS),
    _some(
        state=st.sampled_from(["present", "absent"]),
        bridge=_interfaces,
        subnet=_subnets,
        gateway=_addresses,
        subnet6=_subnets,
        gateway6=_addresses,
        interface=_interfaces,
        uplink=_interfaces,
        dhcp_enabled=st.booleans(),
        dhcp=_some(
            range=st.fixed_dictionaries({"start": _addresses, "end": _addresses}),
            leases=st.lists(
                _some(address=_addresses, name=_names).map(lambda lease: {"mac": MAC, **lease}), max_size=2
            ),
        ),
        port_forwards=st.lists(
            st.fixed_dictionaries(
                {"host_port": st.sampled_from(["80", "80-90", "x"]), "guest_address": _addresses},
            ),
            max_size=2,
        ),
        bridge_options=_some(mtu=st.sampled_from([1500, 1]), mac_address=_macs),
        taps=st.lists(_some(mac_address=_macs).flatmap(lambda tap: _interfaces.map(lambda n: {**tap, "name": n}))),
        guests=st.lists(_guests, max_size=2),
    ),
)


@given(st.lists(_networks, max_size=3), st.lists(_guests, max_size=2))
def test_whatever_is_written_is_judged_and_what_passes_suits_every_module(
    networks: list[Options], guests: list[Options]
) -> None:
    inventory = _inventory.read(networks, guests, identity="host")
    if _validation.problems(inventory):
        return
    # Of what goes, little is judged: the module that reads the rest of it may refuse it, with a sentence.
    of_networks = [guest for network in networks for guest in network.get("guests") or ()]
    goes = any(each.get("state") == "absent" for each in (*networks, *guests, *of_networks))
    with contextlib.suppress(LabspanError) if goes else contextlib.nullcontext():
        _suits_every_module(inventory)


def _suits_every_module(inventory: _inventory.Inventory) -> None:
    lab = _scenarios.of(inventory)
    _bridge_options.check_list([_bridge_options.wanted_bridge(bridge) for bridge in lab.bridges])
    _rule_options.check_together([_rule_options.asked(rules, "") for rules in lab.rules])
    for server in lab.servers:
        wish = _dnsmasq.read_wish("", server)
        bridges = [bridge for bridge in lab.bridges if bridge["name"] == server["bridge"]]
        if wish.present:
            addresses = _bridge_options.wanted_bridge(bridges[0]).addresses or ()
            _dnsmasq.settle("", wish, addresses, _dnsmasq.Account("nobody", "nogroup"))
    _port_security_options.check_together(
        [_port_security_options.asked(each, "", identity="host") for each in lab.port_security]
    )
    for guest in lab.guests:
        if guest["state"] != "absent":
            _spec.wish(guest, identity="host")


@given(st.lists(_networks, max_size=3), st.lists(_guests, max_size=2))
def test_the_order_in_which_networks_are_written_makes_nothing_right(
    networks: list[Options], guests: list[Options]
) -> None:
    forwards = found(*networks, guests=guests)
    backwards = found(*reversed(networks), guests=guests)
    assert bool(forwards) == bool(backwards), (forwards, backwards)


def test_the_law_meets_hosts_that_are_right() -> None:
    """Its twin: it would hold of a validation that refuses everything."""
    assert found(NAT, ROUTED, PRIVATE, guests=[WEB]) == []
    with pytest.raises(LabspanError):
        _scenarios.of(_inventory.read([nat(subnet="x")], []))
