# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What speaks against making a network card a bridge's port, found before anything is changed.

Facts are gathered by reading alone; what they mean is pure: refusals, which stop the task, and warnings.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import re
import socket
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps, _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _iptables, _nft
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import World
from ansible_collections.labspan.vmnet.plugins.module_utils._links import owner_of
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _namespaces
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._namespaces import Child

# Whose two ends name each other as what is below.
_PAIRS = ("veth", "netkit", "vxcan")
_RECEIVERS = ("macvlan", "macvtap", "ipvlan", "ipvtap")
# Ports that lead to a network; a tap or veth leads to a guest.
_CARDS = ("", "bond", "team", "vlan")
_WHAT_CANNOT = {
    "bridge": "is a bridge itself, and the kernel puts no bridge into a bridge. Give the card that is its port",
    "tun": "is a tun or tap device: a guest's or a VPN's end, not a way to a network. Give the network card",
    "macvlan": "is a macvlan: it hears only what is sent to its own address. Give the card below it",
    "macvtap": "is a macvtap: it hears only what is sent to its own address. Give the card below it",
    "ipvlan": "is an ipvlan: it hears only what is sent to its own address. Give the card below it",
    "ipvtap": "is an ipvtap: it hears only what is sent to its own address. Give the card below it",
    "vrf": "is a VRF and no network card. Give the card",
}
_MASTERS = {
    "bond": "a part of the bond {master}, which has the addresses. Give interface: {master}",
    "team": "a part of the team {master}, which has the addresses. Give interface: {master}",
    "bridge": "a port of the bridge {master} already. Give bridge: {master}, or take it out of there first",
    "vrf": "in the VRF {master}, and an interface has one master only. Take it out of there first",
}

# Bridges that a program makes and removes as it likes.
_OTHERS_BRIDGES = (
    (re.compile(r"docker\d+|br-[0-9a-f]{12}|docker_gwbridge"), "Docker"),
    (re.compile(r"virbr\d+"), "libvirt"),
    (re.compile(r"(cni-)?podman\d+"), "Podman"),
    (re.compile(r"lxcbr\d+"), "LXC"),
    (re.compile(r"lxdbr\d+"), "LXD"),
    (re.compile(r"incusbr\d+"), "Incus"),
    (re.compile(r"cni\d+|cbr\d+"), "Kubernetes"),
    (re.compile(r"ovs-system|br-int"), "Open vSwitch"),
)

# Where frames with a foreign sender's address are dropped on their way out of the machine.
_NO_SWITCH = "There is no switch for it: use a nat or routed network."
_ASK = "Switch the check off for this port, if the provider lets you, or use a nat or routed network."
_HYPER_V = "Allow it for the machine's card: Set-VMNetworkAdapter -MacAddressSpoofing On (Azure has no such switch)."
_VMWARE = "Allow promiscuous mode and forged transmits in the port group."
_OPENSTACK = "Switch port security off for its port, or list the guests as allowed address pairs."
_ASSET_TAGS = {"7783-7084-3265-9085-8269-3286-77": "in Azure", "OracleCloud.com": "in Oracle's cloud"}
# The card's driver; or how the names of the vendor and the product begin; where that is; what to do.
_PLATFORMS = (
    ("mana", "", "", "in Azure", _NO_SWITCH),
    ("hv_netvsc", "Microsoft Corporation", "Virtual Machine", "under Hyper-V", _HYPER_V),
    ("vmxnet3", "VMware", "", "under VMware", _VMWARE),
    ("", "innotek GmbH", "", "under VirtualBox", "Set the adapter's promiscuous mode to Allow All."),
    ("ena", "Amazon EC2", "", "in Amazon EC2", _NO_SWITCH),
    ("gve", "Google", "Google Compute Engine", "in Google's cloud", _NO_SWITCH),
    ("", "OpenStack", "", "under OpenStack", _OPENSTACK),
    ("", "Red Hat", "OpenStack", "under OpenStack", _OPENSTACK),
    *(("", name, "", f"at {name}", _ASK) for name in ("DigitalOcean", "Hetzner", "Vultr", "Linode", "Akamai")),
    *(("", name, "", f"at {name}", _ASK) for name in ("Scaleway", "UpCloud", "Exoscale")),
    *(("", name, "", f"in {name}", _NO_SWITCH) for name in ("Alibaba Cloud", "Tencent Cloud", "Huawei Cloud")),
)

