# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""ifupdown: the card's stanzas in /etc/network/interfaces become the bridge's, in the one file in which they are.

The bridge is made by C(ip) in lines of our own rather than by C(bridge_ports): they need no package, they are the same
when the bridge is there already, and the bridge is not removed at ifdown, so that its guests' taps stay ports while
the network is restarted.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import ipaddress
import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _dhcp_clients
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import Step, WriteFile

INTERFACES = "/etc/network/interfaces"
_PROGRAMS = ("/sbin/ifup", "/usr/sbin/ifup")
_CLOUD_INIT = "/etc/cloud/cloud.cfg.d/99-labspan-network.cfg"
_CLOUD_INIT_OFF = (
    "# Written by labspan.vmnet: the network of this host is not cloud-init's any more.\nnetwork: {config: disabled}\n"
)
#: At the end of the lines that are ours.
MARK = "# labspan.vmnet"

_STANZAS = re.compile(
    r"(iface|mapping|auto|allow-\S+|no-auto-down|no-scripts|source|source-directory|source-dir|template|rename)$"
)
# Lines that name interfaces to be brought up, or not to be touched: the bridge goes where the card went.
_LISTS = ("auto", "allow-auto", "no-auto-down", "no-scripts")
_DEPTH = 5

# Options of the card itself, which are nothing to a bridge.
_OF_CARD = re.compile(
    r"(hwaddress|mtu|link-.*|ethernet-.*|offload-.*|hardware-.*|flow-control-.*|driver-message-level)$"
)
_OF_OTHER_KINDS = re.compile(r"(bridge[-_]|bond[-_]|slaves|vlan[-_]|wpa-|wireless-|ovs_|vrf|vxlan|tunnel)")
_HOOKS = {"up", "pre-up", "post-up", "down", "pre-down", "post-down"}
# Commands for the card: they stay with it.
_CARD_COMMANDS = re.compile(r"(?:\S*/)?(ethtool|mii-tool|tc)\s|(?:\S*/)?ip\s+(-\S+\s+)*l(i(n(k)?)?)?\s")
# Commands about addresses and routes: in them the bridge's name takes the place of the card's.
_IP_COMMANDS = re.compile(
    r"(?:\S*/)?(ip\s+(-\S+\s+)*(a|r|n|ru)\w*\s|route\s|sysctl\s|(echo|printf)\s.*>\s*/proc/sys/net/ipv[46]/)"
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A stanza and what follows it up to the next one, comments and empty lines included."""

    lines: tuple[str, ...]
    """Each with its line end; one that is continued by a backslash is one."""

    @property
    def words(self) -> list[str]:
        """Of the first line; none before the first stanza of a file."""
        words = _words(self.lines[0]) if self.lines else []
        return words if words and _STANZAS.match(words[0]) else []

    @property
    def interface(self) -> t.Optional[str]:
        """Which one an C(iface) stanza is about."""
        return self.words[1] if self.words[:1] == ["iface"] and len(self.words) > 1 else None


def parse(text: str) -> list[Block]:
    """The file as its stanzas; joined they are the file again."""
    blocks: list[list[str]] = [[]]
    for line in re.findall(r"(?:[^\n]*\\\n)*[^\n]*\n|(?:[^\n]*\\\n)*[^\n]+$", text):
        words = _words(line)
        if words and _STANZAS.match(words[0]):
            blocks.append([])
        blocks[-1].append(line)
    return [Block(tuple(lines)) for lines in blocks if lines]


def _words(line: str) -> list[str]:
    return [] if line.lstrip().startswith("#") else line.replace("\\\n", " ").split()


def concerns(text: str, name: str) -> bool:
    """Whether the file has a stanza for the interface."""
    return any(block.interface == name for block in parse(text))


def transform(text: str, move: Move) -> str:
    """The file in which the bridge has what the card had; the same file when it is so already.

    Raises Refused for what cannot be made the bridge's without knowing what was meant.
    """
    blocks = parse(text)
    _refuse_others(blocks, move)
    if any(MARK in line for block in blocks if block.interface == move.bridge for line in block.lines):
        return "".join(_lists(_renewed(blocks, move), move))
    if any(block.interface == move.bridge for block in blocks):
        raise Refused(
            f"the file has a stanza for {move.bridge} already, which labspan.vmnet did not write. Take it out."
        )
    return "".join(_lists(_converted(blocks, move), move))


def _refuse_others(blocks: t.Sequence[Block], move: Move) -> None:
    card = move.interface
    for block in blocks:
        words = block.words
        line = block.lines[0].strip()
        if words[:1] in (["mapping"], ["rename"], ["template"]) and any(_names(word, card) for word in words[1:]):
            raise Refused(f"'{line}' chooses by itself what {card} is. Write a plain 'iface {card}' stanza.")
        if "inherits" in words[2:] and (block.interface == card or words[-1] == card):
            raise Refused(f"'{line}' inherits, which cannot be taken apart. Write out what it inherits.")
        if words[:1] == ["iface"] and words[1:2] != [card] and len(words) > 1 and _is_pattern_for(words[1], card):
            raise Refused(f"'{line}' is for more interfaces than {card}. Write a stanza for {card} alone.")
        if _is_list(words) and card in words[1:] and any(_options(block)):
            raise Refused(f"'{next(iter(_options(block)))[0]} ...' stands below '{line}', in no stanza. Mend the file.")
        if _is_list(words):
            for word in words[1:]:
                if word != card and (_is_pattern_for(word, card) or word.startswith(f"{card}=")):
                    raise Refused(f"'{line}' takes {card} by a pattern or under another name. Name {card} itself.")
        elif words[:1] and words[0].startswith("allow-") and card in words[1:]:
            raise Refused(f"'{line}' lets another program bring up {card}. Use auto {card}.")
        name = block.interface or ""
        if name.startswith(f"{card}."):
            raise Refused(
                f"'{line}' is a VLAN on {card}, which would have to become one on {move.bridge}. Move it first."
            )
        for option, value in _options(block):
            if name not in {card, move.bridge} and _OF_OTHER_KINDS.match(option) and card in value.split():
                raise Refused(f"{name} is built on {card} ('{option} {value}').")


def _is_pattern_for(word: str, card: str) -> bool:
    pattern = word.split("=")[0].rpartition("/")[2]
    return any(sign in pattern for sign in "*?[") and fnmatch.fnmatchcase(card, pattern)


def _names(word: str, card: str) -> bool:
    return word == card or _is_pattern_for(word, card)


def _options(block: Block) -> t.Iterator[tuple[str, str]]:
    for line in block.lines[1:]:
        words = line.replace("\\\n", " ").strip().split(None, 1) if _words(line) else []
        if words:
            yield words[0], words[1] if len(words) > 1 else ""


# The first time


def _converted(blocks: t.Sequence[Block], move: Move) -> list[Block]:
    slots = [block for block in blocks if (block.interface or "").split(":")[0] == move.interface]
    if not any(block.interface == move.interface for block in slots):
        raise Refused(f"the file has no stanza for {move.interface}.")
    split = [_split(block, move) for block in slots]
    of_card = _once([line for stays, _goes in split for line in stays])
    setup = _Setup(move)
    wanted = setup.into(_addressed([goes for _stays, goes in split], move))
    result = _placed(blocks, slots, wanted)
    place = next(index for index, block in enumerate(result) if block is wanted[0])
    result.insert(place, Block((*setup.card_lines(of_card), "\n")))
    return result


def _placed(blocks: t.Sequence[Block], slots: t.Sequence[Block], wanted: t.Sequence[Block]) -> list[Block]:
    """The file with the stanzas that are wanted where the old ones were; what is left over after the last of them."""
    result: list[Block] = []
    rest, left = list(wanted), len(slots)
    for block in blocks:
        if not any(block is slot for slot in slots):
            result.append(block)
            continue
        left -= 1
        count = 1 if left else len(rest)
        result += rest[:count]
        del rest[:count]
    return result


def _once(lines: t.Sequence[str]) -> list[str]:
    """An option that both families had, once."""
    return list(dict.fromkeys(lines))


def _tail(block: Block) -> tuple[str, ...]:
    """Comments and empty lines after the last option: they are the next stanza's."""
    last = max(index for index, line in enumerate(block.lines) if _words(line))
    return block.lines[last + 1 :]


def _split(block: Block, move: Move) -> tuple[list[str], Block]:
    """The lines that stay with the card, and the stanza as the bridge's."""
    card, bridge = move.interface, move.bridge
    head = re.sub(rf"^(\s*iface\s+){re.escape(card)}(?=[\s:])", rf"\g<1>{bridge}", block.lines[0])
    stays: list[str] = []
    goes = [head]
    for line in block.lines[1:]:
        words = _words(line)
        if not words:
            goes.append(line)
            continue
        option, value = words[0], line.replace("\\\n", " ").strip()[len(words[0]) :].strip()
        if option in _HOOKS:
            (stays if _is_for_card(value, card) else goes).append(
                line if _is_for_card(value, card) else _renamed(line, option, value, move)
            )
        elif _OF_OTHER_KINDS.match(option):
            raise Refused(f"{card} has '{option} {value}': it is not a plain Ethernet card.")
        else:
            (stays if _OF_CARD.match(option) else goes).append(line)
    return stays, Block(tuple(goes))


def _is_for_card(command: str, card: str) -> bool:
    return bool(_CARD_COMMANDS.match(command) and _mentions(command, card))


def _mentions(command: str, card: str) -> bool:
    return bool(re.search(rf"{_named(card)}|\$IFACE\b|\${{IFACE}}", command))


def _named(card: str) -> str:
    """A pattern for the card by itself, and in the dotted name of a setting of the kernel's."""
    name = re.escape(card)
    return rf"(?<![\w.-]){name}(?![\w.-])|(?<=\.conf\.){name}(?=\.)|(?<=\.neigh\.){name}(?=\.)"


def _renamed(line: str, option: str, value: str, move: Move) -> str:
    if not _mentions(value, move.interface):
        return line
    if not _IP_COMMANDS.match(value):
        raise Refused(
            f"'{option} {value}' names {move.interface}, and may mean the card or its addresses. Take it out."
        )
    return re.sub(_named(move.interface), move.bridge, line)


# Again


def _renewed(blocks: t.Sequence[Block], move: Move) -> list[Block]:
    setup = _Setup(move)
    slots = [block for block in blocks if (block.interface or "").split(":")[0] == move.bridge]
    wanted = setup.into(_addressed([_unmarked(block) for block in slots], move))
    return [
        _card_again(block, setup) if block.interface == move.interface else block
        for block in _placed(blocks, slots, wanted)
    ]


def _unmarked(block: Block) -> Block:
    return Block(tuple(line for line in block.lines if MARK not in line))


def _card_again(block: Block, setup: _Setup) -> Block:
    tail = _tail(block)
    body = block.lines[1 : len(block.lines) - len(tail)]
    return Block((*setup.card_lines([line for line in body if MARK not in line]), *tail))


# What the stanzas are


def _addressed(blocks: t.Sequence[Block], move: Move) -> list[Block]:
    """The bridge's stanzas with the addresses that are wanted; as they are for C(move)."""
    if move.mode == "move":
        return list(blocks)
    ipv6 = [block for block in blocks if block.words[2:3] == ["inet6"] and block.words[3:] != ["dhcp"]]
    kept = [block.lines[: len(block.lines) - len(_tail(block))] for block in ipv6 if move.mode == "dhcp"]
    made = [*_generated(move), *kept]
    tails = [_tail(block) for block in blocks]
    tails = [*tails[: len(made) - 1], tuple(line for tail in tails[len(made) - 1 :] for line in tail)]
    tails += [()] * (len(made) - len(tails))
    return [
        Block((*_ended(lines), *_spaced(tail, last=index == len(made) - 1)))
        for index, (lines, tail) in enumerate(zip(made, tails))
    ]


def _spaced(tail: tuple[str, ...], *, last: bool) -> tuple[str, ...]:
    return tail if last or any(not line.strip() for line in tail) else ("\n", *tail)


def _generated(move: Move) -> t.Iterator[tuple[str, ...]]:
    if move.mode == "dhcp":
        yield (f"iface {move.bridge} inet dhcp\n",)
        return
    addresses = [ipaddress.ip_interface(address) for address in move.addresses] if move.mode == "static" else []
    if not any(address.version == 4 for address in addresses):
        yield (f"iface {move.bridge} inet manual\n",)
    gateways = {ipaddress.ip_address(gateway).version: gateway for gateway in reversed(move.gateways)}
    dns = move.dns
    for address in sorted(addresses, key=lambda each: each.version):
        family = "inet" if address.version == 4 else "inet6"
        lines = [f"iface {move.bridge} {family} static\n", f"    address {address.with_prefixlen}\n"]
        gateway = gateways.pop(address.version, None)
        if gateway is not None:
            lines.append(f"    gateway {gateway}\n")
        if dns:
            lines.append(f"    dns-nameservers {' '.join(dns)}\n")
            dns = ()
        yield tuple(lines)


class _Setup:
    """The lines that are ours."""

    def __init__(self, move: Move) -> None:
        self.move = move

    def into(self, blocks: t.Sequence[Block]) -> list[Block]:
        """The bridge's stanzas with what makes the bridge in the first of them."""
        leased = any(block.words[2:4] == ["inet", "dhcp"] for block in blocks)
        place = next(index for index, block in enumerate(blocks) if block.interface == self.move.bridge)
        head, *rest = blocks[place].lines
        made = Block((*_ended([head]), *self._bridge_lines(leased=leased), *rest))
        return [*blocks[:place], made, *blocks[place + 1 :]]

    def _bridge_lines(self, *, leased: bool) -> t.Iterator[str]:
        card, bridge = self.move.interface, self.move.bridge
        mtu = f" mtu {self.move.mtu}" if self.move.mtu != _USUAL_MTU else ""
        delay = round(self.move.forward_delay * 100)
        options = f"stp_state {int(self.move.stp)} forward_delay {delay} mcast_snooping 0"
        pid_file, leases = _dhcp_clients.run_pid_file(bridge), _dhcp_clients.run_lease_file(bridge)
        end_client = f"[ ! -e {pid_file} ] || dhclient -4 -x -pf {pid_file} -lf {leases} {bridge} || true"
        # The bridge may be there with everything on it, which ifup takes for an error.
        commands = (
            f"[ -e /sys/class/net/{bridge} ] || ip link add name {bridge} address {self.move.mac}{mtu} "
            f"type bridge {options}",
            *([end_client] if leased else []),
            f"ip link set dev {bridge} down",
            f"ip address flush dev {bridge}",
            f"ip link set dev {card} master {bridge}",
            f"ip link set dev {card} up",
        )
        for command in commands:
            yield f"    pre-up {command} {MARK}\n"

    def card_lines(self, options: t.Sequence[str]) -> t.Iterator[str]:
        """The card's own stanza: a port that has no addresses."""
        yield f"iface {self.move.interface} inet manual\n"
        switch = f"/proc/sys/net/ipv6/conf/{self.move.interface}/disable_ipv6"
        yield f"    pre-up [ ! -e {switch} ] || echo 1 > {switch} {MARK}\n"
        yield from _ended(options)
        if self.move.mtu != _USUAL_MTU and not any(_words(line)[:1] == ["mtu"] for line in options):
            yield f"    mtu {self.move.mtu} {MARK}\n"


_USUAL_MTU = 1500


def _ended(lines: t.Sequence[str]) -> list[str]:
    return [line if line.endswith("\n") else f"{line}\n" for line in lines]


def _lists(blocks: t.Sequence[Block], move: Move) -> t.Iterator[str]:
    """The text of the stanzas, with the bridge in the lists in which the card is."""
    card, bridge = move.interface, move.bridge
    automatic = any(block.words[:1] in (["auto"], ["allow-auto"]) and card in block.words[1:] for block in blocks)
    for block in blocks:
        words, lines = block.words, block.lines
        if words and words[0] in _LISTS and card in words[1:]:
            names = _with(words[1:], card, bridge)
            yield from _list_line(block, names)
        elif words[:1] == ["allow-hotplug"] and card in words[1:]:
            yield from _list_line(block, [name for name in words[1:] if name != card and name != bridge])
        else:
            if block.interface == card and not automatic:
                automatic = True
                yield f"auto {card} {bridge}\n"
            yield from lines


def _with(names: t.Sequence[str], card: str, bridge: str) -> list[str]:
    """The names with the bridge after the card; the card's other labels become the bridge's."""
    result: list[str] = []
    for name in names:
        if name == card:
            result += [card, bridge]
        elif name.startswith(f"{card}:"):
            result.append(bridge + name[len(card) :])
        elif name != bridge:
            result.append(name)
    return result


def _list_line(block: Block, names: t.Sequence[str]) -> t.Iterator[str]:
    if list(names) == block.words[1:]:
        yield from block.lines
        return
    if names:
        yield f"{block.words[0]} {' '.join(names)}\n"
    yield from block.lines[1:]


# Reading


def read_files(path: str = INTERFACES, depth: int = 0) -> dict[str, str]:
    """The file with those that it takes in, each with its text; files that are not there are not an error."""
    text = _dhcp_clients.read(path)
    if not text:
        return {}
    found = {path: text}
    for block in parse(text) if depth < _DEPTH else ():
        for taken in _sourced(block.words, os.path.dirname(path)):
            found.update(read_files(taken, depth + 1))
    return found


def _sourced(words: t.Sequence[str], directory: str) -> t.Iterator[str]:
    if words[:1] == ["source"]:
        for pattern in words[1:]:
            yield from sorted(filter(os.path.isfile, glob.glob(os.path.join(directory, pattern))))
    elif words[:1] in (["source-directory"], ["source-dir"]):
        for pattern in words[1:]:
            for folder in sorted(glob.glob(os.path.join(directory, pattern))):
                names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
                yield from (os.path.join(folder, name) for name in names if re.fullmatch(r"[A-Za-z0-9_-]+", name))


class Ifupdown(Manager):
    """ifupdown with the DHCP clients that it starts."""

    name = "ifupdown"

    def __init__(self) -> None:
        self._clients = _dhcp_clients.Clients()

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        refusal = self._clients.refusal(move)
        if refusal or not persistent or move.back:
            return refusal
        if os.path.exists("/usr/share/ifupdown2") or os.path.exists("/etc/network/ifupdown2"):
            return (
                f"persistent: {move.interface} is configured by ifupdown2, for which labspan.vmnet writes no files. "
                "Set persistent: false and write the bridge into its configuration yourself."
            )
        holders = _holders(move)
        if len(holders) != 1:
            return (
                f"persistent: {move.interface} has lines in {' and '.join(holders)}, and several files cannot be "
                "changed at once. Write them into one."
            )
        for path, text in holders.items():
            try:
                transform(text, move)
            except Refused as error:
                return f"persistent: {path}: {error} Or set persistent: false."
        return None

    def leases(self, interface: str) -> bool:
        return self._clients.leases(interface)

    def before(self, move: Move) -> t.Sequence[Step]:
        return self._clients.before(move)

    def after(self, move: Move) -> t.Sequence[Step]:
        return self._clients.after(move)

    def files(self, move: Move) -> t.Sequence[WriteFile]:
        holders = _holders(move)
        if len(holders) != 1:
            return ()
        ((path, text),) = holders.items()
        try:
            wanted = transform(text, move)
        except Refused:
            return ()
        files = [*self._lease_files(move, wanted)]
        if _is_of_cloud_init(path, text):
            files.append(WriteFile(_CLOUD_INIT, _CLOUD_INIT_OFF))
        return [*files, WriteFile(path, wanted, os.stat(path).st_mode & 0o7777)]

    def _lease_files(self, move: Move, wanted: str) -> t.Iterator[WriteFile]:
        """The lease under the bridge's name, for the dhclient that ifup starts: without it the host is a new client."""
        if not any(block.words[1:4] == [move.bridge, "inet", "dhcp"] for block in parse(wanted)):
            return
        path, old = boot_lease_file(move.bridge), boot_lease_file(move.interface)
        there, booted = _dhcp_clients.read(path), _dhcp_clients.read(old)
        wanted_identity = _dhcp_clients.identity(booted)
        candidates = [
            _dhcp_clients.carry(_dhcp_clients.read(_dhcp_clients.lease_file(client)), name, move.bridge)
            for name in (move.bridge, move.interface)
            for client in self._clients.of(name)
            if client.program == "dhclient"
        ]
        candidates = [there, *candidates, _dhcp_clients.carry(booted, move.interface, move.bridge)]
        for text in candidates:
            if text and (wanted_identity is None or _dhcp_clients.identity(text) == wanted_identity):
                yield WriteFile(path, text)
                return


def boot_lease_file(interface: str) -> str:
    """Where the dhclient that ifup starts keeps its leases."""
    return f"/var/lib/dhcp/dhclient.{interface}.leases"


def _holders(move: Move) -> dict[str, str]:
    """The files with stanzas of the card or of the bridge."""
    return {
        path: text
        for path, text in read_files().items()
        if _lists_or_configures(text, move.interface) or _lists_or_configures(text, move.bridge)
    }


def _lists_or_configures(text: str, name: str) -> bool:
    return any(block.interface == name or (_is_list(block.words) and name in block.words[1:]) for block in parse(text))


def _is_list(words: t.Sequence[str]) -> bool:
    return bool(words) and words[0] in {*_LISTS, "allow-hotplug"}


def _is_of_cloud_init(path: str, text: str) -> bool:
    return os.path.basename(path) == "50-cloud-init" or "datasource" in text.split("\niface", 1)[0]


def find(interface: str) -> t.Optional[Manager]:
    """ifupdown, when it has a stanza for the interface."""
    if not any(map(os.path.exists, _PROGRAMS)):
        return None
    return Ifupdown() if any(concerns(text, interface) for text in read_files().values()) else None
