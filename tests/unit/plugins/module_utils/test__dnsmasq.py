# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What dnsmasq is told follows from the options and the bridge, and what cannot be told is refused with a sentence."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import (
    Account,
    Files,
    Lease,
    bridge_of,
    cut_ranges,
    parse_leases,
    read_wish,
    serves_dns,
    settle,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, LabspanError, Refused
from hypothesis import given
from hypothesis import strategies as st

ACCOUNT = Account("dnsmasq", "nogroup")
WEB = "52:54:00:00:0f:01"
BRIDGE = ("10.97.8.1/24", "fd97:8::1/64", "fe80::1/64")


def rendered(*addresses: str, **options: t.Any) -> Files:
    wish = read_wish("", {"name": "lab", "bridge": "br0", "state": "present", **options})
    return settle("", wish, [ipaddress.ip_interface(address) for address in addresses or BRIDGE], ACCOUNT)


def lines(*addresses: str, **options: t.Any) -> list[str]:
    return rendered(*addresses, **options).configuration.splitlines()


def starting(prefix: str, found: t.Iterable[str]) -> list[str]:
    return [line[len(prefix) :] for line in found if line.startswith(prefix)]


def test_the_whole_configuration() -> None:
    files = rendered(
        domain="Lab.Example.",
        dns_servers=["192.0.2.53", "2001:db8::53"],
        leases=[
            {"mac": WEB.upper(), "address": "10.97.8.7", "name": "Web"},
            {"mac": "52-54-00-00-0f-02", "address": "10.97.8.8"},
            {"mac": "52:54:00:00:0f:03", "name": "guest"},
        ],
        router_advertisements=True,
        options=["option:ntp-server,10.97.8.1"],
        log_dhcp=True,
        log_queries=True,
    )
    assert files.configuration == (
        "# DHCP server of network lab (labspan.vmnet). Changes made here are overwritten.\n"
        "keep-in-foreground\n"
        "pid-file=\n"
        "user=dnsmasq\n"
        "group=nogroup\n"
        "interface=br0\n"
        "except-interface=lo\n"
        "bind-dynamic\n"
        "domain=lab.example\n"
        "no-hosts\n"
        "domain-needed\n"
        "bogus-priv\n"
        "addn-hosts=/var/lib/labspan/dhcp/lab.names\n"
        "expand-hosts\n"
        "local=/lab.example/\n"
        "no-resolv\n"
        "server=192.0.2.53\n"
        "server=2001:db8::53\n"
        "no-ping\n"
        "dhcp-authoritative\n"
        "dhcp-leasefile=/var/lib/labspan/dhcp/lab.leases\n"
        "dhcp-hostsfile=/var/lib/labspan/dhcp/lab.static\n"
        "dhcp-lease-max=256\n"
        "dhcp-range=10.97.8.2,10.97.8.254,255.255.255.0,43200\n"
        "dhcp-option=option:router,10.97.8.1\n"
        "enable-ra\n"
        "dhcp-range=::,constructor:br0,ra-names,slaac,64\n"
        "ra-param=br0,60,0\n"
        "dhcp-option=option:ntp-server,10.97.8.1\n"
        "log-dhcp\n"
        "log-queries\n"
    )
    assert files.reservations == (
        "52:54:00:00:0f:01,10.97.8.7,web\n52:54:00:00:0f:02,10.97.8.8\n52:54:00:00:0f:03,guest\n"
    )
    assert files.names == "10.97.8.7 web\n"


def test_static_leases_are_no_part_of_what_needs_a_restart() -> None:
    lease = {"mac": WEB, "address": "10.97.8.2", "name": "web"}
    assert rendered(leases=[lease]).configuration == rendered().configuration


def test_the_name_of_the_network_is_the_bridges_by_default() -> None:
    assert "interface=lab" in lines(bridge=None)
    with pytest.raises(InvalidInput, match="cannot be a bridge's"):
        read_wish("", {"name": "a-name-of-a-network", "state": "present"})


def test_absent_asks_for_nothing_but_the_name() -> None:
    wish = read_wish("", {"name": "a-name-of-a-network", "state": "absent", "lease_time": "nonsense"})
    assert not wish.present


