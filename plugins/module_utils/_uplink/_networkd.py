# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""systemd-networkd: the bridge gets what the card's own file says, in files of ours that are found before it.

While the host runs, the files are in C(/run), and networkd is restarted, not reloaded: its old process ends without
releasing a lease or dropping an address, and the new one finds on the bridge what it is to have. A reload drops what
router advertisements gave until the next one comes.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import (
    Action,
    RunProgram,
    Step,
    WriteFile,
    keep,
)

SERVICE = "systemd-networkd.service"
ETC = "/etc/systemd/network"
RUN = "/run/systemd/network"
_STATE = "/run/systemd/netif"
# Highest first: a file hides those of the same name in later ones.
_DIRECTORIES = (ETC, RUN, "/usr/local/lib/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network")
# What is in /run is found before what is in /etc, so that a reload finds nothing new until the host is booted.
_NOW, _BOOT = "05-labspan", "06-labspan"
_CONFIG = "/run/systemd/networkd.conf.d/05-labspan.conf"
_FOREIGN = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n"
_MARK = "# Written by labspan.vmnet."
_STANDS = "# In the place of: "

# Sections of layer 3: they follow the addresses. All others are the card's.
_LAYER3 = {
    "Network",
    "Address",
    "Neighbor",
    "IPv6AddressLabel",
    "RoutingPolicyRule",
    "NextHop",
    "Route",
    "DHCP",
    "DHCPv4",
    "DHCPv6",
    "DHCPPrefixDelegation",
    "DHCPv6PrefixDelegation",
    "IPv6AcceptRA",
    "IPv6NDPProxyAddress",
    "IPv6PrefixDelegation",
    "IPv6SendRA",
    "IPv6Prefix",
    "IPv6RoutePrefix",
    "IPv6PREF64Prefix",
    "DHCPServer",
    "DHCPServerStaticLease",
}
_LINK_OF_BRIDGE = {"MTUBytes", "RequiredForOnline", "RequiredFamilyForOnline", "ActivationPolicy", "Multicast"}
_NETWORK_OF_CARD = {"LLDP", "EmitLLDP"}
# Made for the card as a port; a bridge without a port must not have the addresses while the card has them, too.
_NOT_OF_BRIDGE = {"KeepMaster", "ConfigureWithoutCarrier"}
_STACKED = {
    "BatmanAdvanced",
    "Bond",
    "Bridge",
    "IPVLAN",
    "IPVTAP",
    "IPoIB",
    "L2TP",
    "MACsec",
    "MACVLAN",
    "MACVTAP",
    "Tunnel",
    "VLAN",
    "VRF",
    "VXLAN",
    "Xfrm",
}
# Conditions of [Match] that are about the host, not about the interface.
_OF_HOST = {"Host", "Virtualization", "KernelCommandLine", "KernelVersion", "Credential", "Architecture", "Firmware"}
_DEFAULTS = {"", "0.0.0.0/0", "::/0", "0.0.0.0", "::"}
_OFF = {"no", "false", "off", "0", "n", "f", "none"}

