# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""NetworkManager's profiles as text: what the card's profile is as the bridge's, and what is left to the card. Pure.

Only the sections about addresses go to the bridge, with every line that stands in them; what is about the card itself
stays with the card, in the profile of a port.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t
import uuid

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move

#: Where the bridge's profile says whose addresses it has.
ORIGIN = "labspan.vmnet.profile"

# Any, but the same for ever: profiles of the same bridge and card are known again by it.
_NAMESPACE = uuid.UUID("5d0b5e6e-6a0b-5c35-8a39-94a2b7f0f8a7")

_SECTION = re.compile(r"\s*\[([^\]]+)\]\s*$")
_KEY = re.compile(r"\s*([^#;\s=][^=]*?)\s*=\s*(.*?)\s*$")
_TRUE = ("true", "yes", "on", "1")

_ETHERNET = ("ethernet", "802-3-ethernet")
_FAMILIES = ("ipv4", "ipv6")
# Sections that go to the bridge; those of the card stay with it, those of neither are left out.
_OF_BRIDGE = ("ipv4", "ipv6", "proxy", "user", "hostname")
_OF_NEITHER = ("connection", ".nmmeta", "bridge-port", "bridge")
# What a profile is, rather than what the host has by it.
_OF_PROFILE = re.compile(
    r"(id|uuid|type|interface-name|autoconnect.*|master|controller|slave-type|port-type|timestamp|multi-connect|"
    r"read-only)$"
)
_ADDRESSES = re.compile(r"(address(es)?\d*|gateway)$")
_ROUTES = re.compile(r"(routes?\d*(_options)?|routing-rules?\d*)$")
# Metrics that NetworkManager chooses by itself are less than this.
_BEHIND = 20000
# Seconds; with STP, the kernel's own rule.
_LEAST_DELAY = 2
# No other profile of the card is more wanted: it is the largest that there is.
_PRIORITY = 999


@dataclasses.dataclass(frozen=True)
class Identity:
    """By what the network knows the host, as NetworkManager has it for the interface now."""

    client_id: t.Optional[str] = None
    """Of DHCPv4, in hexadecimal with colons."""
    duid: t.Optional[str] = None
    iaid: t.Optional[str] = None
    """Of DHCPv6, in hexadecimal with colons both."""
    announced: tuple[str, ...] = ()
    """IPv6 addresses that the host chose in a network that a router announced."""
    link_local: t.Optional[str] = None
    metric: t.Optional[int] = None
    metric6: t.Optional[int] = None
    """Of the interface's routes."""


class Keyfile:
    """A profile's file; what nobody changes stays as it is, byte for byte."""

    def __init__(self, text: str = "") -> None:
        self._sections: list[tuple[str, list[str]]] = [("", [])]
        for line in text.splitlines():
            found = _SECTION.match(line)
            if found:
                self._sections.append((found.group(1), [line]))
            else:
                self._sections[-1][1].append(line)

    @property
    def names(self) -> list[str]:
        """Of the sections, in their order."""
        return [name for name, _lines in self._sections if name]

    def lines(self, section: str) -> list[str]:
        """The lines of a section but its first, of all parts of it."""
        return [line for name, lines in self._sections if name == section for line in lines[1:]]

    def items(self, section: str) -> list[tuple[str, str]]:
        """The keys of a section with their values."""
        matches = [_KEY.match(line) for line in self.lines(section)]
        return [(found.group(1), found.group(2)) for found in matches if found]

    def get(self, section: str, key: str) -> t.Optional[str]:
        """The last value, which is the one that counts, or None."""
        values = [value for found, value in self.items(section) if found == key]
        return values[-1] if values else None

    def add(self, section: str, lines: t.Sequence[str] = ()) -> None:
        """A section at the end."""
        last = self._sections[-1][1]
        if last and last[-1].strip():
            last.append("")
        kept = list(lines)
        while kept and not kept[-1].strip():
            kept.pop()
        self._sections.append((section, [f"[{section}]", *kept]))

    def set(self, section: str, key: str, value: str) -> None:
        """Give a key this value, in its place if it has one."""
        if self.get(section, key) == value:
            return
        if section not in self.names:
            self.add(section)
        for name, lines in reversed(self._sections):
            for index in reversed(range(len(lines))):
                if name == section and _is_key(lines[index], lambda found: found == key):
                    lines[index] = f"{key}={value}"
                    return
        lines = next(lines for name, lines in reversed(self._sections) if name == section)
        last = max(index for index, line in enumerate(lines) if line.strip())
        lines.insert(last + 1, f"{key}={value}")

    def drop(self, section: str, unwanted: t.Callable[[str], bool]) -> None:
        """Take the keys away of which this is true."""
        for name, lines in self._sections:
            if name == section:
                lines[:] = [line for line in lines if not _is_key(line, unwanted)]

    def text(self) -> str:
        """The file."""
        return "".join(f"{line}\n" for _name, lines in self._sections for line in lines)


