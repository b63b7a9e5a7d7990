# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""NetworkManager: it lets go of the card, has the bridge before the addresses come, and takes the card as its port.

What it must not be told, as measured with 1.42: to mark a live card unmanaged in its configuration, or to start a
profile on a bridge that has the card or taps and that it knows as somebody else's; both take the host down. And when
it starts a profile it switches IPv6 off and on, so that has to be over before the burst. Hence the order here:

1. It is told to let go of the card (C(device set ... managed no)), which leaves everything on it as it is.
2. It starts a profile on the empty bridge. What comes from DHCP and routers it awaits until the bridge has a port.
3. The burst: card and addresses change over.
4. It starts the port's profile on the card. That changes nothing in the kernel; the clients of step 2 begin.

Profiles in /run are preferred to those of the same UUID in /etc, and end with a reboot.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import ipaddress
import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _nm_profiles
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._nm_profiles import Identity, Keyfile
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import (
    Action,
    RunProgram,
    Step,
    WriteFile,
    keep,
)

_RUNTIME = "/run/NetworkManager"
_DISK = "/etc/NetworkManager"
_STATE = "/var/lib/NetworkManager"
_SECRET = 0o600
# Seconds for a profile to be up: a bridge and its port wait for nobody else.
_PATIENCE = "20"

_ANSWER = 10.0

# Flags of /proc/net/if_inet6 (include/uapi/linux/if_addr.h), and its scopes.
_TEMPORARY, _PERMANENT = 0x01, 0x80
_GLOBAL, _LINK_LOCAL = 0x00, 0x20
_METRIC_OF_LINK_LOCAL = 1024


@dataclasses.dataclass(frozen=True)
class Device:
    """An interface as NetworkManager has it."""

    name: str
    state: str
    uuid: str
    """Of the profile that is active on it; empty for none."""

    @property
    def is_run(self) -> bool:
        """Whether NetworkManager configures it, rather than only to know of it."""
        return bool(self.uuid) and self.state.startswith("connect") and "externally" not in self.state


@dataclasses.dataclass(frozen=True)
class Origin:
    """The profile that the card had."""

    uuid: str
    path: str
    text: str

    @property
    def is_readable(self) -> bool:
        """Whether the file is in the only format that is known here."""
        return self.path.endswith(".nmconnection") and bool(self.text)


