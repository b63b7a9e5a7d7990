# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What layer 3 keeps on an interface, as the kernel's own bytes: addresses, routes, rules, neighbours.

An entry is kept as it came in a dump, and is sent back with only its interface exchanged: an attribute that nobody here
knows goes along. Pure, and of the standard library alone: the dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
import struct
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._wire import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    each_attribute,
    pack_attributes,
)

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)
FOREVER = 0xFFFFFFFF

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, reserved, reserved, action, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_U32 = struct.Struct("=I")
_CACHE_INFO = struct.Struct("=II")  # of an address: preferred, valid

# linux/if_addr.h
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 4, 6, 8
# What the kernel finds out for itself, and refuses or ignores when told: secondary or temporary, optimistic, failed,
# deprecated, tentative, permanent, stable privacy.
_FOUND_OUT = 0x01 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80 | 0x800
NO_PREFIX_ROUTE = 0x200

# linux/rtnetlink.h
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH = 1, 2, 4, 5, 6, 7, 9
RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_PREF, RTA_ENCAP_TYPE, RTA_ENCAP = 12, 15, 18, 20, 21, 22
RTA_EXPIRES, RTA_NH_ID = 23, 30
RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 2, 3, 4, 5
RTPROT_KERNEL = 2
LOCAL_TABLE = 255
_MAIN_TABLE = 254
_RTN_UNICAST = 1
_RTPROT_STATIC = 4
RTPROT_RA = 9
#: IP6_RT_PRIO_USER (linux/ipv6_route.h): what a route gets that names no metric.
_IPV6_METRIC = 1024
_ONLINK = 0x4
_EXPIRES = struct.Struct("=IIiI")  # of a route: references, last use, expiry in hundredths of a second, error

# linux/fib_rules.h
FRA_IIFNAME, FRA_PRIORITY, FRA_OIFNAME = 3, 6, 17
_RULE_FLAGS = 0x2  # invert; the others are found out

# linux/neighbour.h
NDA_DST, NDA_LLADDR, NDA_CACHEINFO, NDA_PROBES = 1, 2, 3, 4
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x80
NTF_PROXY = 0x8

Pairs = t.Tuple[t.Tuple[int, bytes], ...]