def _is_key(line: str, which: t.Callable[[str], bool]) -> bool:
    found = _KEY.match(line)
    return found is not None and which(found.group(1))


def bridge_uuid(bridge: str) -> str:
    """Of the profile of a bridge."""
    return str(uuid.uuid5(_NAMESPACE, f"bridge {bridge}"))


def port_uuid(bridge: str, interface: str) -> str:
    """Of the profile of its card."""
    return str(uuid.uuid5(_NAMESPACE, f"port {bridge} {interface}"))


def plain_uuid(interface: str) -> str:
    """Of a profile for a card that has none to go back to."""
    return str(uuid.uuid5(_NAMESPACE, f"plain {interface}"))


def refusal(text: str) -> t.Optional[str]:
    """What of the card's profile cannot be the bridge's, as a sentence with a remedy; None when all can."""
    profile = Keyfile(text)
    name = profile.get("connection", "id")
    kind = profile.get("connection", "type") or "ethernet"
    master = profile.get("connection", "master") or profile.get("connection", "controller")
    if kind not in _ETHERNET:
        return f"NetworkManager's profile '{name}' is of the type {kind}, and only Ethernet can become a port."
    if "802-1x" in profile.names:
        return (
            f"NetworkManager's profile '{name}' authenticates the card to its switch (802.1X), which would have to go "
            "on below the bridge. Use another card."
        )
    if master:
        return f"NetworkManager's profile '{name}' makes the card a port of {master} already. Give that interface."
    if profile.get("connection", "secondaries"):
        return (
            f"NetworkManager's profile '{name}' starts a VPN with itself (connection.secondaries), which would be lost "
            "for a moment. Take that out, and start the VPN by itself."
        )
    for family in _FAMILIES:
        if profile.get(family, "method") == "shared":
            return (
                f"NetworkManager's profile '{name}' shares the card's network ({family}.method=shared): then the host "
                "is the LAN's gateway, and not an uplink's port. Give another interface."
            )
    return None


def host_part_refusal(text: str, identity: Identity, mac: str) -> t.Optional[str]:
    """Why the IPv6 addresses that the host chose itself could not be chosen again on the bridge; None when they can."""
    profile = Keyfile(text)
    others = {part for part in map(_host_part, identity.announced) if part != _host_part_of(mac)}
    if (profile.get("ipv6", "method") or "auto") != "auto" or len(others) < 2:
        return None
    return (
        f"NetworkManager chose a different host part for each of {', '.join(identity.announced)} (stable-privacy), by "
        "the card's name among others, and would choose others for the bridge. Let it take them from the MAC address "
        f"first: nmcli connection modify '{profile.get('connection', 'id')}' ipv6.addr-gen-mode eui64."
    )


def given_addresses(text: str) -> set[ipaddress.IPv6Address]:
    """The IPv6 addresses that stand in the profile."""
    values = (value for key, value in Keyfile(text).items("ipv6") if _ADDRESSES.match(key))
    return {ipaddress.IPv6Address(found) for value in values for found in re.findall(r"[0-9a-fA-F:]+(?=/\d)", value)}


def autoconnects(text: str) -> bool:
    """Whether NetworkManager starts the profile by itself."""
    return (Keyfile(text).get("connection", "autoconnect") or "true").lower() in _TRUE


def is_for_one(text: str, interface: str) -> bool:
    """Whether the profile is for this interface alone."""
    return Keyfile(text).get("connection", "interface-name") == interface