Entry = t.Tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a unit file. Comments are not kept in files that are made of others."""

    name: str
    entries: tuple[Entry, ...] = ()

    def values(self, key: str) -> list[str]:
        """All values of the key; an empty one takes back those before it."""
        found: list[str] = []
        for name, value in self.entries:
            if name == key:
                found = [*found, value] if value else []
        return found

    def without(self, keys: t.Container[str]) -> Section:
        return dataclasses.replace(self, entries=tuple(entry for entry in self.entries if entry[0] not in keys))

    def only(self, keys: t.Container[str]) -> Section:
        return dataclasses.replace(self, entries=tuple(entry for entry in self.entries if entry[0] in keys))

    def plus(self, *entries: Entry) -> Section:
        return dataclasses.replace(self, entries=(*self.entries, *entries))


def parse(text: str) -> list[Section]:
    """The sections in their order."""
    sections: list[Section] = []
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        line, joined = (joined + line).strip(), ""
        heading = re.fullmatch(r"\[([^\]]+)\]", line)
        if heading:
            sections.append(Section(heading[1]))
        elif "=" in line and sections:
            key, _equals, value = line.partition("=")
            sections[-1] = sections[-1].plus((key.strip(), value.strip()))
    return sections


def dump(sections: t.Sequence[Section]) -> str:
    """The text of the sections."""
    return "\n".join(
        f"[{section.name}]\n" + "".join(f"{key}={value}\n" for key, value in section.entries) for section in sections
    )


def value_of(sections: t.Sequence[Section], name: str, key: str) -> t.Optional[str]:
    """The last value of a key, as of one that can be given once."""
    values = [value for section in sections if section.name == name for value in section.values(key)]
    return values[-1] if values else None


def stacked(sections: t.Sequence[Section]) -> list[Entry]:
    """What is built on the card, or of it, by its file."""
    return [
        entry
        for section in sections
        if section.name == "Network"
        for entry in section.entries
        if entry[0] in _STACKED and entry[1]
    ]


def matches(sections: t.Sequence[Section], *, names: t.Sequence[str], mac: str, kind: str, types: str) -> bool:
    """Whether a file's [Match] may take an interface of one of these names, of which no more than this is known.

    C(types): as networkd sees it (C(ether), C(bridge)).
    """
    entries = [entry for section in sections if section.name == "Match" for entry in section.entries]
    if not entries:
        return False
    for key in {key for key, _value in entries} - _OF_HOST:
        found = [word for name, value in entries if name == key for word in value.split()]
        if key in ("Name", "OriginalName"):
            if not any(_globs(found, name) for name in names):
                return False
        elif key == "Type":
            if not _globs(found, types):
                return False
        elif key in ("Kind", "Driver"):
            if not _globs(found, kind):
                return False
        elif key == "MACAddress":
            if mac.lower() not in [word.lower().replace("-", ":") for word in found]:
                return False
        else:
            return False
    return True


def _globs(words: t.Sequence[str], name: str) -> bool:
    negated = bool(words) and words[0].startswith("!")
    patterns = [words[0][1:], *words[1:]] if negated else words
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) != negated


def bridge_sections(
    card: t.Sequence[Section], move: Move, *, iaid: t.Optional[int], target: t.Optional[str] = None
) -> list[Section]:
    """What the bridge's file says: what the card's said of layer 3. C(target): the card, on the way back."""
    name = target or move.bridge
    other = move.bridge if target else move.interface
    sections = [Section("Match", (("Name", name),))]
    for section in card:
        if section.name == "Link":
            section = section.only(_LINK_OF_BRIDGE)
            if section.entries:
                sections.append(section)
        elif section.name == "Network":
            sections.append(section.without(_NETWORK_OF_CARD | _NOT_OF_BRIDGE))
        elif section.name == "RoutingPolicyRule":
            entries = (
                (key, name if key in ("IncomingInterface", "OutgoingInterface") and value == other else value)
                for key, value in section.entries
            )
            sections.append(Section(section.name, tuple(entries)))
        elif section.name in _LAYER3:
            sections.append(section)
    if not any(section.name == "Network" for section in sections):
        sections.insert(1, Section("Network"))
    if not target:
        sections = _of_mode(sections, move)
        if not has_dhcp4(sections) and value_of(sections, "Network", "IgnoreCarrierLoss") is None:
            sections = _into_network(sections, ("IgnoreCarrierLoss", "yes"))
    return _with_identity(sections, iaid)


def _of_mode(sections: t.Sequence[Section], move: Move) -> list[Section]:
    if move.mode == "move":
        return list(sections)
    kept = []
    for section in sections:
        default = section.name == "Route" and all(value in _DEFAULTS for value in section.values("Destination"))
        if section.name == "Address" or (default and (move.mode != "static" or move.gateways)):
            continue
        if section.name in ("DHCP", "DHCPv4", "DHCPv6") and move.mode in ("static", "none"):
            continue
        if section.name == "Network":
            dropped = {"Address"}
            if move.mode != "static" or move.gateways:
                dropped.add("Gateway")
            if move.mode != "dhcp":
                dropped.add("DHCP")
            if move.mode == "none":
                dropped |= {"LinkLocalAddressing", "IPv6AcceptRA"}
            if move.dns:
                dropped.add("DNS")
            section = section.without(dropped)
        kept.append(section)
    added: list[Entry] = []
    if move.mode == "static":
        added += [("Address", address) for address in move.addresses]
        added += [("Gateway", gateway) for gateway in move.gateways]
    elif move.mode == "dhcp" and not has_dhcp4(kept):
        kept = [section.without({"DHCP"}) if section.name == "Network" else section for section in kept]
        added.append(("DHCP", "ipv4"))
    elif move.mode == "none":
        added += [("LinkLocalAddressing", "no"), ("IPv6AcceptRA", "no")]
    added += [("DNS", server) for server in move.dns]
    return _into_network(kept, *added)


def _into_network(sections: t.Sequence[Section], *entries: Entry) -> list[Section]:
    """With these in the last [Network] section."""
    last = max(index for index, section in enumerate(sections) if section.name == "Network")
    return [section.plus(*entries) if index == last else section for index, section in enumerate(sections)]


def _with_identity(sections: list[Section], iaid: t.Optional[int]) -> list[Section]:
    """Be the client to the DHCP server that the card was: networkd makes the IAID of the interface's own name."""
    legacy = value_of(sections, "DHCP", "ClientIdentifier")
    identifier = value_of(sections, "DHCPv4", "ClientIdentifier") or legacy or "duid"
    if iaid is None or not has_dhcp4(sections):
        return sections
    wanted = ["DHCPv4"] if identifier == "duid" else []
    for name in (*wanted, "DHCPv6"):
        if value_of(sections, name, "IAID") is None:
            sections = [*sections, Section(name, (("IAID", str(iaid)),))]
    return sections