@dataclasses.dataclass(frozen=True)
class Interface:
    """An interface as entries name it: addresses, routes and neighbours by its index, rules and labels by its name."""

    index: int
    name: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table as the kernel takes it: header and attributes, without what it counts or finds out itself."""

    body: bytes

    _header: t.ClassVar[struct.Struct]
    _new: t.ClassVar[int]
    _delete: t.ClassVar[int]

    @functools.cached_property
    def header(self) -> tuple[int, ...]:
        """The fixed fields."""
        return self._header.unpack_from(self.body)

    @functools.cached_property
    def pairs(self) -> Pairs:
        """The attributes in order."""
        return tuple(each_attribute(self.body, self._header.size))

    @functools.cached_property
    def attributes(self) -> dict[int, bytes]:
        """The attributes by number."""
        return dict(self.pairs)

    @property
    def family(self) -> int:
        """C(AF_INET) or C(AF_INET6)."""
        return self.header[0]

    @property
    def identity(self) -> bytes:
        """What makes it the same as another one."""
        return self.body

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        """The interfaces that it names by number."""
        raise NotImplementedError

    def moved(self, source: Interface, target: Interface) -> t.Any:
        """The same on another interface; itself if it is not on C(source)."""
        raise NotImplementedError

    def deletion(self) -> Message:
        """The request that takes exactly this entry away."""
        return Message(self._delete, 0, self.body)

    def addition(self, flags: int = NLM_F_CREATE | NLM_F_EXCL) -> Message:
        """The request that makes it."""
        return Message(self._new, flags, self.body)

    def _made(self, header: t.Sequence[int], pairs: t.Iterable[tuple[int, bytes]]) -> t.Any:
        return type(self)(self._header.pack(*header) + pack_attributes(pairs))


class Address(Entry):
    """An address on an interface, without its lifetimes: those are in C(Timed)."""

    _header, _new, _delete = _ADDRESS, RTM_NEWADDR, RTM_DELADDR

    @classmethod
    def make(cls, local: bytes, prefix: int, *, label: str, broadcast: t.Optional[bytes]) -> Address:
        """An address on no interface yet, as C(ip address add) makes it and the kernel lists it."""
        pairs = [(IFA_ADDRESS, local)]
        if len(local) == 4:
            pairs.append((IFA_LOCAL, local))
            pairs += [(IFA_BROADCAST, broadcast)] if broadcast is not None else []
            pairs.append((IFA_LABEL, label.encode() + b"\0"))
        pairs.append((IFA_FLAGS, bytes(4)))
        family = AF_INET if len(local) == 4 else AF_INET6
        return cls(_ADDRESS.pack(family, prefix, 0, 0, 0) + pack_attributes(pairs))

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        return frozenset([self.header[4]])

    @property
    def index(self) -> int:
        """The interface that has it."""
        return self.header[4]

    @functools.cached_property
    def local(self) -> bytes:
        """The address itself."""
        return self.attributes.get(IFA_LOCAL, self.attributes.get(IFA_ADDRESS, b""))

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 link-local address (RFC 4291, section 2.5.6)."""
        return self.family == AF_INET6 and self.local[0] == 0xFE and self.local[1] & 0xC0 == 0x80

    @property
    def has_prefix_route(self) -> bool:
        """Whether the kernel makes the route to its network."""
        return not _U32.unpack(self.attributes.get(IFA_FLAGS, bytes(4)))[0] & NO_PREFIX_ROUTE

    @functools.cached_property
    def network(self) -> bytes:
        """The network that it is in (of a peer address: the peer's), without the host's bits."""
        return _masked(self.attributes.get(IFA_ADDRESS, self.local), self.header[1])

    def moved(self, source: Interface, target: Interface) -> Address:
        if self.index != source.index:
            return self
        header = (*self.header[:4], target.index)
        return t.cast(
            Address, self._made(header, ((kind, _label(kind, value, source, target)) for kind, value in self.pairs))
        )

    def deletion(self) -> Message:
        # With a label the kernel looks for that very one among those of the same address.
        kept = [(kind, value) for kind, value in self.pairs if kind in (IFA_ADDRESS, IFA_LOCAL, IFA_LABEL)]
        return Message(RTM_DELADDR, 0, _ADDRESS.pack(*self.header) + pack_attributes(kept))


def _label(kind: int, value: bytes, source: Interface, target: Interface) -> bytes:
    """A label begins with its interface's name (ip-address(8)); one that does not stays."""
    name = source.name.encode()
    text = value.rstrip(b"\0")
    if kind != IFA_LABEL or (text != name and not text.startswith(name + b":")):
        return value
    return target.name.encode() + text[len(name) :] + b"\0"


class Lifetimes(t.NamedTuple):
    """How long an address is preferred, and how long it is valid, in seconds; C(FOREVER)."""

    preferred: int = FOREVER
    valid: int = FOREVER

    def after(self, seconds: float) -> Lifetimes:
        """What is left of them then; never nothing, since the kernel takes no address that is over."""
        passed = int(seconds)
        left = (value if value == FOREVER else max(value - passed, floor) for value, floor in zip(self, (0, 1)))
        return Lifetimes(*left)


class Timed(t.NamedTuple):
    """An address, and how long it lives."""

    address: Address
    lifetimes: Lifetimes

    def addition(self) -> Message:
        """The request that makes the address, or gives it these lifetimes."""
        timing: tuple[tuple[int, bytes], ...] = ()
        if self.lifetimes != Lifetimes():
            timing = ((IFA_CACHEINFO, _CACHE_INFO.pack(*self.lifetimes) + bytes(8)),)
        return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, self.address.body + pack_attributes(timing))


def parse_address(message: bytes) -> Timed:
    """The address in a body of RTM_NEWADDR."""
    family, prefix, flags, scope, index = _ADDRESS.unpack_from(message)
    pairs = list(each_attribute(message, _ADDRESS.size))
    lifetimes = Lifetimes()
    kept = []
    for kind, value in pairs:
        if kind == IFA_CACHEINFO:
            lifetimes = Lifetimes(*_CACHE_INFO.unpack_from(value))
        elif kind == IFA_FLAGS:
            flags = _U32.unpack(value)[0]
        else:
            kept.append((kind, value))
    kept.append((IFA_FLAGS, _U32.pack(flags & ~_FOUND_OUT)))
    body = _ADDRESS.pack(family, prefix, flags & ~_FOUND_OUT & 0xFF, scope, index) + pack_attributes(kept)
    return Timed(Address(body), lifetimes)