def with_autoconnect(text: str, *, wanted: bool) -> str:
    """The same profile, started by NetworkManager by itself or not."""
    profile = Keyfile(text)
    if wanted:
        profile.drop("connection", lambda key: key == "autoconnect")
    else:
        profile.set("connection", "autoconnect", "false")
    return profile.text()


def bridge_profile(text: str, identity: Identity, move: Move) -> str:
    """The profile of the bridge, from the card's."""
    card = Keyfile(text)
    made = Keyfile()
    kept = [line for line in card.lines("connection") if line.strip() and not _is_key(line, _is_of_profile)]
    first = [f"id={move.bridge}", f"uuid={bridge_uuid(move.bridge)}", "type=bridge", f"interface-name={move.bridge}"]
    made.add("connection", [*first, *kept])
    made.add("bridge")
    mtu = next((value for section in _ETHERNET for key, value in card.items(section) if key == "mtu"), None)
    if mtu:
        made.set("ethernet", "mtu", mtu)
    for section in _OF_BRIDGE:
        if section in card.names:
            made.add(section, card.lines(section))
    origin = card.get("connection", "uuid")
    if origin:
        made.set("user", ORIGIN, origin)
    for family in _FAMILIES:
        if not made.get(family, "method"):
            made.set(family, "method", "auto")
    _carry_over(made, identity, move)
    return addressed(made.text(), move)


def _is_of_profile(key: str) -> bool:
    return bool(_OF_PROFILE.match(key))


def _carry_over(profile: Keyfile, identity: Identity, move: Move) -> None:
    """Have the network take the bridge for who the card was."""
    if identity.client_id:
        profile.set("ipv4", "dhcp-client-id", identity.client_id)
    for family, metric in (("ipv4", identity.metric), ("ipv6", identity.metric6)):
        if metric and (profile.get(family, "route-metric") or "-1") == "-1":
            profile.set(family, "route-metric", str(metric))
    method = profile.get("ipv6", "method")
    if method not in ("auto", "dhcp", "manual"):
        return
    if method != "manual" and identity.duid:
        profile.set("ipv6", "dhcp-duid", identity.duid)
    if method != "manual" and identity.iaid:
        profile.set("ipv6", "dhcp-iaid", str(int(identity.iaid.replace(":", ""), 16)))
    parts = {_host_part(address) for address in identity.announced}
    of_mac = _host_part_of(move.mac)
    if method == "auto" and parts:
        profile.set("ipv6", "addr-gen-mode", "eui64")
        others = sorted(parts - {of_mac})
        if others:
            profile.set("ipv6", "token", str(ipaddress.IPv6Address(others[0])))
    if identity.link_local and _host_part(identity.link_local) != of_mac:
        profile.set("ipv6", "addr-gen-mode", "eui64")
        _add_address(profile, "ipv6", f"{identity.link_local}/64")
    elif identity.link_local:
        profile.set("ipv6", "addr-gen-mode", "eui64")


def _host_part(address: str) -> int:
    return int(ipaddress.IPv6Address(address)) & (2**64 - 1)


def _host_part_of(mac: str) -> int:
    """The host part that is made of the MAC address (RFC 4291, appendix A)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return int.from_bytes(octets[:3] + b"\xff\xfe" + octets[3:], "big")


def _add_address(profile: Keyfile, family: str, address: str) -> None:
    used = [key for key, _value in profile.items(family) if _ADDRESSES.match(key)]
    if not any(value.split(",")[0] == address for key, value in profile.items(family) if key in used):
        number = next(number for number in range(1, len(used) + 2) if f"address{number}" not in used)
        profile.set(family, f"address{number}", address)


def addressed(text: str, move: Move) -> str:
    """The bridge's profile with the addresses, and as the bridge, that are wanted; the same when it is so already."""
    profile = Keyfile(text)
    options = {
        "mac-address": move.mac.upper(),
        "stp": "true" if move.stp else "false",
        "forward-delay": str(max(round(move.forward_delay), _LEAST_DELAY) if move.stp else round(move.forward_delay)),
        "multicast-snooping": "false",
    }
    for key, value in options.items():
        profile.set("bridge", key, value)
    if move.mode == "dhcp":
        profile.drop("ipv4", lambda key: bool(_ADDRESSES.match(key)))
        profile.set("ipv4", "method", "auto")
    elif move.mode in ("static", "none"):
        for family, version, closed in (("ipv4", 4, "disabled"), ("ipv6", 6, "link-local")):
            _give(profile, family, version, closed, move)
    return profile.text()