def has_dhcp4(sections: t.Sequence[Section]) -> bool:
    """Whether DHCP for IPv4 is on."""
    return (value_of(sections, "Network", "DHCP") or "no").lower() in ("yes", "true", "on", "1", "ipv4", "v4", "both")


def is_dynamic(sections: t.Sequence[Section]) -> bool:
    """Whether some address may come from the network."""
    dhcp = value_of(sections, "Network", "DHCP") or "no"
    announced = value_of(sections, "Network", "IPv6AcceptRA") or "yes"
    return dhcp.lower() not in _OFF or announced.lower() not in _OFF


def card_sections(card: t.Sequence[Section], move: Move) -> list[Section]:
    """What the card's file says at boot: it is a port."""
    link = Section("Link", (("RequiredForOnline", "no"),))
    network = Section("Network", (("Bridge", move.bridge),))
    others = []
    for section in card:
        if section.name == "Link":
            link = link.plus(*section.without({"RequiredForOnline", "RequiredFamilyForOnline", "Unmanaged"}).entries)
        elif section.name == "Network":
            network = network.plus(*section.only(_NETWORK_OF_CARD).entries)
        elif section.name not in _LAYER3 and section.name != "Match":
            others.append(section)
    network = network.plus(("LinkLocalAddressing", "no"), ("IPv6AcceptRA", "no"))
    return [Section("Match", (("Name", move.interface),)), link, network, *others]


def netdev_sections(move: Move) -> list[Section]:
    """The bridge itself."""
    device = Section("NetDev", (("Name", move.bridge), ("Kind", "bridge"), ("MACAddress", move.mac)))
    if move.mtu != 1500:
        device = device.plus(("MTUBytes", str(move.mtu)))
    spanning = (("STP", "yes" if move.stp else "no"), ("ForwardDelaySec", f"{move.forward_delay:g}"))
    return [device, Section("Bridge", (*spanning, ("MulticastSnooping", "no")))]


