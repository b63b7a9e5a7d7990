# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The state of two interfaces, the network card and the bridge, read from the kernel whole and written back to it.

Of the standard library alone: the dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import struct
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _rtnetlink
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _entries
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import (
    AF_INET,
    AF_INET6,
    Address,
    Lifetimes,
    Neighbour,
    Route,
    Rule,
    Timed,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Refusal,
    Wire,
    pack_attributes,
)

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFF_UP = 0x1
_SKIP_STATISTICS = (29, struct.pack("=I", 0x8))
_RTM_F_CLONED = 0x200
_KERNELS_OWN = (_entries.RTN_LOCAL, _entries.RTN_BROADCAST, _entries.RTN_ANYCAST, _entries.RTN_MULTICAST)

# linux/if_link.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 10, 18, 20
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_MCAST_SNOOPING = 1, 5, 23

#: Where the settings of an interface are, below /proc/sys/net.
SYSCTL_TREES = ("ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh")
DISABLE_IPV6 = "ipv6/conf/disable_ipv6"
ADDR_GEN_MODE = "ipv6/conf/addr_gen_mode"
ACCEPT_DAD = "ipv6/conf/accept_dad"
USE_TEMPADDR = "ipv6/conf/use_tempaddr"
RP_FILTER = "ipv4/conf/rp_filter"
#: While addresses are on their way: no duplicate address detection (they were ours a moment ago), no addresses of the
#: kernel's own making, and no packet dropped because the route back is not there yet (RFC 3704).
IN_BETWEEN = {ACCEPT_DAD: "0", ADDR_GEN_MODE: "1", USE_TEMPADDR: "0", RP_FILTER: "2"}

# linux/if_addr.h
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40
# Seconds that the kernel's worker may take to look at new IPv6 addresses.
_WORKER_PATIENCE = 5.0

Sysctls = t.Dict[str, str]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """How the two interfaces are, and when that was so."""

    links: dict[str, Link]
    """By name; one that is not there is not in it."""
    layer3: Layer3
    sysctls: dict[str, Sysctls]
    """By interface; the keys are those of C(SYSCTL_TREES) with the setting behind."""
    taken: float
    """Seconds since boot, those asleep included."""

    def aged(self, seconds: float) -> Layer3:
        """What layer 3 would be by now if nothing had happened to it: lifetimes run."""
        addresses = tuple(Timed(each.address, each.lifetimes.after(seconds)) for each in self.layer3.addresses)
        return dataclasses.replace(self.layer3, addresses=addresses)