_SIOCETHTOOL = 0x8946
_ETHTOOL_GFLAGS = 0x25
_LRO = 1 << 15


@dataclasses.dataclass(frozen=True)
class LinkFact:
    """What matters here of one interface."""

    name: str
    medium: str = "ether"
    """The kind of its addresses, as C(ip) names it; C(ether) is Ethernet."""
    kind: str = ""
    flags: frozenset[str] = frozenset({"UP", "LOWER_UP"})
    master: str = ""
    master_kind: str = ""
    parent: str = ""
    """The interface of this namespace that it is made on (C(eth0.10@eth0))."""
    underlay: str = ""
    """The interface that a tunnel is bound to."""
    alias: str = ""
    other_names: tuple[str, ...] = ()
    stp: bool = False


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the firmware says of the machine, and what drives the card."""

    vendor: str = ""
    product: str = ""
    asset_tag: str = ""
    driver: str = ""


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that the judgement needs."""

    interface: str
    bridge: str
    links: tuple[LinkFact, ...]
    network: str = ""
    """Whose the bridge may be; empty for the network with the bridge's name."""
    wireless: bool = False
    lro: bool = False
    elsewhere: tuple[Child, ...] = ()
    """What other network namespaces have on the card."""
    nexthops: tuple[int, ...] = ()
    """Numbers of the nexthop objects that lead through the card."""
    authenticators: tuple[str, ...] = ()
    """What makes us think that the switch wants 802.1X: command lines and files."""
    dropping: tuple[str, ...] = ()
    """Chains of the host's IP firewall that see what passes a bridge (br_netfilter) and drop what no rule accepts."""
    machine: Machine = Machine()

    def link(self, name: str) -> t.Optional[LinkFact]:
        """The interface with this name."""
        return next((link for link in self.links if link.name == name), None)

    def ports(self, bridge: str) -> list[LinkFact]:
        """The ports of a bridge."""
        return [link for link in self.links if link.master == bridge]


# Judgement


def refusals(facts: Facts, *, force: bool = False) -> list[str]:
    """Why the card cannot become the bridge's port: what was found, and what to do. Empty when nothing is in the way.

    C(force) takes over a bridge that belongs to another network of this collection or has another program's name.
    """
    card = facts.link(facts.interface)
    if card is None:
        return [_missing(facts), *_of_the_bridge(facts, force)]
    return [
        *_of_the_card(facts, card),
        *_of_what_hangs_on_it(facts),
        *_of_the_bridge(facts, force),
    ]


def warnings(facts: Facts) -> list[str]:
    """What the administrator should know although it stops nothing."""
    found = []
    if facts.lro:
        found.append(
            f"interface: {facts.interface} has large receive offload on, which the kernel switches off for a bridge's "
            f"port; with some drivers the card loses its link for some seconds then. Switch it off beforehand "
            f"(ethtool -K {facts.interface} lro off)."
        )
    foreign = _drops_foreign_macs(facts.machine)
    if foreign:
        found.append(
            f"interface: {facts.interface} is the card of a machine {foreign[0]}, where frames from MAC addresses "
            f"other than its own are usually dropped: the host goes on to work, its guests reach nothing. {foreign[1]}"
        )
    if facts.dropping:
        found.append(
            f"The host's firewall sees what passes the bridge (net.bridge.bridge-nf-call-iptables is on), and "
            f"{_enumeration(facts.dropping)} drops what no rule accepts: that cuts off the guests unless one accepts "
            f"what comes in and goes out on {facts.bridge} (with Docker: iptables -I DOCKER-USER -i {facts.bridge} "
            f"-o {facts.bridge} -j ACCEPT; with ufw: ufw route allow in on {facts.bridge} out on {facts.bridge})."
        )
    return found