def kept(sections: t.Sequence[Section]) -> list[Section]:
    """With what networkd finds at its start left where it is, be it made by networkd or by somebody else."""
    had = value_of(sections, "Network", "KeepConfiguration") or "no"
    wanted = "yes" if had.lower() in ("dhcp", "yes", "true", "on", "1") else "static"
    bare = [section.without({"KeepConfiguration"}) if section.name == "Network" else section for section in sections]
    if not any(section.name == "Network" for section in bare):
        bare.append(Section("Network"))
    return _into_network(bare, ("KeepConfiguration", wanted))


def unmanaged(interface: str) -> list[Section]:
    """A file that keeps networkd off."""
    return [Section("Match", (("Name", interface),)), Section("Link", (("Unmanaged", "yes"),))]


def taps_sections() -> list[Section]:
    """Keeps networkd off guests' taps, which a file for any Ethernet would take off their bridge."""
    return [Section("Match", (("Driver", "tun"), ("Type", "ether"))), Section("Link", (("Unmanaged", "yes"),))]


def iaid_of(lease: str) -> t.Optional[int]:
    """The IAID in a lease as networkd notes it down; None when the client was known by its MAC address."""
    found = re.search(r"^CLIENTID=ff([0-9a-f]{8})[0-9a-f]{4,}$", lease, re.MULTILINE)
    return int(found[1], 16) if found else None


def stands_for(text: str) -> t.Optional[str]:
    """The card's own file, as a file of ours names it."""
    found = re.search(f"^{_STANDS}(/.+)$", text, re.MULTILINE) if text.startswith(_MARK) else None
    return found[1] if found else None