class NetworkManager(Manager):
    """NetworkManager runs the card."""

    name = "networkmanager"

    def __init__(self, program: str) -> None:
        self._program = program

    # Reading

    @functools.cached_property
    def _devices(self) -> dict[str, Device]:
        rows = self._table("DEVICE,STATE,CON-UUID", "device", "status")
        return {row[0]: Device(*row) for row in rows if len(row) == 3}

    @functools.cached_property
    def _paths(self) -> dict[str, str]:
        """Where each profile is, by its UUID."""
        return {row[0]: row[1] for row in self._table("UUID,FILENAME", "connection", "show") if len(row) == 2}

    def _table(self, fields: str, *words: str) -> list[list[str]]:
        return [split(line) for line in self._lines("--fields", fields, *words)]

    def _lines(self, *words: str) -> list[str]:
        done = _commands.run([self._program, "--terse", *words], timeout=_ANSWER)
        return done.stdout.splitlines() if done.returncode == 0 else []

    def _shown(self, fields: str, interface: str) -> list[str]:
        """Values of a device, without the names of their fields."""
        lines = self._lines("--fields", fields, "device", "show", interface)
        return [re.sub(r"\\(.)", r"\1", line.partition(":")[2]) for line in lines]

    def runs(self, interface: str) -> bool:
        """Whether the interface is NetworkManager's to configure, also when a move of ours has just taken it away."""
        device = self._devices.get(interface)
        if device is None:
            return False
        return device.is_run or any(os.path.exists(_profile(place, interface)) for place in (_RUNTIME, _DISK))

    def _origin(self, move: Move) -> t.Optional[Origin]:
        """The card's own profile; None when there is none any more, as after a reboot for one made on the fly."""
        device = self._devices.get(move.interface)
        ours = _nm_profiles.port_uuid(move.bridge, move.interface)
        uuid = device.uuid if device is not None and device.is_run and device.uuid != ours else None
        if uuid is None:
            written = self._written(move)
            uuid = Keyfile(written).get("user", _nm_profiles.ORIGIN) if written else None
        if uuid is None or uuid not in self._paths:
            return None
        path = self._paths[uuid]
        return Origin(uuid, path, _read(path) or "")

    def _written(self, move: Move) -> t.Optional[str]:
        """The bridge's profile as it is on the disk, or is to be."""
        return _read(_profile(_DISK, move.bridge)) or _read(_kept(move))

    def _wanted(self, move: Move) -> t.Optional[str]:
        """The bridge's profile as it must be on the disk."""
        written = self._written(move)
        if written:
            return _nm_profiles.addressed(written, move)
        origin = self._origin(move)
        if origin is None or not origin.is_readable:
            return None
        return _nm_profiles.bridge_profile(origin.text, self._identity(move.interface, origin), move)

    def _identity(self, interface: str, origin: t.Optional[Origin]) -> Identity:
        found = (value.partition(" = ") for value in self._shown("DHCP4,DHCP6", interface))
        options = {key: value for key, _sign, value in found}
        text = "" if origin is None else origin.text
        announced, link_local = addresses_of(_read("/proc/net/if_inet6") or "", interface, _announced(interface), text)
        return Identity(
            client_id=options.get("dhcp_client_identifier"),
            duid=options.get("dhcp6_client_id"),
            iaid=options.get("iaid"),
            announced=announced,
            link_local=link_local,
            metric=metric_of(_read("/proc/net/route") or "", interface),
            metric6=metric6_of(_read("/proc/net/ipv6_route") or "", interface),
        )

    # What the move asks

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        if move.back:
            return None
        origin = self._origin(move)
        if origin is None:
            return (
                f"NetworkManager runs {move.interface}, but by no profile that can be read. Make one: nmcli connection "
                f"add type ethernet ifname {move.interface}, and start it."
            )
        if not origin.is_readable:
            return (
                f"NetworkManager's profile of {move.interface} is in {origin.path or 'no file'}, and only keyfiles "
                f"(.nmconnection) can be read here. Convert it: nmcli connection migrate {origin.uuid}."
            )
        identity = self._identity(move.interface, origin)
        if not _nm_profiles.autoconnects(origin.text) and origin.uuid == self._devices[move.interface].uuid:
            return (
                f"NetworkManager does not start the profile of {move.interface} by itself (connection.autoconnect=no), "
                f"and so would not when it has to go back. Let it: nmcli connection modify {origin.uuid} "
                "connection.autoconnect yes."
            )
        refusal = _nm_profiles.refusal(origin.text) or _nm_profiles.host_part_refusal(origin.text, identity, move.mac)
        if refusal:
            return refusal
        return (
            self._vpn_refusal(move)
            or self._bridge_refusal(move)
            or self._disk_refusal(move, origin, persistent=persistent)
        )

    def _vpn_refusal(self, move: Move) -> t.Optional[str]:
        for row in self._table("NAME,TYPE,DEVICE", "connection", "show", "--active"):
            if row[1:] == ["vpn", move.interface]:
                return f"the VPN '{row[0]}' is up over {move.interface} and would end. Take it down first."
        return None

    def _bridge_refusal(self, move: Move) -> t.Optional[str]:
        """NetworkManager would flush a bridge that it knows as somebody else's."""
        device = self._devices.get(move.bridge)
        if device is None:
            return None
        if device.is_run and device.uuid != _nm_profiles.bridge_uuid(move.bridge):
            return (
                f"{move.bridge} is run by NetworkManager's profile {device.uuid} already. Make {move.interface} its "
                "port with NetworkManager itself, or give another bridge."
            )
        found = [
            row[1] for row in self._table("IP4.ADDRESS", "device", "show", move.bridge) if len(row) == 2 and row[1]
        ]
        if found and not device.is_run:
            return (
                f"{move.bridge} has {', '.join(found)}, which NetworkManager would drop when it takes the bridge. "
                "Take them away first."
            )
        return None

    def _disk_refusal(self, move: Move, origin: Origin, *, persistent: bool) -> t.Optional[str]:
        if not persistent:
            return None
        if os.path.basename(origin.path).startswith("netplan-"):
            return f"persistent: netplan writes {origin.path} at each boot. Set persistent: false."
        parents = {move.interface, origin.uuid}
        for path in sorted(glob.glob(f"{_DISK}/system-connections/*.nmconnection")):
            profile = Keyfile(_read(path) or "")
            if any(profile.get(section, "parent") in parents for section in profile.names):
                return (
                    f"persistent: {path} is built on {move.interface} (VLAN or the like), and would have to be built "
                    f"on {move.bridge}. Change its parent first."
                )
        return None

    def leases(self, interface: str) -> bool:
        device = self._devices.get(interface)
        return device is not None and device.is_run

    def before(self, move: Move) -> t.Sequence[Step]:
        return self._release(move) if move.back else self._take_bridge(move)

    def after(self, move: Move) -> t.Sequence[Step]:
        return self._take_card(move) if move.back else self._take_port(move)

    # There

    def _take_bridge(self, move: Move) -> t.Sequence[Step]:
        final, origin = self._wanted(move), self._origin(move)
        if final is None or origin is None:
            return ()
        bridge, card = move.bridge, move.interface
        kept, runtime, port = _kept(move), _profile(_RUNTIME, bridge), _profile(_RUNTIME, card)
        early = _nm_profiles.before_burst(final)
        port_text = _nm_profiles.with_autoconnect(_nm_profiles.port_profile(origin.text, move), wanted=False)
        reload = (self._nmcli("connection", "reload", may_fail=True),)
        let_go = (self._manage(bridge, "no", may_fail=True),)
        steps = [
            Step(f"Have NetworkManager leave {tap} alone", self._manage(tap, "no", may_fail=True)) for tap in move.taps
        ]
        if os.path.exists("/run/udev/control"):
            steps.append(
                Step(f"Wait until {bridge} is known", RunProgram(("udevadm", "settle", "--timeout=5"), may_fail=True))
            )
        return [
            *steps,
            *self._carry_lease(origin.uuid, card, _nm_profiles.bridge_uuid(bridge), bridge),
            _write(kept, final, "Keep the bridge's profile for the disk"),
            _write(runtime, early, f"Write NetworkManager a profile of {bridge}", reload),
            _write(port, port_text, f"Write NetworkManager a profile of {card} as its port", reload),
            Step("Show them to NetworkManager", self._nmcli("connection", "load", runtime, port)),
            # It knows the bridge as somebody else's by now, and would empty it for a profile of its own.
            Step(f"Have NetworkManager forget what it knows of {bridge}", self._manage(bridge, "no")),
            Step(f"Have NetworkManager take {bridge}", self._manage(bridge, "yes"), let_go),
            Step(f"Start {bridge} in NetworkManager", self._up(_nm_profiles.bridge_uuid(bridge), bridge), let_go),
            # They would be taken for the host's own in what is to go back; and nobody needs them.
            *(
                Step(f"Take away the routes of {bridge}", RunProgram((_ip(), family, "route", "flush", "dev", bridge)))
                for family in ("-4", "-6")
            ),
            Step(f"Have NetworkManager let go of {card}", self._manage(card, "no"), self._take_again(card)),
        ]

    def _take_port(self, move: Move) -> t.Sequence[Step]:
        final = self._wanted(move)
        if final is None:
            return ()
        bridge, card = move.bridge, move.interface
        # The card must be NetworkManager's again before its addresses are back, since it switches IPv6 off and on.
        undo = (
            self._manage(card, "no", may_fail=True),
            self._manage(bridge, "no", may_fail=True),
            RunProgram((_ip(), "link", "set", card, "nomaster"), may_fail=True),
            *self._take_again(card),
        )
        up = self._up(_nm_profiles.port_uuid(bridge, card), card)
        return [
            Step(f"Start {card} as a port of {bridge} in NetworkManager", up, undo),
            *_drop_routes_behind(bridge, _nm_profiles.before_burst(final)),
        ]

    # Back

    def _release(self, move: Move) -> t.Sequence[Step]:
        bridge, card = move.bridge, move.interface
        uuid = _nm_profiles.bridge_uuid(bridge)
        text = _read(_profile(_RUNTIME, bridge)) or _read(_profile(_DISK, bridge))
        if text is None:
            return ()
        bridge_again: tuple[Action, ...] = (self._manage(bridge, "yes", may_fail=True),)
        if not _nm_profiles.autoconnects(text):
            bridge_again += (dataclasses.replace(self._up(uuid, bridge), may_fail=True),)
        port_again = dataclasses.replace(self._up(_nm_profiles.port_uuid(bridge, card), card), may_fail=True)
        return [
            Step(
                f"Have NetworkManager let go of {card}",
                self._manage(card, "no"),
                (port_again,),
            ),
            Step(
                f"Have NetworkManager let go of {bridge}",
                self._manage(bridge, "no"),
                bridge_again,
            ),
        ]

    def _take_card(self, move: Move) -> t.Sequence[Step]:
        bridge, card = move.bridge, move.interface
        text = _read(_profile(_RUNTIME, bridge)) or _read(_profile(_DISK, bridge))
        port_text = _read(_profile(_RUNTIME, card)) or _read(_profile(_DISK, card))
        if text is None or port_text is None:
            return ()
        origin = self._origin(move)
        reload = (self._nmcli("connection", "reload", may_fail=True),)
        known = Keyfile(text).get("user", _nm_profiles.ORIGIN)
        back_uuid = origin.uuid if origin is not None else known or _nm_profiles.plain_uuid(card)
        steps = [
            *self._carry_lease(_nm_profiles.bridge_uuid(bridge), bridge, back_uuid, card),
            _write(
                _profile(_RUNTIME, bridge),
                _nm_profiles.with_autoconnect(text, wanted=False),
                f"Have NetworkManager not start {bridge} by itself",
                reload,
            ),
            _write(
                _profile(_RUNTIME, card),
                _nm_profiles.with_autoconnect(port_text, wanted=False),
                f"Have NetworkManager not make {card} a port by itself",
                reload,
            ),
        ]
        loaded = [_profile(_RUNTIME, bridge), _profile(_RUNTIME, card)]
        if origin is None or not (origin.path.startswith(_RUNTIME) and _nm_profiles.autoconnects(origin.text)):
            again = _nm_profiles.plain_profile(card, back_uuid) if origin is None else origin.text
            shadow = _nm_profiles.with_autoconnect(again, wanted=True)
            steps.append(_write(_again(card), shadow, f"Have NetworkManager start {card} as before", reload))
            loaded.append(_again(card))
        return [
            *steps,
            Step("Show NetworkManager what was written", self._nmcli("connection", "load", *loaded)),
            Step(
                f"Have NetworkManager take {card} again",
                self._manage(card, "yes"),
                (self._manage(card, "no", may_fail=True),),
            ),
            Step(f"Wait until it has {card}", self._take_again(card)[1]),
            *_give_again(card),
        ]

    # On the disk

    def files(self, move: Move) -> t.Sequence[WriteFile]:
        final, origin = self._wanted(move), self._origin(move)
        port = _read(_profile(_DISK, move.interface))
        if port is None and origin is not None:
            port = _nm_profiles.port_profile(origin.text, move)
        if final is None or port is None:
            return ()
        # A port without its bridge cannot be started, and NetworkManager falls back on the old profile.
        files = [
            WriteFile(_profile(_DISK, move.interface), port, _SECRET),
            WriteFile(_profile(_DISK, move.bridge), final, _SECRET),
        ]
        if origin is not None and origin.is_readable and _nm_profiles.is_for_one(origin.text, move.interface):
            path = f"{_DISK}/system-connections/{os.path.basename(origin.path)}"
            if not origin.path.startswith(_RUNTIME):
                files.append(WriteFile(path, _nm_profiles.with_autoconnect(origin.text, wanted=False), _SECRET))
        return files

    def settle(self, move: Move) -> t.Sequence[Step]:
        on_disk = all(os.path.exists(_profile(_DISK, name)) for name in (move.bridge, move.interface))
        if on_disk == move.back:
            return ()
        gone = [_kept(move), _profile(_RUNTIME, move.bridge), _profile(_RUNTIME, move.interface)]
        if move.back and self._origin_is_on_disk(move):
            gone.append(_again(move.interface))
        steps = [Step(f"Remove {path}", WriteFile(path, None), (keep(path),)) for path in gone if os.path.exists(path)]
        return [*steps, Step("Have NetworkManager read its profiles", self._nmcli("connection", "reload"))]

    @staticmethod
    def _origin_is_on_disk(move: Move) -> bool:
        shadow = Keyfile(_read(_again(move.interface)) or "").get("connection", "uuid")
        paths = glob.glob(f"{_DISK}/system-connections/*.nmconnection")
        return any(Keyfile(_read(path) or "").get("connection", "uuid") == shadow for path in paths)

    # Words for NetworkManager

    def _nmcli(self, *words: str, may_fail: bool = False) -> RunProgram:
        return RunProgram((self._program, *words), may_fail)

    def _up(self, uuid: str, interface: str) -> RunProgram:
        return self._nmcli("--wait", _PATIENCE, "connection", "up", "uuid", uuid, "ifname", interface)

    def _manage(self, interface: str, wanted: str, *, may_fail: bool = False) -> RunProgram:
        return self._nmcli("device", "set", interface, "managed", wanted, may_fail=may_fail)

    def _take_again(self, card: str) -> tuple[Action, ...]:
        """Have the card managed, by which NetworkManager starts its profile without emptying it, and await that."""
        online = _deps.find_program("nm-online") or "nm-online"
        return self._manage(card, "yes", may_fail=True), RunProgram((online, "-q", "-t", "10"), may_fail=True)

    @staticmethod
    def _carry_lease(uuid: str, interface: str, new_uuid: str, target: str) -> t.Iterator[Step]:
        """Have the client on the other interface ask for the address that there is."""
        for client in ("internal", "dhclient"):
            text = _read(f"{_STATE}/{client}-{uuid}-{interface}.lease")
            if text is not None:
                path = f"{_STATE}/{client}-{new_uuid}-{target}.lease"
                yield _write(path, _nm_profiles.renamed_lease(text, interface, target), f"Carry the lease to {target}")


