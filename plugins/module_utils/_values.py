# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The values that administrators write, in their canonical form: interface names, MAC addresses, addresses, networks.

Each function returns the canonical value or raises InvalidInput with the option's name.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput

#: IFNAMSIZ - 1 (linux/if.h).
NAME_LENGTH = 15

# The kernel takes more than this, and each extra hurts somebody: "br%d" is a template, "v+" a wildcard in iptables,
# "v*" one in nftables, "-x" an option to every program.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_RESERVED = frozenset(["all", "default", "lo"])

Address = t.Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]
Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


def interface_name(option: str, value: str) -> str:
    """The name of a network interface that may be created or used."""
    if len(value) > NAME_LENGTH:
        raise InvalidInput(
            option, value, f"is {len(value)} characters long; the kernel allows {NAME_LENGTH}. Shorten the name."
        )
    if not _NAME.match(value):
        raise InvalidInput(
            option,
            value,
            "is not a usable interface name: begin with a letter or digit and go on with letters, digits, '_', '.' "
            "or '-'; wildcards such as '*', '+' and '%d' would be expanded by the kernel or the firewall.",
        )
    if value in _RESERVED:
        raise InvalidInput(option, value, "is a name that the kernel keeps for itself. Choose another one.")
    return value


def object_name(option: str, value: str) -> str:
    """The name of a guest or a network: part of file names, host names and firewall tables."""
    if not _NAME.match(value) or len(value) > 63:
        raise InvalidInput(
            option,
            value,
            "is not a usable name: up to 63 letters, digits, '_', '.' or '-', the first one a letter or digit.",
        )
    return value


def mac_address(option: str, value: str) -> str:
    """A unicast MAC address as C(52:54:00:12:34:56)."""
    mac = value.strip().lower().replace("-", ":")
    if not _MAC.match(mac):
        meant = _sexagesimal(mac)
        if meant:
            raise InvalidInput(
                option, value, f'is what YAML makes of {meant} without quotes, a number to base 60; write "{meant}".'
            )
        raise InvalidInput(
            option, value, 'is not a MAC address; write six hexadecimal pairs in quotes, as in "52:54:00:12:34:56".'
        )
    if int(mac[:2], 16) & 1:
        raise InvalidInput(
            option, value, "is a multicast address (the first byte is odd); an interface needs a unicast one."
        )
    if mac == "00:00:00:00:00:00":
        raise InvalidInput(option, value, "is the empty address; leave the option out to have one derived.")
    return mac


def _sexagesimal(text: str) -> t.Optional[str]:
    """The six pairs that YAML 1.1 reads as this number, if it can come from any."""
    if not text.isdecimal() or not 10 * 60**5 <= int(text) < 100 * 60**5:
        return None
    rest, pairs = int(text), []
    for _pair in range(5):
        rest, pair = divmod(rest, 60)
        pairs.append(pair)
    return ":".join(f"{pair:02d}" for pair in (rest, *reversed(pairs)))


def derived_mac(*parts: str) -> str:
    """A locally administered MAC address that is always the same for the same parts (RFC 7042, section 2.1)."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    first = digest[0] & 0b11111100 | 0b10
    return ":".join(f"{byte:02x}" for byte in (first, *digest[1:6]))


def host_identity() -> str:
    """What tells this host from others for derived addresses: the machine id, or the host name where there is none."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read().strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


def interface_address(option: str, value: str) -> Address:
    """An address with its prefix length, as an interface carries it: C(192.168.6.10/24), C(fd00::1/64)."""
    if "/" not in value:
        raise InvalidInput(option, value, "has no prefix length; write the address as in 192.168.6.10/24.")
    try:
        return ipaddress.ip_interface(value.strip())
    except ValueError:
        raise InvalidInput(
            option, value, "is not an address with a prefix length; write it as in 192.168.6.10/24 or fd00:6::10/64."
        ) from None


def network(option: str, value: str) -> Network:
    """A network in CIDR form; host bits are an error, because they leave open what was meant."""
    try:
        return ipaddress.ip_network(value.strip())
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value.strip(), strict=False)
    except ValueError:
        raise InvalidInput(option, value, "is not a network in CIDR form; write it as in 192.168.6.0/24.") from None
    raise InvalidInput(option, value, f"is not a network in CIDR form, as it has host bits set; write {meant}.")


def counts(address: str) -> bool:
    """Whether this is an address by which a guest can be reached from elsewhere."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (found.is_link_local or found.is_loopback or found.is_multicast or found.is_unspecified)


def in_order(addresses: t.Iterable[str]) -> tuple[str, ...]:
    """Each once, IPv4 first."""
    return tuple(sorted(set(addresses), key=lambda one: (ipaddress.ip_address(one).version, ipaddress.ip_address(one))))