class Networkd(Manager):
    """A card that systemd-networkd runs."""

    name = "networkd"

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        found = own_file(move.interface)
        if not move.back and found is not None and _is_port(_effective(found), move):
            return None  # somebody has written it down already
        source = self.source(move)
        if source is None:
            return (
                f"systemd-networkd runs {move.source}, and its file for it was not found. Give {move.interface} a "
                f".network file in {ETC}."
            )
        path, sections = source
        if move.back:
            return None
        built = stacked(sections)
        if built:
            key, value = built[0]
            return (
                f"{path} has {key}={value}, which ties {move.interface} to another interface that would stay behind. "
                "Take that away, or move it to the bridge, first."
            )
        if any(section.name.startswith("Bridge") for section in sections):
            return f"{path} has settings of a bridge port for {move.interface}. Take them out first."
        other = _would_configure(move)
        if other is not None and _index(move.bridge) == "":
            return (
                f"{other} is for {move.bridge}, too, so that systemd-networkd would give the new bridge addresses "
                f"before {move.interface} is its port. Name in its [Match] the interfaces that it is for."
            )
        return None

    def leases(self, interface: str) -> bool:
        path = _network_file(interface)
        return path is not None and is_dynamic(_effective(path))

    def before(self, move: Move) -> t.Sequence[Step]:
        """Forth, files only, which networkd does not read before it is told to: it does not mind a card that becomes a
        port. Back, it would make the card a port again within 20 ms, so it lets go of it first."""
        steps = [
            Step(
                "Have systemd-networkd leave routes and rules of others alone until the next boot",
                WriteFile(_CONFIG, _FOREIGN),
                (keep(_CONFIG),),
            )
        ]
        undo: tuple[Action, ...] = (*_keeping(move), *self._again())
        if not move.back:
            return [*steps, *self._write(self._runtime(move), undo=undo)]
        path = own_file(move.interface) or ""
        let_go = [(_now(move.interface), headed(path, unmanaged(move.interface)))]
        steps += [Step(f"Write {action.path}, until the next boot", action) for action in _keeping(move)]
        return [*steps, *self._write(let_go, undo=undo), self._restart(f"let go of {move.interface}")]

    def after(self, move: Move) -> t.Sequence[Step]:
        steps = self._write(self._runtime(move)) if move.back else []
        return [*steps, self._restart(f"go on with {move.target}")]

    def files(self, move: Move) -> t.Sequence[WriteFile]:
        source = self.source(move)
        if source is None:
            return ()
        path, card = source
        bridge = bridge_sections(card, move, iaid=self.iaid(move))
        written = [
            (f"{ETC}/{_BOOT}-{move.bridge}.netdev", netdev_sections(move)),
            (f"{ETC}/{_BOOT}-{move.bridge}.network", bridge),
        ]
        if is_greedy(move):
            written.append((f"{ETC}/{_BOOT}-taps.network", taps_sections()))
        written.append((f"{ETC}/{_BOOT}-{move.interface}.network", card_sections(card, move)))
        note = f"# Until the next boot, the file {_NOW}-* in {RUN} is in force.\n"
        return [WriteFile(name, headed(path, sections, note)) for name, sections in written]

    def _runtime(self, move: Move) -> t.Iterator[t.Tuple[str, str]]:
        source = self.source(move)
        if source is None:
            return
        path, card = source
        to_card = move.interface if move.back else None
        target = kept(bridge_sections(card, move, iaid=self.iaid(move), target=to_card))
        yield _now(move.target), headed(path, target)
        yield _now(move.source), headed(path, unmanaged(move.source))
        if is_greedy(move) and not move.back:
            yield _now("taps"), headed(path, taps_sections())

    def source(self, move: Move) -> t.Optional[t.Tuple[str, list[Section]]]:
        """The card's own file, whatever was written in its place; on the way back, else the bridge's."""
        found = own_file(move.interface)
        if found is not None and not _is_ours(found) and not _is_port(_effective(found), move):
            return found, _effective(found)
        path = _network_file(move.bridge) if move.back else None
        return (path, _effective(path)) if path is not None else None

    def iaid(self, move: Move) -> t.Optional[int]:
        """As in the lease that is there, or as it was when the bridge's file was written."""
        for name in (move.source, move.target):
            iaid = iaid_of(read(f"{_STATE}/leases/{_index(name)}") or "")
            if iaid is not None:
                return iaid
        for path in (_now(move.bridge), f"{ETC}/{_BOOT}-{move.bridge}.network", netplan_drop_in(move.bridge)):
            written = value_of(parse(read(path) or ""), "DHCPv4", "IAID")
            if written is not None:
                return int(written)
        return None

    @staticmethod
    def _write(files: t.Iterable[t.Tuple[str, str]], undo: tuple[Action, ...] = ()) -> list[Step]:
        """Undone in reverse: C(undo) once all files are as they were."""
        steps = []
        for path, text in files:
            steps.append(Step(f"Write {path}, until the next boot", WriteFile(path, text), (keep(path), *undo)))
            undo = ()
        return steps

    def _restart(self, why: str) -> Step:
        return Step(f"Restart systemd-networkd, to {why}", self._again()[-1])

    @staticmethod
    def _again() -> tuple[Action, ...]:
        systemctl = _deps.find_program("systemctl") or "/usr/bin/systemctl"
        return (
            RunProgram((systemctl, "reset-failed", SERVICE), may_fail=True),
            RunProgram((systemctl, "restart", SERVICE)),
        )


def _now(interface: str) -> str:
    """The file that is in force until the next boot."""
    return f"{RUN}/{_NOW}-{interface}.network"


def netplan_drop_in(bridge: str) -> str:
    """Adds to what netplan writes for the bridge at boot."""
    return f"{ETC}/10-netplan-{bridge}.network.d/labspan.conf"


def _is_port(sections: t.Sequence[Section], move: Move) -> bool:
    return ("Bridge", move.bridge) in stacked(sections)