def find(interface: str) -> t.Optional[NetworkManager]:
    """NetworkManager, when it runs and the interface is its to configure."""
    program = _deps.find_program("nmcli") if os.path.isdir(f"{_RUNTIME}/devices") else None
    if program is None:
        return None
    manager = NetworkManager(program)
    return manager if manager.runs(interface) else None


def _profile(place: str, interface: str) -> str:
    return f"{place}/system-connections/labspan-{interface}.nmconnection"


def _kept(move: Move) -> str:
    """Where NetworkManager does not look."""
    return f"{_RUNTIME}/labspan-{move.bridge}.nmconnection"


def _again(interface: str) -> str:
    return f"{_RUNTIME}/system-connections/labspan-{interface}-again.nmconnection"


def _ip() -> str:
    return _deps.find_program("ip") or "ip"


def _drop_routes_behind(bridge: str, profile: str) -> t.Iterator[Step]:
    """NetworkManager goes without routes that somebody has taken away."""
    for family, metric in _nm_profiles.metrics_behind(profile).items():
        words = (_ip(), "-4" if family == "ipv4" else "-6", "route", "flush", "dev", bridge, "metric", metric)
        yield Step(
            f"Take away routes of NetworkManager's that nobody needs ({family})", RunProgram(words, may_fail=True)
        )