def now() -> float:
    """The seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Kernel:
    """Reads and writes by rtnetlink and /proc/sys/net, in this network namespace."""

    def __init__(self) -> None:
        self.wire = Wire()

    def close(self) -> None:
        """Let go of the socket."""
        self.wire.close()

    def links(self) -> dict[str, Link]:
        """Every interface by name."""
        body = _LINK.pack(0, 0, 0, 0, 0) + pack_attributes([_SKIP_STATISTICS])
        found = [_rtnetlink.parse_link_header(reply) for reply in self.wire.dump("links", _RTM_GETLINK, body)]
        names = {index: _rtnetlink.parse_text(attributes[_IFLA_IFNAME]) for index, _flags, attributes in found}
        return {
            names[index]: _rtnetlink.parse_link(index, flags, attributes, names) for index, flags, attributes in found
        }

    def layer3(self, interfaces: t.Container[int]) -> Layer3:
        """Routes and rules of the host, addresses and neighbours of the interfaces with these indices."""
        addresses = (_entries.parse_address(body) for body in self._bodies("addresses", _entries.RTM_GETADDR, bytes(8)))
        neighbours = [_entries.parse_neighbour(body) for body in self._neighbours()]
        return Layer3(
            addresses=tuple(timed for timed in addresses if timed.address.index in interfaces),
            routes=tuple(self._routes()),
            rules=tuple(self._rules()),
            neighbours=tuple(each for each in neighbours if each is not None and each.header[1] in interfaces),
        )

    def _bodies(self, what: str, kind: int, request: bytes) -> list[bytes]:
        return [message[HEADER.size :] for message in self.wire.dump(what, kind, request)]

    def _of_family(self, family: int, what: str, kind: int) -> list[bytes]:
        """Those of one family: a kernel that runs without IPv6 answers the question for it with all that it has."""
        return [body for body in self._bodies(what, kind, bytes([family]) + bytes(11)) if body[0] == family]

    def _neighbours(self) -> list[bytes]:
        plain = struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0)
        proxied = struct.pack("=BxxxiHBB", 0, 0, 0, _entries.NTF_PROXY, 0)
        kind = _entries.RTM_GETNEIGH
        return self._bodies("neighbours", kind, plain) + self._bodies("proxied neighbours", kind, proxied)

    def _routes(self) -> t.Iterator[Route]:
        for family in (AF_INET, AF_INET6):
            for body in self._of_family(family, "routes", _entries.RTM_GETROUTE):
                if struct.unpack_from("=I", body, 8)[0] & _RTM_F_CLONED:
                    continue
                route = _entries.parse_route(body)
                if route.protocol != _entries.RTPROT_KERNEL or route.type not in _KERNELS_OWN:
                    yield route

    def _rules(self) -> t.Iterator[Rule]:
        for family in (AF_INET, AF_INET6):
            for body in self._of_family(family, "rules", _entries.RTM_GETRULE):
                yield _entries.parse_rule(body)

    def snapshot(self, *names: str) -> Snapshot:
        """How the interfaces of these names are."""
        links = {name: link for name, link in self.links().items() if name in names}
        return Snapshot(
            links=links,
            layer3=self.layer3({link.index for link in links.values()}),
            sysctls={name: read_sysctls(name) for name in links},
            taken=now(),
        )

    def send(self, messages: t.Sequence[Message]) -> list[t.Optional[Refusal]]:
        """Send them all in one go; the kernel's answers."""
        return self.wire.send(messages)


def read_sysctls(interface: str) -> Sysctls:
    """Every setting of the interface that can be read."""
    found: Sysctls = {}
    for tree in SYSCTL_TREES:
        directory = f"/proc/sys/net/{tree}/{interface}"
        with contextlib.suppress(FileNotFoundError):
            for setting in sorted(os.listdir(directory)):
                # A stable secret that was never set cannot be read.
                with contextlib.suppress(OSError), open(f"{directory}/{setting}", encoding="ascii") as file:
                    found[f"{tree}/{setting}"] = file.read().strip()
    return found


def write_sysctls(interface: str, wanted: t.Mapping[str, str]) -> None:
    """Bring these settings of the interface to these values; what has its value is not written."""
    for key, value in wanted.items():
        tree, _slash, setting = key.rpartition("/")
        path = f"/proc/sys/net/{tree}/{interface}/{setting}"
        with contextlib.suppress(OSError):
            with open(path, encoding="ascii") as file:
                if file.read().strip() == value:
                    continue
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{value}\n")


def await_addresses(*interfaces: str) -> None:
    """Wait until the interfaces' IPv6 addresses work, which they do when the kernel's worker has seen to them.

    It looks at the settings of its own time: C(accept_dad) must not be what it was before the worker has run, or
    addresses that were the host's all the time are silent for a second.
    """
    deadline = time.monotonic() + _WORKER_PATIENCE
    while _tentative(interfaces) and time.monotonic() < deadline:
        time.sleep(0.002)