class Route(Entry):
    """A route of any table and type."""

    _header, _new, _delete = _ROUTE, RTM_NEWROUTE, RTM_DELROUTE

    @classmethod
    def make_default(cls, gateway: bytes) -> Route:
        """A default route on no interface yet, as C(ip route add) makes it and the kernel lists it."""
        family = AF_INET if len(gateway) == 4 else AF_INET6
        pairs = [(RTA_TABLE, _U32.pack(_MAIN_TABLE))]
        pairs += [(RTA_PRIORITY, _U32.pack(_IPV6_METRIC))] if family == AF_INET6 else []
        pairs += [(RTA_GATEWAY, gateway), (RTA_OIF, bytes(4))]
        pairs += [(RTA_PREF, b"\0")] if family == AF_INET6 else []
        return cls(
            _ROUTE.pack(family, 0, 0, 0, _MAIN_TABLE, _RTPROT_STATIC, 0, _RTN_UNICAST, 0) + pack_attributes(pairs)
        )

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        hops = {hop.interface for hop in self._hops}
        if RTA_OIF in self.attributes:
            hops.add(_U32.unpack(self.attributes[RTA_OIF])[0])
        return frozenset(hops)

    @functools.cached_property
    def identity(self) -> bytes:
        # Whether it ends is part of what it is, when it ends is not.
        lasting = ((kind, b"" if kind == RTA_EXPIRES else value) for kind, value in self.pairs)
        return _ROUTE.pack(*self.header) + pack_attributes(lasting)

    @functools.cached_property
    def table(self) -> int:
        """Its table's number."""
        return int(_U32.unpack(self.attributes[RTA_TABLE])[0]) if RTA_TABLE in self.attributes else self.header[4]

    @property
    def protocol(self) -> int:
        """Who made it (rtm_protocol)."""
        return self.header[5]

    @property
    def type(self) -> int:
        """Unicast, local, ... (rtm_type)."""
        return self.header[7]

    @functools.cached_property
    def group(self) -> tuple[int, int, int, bytes, int, bytes, int, bytes]:
        """What routes have in common that the kernel keeps in order, one behind the other, for the same packets."""
        family, to_length, from_length, tos, *_rest = self.header
        found = self.attributes
        to, source = found.get(RTA_DST, b""), found.get(RTA_SRC, b"")
        return (family, self.table, to_length, to, from_length, source, tos, found.get(RTA_PRIORITY, bytes(4)))

    @functools.cached_property
    def gateways(self) -> tuple[tuple[int, bytes], ...]:
        """The gateways with the interfaces on which they are."""
        if RTA_MULTIPATH in self.attributes:
            return tuple((hop.interface, hop.gateway) for hop in self._hops if hop.gateway)
        gateway = _gateway(self.attributes)
        return tuple((index, gateway) for index in self.indices if gateway)

    @functools.cached_property
    def _hops(self) -> tuple[_Hop, ...]:
        return tuple(_hops(self.attributes.get(RTA_MULTIPATH, b"")))

    @property
    def cannot_be_rebuilt(self) -> t.Optional[str]:
        """What it has that is beyond this collection, if anything."""
        inner = [self.attributes, *(hop.attributes for hop in self._hops)]
        if any(RTA_NH_ID in attributes for attributes in inner):
            return "a nexthop object"
        if any(RTA_ENCAP in attributes or RTA_ENCAP_TYPE in attributes for attributes in inner):
            return "an encapsulation"
        return None

    @property
    def is_default(self) -> bool:
        """Whether it is for everything that no other route is for, by a gateway."""
        return not self.header[1] and bool(self.gateways)

    @property
    def is_advertised_default(self) -> bool:
        """Whether a router's advertisement made it (RFC 4861, section 6.3.4)."""
        return self.protocol == RTPROT_RA and self.family == AF_INET6 and self.is_default

    @property
    def metric(self) -> int:
        """The lower, the better."""
        return int(_U32.unpack(self.attributes.get(RTA_PRIORITY, bytes(4)))[0])

    def stand_in(self) -> Route:
        """The same one step behind, for the time until the kernel hears the router again.

        In its very place the kernel could not make its own: it takes only one that has its mark (RTF_ADDRCONF), which
        netlink cannot give, for the router's, and stops reading an advertisement when it cannot have that one. Then no
        address of the host would live longer than until its end (net/ipv6/ndisc.c, ndisc_router_discovery).
        """
        behind = _U32.pack(self.metric + 1)
        pairs = ((kind, behind if kind == RTA_PRIORITY else value) for kind, value in self.pairs)
        return t.cast(Route, self._made(self.header, pairs))

    def is_made_for(self, addresses: t.Iterable[Address]) -> bool:
        """Whether the kernel makes this route by itself, for one of the addresses or for the interface as such."""
        if self.table == LOCAL_TABLE or self.type in (RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST):
            return self.protocol == RTPROT_KERNEL
        if self.protocol != RTPROT_KERNEL:
            return False
        to = self.attributes.get(RTA_DST, b"")
        return any(
            address.family == self.family
            and address.index in self.indices
            and address.has_prefix_route
            and _masked(to, self.header[1]) == address.network
            and self.header[1] == address.header[1]
            for address in addresses
        )

    def moved(self, source: Interface, target: Interface) -> Route:
        if source.index not in self.indices:
            return self
        return t.cast(
            Route, self._made(self.header, (_retarget(pair, source.index, target.index) for pair in self.pairs))
        )

    def replacement(self) -> Message:
        """The request that puts it in the place of the first of its group, or begins the group."""
        return self.addition(NLM_F_CREATE | NLM_F_REPLACE)

    def appendix(self) -> Message:
        """The request that puts it behind the others of its group."""
        return self.addition(NLM_F_CREATE | NLM_F_APPEND)