def _give_again(card: str) -> t.Iterator[Step]:
    """IPv6 as it is now: NetworkManager switches it off and on, and gives again only what it knows of itself."""
    shown = _commands.run([_ip(), "-6", "-o", "address", "show", "dev", card]).stdout
    for address, rest in re.findall(r"inet6 (\S+)([^\n]*)", shown):
        lifetimes = re.findall(r"(valid_lft|preferred_lft) (\w+)", rest)
        words = [word for name, time in lifetimes for word in (name, time.replace("sec", ""))]
        # Networks have routes of their own.
        own = ("noprefixroute",) if "noprefixroute" in rest else ()
        give = (_ip(), "-6", "address", "replace", address, "dev", card, "nodad", *own, *words)
        yield Step(f"Give {card} {address} at once", RunProgram(give, may_fail=True))
    shown = _commands.run([_ip(), "-6", "route", "show", "dev", card, "table", "all"]).stdout
    for line in shown.splitlines():
        if not re.search(r"\bproto (kernel|ra|dhcp)\b|\bexpires\b|^(multicast|anycast|local) ", line):
            give = (_ip(), "-6", "route", "replace", *line.split(), "dev", card)
            yield Step(f"Give {card} the route {line.strip()} at once", RunProgram(give, may_fail=True))