def _missing(facts: Facts) -> str:
    named = [link.name for link in facts.links if facts.interface in link.other_names]
    if named:
        return f"interface: {facts.interface} is another name of {named[0]}. Give interface: {named[0]}."
    cards = [link.name for link in facts.links if link.medium == "ether" and not link.kind]
    here = f"this host has {', '.join(cards)}" if cards else "this host has no network card"
    return f"interface: there is no {facts.interface}; {here}. Give the card that leads to the network."


def _of_the_card(facts: Facts, card: LinkFact) -> t.Iterator[str]:
    name = f"interface: {card.name}"
    if facts.interface == facts.bridge:
        yield f"bridge: {facts.bridge} is the name of the card itself. Give the bridge a name of its own."
    elif card.kind in _WHAT_CANNOT:
        yield f"{name} {_WHAT_CANNOT[card.kind]}."
    elif card.medium != "ether":
        yield f"{name} is not Ethernet (but {card.medium}), and a bridge takes nothing else. Give an Ethernet card."
    elif facts.wireless:
        yield (
            f"{name} is a Wi-Fi card. Its access point takes frames from the card's own address alone, so guests "
            f"behind a bridge would be cut off. Use a wired card, or a nat or routed network."
        )
    elif "UP" not in card.flags:
        yield f"{name} is down, so nobody can see whether the host still reaches its network. Bring it up first."
    elif "LOWER_UP" not in card.flags:
        yield (
            f"{name} has no carrier, so nobody can see whether the host still reaches its network. Plug in the cable, "
            f"or give the card that is in use."
        )
    if card.master and (card.master, card.master_kind) != (facts.bridge, "bridge"):
        how = _MASTERS.get(card.master_kind, "a part of {master}, and an interface has one master only. Free it first")
        yield f"{name} is {how.format(master=card.master)}."
    if facts.authenticators:
        yield (
            f"{name} authenticates itself to its switch (802.1X: {_enumeration(facts.authenticators)}), which a "
            f"bridge's port cannot be trusted to go on with, and a switch that closes the port cuts off the host. "
            f"Switch 802.1X off on both sides, or use a nat or routed network."
        )


def _of_what_hangs_on_it(facts: Facts) -> t.Iterator[str]:
    name = f"interface: {facts.interface}"
    children = [link for link in facts.links if link.parent == facts.interface and link.kind not in _PAIRS]
    kinds = [(link.kind, f"{link.name} ({link.kind})" if link.kind else link.name) for link in children]
    kinds += [
        (child.kind, f"{child.name} ({child.kind}, in {child.place})")
        for child in facts.elsewhere
        if child.kind not in _PAIRS
    ]
    receivers = [words for kind, words in kinds if kind in _RECEIVERS]
    others = [words for kind, words in kinds if kind not in _RECEIVERS]
    tunnels = [f"{link.name} ({link.kind})" for link in facts.links if link.underlay == facts.interface]
    if receivers:
        yield (
            f"{name} carries {_enumeration(receivers)}, and the kernel makes no bridge's port of such a card. Remove "
            f"them, and give their users taps or veths on the bridge."
        )
    if others:
        yield (
            f"{name} carries {_enumeration(others)}, and a move that keeps those working has not been built. Remove "
            f"them, or use another card."
        )
    if tunnels:
        yield (
            f"{name} is what {_enumeration(tunnels)} sends its packets through, by name. Remove the tunnel, and make "
            f"it anew with dev {facts.bridge} after the move."
        )
    if facts.nexthops:
        numbers = _enumeration([str(number) for number in facts.nexthops])
        yield (
            f"{name} has the nexthop objects {numbers} (ip nexthop), which belong to a routing daemon or to somebody's "
            f"hand and cannot be moved without loss. Have the daemon use plain routes (FRR: no zebra nexthop kernel "
            f"enable), or remove them."
        )