@pytest.mark.parametrize(
    ("addresses", "options", "ranges"),
    [
        (["10.97.8.1/24"], {}, ["10.97.8.2,10.97.8.254,255.255.255.0"]),
        (
            ["192.168.6.10/24"],
            {},
            ["192.168.6.1,192.168.6.9,255.255.255.0", "192.168.6.11,192.168.6.254,255.255.255.0"],
        ),
        (["10.97.8.254/24"], {"gateway": "10.97.8.1"}, ["10.97.8.2,10.97.8.253,255.255.255.0"]),
        (["10.97.8.1/30"], {}, ["10.97.8.2,10.97.8.2,255.255.255.252"]),
        (["10.0.0.1/16"], {"gateway": "none"}, ["10.0.0.2,10.0.255.254,255.255.0.0"]),
        (["10.97.8.1/24", "10.97.9.1/24"], {}, ["10.97.8.2,10.97.8.254,255.255.255.0"]),
        (
            ["10.97.8.1/24", "10.97.9.1/24"],
            {"range": {"start": "10.97.9.5", "end": "10.97.9.6"}},
            ["10.97.9.5,10.97.9.6,255.255.255.0"],
        ),
        (
            ["10.97.8.1/24"],
            {"range": {"start": "10.97.8.1", "end": "10.97.8.9"}, "gateway": "10.97.8.5"},
            ["10.97.8.2,10.97.8.4,255.255.255.0", "10.97.8.6,10.97.8.9,255.255.255.0"],
        ),
        (["10.97.8.1/24"], {"ranges": []}, ["10.97.8.0,static,255.255.255.0"]),
    ],
)
def test_ranges_leave_out_the_bridge_and_the_gateway(
    addresses: list[str], options: dict[str, t.Any], ranges: list[str]
) -> None:
    assert starting("dhcp-range=", lines(*addresses, **options)) == [f"{found},43200" for found in ranges]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("120", "120"), ("10m", "600"), ("12H", "43200"), ("2d", "172800"), ("1w", "604800"), ("infinite", "infinite")],
)
def test_lease_times(written: str, seconds: str) -> None:
    assert lines(lease_time=written, range={"start": "10.97.8.2", "end": "10.97.8.3"})[-2].endswith(f",{seconds}")


@pytest.mark.parametrize(
    ("gateway", "announced"),
    [(None, ["option:router,10.97.8.1"]), ("none", ["option:router"]), ("10.97.8.9", ["option:router,10.97.8.9"])],
)
def test_the_gateway(gateway: str | None, announced: list[str]) -> None:
    assert starting("dhcp-option=", lines(gateway=gateway)) == announced


def test_dns_forwards_to_the_hosts_resolvers_unless_told_otherwise() -> None:
    assert "no-resolv" not in lines()
    assert "no-resolv" in lines(dns_servers=[])
    assert starting("server=", lines(dns_servers=["192.0.2.53"])) == ["192.0.2.53"]


def test_without_dns_the_servers_are_announced() -> None:
    found = lines(dns=False, dns_servers=["192.0.2.53", "2001:db8::53"], domain="lab", router_advertisements=True)
    assert "port=0" in found
    assert "domain=lab" in found
    assert "option:dns-server,192.0.2.53" in starting("dhcp-option=", found)
    assert "option6:dns-server,[2001:db8::53]" in starting("dhcp-option=", found)
    assert "::,constructor:br0,ra-only,64" in starting("dhcp-range=", found)
    assert not starting("server=", found)


def test_a_default_route_is_advertised_only_when_asked() -> None:
    assert starting("ra-param=", lines(router_advertisements=True)) == ["br0,60,0"]
    assert starting("ra-param=", lines(router_advertisements=True, ipv6_default_route=True)) == ["br0,60,1800"]
    assert not starting("enable-ra", lines(ipv6_default_route=True))


def test_a_network_may_have_ipv6_only() -> None:
    found = lines("fd97:8::1/64", router_advertisements=True)
    assert starting("dhcp-range=", found) == ["::,constructor:br0,ra-names,slaac,64"]
    assert not starting("dhcp-leasefile=", found)


def test_the_host_is_heard_on_the_bridge_only() -> None:
    for found in (lines(), lines(dns=False), lines("fd97:8::1/64", router_advertisements=True)):
        assert {"interface=br0", "except-interface=lo", "bind-dynamic", "no-hosts", "keep-in-foreground"} <= set(found)