def _write(path: str, text: str, sentence: str, then: tuple[Action, ...] = ()) -> Step:
    return Step(sentence, WriteFile(path, text, _SECRET), (keep(path), *then))


def _read(path: str) -> t.Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None


def split(line: str) -> list[str]:
    """The fields of a line of nmcli's terse output, in which colons of a value are escaped."""
    fields = re.findall(r"(?:^|:)((?:\\.|[^:\\])*)", line)
    return [re.sub(r"\\(.)", r"\1", field) for field in fields]


def addresses_of(
    listing: str, interface: str, announced: t.Collection[ipaddress.IPv6Network], profile: str
) -> tuple[tuple[str, ...], t.Optional[str]]:
    """Of /proc/net/if_inet6: the addresses with a host part of the host's choosing, and the link-local one.

    C(announced) are the networks that a router announced as being on the link. An address in one of them that the
    profile does not give is one that the host chose; and so is one that ends by itself.
    """
    given = _nm_profiles.given_addresses(profile)
    chosen: list[str] = []
    link_local = None
    for line in listing.splitlines():
        digits, _index, length, scope, flags, name = line.split()
        if name != interface:
            continue
        address = ipaddress.IPv6Address(int(digits, 16))
        if int(scope, 16) == _LINK_LOCAL:
            link_local = link_local or str(address)
        elif int(scope, 16) != _GLOBAL or int(length, 16) != 64 or int(flags, 16) & _TEMPORARY or address in given:
            continue
        elif not int(flags, 16) & _PERMANENT or any(address in network for network in announced):
            chosen.append(str(address))
    return tuple(chosen), link_local


def _announced(interface: str) -> list[ipaddress.IPv6Network]:
    program = _deps.find_program("ip")
    if program is None:
        return []
    words = [program, "-6", "-o", "route", "show", "dev", interface, "proto", "ra"]
    found = re.findall(r"^([0-9a-f:]+/64)\b", _commands.run(words).stdout, re.MULTILINE)
    return [ipaddress.IPv6Network(network) for network in found]


def metric_of(listing: str, interface: str) -> t.Optional[int]:
    """Of /proc/net/route: the metric of the network on the link, which all routes have that are given none."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    found = [int(row[6]) for row in rows if row[0] == interface and int(row[2], 16) == 0 and int(row[7], 16) != 0]
    return min(found, default=None)


def metric6_of(listing: str, interface: str) -> t.Optional[int]:
    """Of /proc/net/ipv6_route: the same."""
    rows = [line.split() for line in listing.splitlines()]
    found = [
        int(row[5], 16)
        for row in rows
        if row[9] == interface and row[0][:2] not in ("fe", "ff") and int(row[5], 16) not in (0, _METRIC_OF_LINK_LOCAL)
    ]
    return min(found, default=None)
