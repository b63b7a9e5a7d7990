# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What names the card is found in what programs print, and nothing else is taken for it."""

from __future__ import annotations

import json
import textwrap
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import parse
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _mentions
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._mentions import Mention, Names

ETH0 = Names("eth0", "br0")


@pytest.mark.parametrize(
    ("word", "bridge", "so"),
    [
        ("eth0", "br0", True),
        ("eth00", "br0", False),
        ("eth", "br0", False),
        ("eth*", "br0", True),
        ("eth+", "br0", True),
        ("e*", "br0", True),
        ("*", "", True),
        ("*", "br0", False),
        ("+", "br0", False),
        ("eth*", "ethbr", False),
        ("eth0*", "ethbr", True),
        ("eth\\*", "br0", False),
        ("ens*", "br0", False),
        ("", "br0", False),
    ],
)
def test_a_word_means_the_card_by_name_or_by_a_wildcard_that_leaves_out_the_bridge(
    word: str, bridge: str, so: bool
) -> None:
    assert Names("eth0", bridge).has(word) is so


def ruleset(rule: str, *, family: str = "inet", table: str = "t", block: str = "chain", name: str = "c") -> str:
    return textwrap.dedent(f"""\
        table {family} {table} {{
        \t{block} {name} {{
        \t\t{rule}
        \t}}
        }}
        """)


@pytest.mark.parametrize(
    "rule",
    [
        'iifname "eth0" tcp dport 22 accept',
        'oifname "eth0" masquerade',
        'oifname != "eth0" drop',
        'iif "eth0" accept',
        'iifname "eth*" accept',
        'iifname { "lo", "eth0" } accept',
        'iifname vmap { "eth0" : accept, "eth1" : drop }',
        'iifname . tcp dport { "eth0" . 22 } accept',
        'fib saddr oifname "eth0" accept',
        'meta sdifname "eth0" accept',
        'iifname "eth0" comment "the uplink"',
    ],
)
def test_rules_of_nftables_that_name_the_card_are_found(rule: str) -> None:
    (mention,) = _mentions.in_ruleset(ruleset(rule), ETH0)
    assert mention.where == "nftables, table inet t, chain c"
    assert mention.what == rule
    assert not mention.ours
    assert mention.sentence == (
        "nftables, table inet t, chain c names eth0, and packets come in and go out on br0 after the move: "
        f"{rule}. Have it name br0 as well, or accept it with accept_risk: true."
    )


@pytest.mark.parametrize(
    "rule",
    [
        'iifname "eth1" accept',
        'iifname "br0" accept',
        'tcp dport 22 accept comment "eth0"',
        'iifname "lo" log prefix "eth0" accept',
        "fib saddr . iif oif missing drop",
        "ip saddr 192.0.2.0/24 accept",
    ],
)
def test_rules_of_nftables_that_do_not_name_it_are_not(rule: str) -> None:
    assert _mentions.in_ruleset(ruleset(rule), ETH0) == []


@pytest.mark.parametrize(
    ("block", "line", "what"),
    [
        ("set", 'elements = { "lo", "eth0" }', "eth0"),
        ("set", '"eth0", "eth1" }', "eth0"),
        ("set", 'elements = { "eth*" }', "eth*"),
        ("map", 'elements = { "eth0" : drop }', "eth0"),
        ("flowtable", "devices = { eth0, eth1 }", "eth0"),
        ("flowtable", 'devices = { "eth0", "eth1" }', "eth0"),
    ],
)
def test_elements_of_sets_and_devices_of_flowtables_are_found(block: str, line: str, what: str) -> None:
    (mention,) = _mentions.in_ruleset(ruleset(line, block=block, name="s"), ETH0)
    assert (mention.where, mention.what) == (f"nftables, table inet t, {block} s", what)


@pytest.mark.parametrize(
    "line",
    [
        'type filter hook ingress device "eth0" priority filter; policy accept;',
        "type filter hook ingress devices = { eth0, eth1 } priority filter; policy accept;",
        'dup to "eth0"',
    ],
)
def test_a_chain_at_the_wire_is_told_as_one_that_sees_the_guests_too(line: str) -> None:
    (mention,) = _mentions.in_ruleset(ruleset(line, family="netdev"), ETH0)
    assert "the guests' packets as well" in mention.sentence