class _Hop(t.NamedTuple):
    flags: int
    weight: int
    interface: int
    attributes: dict[int, bytes]
    rest: bytes

    @property
    def gateway(self) -> bytes:
        return _gateway(self.attributes)


def _gateway(attributes: t.Mapping[int, bytes]) -> bytes:
    return attributes.get(RTA_GATEWAY) or attributes.get(RTA_VIA, b"")[2:]


def _hops(value: bytes) -> t.Iterator[_Hop]:
    offset = 0
    while offset + 8 <= len(value):
        length, flags, weight, index = struct.unpack_from("=HBBi", value, offset)
        rest = value[offset + 8 : offset + length]
        yield _Hop(flags, weight, index, dict(each_attribute(rest)), rest)
        offset += (length + 3) & ~3


def _pack_hops(hops: t.Iterable[_Hop]) -> bytes:
    packed = bytearray()
    for hop in hops:
        packed += struct.pack("=HBBi", len(hop.rest) + 8, hop.flags, hop.weight, hop.interface) + hop.rest
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def _retarget(pair: tuple[int, bytes], source: int, target: int) -> tuple[int, bytes]:
    kind, value = pair
    if kind == RTA_OIF and _U32.unpack(value)[0] == source:
        return kind, _U32.pack(target)
    if kind == RTA_MULTIPATH:
        hops = (hop._replace(interface=target) if hop.interface == source else hop for hop in _hops(value))
        return kind, _pack_hops(hops)
    return pair