def _of_the_bridge(facts: Facts, force: bool) -> t.Iterator[str]:
    name = f"bridge: {facts.bridge}"
    alternative = [link.name for link in facts.links if facts.bridge in link.other_names]
    if alternative:
        yield f"{name} is another name of {alternative[0]} already. Give the bridge another name."
    bridge = facts.link(facts.bridge)
    if bridge is None or facts.bridge == facts.interface:
        return
    if bridge.kind != "bridge":
        kind = bridge.kind or "network card"
        yield f"{name} is there already and is no bridge ({kind}). Give the bridge another name."
        return
    if bridge.master:
        yield f"{name} is itself a part of {bridge.master}. Take it out of there, or give the bridge another name."
    network = facts.network or facts.bridge
    owner = owner_of(bridge.alias)
    if owner not in (None, network) and not force:
        yield (
            f"{name} belongs to the network {owner!r}. Give the bridge another name, remove that network first, or "
            f"take the bridge over with force: true."
        )
    program = next((who for pattern, who in _OTHERS_BRIDGES if pattern.fullmatch(facts.bridge)), None)
    if owner is None and program and not force:
        yield (
            f"{name} has a name of the bridges that {program} makes and removes as it likes. Give the bridge another "
            f"name, or, if it is your own, force: true."
        )
    ports = [link for link in facts.ports(facts.bridge) if link.name != facts.interface]
    cards = [link.name for link in ports if link.kind in _CARDS]
    if cards and not bridge.stp:
        yield (
            f"{name} has {_enumeration(cards)} as a port already. Two cards in one network and a bridge without STP "
            f"are a loop that takes down the network. Use another bridge, or take that card out of it."
        )


def _drops_foreign_macs(machine: Machine) -> t.Optional[tuple[str, str]]:
    """Under what the machine runs, if that is known to look at the sender's MAC address, and what to do about it."""
    for tag, where in _ASSET_TAGS.items():
        if machine.asset_tag == tag:
            return where, _NO_SWITCH
    for driver, vendor, product, where, remedy in _PLATFORMS:
        if (driver and machine.driver == driver) or (
            vendor and machine.vendor.startswith(vendor) and machine.product.startswith(product)
        ):
            return where, remedy
    return None