def test_rules_about_bridged_frames_name_a_port_and_stay_right() -> None:
    assert _mentions.in_ruleset(ruleset('iifname "eth0" drop', family="bridge"), ETH0) == []


def test_rules_of_our_networks_are_marked_and_told_once_for_each_network() -> None:
    text = (
        "table inet labspan_lab {\n"
        "\tchain forwarding {\n"
        '\t\tiifname "br-lab" oifname "eth0" accept comment "labspan.vmnet:lab"\n'
        "\t}\n"
        "\tchain translation {\n"
        '\t\toifname "eth0" masquerade comment "labspan.vmnet:lab"\n'
        "\t}\n"
        "}\n"
    )
    (mention,) = _mentions.in_ruleset(text, ETH0)
    assert mention.ours
    assert mention.where == "nftables, table inet labspan_lab"
    assert "belongs to the network lab" in mention.sentence
    assert "out_interface: br0" in mention.sentence


def test_many_rules_of_one_chain_are_one_mention_with_examples() -> None:
    rules = "".join(f'\t\tiifname "eth0" tcp dport {port} accept\n' for port in range(1, 12))
    (mention,) = _mentions.in_ruleset("table inet t {\n\tchain c {\n" + rules + "\t}\n}\n", ETH0)
    assert mention.what.count("tcp dport") == 3
    assert mention.what.endswith("; and 8 more")


def test_what_ufw_and_firewalld_have_told_is_not_told_again() -> None:
    ufw = ruleset('iifname "eth0" accept', table="filter", name="ufw-user-input")
    firewalld = ruleset('iifname "eth0" goto filter_IN_public', table="firewalld")
    assert len(_mentions.in_ruleset(ufw + firewalld, ETH0)) == 2
    assert _mentions.in_ruleset(ufw + firewalld, ETH0, told=["ufw-", "firewalld"]) == []


def in_table(*lines: str) -> list[Mention]:
    saved = parse("\n".join(["*filter", ":INPUT ACCEPT [0:0]", *lines, "COMMIT"]))
    return _mentions.in_table("iptables-legacy, table filter", saved, ETH0)


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -i eth0 -p tcp -m tcp --dport 22 -j ACCEPT",
        "-A INPUT -i eth+ -j ACCEPT",
        "-A INPUT ! -i eth0 -j DROP",
        "-A INPUT -o eth0 -j ACCEPT",
    ],
)
def test_rules_of_iptables_that_name_the_card_are_found(line: str) -> None:
    (mention,) = in_table(line)
    assert mention.where == "iptables-legacy, table filter, chain INPUT"
    assert "names eth0" in mention.sentence


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -i eth1 -j ACCEPT",
        "-A INPUT -m physdev --physdev-in eth0 -j ACCEPT",
        '-A INPUT -m comment --comment "-i eth0" -j ACCEPT',
        "-A INPUT -s 192.0.2.0/24 -j ACCEPT",
    ],
)
def test_rules_of_iptables_that_do_not_name_it_are_not(line: str) -> None:
    assert in_table(line) == []


def test_our_chains_of_iptables_are_marked() -> None:
    (mention,) = in_table('-A LABSPAN-lab-nat -o eth0 -m comment --comment "labspan.vmnet:lab" -j MASQUERADE')
    assert mention.ours
    assert "belongs to the network lab" in mention.sentence


def test_a_table_that_nobody_can_read_is_told() -> None:
    (mention,) = _mentions.in_table("ip6tables-legacy, table filter", None, ETH0)
    assert "may have rules that name eth0" in mention.sentence


UFW = """\
*filter
### RULES ###

### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in_{0} comment=73736820
-A ufw-user-input -i {0} -p tcp --dport 22 -j ACCEPT

### tuple ### route:allow any any 0.0.0.0/0 any 0.0.0.0/0 in_lab0!out_{0}
-A ufw-user-forward -i lab0 -o {0} -j ACCEPT

### tuple ### allow any 53 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p tcp --dport 53 -j ACCEPT
COMMIT
"""