LEASE = {"mac": WEB, "address": "10.97.8.7", "name": "web"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "../x"}, "name: '../x' is not a usable name"),
        ({"bridge": "v+"}, "bridge: 'v+'"),
        ({"bridge": "x" * 16}, "16 characters"),
        ({"lease_time": "soon"}, "lease_time: 'soon' is not a time"),
        ({"lease_time": "119"}, "lease_time: '119' is outside of 120 seconds"),
        ({"lease_time": "200w" * 2}, "is not a time"),
        ({"domain": "a b"}, "domain: 'a b'"),
        ({"domain": "x/y"}, "domain: 'x/y'"),
        ({"domain": "lab\nport=0"}, "domain: "),
        ({"dns_servers": ["example.com"]}, "dns_servers: 'example.com' is not an IP address"),
        ({"gateway": "fd97:8::1"}, "gateway: 'fd97:8::1' is an IPv6 address"),
        ({"gateway": "10.97.9.1"}, "gateway: '10.97.9.1' is no host address"),
        ({"gateway": "10.97.8.255"}, "gateway: '10.97.8.255' is no host address"),
        ({"options": [""]}, "options: ''"),
        ({"options": ["6,1\nport=0"]}, "is not a DHCP option"),
        ({"range": {"start": "10.97.8.9", "end": "10.97.8.2"}}, "range.end: '10.97.8.2' comes before"),
        ({"range": {"start": "10.97.9.1", "end": "10.97.9.2"}}, "range.start: '10.97.9.1' is outside of the subnet"),
        ({"range": {"start": "10.97.8.2", "end": "10.97.9.2"}}, "range.end: '10.97.9.2' is outside of the subnet"),
        ({"range": {"start": "10.97.8.2", "end": "10.97.8.255"}}, "range.end: '10.97.8.255' is the subnet's broadcast"),
        ({"range": {"start": "10.97.8.0", "end": "10.97.8.9"}}, "range.start: '10.97.8.0' is the subnet's own"),
        ({"range": {"start": "a", "end": "b"}}, "range.start: 'a' is not an IP address"),
        (
            {"ranges": [{"start": "10.97.8.2", "end": "10.97.8.9"}, {"start": "10.97.8.9", "end": "10.97.8.10"}]},
            "'10.97.8.9' is also in the range",
        ),
        ({"range": {"start": "10.97.8.2", "end": "10.97.8.9"}, "ranges": []}, "is given beside ranges"),
        ({"leases": [{"mac": WEB}]}, "has neither address nor name"),
        ({"leases": [{**LEASE, "mac": "52:54"}]}, "leases[0].mac: '52:54' is not a MAC address"),
        ({"leases": [{**LEASE, "mac": "01:00:5e:00:00:01"}]}, "multicast"),
        ({"leases": [{**LEASE, "name": "web.lab"}]}, "leases[0].name: 'web.lab' is not a host name"),
        ({"leases": [{**LEASE, "name": "a,b"}]}, "is not a host name"),
        ({"leases": [{**LEASE, "address": "10.97.9.7"}]}, "leases[0].address: '10.97.9.7' is outside of the subnet"),
        ({"leases": [{**LEASE, "address": "10.97.8.0"}]}, "is the subnet's own"),
        ({"leases": [{**LEASE, "address": "10.97.8.1"}]}, "is bridge br0's own address"),
        ({"leases": [{**LEASE, "address": "10.97.8.9"}], "gateway": "10.97.8.9"}, "is the gateway's address"),
        ({"leases": [{**LEASE, "address": "fd97:8::7"}]}, "is an IPv6 address"),
        (
            {"leases": [LEASE, {"mac": WEB, "name": "b"}]},
            "leases[1].mac: '52:54:00:00:0f:01' is also that of",
        ),
        (
            {"leases": [LEASE, {"mac": "52:54:00:00:0f:02", "address": "10.97.8.7"}]},
            "leases[1].address: '10.97.8.7' is also that of leases[0]",
        ),
        (
            {"leases": [LEASE, {"mac": "52:54:00:00:0f:02", "name": "WEB"}]},
            "leases[1].name: 'web' is also that of leases[0]",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_option(options: dict[str, t.Any], complaint: str) -> None:
    with pytest.raises(LabspanError) as refusal:
        rendered(**options)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("addresses", "options", "complaint"),
    [
        (["fe80::1/64"], {}, "has no IPv4 address"),
        (["10.97.8.1/31"], {}, "has no room for a guest"),
        (["10.97.8.1/24", "fe80::1/64"], {"router_advertisements": True}, "found: none"),
        (["10.97.8.1/24", "fd97::1/56"], {"router_advertisements": True}, "found: fd97::/56"),
        (["fd97:8::1/64"], {"router_advertisements": True, "leases": [LEASE]}, "has no IPv4 address"),
    ],
)
def test_a_bridge_that_cannot_be_served_is_refused(
    addresses: list[str], options: dict[str, t.Any], complaint: str
) -> None:
    with pytest.raises((InvalidInput, Refused), match=complaint):
        rendered(*addresses, **options)


@given(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted),
    st.sets(st.integers(0, 60)),
)
def test_cut_ranges_hold_exactly_what_is_not_taken(limits: list[int], taken: set[int]) -> None:
    start, end = (ipaddress.IPv4Address(number) for number in limits)
    found = cut_ranges([(start, end)], {ipaddress.IPv4Address(number) for number in taken})
    held = [number for first, last in found for number in range(int(first), int(last) + 1)]
    assert held == [number for number in range(limits[0], limits[1] + 1) if number not in taken]
    assert all(int(later[0]) - int(earlier[1]) > 1 for earlier, later in zip(found, found[1:]))


def test_a_configuration_tells_what_it_is_for() -> None:
    assert bridge_of(rendered().configuration) == "br0"
    assert bridge_of("# nothing\n") is None
    assert serves_dns(rendered().configuration)
    assert not serves_dns(rendered(dns=False).configuration)
    assert not serves_dns("")


def test_leases_are_read_by_address_and_without_dhcpv6() -> None:
    text = (
        "1900000000 52:54:00:00:00:0A 10.9.0.70 * 01:52:54:00:00:00:0a\n"
        "0 52:54:00:00:00:01 10.9.0.7 web *\n"
        "\n"
        "duid 00:01:00:01:2d:00:00:00:52:54:00:00:00:01\n"
        "1900000000 12345 fd00::7 web 00:01:00:01\n"
    )
    assert parse_leases(text) == [
        Lease("52:54:00:00:00:01", "10.9.0.7", "web", None),
        Lease("52:54:00:00:00:0a", "10.9.0.70", None, "2030-03-17T17:46:40Z"),
    ]
    assert parse_leases("") == []