def _enumeration(words: t.Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# What programs and files say; pure


def parse_links(text: str) -> tuple[LinkFact, ...]:
    """The interfaces as C(ip -d -j link show) lists them."""
    listed = json.loads(text or "[]")
    kinds = {entry["ifname"]: entry.get("linkinfo", {}).get("info_kind", "") for entry in listed if "ifname" in entry}
    return tuple(_link(entry, kinds) for entry in listed if "ifname" in entry)


def _link(entry: dict[str, t.Any], kinds: t.Mapping[str, str]) -> LinkFact:
    info = entry.get("linkinfo", {})
    data = info.get("info_data", {})
    master = entry.get("master", "")
    return LinkFact(
        name=entry["ifname"],
        medium=entry.get("link_type", ""),
        kind=info.get("info_kind", ""),
        flags=frozenset(entry.get("flags", ())),
        master=master,
        master_kind=info.get("info_slave_kind") or kinds.get(master, "") if master else "",
        parent="" if "link_netnsid" in entry else entry.get("link") or "",
        underlay=data.get("link", "") if isinstance(data.get("link"), str) else "",
        alias=entry.get("ifalias", ""),
        other_names=tuple(entry.get("altnames", ())),
        stp=bool(data.get("stp_state")),
    )


def parse_nexthops(text: str) -> tuple[int, ...]:
    """The numbers of nexthop objects as C(ip -j nexthop show dev ...) lists them.

    Those that systemd-networkd (from version 256) makes of router advertisements are left out: it makes them again.
    """
    entries = (entry for entry in json.loads(text or "[]") if "id" in entry and entry.get("protocol") != "ra")
    return tuple(sorted(int(entry["id"]) for entry in entries))


def authenticates(argv: t.Sequence[str], interface: str) -> bool:
    """Whether this is a wpa_supplicant that speaks for the interface."""
    if not argv or os.path.basename(argv[0]) != "wpa_supplicant":
        return False
    return f"-i{interface}" in argv or ("-i", interface) in zip(argv, argv[1:])


def profile_authenticates(text: str, interface: str) -> bool:
    """Whether a connection profile of NetworkManager has 802.1X for the interface: it names it, or no interface."""
    section, named, eap, wired = "", "", False, True
    for line in (line.strip() for line in text.splitlines()):
        key, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("["):
            section = line.strip("[]")
        elif equals and (section, key) == ("connection", "interface-name"):
            named = value
        elif equals and (section, key) == ("connection", "type"):
            wired = value in ("ethernet", "802-3-ethernet")
        elif equals and (section, key) == ("802-1x", "eap"):
            eap = bool(value)
    return eap and wired and named in ("", interface)


# Reading


def gather(interface: str, bridge: str, *, network: str = "") -> Facts:
    """Read everything that the judgement needs; changes nothing."""
    device = f"/sys/class/net/{interface}"
    return Facts(
        interface,
        bridge,
        parse_links(_ip("-d", "-j", "link", "show")),
        network=network,
        wireless=any(os.path.exists(f"{device}/{entry}") for entry in ("wireless", "phy80211")),
        lro=bool(offload_flags(interface) & _LRO),
        elsewhere=tuple(_namespaces.children(interface)),
        nexthops=_nexthops(interface),
        authenticators=tuple(_authenticators(interface)),
        dropping=_dropping(),
        machine=Machine(
            vendor=_line("/sys/class/dmi/id/sys_vendor"),
            product=_line("/sys/class/dmi/id/product_name"),
            asset_tag=_line("/sys/class/dmi/id/chassis_asset_tag"),
            driver=os.path.basename(os.path.realpath(f"{device}/device/driver"))
            if os.path.exists(f"{device}/device/driver")
            else "",
        ),
    )


def offload_flags(interface: str) -> int:
    """The offloads that ethtool's oldest request tells, as bits; 0 for an interface that is not there."""
    value = array.array("B", struct.pack("II", _ETHTOOL_GFLAGS, 0))
    request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        fcntl.ioctl(control, _SIOCETHTOOL, request)
    return int(struct.unpack("II", value)[1])


def _nexthops(interface: str) -> tuple[int, ...]:
    try:
        return parse_nexthops(_ip("-j", "nexthop", "show", "dev", interface))
    except SystemFailure:  # a kernel or an ip without nexthop objects, or no such interface
        return ()


def _dropping() -> tuple[str, ...]:
    """Chains of the forward hook whose policy is to drop, where bridged packets come by."""
    if _line("/proc/sys/net/bridge/bridge-nf-call-iptables") != "1":
        return ()
    found = []
    if _deps.find_program("nft") is not None:
        found = [
            f"chain {chain.name} of table {chain.table}"
            for chain in _nft.chains()
            if chain.hook == "forward" and chain.policy == "drop" and chain.table.family in ("ip", "inet")
        ]
    if "filter" in _iptables.registered(4):
        legacy = _iptables.read(World("legacy", 4), "filter")
        if legacy is not None and legacy.policies.get("FORWARD") == "DROP":
            found.append("chain FORWARD of iptables-legacy")
    return tuple(found)


def _authenticators(interface: str) -> t.Iterator[str]:
    for _running, argv in _process.here():
        if authenticates(argv, interface):
            yield " ".join(argv)
    for directory in ("/etc", "/run", "/usr/lib"):
        for path in sorted(glob.glob(f"{directory}/NetworkManager/system-connections/*")):
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                if profile_authenticates(file.read(), interface):
                    yield path


def _ip(*arguments: str) -> str:
    done = _commands.run([_deps.program("ip", purpose="to look at the host's interfaces"), *arguments])
    if done.returncode:
        raise SystemFailure(f"ip {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
