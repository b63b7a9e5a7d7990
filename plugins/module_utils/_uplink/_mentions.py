# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who names the network card: firewall rules, traffic control, XDP, sockets. After the move it is not where IP is.

A firewall keyed on the card lets every old connection live and refuses each new one as soon as the bridge has the
addresses. So these are found and told beforehand, but for those that have the bridge beside the card already. Rules
about bridged frames (nftables' family bridge, ebtables, physdev) name the card as a port and go on to be right.
Daemons' own configuration is not searched, and C(ip rule) is the mover's.

Finding is reading and changes nothing; what programs print is parsed by pure functions.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import OWN_PREFIX, Options, Saved
from ansible_collections.labspan.vmnet.plugins.module_utils._links import OWNER_PREFIX

# As many examples of one place as a sentence can carry.
_EXAMPLES = 3
_LONGEST = 160

_OWN_TABLES = "labspan_"

_UFW = "/etc/ufw"
_UFW_FILES = ("user.rules", "user6.rules", "before.rules", "before6.rules", "after.rules", "after6.rules")

# What runs the card is handed over by its manager (see _manager.py).
_HANDED_OVER = frozenset(
    [
        *("NetworkManager", "systemd-network", "systemd-networkd", "dhclient", "dhcpcd", "udhcpc", "dhcp6c", "odhcp6c"),
        *("connmand", "wicked", "wickedd-dhcp4", "wickedd-dhcp6"),
    ]
)
# Of these a port's own sockets hear as before: all, and what is for this link alone (LLC, LLDP, 802.1X, LACP).
_HEARD_ON_PORTS = ("*", "[4]", "[35020]", "[34958]", "[34825]")
_PROTOCOLS = {"[2048]": "IPv4", "ip": "IPv4", "[2054]": "ARP", "arp": "ARP", "[34525]": "IPv6", "ipv6": "IPv6"}

_QUOTED = re.compile(r'"([^"]*)"')
_FREE_TEXT = re.compile(r'\b(comment|prefix|group-name|user-agent) "[^"]*"')
_DEVICES = re.compile(r"\bdevices = \{([^}]*)\}")
_BLOCK = re.compile(r"\t(chain|set|map|flowtable) (\S+) \{")
_TUPLE = "### tuple ###"


@dataclasses.dataclass(frozen=True)
class Mention:
    """One place that names the card."""

    where: str
    """Such as C(nftables, table inet filter, chain input)."""
    what: str
    """The rules or elements themselves."""
    consequence: str
    remedy: str
    ours: bool = False
    """A rule of a network of this collection that goes out through the card."""

    @property
    def sentence(self) -> str:
        """For the administrator."""
        return f"{self.where} {self.consequence}: {self.what}. {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Names:
    """Which words mean the card and not the bridge: the name, and wildcards that leave out the bridge."""

    interface: str
    bridge: str = ""

    def has(self, word: str) -> bool:
        """Whether the word, in the writing of nftables (C(eth*)) or iptables (C(eth+)), means the card."""
        if word[-1:] in ("*", "+") and word[-2:-1] != "\\":
            prefix = word[:-1]
            return self.interface.startswith(prefix) and not (self.bridge and self.bridge.startswith(prefix))
        return word == self.interface

    @property
    def new(self) -> str:
        """The bridge, in a sentence."""
        return self.bridge or "the bridge"


def find(interface: str, bridge: str = "") -> list[Mention]:
    """Everything that names the card, one mention for each place, ours last; C(bridge) is what it moves to."""
    names = Names(interface, bridge)
    ruleset = _survey.ruleset()
    found = in_ufw(_read_ufw(), names)
    told = ["ufw-", "ufw6-"] if found else []
    if _run("firewall-cmd", "--state"):
        told.append("firewalld")
        default_zone = _run("firewall-cmd", "--get-default-zone").strip()
        found += in_firewalld(_zone(interface), _zone(bridge) if bridge else "", default_zone, names)
    found += in_ruleset(ruleset or "", names, told=told)
    for table in _survey.xtables(with_nft=ruleset is None):
        found += in_table(table.where, table.content, names, told=told)
    found += in_traffic_control(*_filters(interface), names)
    found += in_link(_run("ip", "-d", "-j", "link", "show", "dev", interface), names)
    found += in_sockets(_run("ss", "-H", "-a", "-n", "-p", "-t", "-u", "-w"), names)
    found += in_packet_sockets(_run("ss", "-H", "-a", "-n", "-p", "-0"), names)
    return sorted(found, key=lambda mention: mention.ours)


# Firewalls


def in_ruleset(text: str, names: Names, *, told: t.Collection[str] = ()) -> list[Mention]:
    """Those in what nft lists; C(told) are beginnings of tables and chains that a mention of their maker covers."""
    family = table = ""
    place = ("", "", "", "")
    lines: dict[tuple[str, str, str, str], list[str]] = {}
    for line in text.splitlines():
        begun = _BLOCK.match(line)
        if line.startswith("table "):
            family, table = line.split()[1:3]
        elif begun:
            block, name = begun.groups() if not table.startswith(_OWN_TABLES) else ("", "")
            place = (family, table, block, name)
        elif not (family == "bridge" or table.startswith(tuple(told)) or place[3].startswith(tuple(told))):
            lines.setdefault(place, []).append(line.strip())
    found = []
    for (family, table, block, name), all_lines in lines.items():
        naming = [line for line in all_lines if any(names.has(word) for word in _words(line))]
        if block in ("", "chain"):
            # A hook on the card itself sees what it saw, whatever is hooked to the bridge.
            naming = [line for line in naming if family == "netdev" or not _has_bridge_too(line, all_lines, names)]
        else:
            elements = [word for line in all_lines for word in _words(line)]
            naming = [word for word in elements if names.has(word) and names.bridge not in elements]
        if naming:
            found.append(_of_ruleset(family, table, block, name, naming, names))
    return found


def _has_bridge_too(line: str, lines: t.Collection[str], names: Names) -> bool:
    """Whether the rule has the bridge beside the card, or a twin with the bridge in the card's place."""

    def exchanged(quoted: re.Match[str]) -> str:
        return f'"{names.bridge}"' if names.has(quoted.group(1)) else quoted.group()

    twin = _QUOTED.sub(exchanged, line)
    return bool(names.bridge) and (names.bridge in _words(line) or (twin != line and twin in lines))


def _words(line: str) -> list[str]:
    """The words of a line that could name an interface; devices of hooks are not quoted by every nft."""
    line = _FREE_TEXT.sub("", line)
    bare = [word.strip().strip('"') for group in _DEVICES.findall(line) for word in group.split(",")]
    return _QUOTED.findall(_DEVICES.sub("", line)) + bare


def _of_ruleset(family: str, table: str, block: str, name: str, lines: list[str], names: Names) -> Mention:
    where = f"nftables, table {family} {table}" + (f", {block} {name}" if name else "")
    network = next((found for found in map(_network_of, lines) if found), "")
    if table.startswith(_OWN_TABLES) or name.startswith(OWN_PREFIX):
        return _ours(where, network or table[len(_OWN_TABLES) :], lines, names)
    if family == "netdev":
        return _at_the_wire(where, lines, names)
    return _by_name(where, lines, names)


def in_table(where: str, content: t.Optional[Saved], names: Names, *, told: t.Collection[str] = ()) -> list[Mention]:
    """Those in a table of iptables or arptables."""
    if content is None:
        return [
            Mention(
                where,
                "no program of the host reads it",
                f"may have rules that name {names.interface}",
                "Install the package iptables (Debian's name) to have it looked at, or accept it: accept_risk: true.",
            )
        ]
    found = []
    for chain, rules in content.rules.items():
        lines = [_rule(rule) for rule in rules if _exchanged(rule, names) not in rules]
        if not lines or chain.startswith(tuple(told)):
            continue
        place = f"{where}, chain {chain}"
        if chain.startswith(OWN_PREFIX):
            network = next((_network_of(line) for line in lines if _network_of(line)), "")
            found.append(_ours(place, network, lines, names))
        else:
            found.append(_by_name(place, lines, names))
    return found


def _exchanged(rule: Options, names: Names) -> Options:
    """The rule with the bridge in the card's place: itself where it does not name the card."""
    return tuple(
        (option, names.new if option.lstrip("!") in ("-i", "-o") and names.has(value) else value)
        for option, value in rule
    )


def _rule(rule: Options) -> str:
    return " ".join(f"{option.replace('!', '! ')} {value}".strip() for option, value in rule)


def in_ufw(files: t.Mapping[str, str], names: Names) -> list[Mention]:
    """Those in ufw's rules: its own as it notes them down, and those that somebody wrote into its files."""
    found = []
    for path, text in files.items():
        own = path.endswith(("user.rules", "user6.rules"))
        rules = [_ufw_rule(line, own) for line in text.splitlines()]
        lines = [" ".join(rule) for rule in rules if [_ufw_exchanged(word, names) for word in rule] not in rules]
        if lines:
            found.append(_by_name(f"ufw, {path}", lines, names))
    return found


def _ufw_rule(line: str, own: bool) -> list[str]:
    """The words of a rule; none for any other line."""
    words = line.split()
    if own and line.startswith(_TUPLE):
        return [word for word in words[3:] if not word.startswith("comment=")]
    return words if not own and line.startswith(("-A ", "-I ")) else []


def _ufw_exchanged(word: str, names: Names) -> str:
    """The word with the bridge in the card's place; ufw writes C(in_eth0!out_eth1)."""
    parts = []
    for part in word.split("!"):
        direction, underscore, interface = part.rpartition("_")
        named = direction in ("", "in", "out") and names.has(interface)
        parts.append(f"{direction}{underscore}{names.new if named else interface}")
    return "!".join(parts)


def in_firewalld(zone: str, bridge_zone: str, default_zone: str, names: Names) -> list[Mention]:
    """The zone that the card was put into; what is in none is in the default one."""
    zone, bridge_zone = zone or default_zone, bridge_zone or default_zone
    if zone == bridge_zone:
        return []
    return [
        Mention(
            "firewalld",
            f"zone {zone}",
            f"has {names.interface} in one zone, and {names.new} in another ({bridge_zone})",
            f"Put the bridge into the same zone (firewall-cmd --zone={zone} --add-interface={names.new}, and the same "
            "with --permanent), or accept it with accept_risk: true.",
        )
    ]


# Traffic control, XDP and sockets


def in_traffic_control(ingress: str, egress: str, names: Names) -> list[Mention]:
    """Filters on what comes in and goes out, as C(tc -j filter show) lists them."""
    found = []
    for direction, text in (("ingress", ingress), ("egress", egress)):
        kinds = sorted({entry["kind"] for entry in _json(text) if "kind" in entry})
        if kinds:
            found.append(_at_the_wire(f"traffic control, {direction} of {names.interface}", kinds, names))
    return found


def in_link(text: str, names: Names) -> list[Mention]:
    """An XDP program, as C(ip -j link show) lists it."""
    programs = [entry["xdp"] for entry in _json(text) if entry.get("ifname") == names.interface and entry.get("xdp")]
    described = [f"program {found.get('prog', {}).get('id', '?')}" for found in programs]
    return [_at_the_wire(f"XDP on {names.interface}", described, names)] if described else []


def in_sockets(text: str, names: Names) -> list[Mention]:
    """Services bound to the card, as C(ss) lists them; connections over link-local addresses look alike."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=6)
        if len(fields) < 6 or fields[1] not in ("LISTEN", "UNCONN"):
            continue
        address, percent, rest = fields[4].rpartition("%")
        interface, _colon, port = rest.rpartition(":")
        if percent and interface == names.interface:
            found.append((f"{fields[0]} {address or '*'} port {port}", _program(fields[6:])))
    return _bound(found, names)


def in_packet_sockets(text: str, names: Names) -> list[Mention]:
    """Packet sockets on the card that hear one protocol: on a port they hear nothing, other than those for all."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=6)
        if len(fields) < 5:
            continue
        protocol, _colon, interface = fields[4].rpartition(":")
        if interface == names.interface and protocol not in _HEARD_ON_PORTS:
            found.append((f"packets of {_PROTOCOLS.get(protocol, protocol)}", _program(fields[5:])))
    return _bound(found, names)


def _program(fields: t.Sequence[str]) -> str:
    named = re.search(r'users:\(\("([^"]*)"', " ".join(fields))
    return named.group(1) if named else "a program"


def _bound(found: t.Iterable[tuple[str, str]], names: Names) -> list[Mention]:
    return [
        Mention(
            program,
            socket,
            f"is bound to {names.interface}, which receives nothing for IP once it is a bridge's port",
            f"Bind it to {names.new} after the move; accept it with accept_risk: true.",
        )
        for socket, program in dict.fromkeys(found)
        if program not in _HANDED_OVER
    ]


# Sentences


def _by_name(where: str, lines: t.Sequence[str], names: Names) -> Mention:
    return Mention(
        where,
        _examples(lines),
        f"names {names.interface}, and packets come in and go out on {names.new} after the move",
        f"Have it name {names.new} as well, or accept it with accept_risk: true.",
    )


def _at_the_wire(where: str, lines: t.Sequence[str], names: Names) -> Mention:
    return Mention(
        where,
        _examples(lines),
        f"works on what passes {names.interface}, which is the guests' packets as well after the move",
        "See that this is what you want, then accept it with accept_risk: true.",
    )


def _ours(where: str, network: str, lines: t.Sequence[str], names: Names) -> Mention:
    return Mention(
        where,
        _examples(lines),
        f"belongs to the network {network} of labspan.vmnet and sends its guests out through {names.interface}, where "
        "no IP goes out after the move",
        f"Run that network's task again after the move, with out_interface: {names.new} or auto; until then its guests "
        "have no way out. Accept that with accept_risk: true.",
        ours=True,
    )


def _network_of(line: str) -> str:
    found = re.search(rf"{re.escape(OWNER_PREFIX)}([A-Za-z0-9_.-]+)", line)
    return found.group(1) if found else ""


def _examples(lines: t.Sequence[str]) -> str:
    short = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in lines[:_EXAMPLES]]
    more = len(lines) - len(short)
    return "; ".join(short) + (f"; and {more} more" if more else "")


# Reading


def _read_ufw() -> dict[str, str]:
    """The files of a ufw that is switched on."""
    if not re.search(r"^ENABLED=[\"']?yes", _read(f"{_UFW}/ufw.conf"), re.MULTILINE):
        return {}
    return {f"{_UFW}/{name}": _read(f"{_UFW}/{name}") for name in _UFW_FILES}


def _zone(interface: str) -> str:
    return _run("firewall-cmd", f"--get-zone-of-interface={interface}").strip()


def _filters(interface: str) -> tuple[str, str]:
    return (
        _run("tc", "-j", "filter", "show", "dev", interface, "ingress"),
        _run("tc", "-j", "filter", "show", "dev", interface, "egress"),
    )


def _run(name: str, *arguments: str) -> str:
    """What the program prints; nothing where it is missing or has nothing to say."""
    program = _deps.find_program(name)
    if program is None:
        return ""
    done = _commands.run([program, *arguments])
    return done.stdout if not done.returncode else ""


def _json(text: str) -> list[dict[str, t.Any]]:
    return t.cast("list[dict[str, t.Any]]", json.loads(text)) if text.strip() else []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