def parse_route(message: bytes) -> Route:
    """The route in a body of RTM_NEWROUTE; one that ends gets the rest of its time as RTA_EXPIRES."""
    *fields, flags = _ROUTE.unpack_from(message)
    kept = []
    for kind, value in each_attribute(message, _ROUTE.size):
        if kind == RTA_MULTIPATH:
            hops = (hop._replace(flags=hop.flags & _ONLINK) for hop in _hops(value))
            kept.append((kind, _pack_hops(hops)))
        elif kind == RTA_CACHEINFO:
            expires = _EXPIRES.unpack_from(value)[2]
            if expires > 0 and fields[0] == AF_INET6:
                kept.append((RTA_EXPIRES, _U32.pack(max(expires // 100, 1))))
        elif kind == RTA_NH_ID and fields[5] == RTPROT_RA:
            continue  # systemd-networkd's, for a router that it heard; the gateway and the interface are told as well
        elif kind != RTA_EXPIRES:
            kept.append((kind, value))
    return Route(_ROUTE.pack(*fields, flags & _ONLINK) + pack_attributes(kept))


class Rule(Entry):
    """A rule of the routing policy."""

    _header, _new, _delete = _RULE, RTM_NEWRULE, RTM_DELRULE

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        return frozenset()

    @functools.cached_property
    def priority(self) -> int:
        """The lower, the earlier."""
        return int(_U32.unpack(self.attributes.get(FRA_PRIORITY, bytes(4)))[0])

    def names(self, interface: str) -> bool:
        """Whether it looks at this interface."""
        name = interface.encode()
        return any(kind in (FRA_IIFNAME, FRA_OIFNAME) and value.rstrip(b"\0") == name for kind, value in self.pairs)

    def moved(self, source: Interface, target: Interface) -> Rule:
        if not self.names(source.name):
            return self
        old, new = source.name.encode(), target.name.encode() + b"\0"
        pairs = (
            (kind, new if kind in (FRA_IIFNAME, FRA_OIFNAME) and value.rstrip(b"\0") == old else value)
            for kind, value in self.pairs
        )
        return t.cast(Rule, self._made(self.header, pairs))

    def addition(self, flags: int = NLM_F_CREATE) -> Message:
        # Not exclusive: then the kernel would compare less than all of it, and refuse a rule that differs.
        return Message(RTM_NEWRULE, flags, self.body)


def parse_rule(message: bytes) -> Rule:
    """The rule in a body of RTM_NEWRULE."""
    *fields, flags = _RULE.unpack_from(message)
    return Rule(_RULE.pack(*fields, flags & _RULE_FLAGS) + message[_RULE.size :])


class Neighbour(Entry):
    """A neighbour that somebody wrote down (permanent or proxied), or that the host knows for the time being."""

    _header, _new, _delete = _NEIGHBOUR, RTM_NEWNEIGH, RTM_DELNEIGH

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        return frozenset([self.header[1]])

    @property
    def is_lasting(self) -> bool:
        """Whether somebody wrote it down."""
        return bool(self.header[2] & NUD_PERMANENT or self.header[3] & NTF_PROXY)

    def moved(self, source: Interface, target: Interface) -> Neighbour:
        family, index, *rest = self.header
        if index != source.index:
            return self
        return t.cast(Neighbour, self._made((family, target.index, *rest), self.pairs))

    def addition(self, flags: int = NLM_F_CREATE | NLM_F_REPLACE) -> Message:
        return Message(RTM_NEWNEIGH, flags, self.body)

    def deletion(self) -> Message:
        kept = [(kind, value) for kind, value in self.pairs if kind == NDA_DST]
        return Message(RTM_DELNEIGH, 0, _NEIGHBOUR.pack(*self.header) + pack_attributes(kept))


def parse_neighbour(message: bytes) -> t.Optional[Neighbour]:
    """The neighbour in a body of RTM_NEWNEIGH, if it is worth keeping: one that is known, as one to be asked again."""
    family, index, state, flags, kind = _NEIGHBOUR.unpack_from(message)
    if family not in (AF_INET, AF_INET6):
        return None
    if not flags & NTF_PROXY and not state & NUD_PERMANENT:
        if not state & (NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE):
            return None
        state = NUD_STALE
    pairs = [pair for pair in each_attribute(message, _NEIGHBOUR.size) if pair[0] not in (NDA_CACHEINFO, NDA_PROBES)]
    return Neighbour(_NEIGHBOUR.pack(family, index, state, flags, kind) + pack_attributes(pairs))


def _masked(address: bytes, length: int) -> bytes:
    """The address with all bits behind the first C(length) cleared."""
    if not address:
        return address
    bits = 8 * len(address)
    number = int.from_bytes(address, "big") >> (bits - length) << (bits - length)
    return number.to_bytes(len(address), "big")
