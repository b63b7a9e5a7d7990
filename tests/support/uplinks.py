# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host whose network card is a cable to a LAN, in every state that an administrator leaves one in.

The LAN is a network namespace of the host's own with a gateway that answers; what is compared is what ip(8) shows.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import secrets
import typing as t

from support.hosts import Host, Result, await_condition

GATEWAY, GATEWAY6 = "192.0.2.1", "2001:db8:1::1"
ADDRESS, ADDRESS6 = "192.0.2.10", "2001:db8:1::10"

#: The LAN's end of the cable, with the gateway.
LAN_UP = f"""
set -e
ip -n lan link set uplink up
ip -n lan address replace {GATEWAY}/24 dev uplink
ip -n lan address replace {GATEWAY6}/64 dev uplink nodad
"""

_LAN = f"""
set -e
ip netns add lan
ip link add eth0 type veth peer name uplink netns lan
ip netns exec lan sysctl -qw net.ipv6.conf.uplink.accept_dad=0
ip -n lan link set lo up
{LAN_UP}
"""

#: The commonest host: one address of each family, a default route each.
PLAIN = f"""
set -e
ip link set eth0 up
ip address add {ADDRESS}/24 brd + dev eth0
ip address add {ADDRESS6}/64 dev eth0 nodad
ip route add default via {GATEWAY}
ip route add default via {GATEWAY6}
"""

#: One of everything that must arrive.
MESSY = f"""
{PLAIN}
ip address add 192.0.2.11/24 dev eth0 label eth0:web
ip address add 192.0.2.12/32 dev eth0 valid_lft 4000 preferred_lft 2000
ip address add 198.51.100.5 peer 198.51.100.6/32 dev eth0 noprefixroute
ip address add 2001:db8:1::11/64 dev eth0 nodad preferred_lft 0
ip address add 2001:db8:2::10/64 dev eth0 nodad noprefixroute valid_lft 9000 preferred_lft 8000
ip route add 203.0.113.0/24 via {GATEWAY} src 192.0.2.11 metric 50 mtu 1400
ip route add 203.0.113.0/25 nexthop via {GATEWAY} weight 1 nexthop via 192.0.2.99 weight 3
ip route append 203.0.113.128/25 via {GATEWAY} metric 7
ip route append 203.0.113.128/25 via 192.0.2.99 metric 7
ip route add 198.51.100.128/25 dev eth0 scope link table 100
ip route add default via {GATEWAY} dev eth0 table 100 onlink
ip route add local 192.0.2.200/32 dev eth0 table 101
ip route add 2001:db8:3::/64 via {GATEWAY6} metric 33
ip route add 2001:db8:4::/64 nexthop via {GATEWAY6} weight 2 nexthop via 2001:db8:1::99 weight 1
ip route add 2001:db8:5::/64 via {GATEWAY6} table 100 expires 5000
ip route add blackhole 2001:db8:6::/64
ip rule add iif eth0 lookup 100 priority 900
ip rule add from 192.0.2.11 oif eth0 lookup 100 priority 900
ip rule add from 192.0.2.0/24 fwmark 0x7 lookup 101 priority 901
ip -6 rule add iif eth0 lookup 100 priority 900
ip neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
ip neighbour add proxy 192.0.2.78 dev eth0
ip neighbour add 2001:db8:1::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent
sysctl -qw net.ipv4.conf.eth0.arp_ignore=1 net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.all.rp_filter=0
sysctl -qw net.ipv4.neigh.eth0.gc_stale_time=77 net.ipv6.conf.eth0.accept_ra=2
ip link set eth0 mtu 1480
"""

# What runs down or is counted, and what is the same said twice.
_VOLATILE = (
    re.compile(r"\b(valid_lft|preferred_lft) \d+sec"),
    re.compile(r"\bexpires \d+sec"),
    re.compile(r"\b(used|age|hoplimit) \d+(/\d+)*"),
    re.compile(r"\b\w+_timer +\d+\.\d+"),
    # A bridge numbers its ports in the order in which they come.
    re.compile(r"\b(port_id|port_no|designated_port) \w+"),
)
_VIEWS = (
    "ip -d address show",
    "ip -d -4 route show table all",
    "ip -d -6 route show table all",
    "ip -d rule show",
    "ip -d -6 rule show",
    "ip neighbour show nud permanent",
    "ip -6 neighbour show nud permanent",
    "ip neighbour show proxy",
    "bridge link show",
    "cd /proc/sys/net; grep -rs . ipv4/conf ipv6/conf ipv4/neigh ipv6/neigh | grep -v stable_secret | sort; cd /",
)


@contextlib.contextmanager
def uplink_host(python_path: t.Any, interpreter: str, state: str = PLAIN) -> t.Iterator[Host]:
    """A host with a LAN at the other end of eth0, in the given state."""
    with Host(python_path, interpreter) as host:
        cable(host)
        host.run("sh", "-c", state)
        host.settle()
        yield host


def cable(host: Host) -> None:
    """Give the host the card eth0, with a LAN at its other end."""
    host.run("sh", "-c", "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns")
    host.run("sh", "-c", _LAN)


def state(host: Host) -> list[str]:
    """All that a move could change, line by line as the system's own tools show it."""
    host.settle()
    lines = host.out("sh", "-c", "; ".join(_VIEWS)).splitlines()
    return [_steady(line) for line in lines if line.strip()]


def _steady(line: str) -> str:
    for pattern in _VOLATILE:
        line = pattern.sub(lambda found: f"{found.group(0).split()[0]} ...", line)
    return line.rstrip()


def difference(found: t.Sequence[str], wanted: t.Sequence[str]) -> list[str]:
    """The lines that are not in both, as diff(1) shows them."""
    return [
        line for line in difflib.unified_diff(wanted, found, lineterm="", n=0) if line[:2] not in ("--", "++", "@@")
    ]


def identity() -> str:
    """A name for a move, as the action plugin makes one."""
    return secrets.token_hex(8)


def options(**more: t.Any) -> dict[str, t.Any]:
    """What most tests ask for."""
    return {"bridge": "br0", "interface": "eth0", "persistent": False, "confirm_timeout": 30, **more}


def begin(host: Host, **more: t.Any) -> Result:
    """The first half: move, and leave the confirmation to the test."""
    return host.converge("bridge_uplink", options(transaction=identity(), **more))


def confirm(host: Host, pending: Result, **more: t.Any) -> Result:
    """The second half, whatever comes of it."""
    name = pending["pending"]["transaction"]
    return host.module("bridge_uplink", options(transaction=name, step="confirm", **more))


def move(host: Host, **more: t.Any) -> Result:
    """Both halves, as the action plugin does them; the result of the first."""
    result = begin(host, **more)
    if "pending" in result:
        answer = confirm(host, result, **more)
        assert answer.get("phase") == "confirmed", answer
    return result


def phase(host: Host, transaction: str) -> str:
    """How far a move is, as its file says."""
    shown = host.run("cat", f"/run/labspan/uplink/{transaction}/phase", check=False).stdout
    return str(json.loads(shown)["name"]) if shown else ""


def await_phase(host: Host, transaction: str, wanted: str) -> None:
    """Wait until a move is so far."""
    await_condition(lambda: phase(host, transaction) == wanted, f"the move to be {wanted}")


def reaches(host: Host, target: str) -> bool:
    """Whether one ping is answered."""
    return host.run("ping", "-c", "1", "-W", "2", target, check=False).returncode == 0