def test_rules_of_ufw_are_found_once_each() -> None:
    (mention,) = _mentions.in_ufw({"/etc/ufw/user.rules": UFW.format("eth0")}, ETH0)
    assert mention.where == "ufw, /etc/ufw/user.rules"
    assert mention.what.split("; ") == [
        "allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in_eth0",
        "route:allow any any 0.0.0.0/0 any 0.0.0.0/0 in_lab0!out_eth0",
    ]
    assert _mentions.in_ufw({"/etc/ufw/user.rules": UFW.format("eth1")}, ETH0) == []


def test_what_somebody_wrote_into_ufws_files_is_found() -> None:
    text = "*nat\n# -A POSTROUTING -o eth0\n-A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE\nCOMMIT\n"
    (mention,) = _mentions.in_ufw({"/etc/ufw/before.rules": text}, ETH0)
    assert mention.what == "-A POSTROUTING -s 10.0.0.0/8 -o eth0 -j MASQUERADE"


@pytest.mark.parametrize(
    ("zone", "bridge_zone", "told"),
    [
        ("", "", ""),
        ("public", "", ""),
        ("", "public", ""),
        ("external", "external", ""),
        ("external", "", "external"),
        ("", "internal", "public"),
    ],
)
def test_a_zone_of_firewalld_is_told_where_the_bridge_would_be_in_another(
    zone: str, bridge_zone: str, told: str
) -> None:
    mentions = _mentions.in_firewalld(zone, bridge_zone, "public", ETH0)
    assert bool(mentions) is bool(told)
    assert all(f"--zone={told} --add-interface=br0" in mention.sentence for mention in mentions)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (['iifname "eth0" accept', 'iifname "br0" accept'], []),
        (['iifname { "eth0", "br0" } accept'], []),
        (['iifname "eth*" accept', 'iifname "br0" accept'], []),
        (['iifname "eth0" accept', 'iifname "br0" drop'], ['iifname "eth0" accept']),
        (['iifname "eth0" accept', 'oifname "br0" accept'], ['iifname "eth0" accept']),
        (['iifname "eth0" tcp dport 22 accept', 'iifname "eth0" drop', 'iifname "br0" drop'], None),
    ],
)
def test_a_rule_with_the_bridge_beside_the_card_is_right_already(rules: list[str], told: t.Optional[list[str]]) -> None:
    text = "table inet t {\n\tchain c {\n" + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}\n}\n"
    found = [mention.what for mention in _mentions.in_ruleset(text, ETH0)]
    assert found == (told if told is not None else [rules[0]])
    assert _mentions.in_ruleset(text, Names("eth0")), "without a bridge's name nothing covers it"


def test_a_set_with_the_bridge_beside_the_card_is_right_already() -> None:
    assert _mentions.in_ruleset(ruleset('elements = { "eth0", "br0" }', block="set"), ETH0) == []


def test_twins_with_the_bridge_count_in_iptables_and_ufw_as_well() -> None:
    card, bridge = (f"-A INPUT -i {name} -p tcp -m tcp --dport 22 -j ACCEPT" for name in ("eth0", "br0"))
    assert in_table(card, bridge) == []
    assert len(in_table(card, bridge.replace("22", "23"))) == 1
    both = UFW.format("eth0") + UFW.format("br0")
    assert _mentions.in_ufw({"/etc/ufw/user.rules": both}, ETH0) == []
    assert _mentions.in_ufw({"/etc/ufw/before.rules": f"{card}\n{bridge}\n"}, ETH0) == []


def test_filters_of_traffic_control_are_found_and_a_mere_hook_is_not() -> None:
    filters = json.dumps([{"protocol": "ip", "pref": 1, "kind": "u32", "chain": 0}, {"kind": "u32", "options": {}}])
    (mention,) = _mentions.in_traffic_control(filters, "[]", ETH0)
    assert (mention.where, mention.what) == ("traffic control, ingress of eth0", "u32")
    assert _mentions.in_traffic_control("[]", "", ETH0) == []
    assert _mentions.in_traffic_control("", json.dumps([{"kind": "bpf"}]), ETH0)[0].where.startswith(
        "traffic control, egress"
    )