def headed(source: str, sections: t.Sequence[Section], note: str = "") -> str:
    return f"{_MARK}\n{_STANDS}{source}\n{note}\n{dump(sections)}"


def _is_ours(path: str) -> bool:
    return os.path.basename(path).startswith((_NOW, _BOOT))


def _keeping(move: Move) -> tuple[WriteFile, ...]:
    """So that what others gave the interface outlives a start of networkd that is not of files of ours.

    It stays until the next boot, since networkd would set up the interface anew if it were gone at a reload.
    """
    path = _network_file(move.source)
    if path is None or path == _now(move.source):
        return ()
    wanted = value_of(kept(_effective(path) or [Section("Network")]), "Network", "KeepConfiguration")
    drop_in = f"{RUN}/{os.path.basename(path)}.d/{_NOW}.conf"
    return (WriteFile(drop_in, headed(path, [Section("Network", (("KeepConfiguration", wanted or "static"),))])),)


def read(path: str) -> t.Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None


def _files() -> list[str]:
    """Every .network file that networkd looks at, in its order."""
    found: dict[str, str] = {}
    for directory in _DIRECTORIES:
        for path in glob.glob(f"{directory}/*.network"):
            found.setdefault(os.path.basename(path), path)
    return [found[name] for name in sorted(found)]


def _effective(path: str) -> list[Section]:
    """The file with its drop-ins."""
    drop_ins: dict[str, str] = {}
    for directory in _DIRECTORIES:
        for part in glob.glob(f"{directory}/{os.path.basename(path)}.d/*.conf"):
            if not _is_ours(part):
                drop_ins.setdefault(os.path.basename(part), part)
    parts = (path, *(drop_ins[name] for name in sorted(drop_ins)))
    return [section for part in parts for section in parse(read(part) or "")]


def _index(interface: str) -> str:
    return (read(f"/sys/class/net/{interface}/ifindex") or "").strip()


def _network_file(interface: str) -> t.Optional[str]:
    """The file that networkd has chosen for the interface; None when it keeps off."""
    state = read(f"{_STATE}/links/{_index(interface)}") or ""
    fields = dict(line.split("=", 1) for line in state.splitlines() if "=" in line)
    path = fields.get("NETWORK_FILE")
    return path if path and fields.get("ADMIN_STATE") != "unmanaged" else None


def own_file(interface: str) -> t.Optional[str]:
    """The card's own file: the one in force, or the one in whose place ours is."""
    path = _network_file(interface)
    if path is not None and not _is_ours(path):
        return path
    for ours in (_now(interface), f"{ETC}/{_BOOT}-{interface}.network"):
        found = stands_for(read(ours) or "")
        if found is not None and read(found) is not None:
            return found
    return path


def is_greedy(move: Move) -> bool:
    """Whether some file would take a guest's tap."""
    names = [*move.taps, "labspan-tap"]
    return any(
        matches(parse(read(path) or ""), names=names, mac="", kind="tun", types="ether")
        for path in _files()
        if not _is_ours(path)
    )


def _would_configure(move: Move) -> t.Optional[str]:
    """The file, other than ours, that gives a bridge fixed addresses when it appears."""
    for path in _files():
        sections = _effective(path)
        if not _is_ours(path) and matches(sections, names=[move.bridge], mac=move.mac, kind="bridge", types="bridge"):
            fixed = any(section.name == "Address" or section.values("Address") for section in sections)
            return path if fixed else None
    return None


def is_running() -> bool:
    """Whether networkd runs here."""
    systemctl = _deps.find_program("systemctl")
    if systemctl is None or not os.path.isdir(f"{_STATE}/links"):
        return False
    return _commands.run([systemctl, "is-active", "--quiet", SERVICE]).returncode == 0


def find(interface: str) -> t.Optional[Manager]:
    """networkd, when it runs the interface, or did until it became a port of ours."""
    return Networkd() if is_running() and own_file(interface) is not None else None