def _give(profile: Keyfile, family: str, version: int, closed: str, move: Move) -> None:
    def of_family(values: t.Sequence[str]) -> list[str]:
        return [value for value in values if ipaddress.ip_interface(value).version == version]

    addresses = of_family(move.addresses) if move.mode == "static" else []
    profile.drop(family, lambda key: bool(_ADDRESSES.match(key)))
    if not addresses:
        profile.drop(family, lambda key: key in ("dns", "dns-search", "token") or bool(_ROUTES.match(key)))
        if profile.get(family, "method") not in ("disabled", "ignore"):
            profile.set(family, "method", closed)
        return
    profile.set(family, "method", "manual")
    profile.drop(family, lambda key: key == "token")
    for number, address in enumerate(addresses, 1):
        profile.set(family, f"address{number}", address)
    for gateway in of_family(move.gateways)[:1]:
        profile.set(family, "gateway", gateway)
    if move.dns:
        dns = of_family(move.dns)
        profile.drop(family, lambda key: key == "dns")
        if dns:
            profile.set(family, "dns", "".join(f"{server};" for server in dns))


def before_burst(text: str) -> str:
    """The bridge's profile as it is started while the card still has the addresses.

    NetworkManager switches IPv6 off and on when it starts a profile, so it must have done that before. What it gets
    from others it asks for only when the bridge has a port. Addresses of its own it gives at once; their routes stand
    behind the card's, and C(metrics_behind) names them, for they are to go when the card's have come over.
    """
    profile = Keyfile(text)
    profile.set("connection", "autoconnect", "false")
    profile.drop("connection", lambda key: key == "gateway-ping-timeout")
    for family in _FAMILIES:
        profile.drop(family, lambda key: bool(_ROUTES.match(key)) or key == "dad-timeout")
        if profile.get(family, "method") == "manual":
            metric = max(int(profile.get(family, "route-metric") or "0"), 0)
            profile.set(family, "route-metric", str(_BEHIND + metric))
        else:
            profile.drop(family, lambda key: bool(_ADDRESSES.match(key)))
    return profile.text()


def metrics_behind(text: str) -> dict[str, str]:
    """For a profile of C(before_burst): the metric of the routes that nobody needs, by family."""
    profile = Keyfile(text)
    return {
        family: profile.get(family, "route-metric") or ""
        for family in _FAMILIES
        if profile.get(family, "method") == "manual"
    }


def port_profile(text: str, move: Move) -> str:
    """The profile of the card as the bridge's port, from the card's."""
    card = Keyfile(text)
    made = Keyfile()
    values = {
        "id": f"{move.bridge}-{move.interface}",
        "uuid": port_uuid(move.bridge, move.interface),
        "type": "ethernet",
        "interface-name": move.interface,
        "autoconnect-priority": str(_PRIORITY),
        "master": bridge_uuid(move.bridge),
        "slave-type": "bridge",
    }
    made.add("connection", [f"{key}={value}" for key, value in values.items()])
    for section in dict.fromkeys(card.names):
        if section not in (*_OF_BRIDGE, *_OF_NEITHER):
            made.add(section, card.lines(section))
    return made.text()


def plain_profile(interface: str, identity: str) -> str:
    """What NetworkManager does by itself for a card without any profile; C(identity) is the UUID that it gave it."""
    return (
        f"[connection]\nid={interface}\nuuid={identity}\ntype=ethernet\ninterface-name={interface}\n\n"
        "[ipv4]\nmethod=auto\n\n[ipv6]\naddr-gen-mode=default\nmethod=auto\n"
    )


def renamed_lease(text: str, interface: str, bridge: str) -> str:
    """A lease file of dhclient's with the interface's name replaced; that of the internal client has none."""
    return text.replace(f'interface "{interface}";', f'interface "{bridge}";')