def test_an_xdp_program_is_found() -> None:
    link: dict[str, t.Any] = {"ifname": "eth0", "xdp": {"mode": 1, "prog": {"id": 42}}}
    (mention,) = _mentions.in_link(json.dumps([link]), ETH0)
    assert (mention.where, mention.what) == ("XDP on eth0", "program 42")
    assert _mentions.in_link(json.dumps([{"ifname": "eth0"}]), ETH0) == []
    assert _mentions.in_link(json.dumps([{**link, "ifname": "eth1"}]), ETH0) == []
    assert _mentions.in_link("", ETH0) == []


@pytest.mark.parametrize(
    ("line", "what", "program"),
    [
        (
            'tcp LISTEN 0      128    0.0.0.0%eth0:80 0.0.0.0:* users:(("nginx",pid=5,fd=3),("nginx",pid=6,fd=3))',
            "tcp 0.0.0.0 port 80",
            "nginx",
        ),
        (
            'udp UNCONN 0      0            *%eth0:67       *:* users:(("dnsmasq",pid=5,fd=4))',
            "udp * port 67",
            "dnsmasq",
        ),
        ('tcp LISTEN 0 128 [fe80::10]%eth0:22 [::]:* users:(("sshd",pid=5,fd=4))', "tcp [fe80::10] port 22", "sshd"),
        ("udp UNCONN 0 0 0.0.0.0%eth0:111 0.0.0.0:*", "udp 0.0.0.0 port 111", "a program"),
    ],
)
def test_services_bound_to_the_card_are_found(line: str, what: str, program: str) -> None:
    (mention,) = _mentions.in_sockets(line, ETH0)
    assert (mention.where, mention.what) == (program, what)
    assert "is bound to eth0" in mention.sentence


@pytest.mark.parametrize(
    "line",
    [
        'udp UNCONN 0 0 0.0.0.0%eth0:68 0.0.0.0:* users:(("dhclient",pid=5,fd=4))',
        'udp UNCONN 0 0 192.0.2.10%eth0:68 0.0.0.0:* users:(("systemd-network",pid=5,fd=4))',
        'tcp ESTAB 0 0 [fe80::10]%eth0:22 [fe80::7]%eth0:50022 users:(("sshd",pid=5,fd=4))',
        'tcp LISTEN 0 128 0.0.0.0%eth1:80 0.0.0.0:* users:(("nginx",pid=5,fd=3))',
        'tcp LISTEN 0 128 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=5,fd=3))',
        "",
    ],
)
def test_dhcp_clients_connections_and_other_sockets_are_not(line: str) -> None:
    assert _mentions.in_sockets(line, ETH0) == []


def test_packet_sockets_for_one_protocol_are_found_and_those_for_all_are_not() -> None:
    text = (
        'p_raw UNCONN 0 0 *:eth0 * users:(("tcpdump",pid=5,fd=6))\n'
        'p_dgr UNCONN 0 0 [2054]:eth0 * users:(("arpwatch",pid=6,fd=6))\n'
        'p_raw UNCONN 0 0 ip:eth0 * users:(("dhclient",pid=7,fd=6))\n'
        'p_raw UNCONN 0 0 [35020]:eth0 * users:(("lldpd",pid=8,fd=6))\n'
        'p_raw UNCONN 0 0 arp:eth1 * users:(("arpwatch",pid=6,fd=6))\n'
    )
    (mention,) = _mentions.in_packet_sockets(text, ETH0)
    assert (mention.where, mention.what) == ("arpwatch", "packets of ARP")


def test_a_mention_says_the_bridge_where_its_name_is_not_known() -> None:
    (mention,) = _mentions.in_ruleset(ruleset('iifname "eth0" accept'), Names("eth0"))
    assert "go out on the bridge after the move" in mention.sentence