def _tentative(interfaces: t.Container[str]) -> bool:
    """Whether one of the interfaces has an IPv6 address that does not work yet."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except FileNotFoundError:
        return False
    # An address that somebody else has stays tentative.
    looked_at = _IFA_F_TENTATIVE | _IFA_F_DADFAILED
    return any(row[5] in interfaces and int(row[4], 16) & looked_at == _IFA_F_TENTATIVE for row in rows)


def set_link(
    index: int,
    *,
    up: t.Optional[bool] = None,
    master: t.Optional[int] = None,
    mtu: t.Optional[int] = None,
    mac: t.Optional[str] = None,
    alias: t.Optional[str] = None,
) -> Message:
    """Settings of the interface with this index; C(master) is a bridge's index, 0 for none."""
    attributes: list[tuple[int, bytes]] = []
    if master is not None:
        attributes.append((_IFLA_MASTER, struct.pack("=I", master)))
    if mtu is not None:
        attributes.append((_IFLA_MTU, struct.pack("=I", mtu)))
    if mac is not None:
        attributes.append((_IFLA_ADDRESS, _mac(mac)))
    if alias is not None:
        attributes.append((_IFLA_IFALIAS, alias.encode()))
    flags = (0, 0) if up is None else (_IFF_UP if up else 0, _IFF_UP)
    return Message(_RTM_NEWLINK, 0, _LINK.pack(0, 0, index, *flags) + pack_attributes(attributes))


def create_bridge(name: str, *, mac: str, mtu: int, stp: bool, forward_delay: int) -> Message:
    """A bridge that is down; C(forward_delay) in hundredths of a second."""
    settings = [
        (_BR_FORWARD_DELAY, struct.pack("=I", forward_delay)),
        (_BR_STP_STATE, struct.pack("=I", int(stp))),
        # Without a querier, snooping cuts off IPv6 neighbour discovery after some minutes.
        (_BR_MCAST_SNOOPING, b"\0"),
    ]
    info = [(_INFO_KIND, b"bridge\0"), (_INFO_DATA, pack_attributes(settings))]
    attributes = [
        (_IFLA_IFNAME, name.encode() + b"\0"),
        (_IFLA_ADDRESS, _mac(mac)),
        (_IFLA_MTU, struct.pack("=I", mtu)),
        (_IFLA_LINKINFO, pack_attributes(info)),
    ]
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _LINK.pack(0, 0, 0, 0, 0) + pack_attributes(attributes))


def create_cable(name: str, peer: str, *, mtu: int) -> Message:
    """A pair of veth interfaces, down."""
    size = (_IFLA_MTU, struct.pack("=I", mtu))
    other = _LINK.pack(0, 0, 0, 0, 0) + pack_attributes([(_IFLA_IFNAME, peer.encode() + b"\0"), size])
    info = [(_INFO_KIND, b"veth\0"), (_INFO_DATA, pack_attributes([(_VETH_INFO_PEER, other)]))]
    attributes = [(_IFLA_IFNAME, name.encode() + b"\0"), size, (_IFLA_LINKINFO, pack_attributes(info))]
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _LINK.pack(0, 0, 0, 0, 0) + pack_attributes(attributes))


def delete_link(index: int) -> Message:
    """The end of the interface with this index."""
    return Message(_RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


_TABLES: dict[str, t.Any] = {"routes": Route, "rules": Rule, "neighbours": Neighbour}


def snapshot_to_json(snapshot: Snapshot) -> dict[str, t.Any]:
    """The snapshot as plain data for the journal."""
    layer3 = snapshot.layer3
    return {
        "links": {name: dataclasses.asdict(link) for name, link in snapshot.links.items()},
        "addresses": [[_text(each.address.body), *each.lifetimes] for each in layer3.addresses],
        **{table: [_text(entry.body) for entry in getattr(layer3, table)] for table in _TABLES},
        "sysctls": snapshot.sysctls,
        "taken": snapshot.taken,
    }


def snapshot_from_json(stored: t.Mapping[str, t.Any]) -> Snapshot:
    """The snapshot that C(snapshot_to_json) stored; of the links only what is plain."""
    plain = {"bridge": None, "port": None, "tun": None}
    tables = {table: tuple(kind(base64.b64decode(body)) for body in stored[table]) for table, kind in _TABLES.items()}
    addresses = (Timed(Address(base64.b64decode(body)), Lifetimes(*lives)) for body, *lives in stored["addresses"])
    return Snapshot(
        links={name: Link(**{**link, **plain}) for name, link in stored["links"].items()},
        layer3=Layer3(addresses=tuple(addresses), **tables),
        sysctls=stored["sysctls"],
        taken=stored["taken"],
    )


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")
