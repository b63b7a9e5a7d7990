# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest on a LAN bridge cannot speak as somebody else; each frame that is stopped gets through without the filter.

Frames are made by hand and sent by a machine C(guest) that shares the bridge with a machine of the LAN, C(lan), and
another guest, C(other). What has reached whom is read from packet sockets.
"""

from __future__ import annotations

import json
import pathlib
import runpy
import subprocess
import sys
import typing as t

import pytest
import yaml
from support.hosts import Host, await_condition

from . import frames
from .frames import ALL_NODES, BROADCAST, ICMP, TCP, UDP

pytestmark = pytest.mark.one_interpreter

ROOT = pathlib.Path(__file__).parents[3]
MODULE = "port_security"
BRIDGE = "lsps0"
TABLE = ("bridge", "labspan_lan")
MACS = {"guest": "52:54:00:0a:00:01", "other": "52:54:00:0a:00:02", "lan": "52:54:00:0a:00:09"}
ADDRESSES = {
    "guest": ("10.88.0.11", "2001:db8:88::11"),
    "other": ("10.88.0.12", "2001:db8:88::12"),
    "lan": ("10.88.0.9", "2001:db8:88::9"),
}
MAC, (OWN4, OWN6) = MACS["guest"], ADDRESSES["guest"]
FREE4, FREE6 = "10.88.0.77", "2001:db8:88::77"
FOREIGN_MAC = "52:54:00:0a:00:77"
OWN_LINK_LOCAL, OTHER_LINK_LOCAL = "fe80::5054:ff:fe0a:1", "fe80::5054:ff:fe0a:2"
PRIVATE_LINK_LOCAL, GATEWAY_LINK_LOCAL = "fe80::1234:5678:9abc:def0", "fe80::1"

# Sends the frames that it reads, as hexadecimal lines, and prints those that come, with the VLAN tag that the kernel
# has put aside.
_AGENT = """
import socket, struct, sys, threading
ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 3, 263, 8, 4
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
packets.bind((sys.argv[1], ETH_P_ALL))
packets.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
def receive():
    while True:
        frame, ancillary, _flags, address = packets.recvmsg(4096, 256)
        if address[2] == PACKET_OUTGOING:
            continue
        for _level, _kind, data in ancillary:
            status, _length, _snap, _mac, _net, tag, kind = struct.unpack("IIIHHHH", data[:20])
            if status & 0x10:
                frame = frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]
        print(frame.hex(), flush=True)
print("ready", flush=True)
threading.Thread(target=receive, daemon=True).start()
for line in sys.stdin:
    packets.send(bytes.fromhex(line))
"""

# Sends a frame as the machine behind a tap does.
_TAP = """
import fcntl, os, struct, sys, time
IFF_TAP, IFF_NO_PI, TUNSETIFF = 2, 0x1000, 0x400454CA
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), IFF_TAP | IFF_NO_PI))
while open(f"/sys/class/net/{sys.argv[1]}/brport/state").read() != "3\\n":
    time.sleep(0.02)
os.write(tap, bytes.fromhex(sys.argv[2]))
"""

# Prints what the host gets of a protocol on a port; ends a moment later when nothing comes.
_LISTENER = """
import socket, sys
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x888E))
packets.bind((sys.argv[1], 0x888E))
packets.settimeout(float(sys.argv[2]))
print("ready", flush=True)
try:
    print(packets.recv(4096).hex(), flush=True)
except TimeoutError:
    pass
"""

_UDHCPC_SCRIPT = """#!/bin/sh
[ $1 = bound ] && echo $ip
exit 0
"""


class Lab:
    """A bridge with three machines on it, whose ports are called like them behind C(ls)."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._agents: dict[str, subprocess.Popen[str]] = {}
        self._markers = 0
        host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        host.run("ip", "link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
        host.run("ip", "link", "set", BRIDGE, "up")
        for name, mac in MACS.items():
            host.run("ip", "netns", "add", name)
            self.on(name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0")
            peer = ("peer", "name", "eth0", "address", mac, "netns", name)
            host.run("ip", "link", "add", f"ls{name}", "type", "veth", *peer)
            host.run("ip", "link", "set", f"ls{name}", "master", BRIDGE, "up")
            lines = [f"addr add {ADDRESSES[name][0]}/24 dev eth0", f"addr add {ADDRESSES[name][1]}/64 dev eth0 nodad"]
            lines += ["link set lo up", "link set eth0 up"]
            host.run("ip", "-n", name, "-batch", "-", stdin="\n".join(lines) + "\n")
        host.settle()

    def close(self) -> None:
        for agent in self._agents.values():
            agent.kill()
            agent.wait()
            for stream in (agent.stdin, agent.stdout):
                if stream:
                    stream.close()

    def on(self, name: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as one of the machines."""
        return self.host.run("ip", "netns", "exec", name, *command, check=check)

    def watch(self) -> None:
        """Start what sends and captures on every machine, and on the host's own end of the bridge."""
        for name in ("host", *MACS):
            inside = () if name == "host" else ("ip", "netns", "exec", name)
            interface = BRIDGE if name == "host" else "eth0"
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            agent = self.host.start(*inside, sys.executable, "-c", _AGENT, interface, **pipes)
            self._agents[name] = agent
            assert self._line(name) == "ready"

    def reached(self, *sent: bytes) -> set[str]:
        """Who gets all of the frames that C(guest) sends.

        After them goes one that every filter lets pass: who has seen that one has seen whatever was going to come.
        """
        self._markers += 1
        marker = frames.arp(MAC, OWN4, f"10.88.1.{self._markers % 250}").hex()
        self.tell(*sent, bytes.fromhex(marker))
        found = set()
        for name in ("host", "other", "lan"):
            seen = []
            while not seen or seen[-1] != marker:
                seen.append(self._line(name))
            if all(frame.hex() in seen for frame in sent):
                found.add(name)
        return found

    def table(self, spoofs: t.Mapping[str, t.Sequence[bytes]]) -> dict[str, set[str]]:
        """Who is reached by each of many frames."""
        return {name: self.reached(*sent) for name, sent in spoofs.items()}

    def send(self, *sent: bytes) -> None:
        """Send frames from C(guest), and wait until everybody has what was going to come."""
        self.reached(*sent)

    def port(self, **options: t.Any) -> dict[str, t.Any]:
        """C(guest)'s port, with its addresses unless C(options) say otherwise."""
        return {"tap": "lsguest", "mac": MAC, "addresses": [OWN4, OWN6], **options}

    def task(self, **options: t.Any) -> dict[str, t.Any]:
        """The parameters of a task for this lab, with both guests."""
        other = {"tap": "lsother", "mac": MACS["other"], "addresses": list(ADDRESSES["other"])}
        return {"name": "lan", "bridge": BRIDGE, "ports": [self.port(), other], **options}

    def lease(self, name: str) -> str:
        """The address that a DHCP server gives a machine; empty when none does."""
        self.host.run("sh", "-c", "cat >/run/udhcpc && chmod +x /run/udhcpc", stdin=_UDHCPC_SCRIPT)
        client = ("busybox", "udhcpc", "-i", "eth0", "-nqf", "-t", "5", "-T", "1", "-s", "/run/udhcpc")
        return self.on(name, *client, check=False).stdout.strip()

    def keeps_address(self, name: str, address: str) -> bool:
        """Whether a machine may keep an IPv6 address after it has asked whether anybody has it."""
        self.on(name, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1")
        self.on(name, "ip", "addr", "add", f"{address}/64", "dev", "eth0")

        def shown() -> dict[str, t.Any]:
            listed = json.loads(self.on(name, "ip", "-j", "addr", "show", "dev", "eth0", "to", address).stdout)
            return next(entry for link in listed for entry in link.get("addr_info", ()))

        await_condition(lambda: not shown().get("tentative") or bool(shown().get("dadfailed")), "address detection")
        failed = bool(shown().get("dadfailed"))
        self.on(name, "ip", "addr", "del", f"{address}/64", "dev", "eth0")
        return not failed

    def heard_from_tap(self, tap: str, frame: bytes) -> list[str]:
        """What the LAN hears when a tap sends a frame and C(guest) a marker."""
        self.host.run(sys.executable, "-c", _TAP, tap, frame.hex())
        self._markers += 1
        marker = frames.arp(MAC, OWN4, f"10.88.1.{self._markers % 250}").hex()
        self.tell(bytes.fromhex(marker))
        seen: list[str] = []
        while not seen or seen[-1] != marker:
            seen.append(self._line("lan"))
        return seen

    def neighbour(self, name: str, address: str) -> t.Optional[str]:
        """The MAC address that a machine has for an address."""
        listed = json.loads(self.on(name, "ip", "-j", "neigh", "show", address).stdout or "[]")
        return next((entry["lladdr"] for entry in listed if "lladdr" in entry), None)

    def pings(self, name: str, address: str) -> bool:
        return self.on(name, "ping", "-c1", "-W2", address, check=False).returncode == 0

    def tell(self, *sent: bytes) -> None:
        """Have C(guest) send frames, and wait for nothing."""
        stream = self._agents["guest"].stdin
        assert stream
        stream.write("".join(frame.hex() + "\n" for frame in sent))
        stream.flush()

    def _line(self, name: str) -> str:
        stream = self._agents[name].stdout
        assert stream
        line = stream.readline().strip()
        assert line, f"the capture on {name} has ended"
        return line


@pytest.fixture
def lab(host: Host) -> t.Iterator[Lab]:
    made = Lab(host)
    try:
        yield made
    finally:
        made.close()


SPOOFS: dict[str, list[bytes]] = {
    "foreign MAC": [frames.ipv4(FOREIGN_MAC, OWN4, "10.88.0.255", UDP, frames.udp(999, 9))],
    "MAC of the LAN's machine": [frames.arp(MACS["lan"], OWN4, FREE4)],
    "ARP with a foreign MAC inside": [frames.arp(MAC, OWN4, FREE4, claimed=FOREIGN_MAC)],
    "ARP for the LAN's machine": [frames.arp(MAC, ADDRESSES["lan"][0], FREE4)],
    "ARP answer for the LAN's machine": [frames.arp(MAC, ADDRESSES["lan"][0], ADDRESSES["other"][0], operation=2)],
    "ARP for the other guest": [frames.arp(MAC, ADDRESSES["other"][0], FREE4)],
    "ARP for a free address": [frames.arp(MAC, FREE4, FREE4)],
    "ARP probe for the other guest": [frames.arp(MAC, "0.0.0.0", ADDRESSES["other"][0])],
    "ARP answer from no address": [frames.arp(MAC, "0.0.0.0", FREE4, operation=2)],
    "ARP of another kind": [frames.arp(MAC, OWN4, FREE4, operation=8)],
    "IPv4 from the LAN's machine": [frames.ipv4(MAC, ADDRESSES["lan"][0], "10.88.0.255", UDP, frames.udp(999, 9))],
    "IPv4 from a free address": [frames.ipv4(MAC, FREE4, "10.88.0.255", ICMP, bytes([8, 0, 0, 0]))],
    "IPv4 from nobody": [frames.ipv4(MAC, "0.0.0.0", "10.88.0.255", UDP, frames.udp(68, 67))],
    "IPv4 fragment from a free address": [frames.ipv4(MAC, FREE4, "10.88.0.255", UDP, bytes(16), offset=2)],
    "IPv4 redirect": [frames.ipv4(MAC, OWN4, "10.88.0.255", ICMP, bytes([5, 1]) + bytes(34))],
    "IPv4 router advertisement": [frames.ipv4(MAC, OWN4, "10.88.0.255", ICMP, bytes([9, 0]) + bytes(14))],
    "IPv6 from the LAN's machine": [frames.ipv6(MAC, ADDRESSES["lan"][1], ALL_NODES, UDP, frames.udp(999, 9))],
    "IPv6 from a free address": [frames.ipv6(MAC, FREE6, ALL_NODES, UDP, frames.udp(999, 9))],
    "IPv6 from the other guest's link-local address": [frames.ipv6(MAC, OTHER_LINK_LOCAL, ALL_NODES, TCP, bytes(20))],
    "IPv6 from the gateway's link-local address": [frames.ipv6(MAC, GATEWAY_LINK_LOCAL, ALL_NODES, TCP, bytes(20))],
    "IPv6 from nobody": [frames.ipv6(MAC, "::", ALL_NODES, UDP, frames.udp(999, 9))],
    "NA for the LAN's machine": [frames.advertisement(MAC, OWN6, ADDRESSES["lan"][1])],
    "NA for a free address": [frames.advertisement(MAC, OWN_LINK_LOCAL, FREE6)],
    "NA for the gateway's link-local address": [frames.advertisement(MAC, OWN_LINK_LOCAL, GATEWAY_LINK_LOCAL)],
    "NA with a foreign MAC inside": [frames.advertisement(MAC, OWN6, OWN6, claimed=FOREIGN_MAC)],
    "NA for a free address behind options": [frames.behind_options(frames.advertisement(MAC, OWN6, FREE6))],
    "NS with a foreign MAC inside": [frames.solicitation(MAC, OWN6, FREE6, claimed=FOREIGN_MAC)],
    "RS with a foreign MAC inside": [frames.router_solicitation(MAC, OWN_LINK_LOCAL, claimed=FOREIGN_MAC)],
    "DAD for the other guest": [frames.solicitation(MAC, "::", ADDRESSES["other"][1])],
    "DAD for a free address": [frames.solicitation(MAC, "::", FREE6)],
    "RA": [frames.router_advertisement(MAC, OWN_LINK_LOCAL)],
    "RA behind options": [frames.behind_options(frames.router_advertisement(MAC, OWN_LINK_LOCAL))],
    "RA in a fragment": [frames.first_fragment(frames.router_advertisement(MAC, OWN_LINK_LOCAL))],
    "RA behind a fragment": frames.fragmented(frames.router_advertisement(MAC, OWN_LINK_LOCAL)),
    "redirect": [frames.redirect(MAC, OWN_LINK_LOCAL)],
    "DHCP server": [frames.ipv4(MAC, OWN4, "255.255.255.255", UDP, frames.udp(67, 68))],
    "DHCP server on another port": [frames.ipv4(MAC, OWN4, "255.255.255.255", UDP, frames.udp(6767, 68))],
    "DHCPv6 server": [frames.ipv6(MAC, OWN_LINK_LOCAL, ALL_NODES, UDP, frames.udp(547, 546))],
    "DHCPv6 server on another port": [frames.ipv6(MAC, OWN6, ALL_NODES, UDP, frames.udp(5470, 546))],
    "DHCPv6 server behind a fragment": frames.fragmented(frames.ipv6(MAC, OWN6, ALL_NODES, UDP, frames.udp(547, 546))),
    "BPDU": [frames.bpdu(MAC)],
    "another EtherType": [frames.ethernet(MAC, BROADCAST, 0x88CC, bytes(46))],
    "PPPoE": [frames.ethernet(MAC, BROADCAST, 0x8863, bytes(46))],
    "LLC": [frames.ethernet(MAC, BROADCAST, 46, b"\xaa\xaa\x03" + bytes(43))],
    "VLAN tag": [frames.tagged(frames.arp(MAC, OWN4, FREE4))],
    "priority tag": [frames.tagged(frames.ipv4(MAC, OWN4, "10.88.0.255", UDP, frames.udp(999, 9)), vlan=0)],
}

LEGITIMATE: dict[str, list[bytes]] = {
    "ARP": [frames.arp(MAC, OWN4, FREE4)],
    "ARP answer": [frames.arp(MAC, OWN4, FREE4, operation=2)],
    "ARP probe": [frames.arp(MAC, "0.0.0.0", OWN4)],
    "UDP": [frames.ipv4(MAC, OWN4, "10.88.0.255", UDP, frames.udp(999, 9))],
    "TCP": [frames.ipv4(MAC, OWN4, "10.88.0.255", TCP, bytes(20))],
    "another protocol": [frames.ipv4(MAC, OWN4, "10.88.0.255", 132, bytes(20))],
    "ping": [frames.ipv4(MAC, OWN4, "10.88.0.255", ICMP, bytes([8, 0]) + bytes(6))],
    "IPv4 fragment": [frames.ipv4(MAC, OWN4, "10.88.0.255", UDP, bytes(16), offset=2)],
    "DHCP client without address": [frames.ipv4(MAC, "0.0.0.0", "255.255.255.255", UDP, frames.udp(68, 67))],
    "DHCP client": [frames.ipv4(MAC, OWN4, "255.255.255.255", UDP, frames.udp(68, 67))],
    "DHCPv6 client": [frames.ipv6(MAC, OWN_LINK_LOCAL, "ff02::1:2", UDP, frames.udp(546, 547))],
    "UDP by IPv6": [frames.ipv6(MAC, OWN6, ALL_NODES, UDP, frames.udp(999, 9))],
    "IPv6 from a link-local address of one's own choice": [
        frames.ipv6(MAC, PRIVATE_LINK_LOCAL, ALL_NODES, UDP, frames.udp(999, 9))
    ],
    "ping by IPv6": [frames.icmpv6(MAC, OWN6, ALL_NODES, 128, bytes(4))],
    "fragments of IPv6": frames.fragmented(frames.ipv6(MAC, OWN6, ALL_NODES, TCP, bytes(20))),
    "NS": [frames.solicitation(MAC, OWN6, ADDRESSES["lan"][1])],
    "NA": [frames.advertisement(MAC, OWN6, OWN6)],
    "NA for a link-local address of one's own choice": [
        frames.advertisement(MAC, PRIVATE_LINK_LOCAL, PRIVATE_LINK_LOCAL)
    ],
    "DAD": [frames.solicitation(MAC, "::", OWN6)],
    "DAD of a link-local address": [frames.solicitation(MAC, "::", OWN_LINK_LOCAL)],
    "RS": [frames.router_solicitation(MAC, OWN_LINK_LOCAL)],
    "RS without address": [frames.icmpv6(MAC, "::", "ff02::2", 133, bytes(4))],
    "multicast listener": [frames.icmpv6(MAC, "::", "ff02::16", 143, bytes(4))],
}

EVERYBODY = {"host", "other", "lan"}


def test_what_a_guest_may_not_send_reaches_nobody_and_what_it_may_reaches_all(lab: Lab) -> None:
    lab.watch()
    task = lab.task(protected_addresses=[GATEWAY_LINK_LOCAL])
    # The twin: without the filter all of it gets through.
    assert {name for name, who in lab.table(SPOOFS).items() if who != EVERYBODY} == set()
    lab.host.converge(MODULE, task)
    assert {name: who for name, who in lab.table(SPOOFS).items() if who} == {}
    assert {name for name, who in lab.table(LEGITIMATE).items() if who != EVERYBODY} == set()
    # A filter that somebody has emptied filters nothing, and is filled again.
    lab.host.run("nft", "flush", "table", *TABLE)
    assert lab.reached(*SPOOFS["RA"]) == EVERYBODY
    assert lab.host.converge(MODULE, task)["changed"]
    assert lab.reached(*SPOOFS["RA"]) == set()
    lab.host.assert_rests(MODULE, task)


def test_unicast_to_one_machine_is_filtered_too(lab: Lab) -> None:
    lab.watch()
    to_lan = frames.ipv4(MAC, FREE4, ADDRESSES["lan"][0], UDP, frames.udp(999, 9), mac=MACS["lan"])
    assert lab.pings("lan", ADDRESSES["other"][0])  # the bridge learns where it is
    assert lab.reached(to_lan) == {"lan"}
    lab.host.converge(MODULE, lab.task())
    assert lab.reached(to_lan) == set()


def test_neighbours_and_routes_of_others_stay_what_they_are(lab: Lab) -> None:
    """What the spoofs are good for: the kernels of others believe them."""
    lab.watch()
    lab.on("lan", "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=2")
    poison = [
        frames.arp(MAC, ADDRESSES["other"][0], ADDRESSES["other"][0]),
        frames.advertisement(MAC, OWN_LINK_LOCAL, ADDRESSES["other"][1]),
        frames.router_advertisement(MAC, OWN_LINK_LOCAL),
    ]

    def found() -> tuple[t.Any, ...]:
        for version in (0, 1):
            lab.on("lan", "ip", "neigh", "flush", "dev", "eth0")
            assert lab.pings("lan", ADDRESSES["other"][version])
        lab.on("lan", "ip", "-6", "route", "flush", "proto", "ra")
        assert lab.pings("lan", ADDRESSES["other"][0])
        # The kernel believes gratuitous ARP only after a second in which it has not heard better (locktime).
        lab.on("lan", "sysctl", "-qw", "net.ipv4.neigh.eth0.locktime=0")
        lab.send(*poison)
        routes = lab.on("lan", "ip", "-6", "route", "show", "proto", "ra").stdout.split()
        return (*(lab.neighbour("lan", address) for address in ADDRESSES["other"]), "default" in routes)

    assert found() == (MAC, MAC, True)
    lab.host.converge(MODULE, lab.task())
    assert found() == (MACS["other"], MACS["other"], False)


def test_the_bridge_learns_no_foreign_addresses(lab: Lab) -> None:
    lab.watch()
    flood = [frames.arp(f"52:54:00:bb:00:{number:02x}", OWN4, FREE4) for number in range(20)]

    def learnt() -> int:
        lab.send(*flood)
        return lab.host.out("bridge", "fdb", "show", "br", BRIDGE).count("52:54:00:bb")

    lab.host.converge(MODULE, lab.task())
    assert learnt() == 0
    lab.host.converge(MODULE, {"name": "lan", "state": "absent"})
    assert learnt() == len(flood)


def test_what_a_bridge_hands_to_the_host_alone_is_filtered_too(lab: Lab) -> None:
    login = frames.ethernet(MAC, "01:80:c2:00:00:03", 0x888E, bytes(46))  # 802.1X, which no bridge forwards
    lab.watch()

    def heard(patience: int, **options: t.Any) -> bool:
        lab.host.converge(MODULE, lab.task(ports=[lab.port(**options)]))
        listener = lab.host.start(sys.executable, "-c", _LISTENER, "lsguest", str(patience), stdout=subprocess.PIPE)
        with listener:
            assert listener.stdout
            assert listener.stdout.readline() == "ready\n"
            lab.send(login)
            return listener.stdout.readline().strip() == login.hex()

    assert heard(30, allow_bpdu=True)
    assert not heard(1)


def test_a_running_spanning_tree_is_warned_about(lab: Lab) -> None:
    lab.watch()
    lab.host.run("ip", "link", "set", BRIDGE, "type", "bridge", "stp_state", "1")
    root = ("cat", f"/sys/class/net/{BRIDGE}/bridge/root_id")
    own = lab.host.out(*root)
    assert "takes BPDUs of lsguest, lsother before any rule" in str(lab.host.converge(MODULE, lab.task())["warnings"])
    for port in ("lsguest", "lsother"):
        lab.host.run("bridge", "link", "set", "dev", port, "guard", "on")
    assert not lab.host.converge(MODULE, lab.task()).get("warnings")
    lab.tell(frames.bpdu(MAC))
    await_condition(lambda: _state(lab, "lsguest") == "disabled", "the guard to close the port")
    assert lab.host.out(*root) == own
    # The twin: what the warning is about.
    lab.host.run("bridge", "link", "set", "dev", "lsguest", "guard", "off")
    lab.host.run("ip", "link", "set", "lsguest", "down")
    lab.host.run("ip", "link", "set", "lsguest", "up")
    await_condition(lambda: _state(lab, "lsguest") == "forwarding", "the port to forward")
    lab.tell(frames.bpdu(MAC))
    await_condition(lambda: lab.host.out(*root) != own, "the guest to be the root of the spanning tree")


def test_an_honest_guest_notices_nothing(lab: Lab) -> None:
    server = lab.host.start(
        *("ip", "netns", "exec", "lan", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--no-ping"),
        *("--interface=eth0", "--bind-interfaces", "--leasefile-ro", "--user=root"),
        *("--dhcp-range=10.88.0.100,10.88.0.110", f"--dhcp-host={MAC},10.88.0.50"),
        stderr=subprocess.DEVNULL,
    )
    try:
        own = [OWN4, OWN6, "10.88.0.50", "2001:db8:88::50"]
        for addresses in (own, None, ["10.88.0.0/24", "2001:db8:88::/64"]):
            lab.host.converge(MODULE, lab.task(ports=[lab.port(addresses=addresses)]))
            lab.on("guest", "ip", "neigh", "flush", "dev", "eth0")
            assert all(lab.pings("guest", address) for address in ADDRESSES["lan"])
            lab.on("guest", "ip", "neigh", "flush", "dev", "eth0")
            assert all(lab.pings("lan", address) for address in ADDRESSES["guest"])
            for address in (*ADDRESSES["lan"], f"{GATEWAY_LINK_LOCAL}%eth0"):
                lab.on("lan", "ip", "addr", "replace", f"{GATEWAY_LINK_LOCAL}/64", "dev", "eth0", "nodad")
                lab.on("guest", "ping", "-c1", "-W2", "-s", "4000", address)
            assert lab.lease("guest") == "10.88.0.50"
            assert lab.keeps_address("guest", "2001:db8:88::50")
            # Nobody is asked about an address that is not the guest's to have.
            assert lab.keeps_address("guest", ADDRESSES["lan"][1]) == (addresses is own)
    finally:
        server.terminate()
        server.wait()


def test_unknown_addresses_and_networks_stop_at_what_is_others(lab: Lab) -> None:
    lab.watch()
    gateway4, gateway6 = ADDRESSES["lan"]
    free = {name for name in SPOOFS if "free address" in name} | {"IPv4 from nobody"}
    takes_from_others = {
        "the gateway by ARP": [frames.arp(MAC, gateway4, FREE4)],
        "the gateway by NA": [frames.advertisement(MAC, FREE6, gateway6)],
        "the gateway by IPv4": [frames.ipv4(MAC, gateway4, "10.88.0.255", TCP, bytes(20))],
        "the gateway by IPv6": [frames.ipv6(MAC, gateway6, ALL_NODES, TCP, bytes(20))],
        "the gateway by DAD": [frames.solicitation(MAC, "::", gateway6)],
        "the other guest by ARP": [frames.arp(MAC, ADDRESSES["other"][0], FREE4)],
        "the other guest by NA": [frames.advertisement(MAC, FREE6, ADDRESSES["other"][1])],
        "the other guest by link-local NA": [frames.advertisement(MAC, FREE6, OTHER_LINK_LOCAL)],
    }
    other = lab.task()["ports"][1]
    for addresses in (None, ["10.88.0.0/24", "2001:db8:88::/64"]):
        allowed = set(free)
        if addresses:
            allowed.remove("IPv4 from nobody")
        ports = [lab.port(addresses=addresses), other]
        lab.host.converge(MODULE, lab.task(ports=ports, protected_addresses=[gateway4, gateway6, GATEWAY_LINK_LOCAL]))
        found = lab.table({**SPOOFS, **takes_from_others})
        assert {name: who for name, who in found.items() if who} == dict.fromkeys(allowed, EVERYBODY)
        assert {name for name, who in lab.table(LEGITIMATE).items() if who != EVERYBODY} == set()
    # The twin: without protection a guest with unknown addresses takes any.
    lab.host.converge(MODULE, lab.task(ports=[lab.port(addresses=None)]))
    assert {name for name, who in lab.table(takes_from_others).items() if who != EVERYBODY} == set()


def test_what_is_allowed_to_one_port_is_allowed_to_no_other(lab: Lab) -> None:
    lab.watch()
    allowed: dict[str, tuple[dict[str, t.Any], set[str]]] = {
        "allow_ra": ({"allow_ra": True}, {"RA", "RA behind options", "redirect", "IPv4 redirect"}),
        "allow_dhcp_server": ({"allow_dhcp_server": True}, {"DHCP server", "DHCPv6 server on another port"}),
        "allow_bpdu": ({"allow_bpdu": True}, {"BPDU"}),
        "vlan": ({"allow_ethertypes": ["vlan"]}, {"VLAN tag", "priority tag"}),
        "lldp": ({"allow_ethertypes": ["0x88cc"]}, {"another EtherType"}),
    }
    concerned = {name: SPOOFS[name] for _options, names in allowed.values() for name in names}
    for options, names in allowed.values():
        lab.host.converge(MODULE, lab.task(ports=[lab.port(**options)]))
        assert {name for name, who in lab.table(concerned).items() if who} == names
        mirrored = {**lab.task()["ports"][1], **options}
        lab.host.converge(MODULE, lab.task(ports=[lab.port(), mirrored]))
        assert {name for name, who in lab.table(concerned).items() if who} == set()


def test_a_listed_link_local_address_is_the_only_one(lab: Lab) -> None:
    lab.watch()
    lab.host.converge(MODULE, lab.task(ports=[lab.port(addresses=[OWN4, OWN6, PRIVATE_LINK_LOCAL])]))
    from_own = frames.advertisement(MAC, PRIVATE_LINK_LOCAL, PRIVATE_LINK_LOCAL)
    derived = frames.advertisement(MAC, OWN_LINK_LOCAL, OWN_LINK_LOCAL)
    assert (lab.reached(from_own), lab.reached(derived)) == (EVERYBODY, set())
    lab.host.converge(MODULE, lab.task())
    assert (lab.reached(from_own), lab.reached(derived)) == (EVERYBODY, EVERYBODY)


def test_a_filter_is_foretold_made_left_alone_changed_and_removed(lab: Lab) -> None:
    host = lab.host
    host.run("nft", "add", "table", "bridge", "somebodys")
    before = host.dump()
    task = lab.task()
    foretold = host.converge(MODULE, task, check=True)
    assert host.dump() == before
    made = host.converge(MODULE, task)
    assert made["actions"] == ["Create the nftables table bridge labspan_lan, which filters lsguest, lsother"]
    assert (foretold["actions"], foretold["network"]) == (made["actions"], made["network"])
    assert made["network"]["ports"] == ["lsguest", "lsother"]
    listed = host.out("nft", "-s", "list", "table", *TABLE)
    assert listed.splitlines() == made["network"]["table"]
    host.assert_rests(MODULE, task)
    fewer = host.converge(MODULE, lab.task(ports=[lab.port(tap="lsnew")]))
    assert fewer["actions"] == [
        "Replace the nftables table bridge labspan_lan, which filters lsnew and no longer filters lsguest, lsother"
    ]
    gone = {"name": "lan", "state": "absent"}
    assert host.converge(MODULE, gone)["network"] is None
    assert host.dump() == before
    host.assert_rests(MODULE, gone)


def test_the_examples_of_the_documentation_run(lab: Lab) -> None:
    examples = runpy.run_path(str(ROOT / "plugins" / "modules" / "port_security.py"), run_name="examples")["EXAMPLES"]
    for example in yaml.safe_load(examples):
        assert lab.host.converge(MODULE, example["labspan.vmnet.port_security"])["changed"]
    assert lab.host.out("nft", "list", "tables") == ""


def test_what_somebody_changed_by_hand_is_put_right(lab: Lab) -> None:
    lab.host.converge(MODULE, lab.task())
    whole = lab.host.out("nft", "-s", "list", "table", *TABLE)
    for command in (
        ("delete", "element", *TABLE, "macs", "{", '"lsguest"', ".", MAC, "}"),
        ("add", "element", *TABLE, "allow_ra", "{", '"lsguest"', "}"),
        ("insert", "rule", *TABLE, "guest", "accept"),
        ("flush", "chain", *TABLE, "prerouting"),
    ):
        lab.host.run("nft", *command)
        assert lab.host.out("nft", "-s", "list", "table", *TABLE) != whole
        assert lab.host.converge(MODULE, lab.task())["changed"]
        assert lab.host.out("nft", "-s", "list", "table", *TABLE) == whole


def test_many_networks_are_one_task_and_the_rules_do_not_grow_with_the_ports(lab: Lab) -> None:
    def ports(first: int, number: int) -> list[dict[str, t.Any]]:
        return [
            {"tap": f"t{port}", "mac": f"52:54:00:00:{port >> 8:02x}:{port & 255:02x}", "addresses": [f"10.9.0.{port}"]}
            for port in range(first, first + number)
        ]

    networks = [{"name": "few", "ports": ports(1, 1)}, {"name": "many", "ports": ports(2, 100)}]
    made = lab.host.converge(MODULE, {"networks": networks})
    assert len(made["actions"]) == 2
    listed = {
        name: lab.host.json("nft", "-j", "list", "table", "bridge", f"labspan_{name}")["nftables"]
        for name in ("few", "many")
    }
    rules = {name: [entry for entry in entries if "rule" in entry] for name, entries in listed.items()}
    assert len(rules["few"]) == len(rules["many"])
    lab.host.assert_rests(MODULE, {"networks": networks})
    lab.host.converge(MODULE, {"state": "absent", "networks": [{"name": "few"}, {"name": "many"}]})
    assert lab.host.out("nft", "list", "tables") == ""


def test_what_cannot_be_right_is_refused_with_a_sentence(lab: Lab) -> None:
    def refused(**options: t.Any) -> str:
        return lab.host.refuse(MODULE, lab.task(**options))

    assert "ports[0].mac: '52:54' is not a MAC address" in refused(ports=[lab.port(mac="52:54")])
    assert "ports[0].tap: 'v*' is not a usable interface name" in refused(ports=[lab.port(tap="v*")])
    assert "is listed twice" in refused(ports=[lab.port(), lab.port(mac=FOREIGN_MAC)])
    assert "is listed twice" in refused(ports=[lab.port(), lab.port(tap="lsother")])
    assert "write 10.88.0.11 for the one address" in refused(ports=[lab.port(addresses=["10.88.0.11/24"])])
    assert "is no address that a machine can have" in refused(ports=[lab.port(addresses=["ff02::1"])])
    assert "is not an EtherType" in refused(ports=[lab.port(allow_ethertypes=["lldp"])])
    assert "which is always allowed" in refused(ports=[lab.port(allow_ethertypes=["0x0800"])])
    twice = [{"name": name, "ports": [lab.port()]} for name in ("one", "two")]
    assert "is listed for both one and two" in lab.host.refuse(MODULE, {"networks": twice})


def test_somebody_elses_table_of_that_name_is_refused(lab: Lab) -> None:
    lab.host.run("nft", "add", "table", *TABLE)
    lab.host.run("nft", "add", "set", *TABLE, "theirs", "{ type ether_addr; }")
    for task in (lab.task(), {"name": "lan", "state": "absent"}):
        assert "somebody else made it" in lab.host.refuse(MODULE, task)
    lab.host.run("nft", "delete", "set", *TABLE, "theirs")  # and an empty one is taken
    assert lab.host.converge(MODULE, lab.task())["changed"]


def test_unlisted_taps_are_dropped_where_the_kernel_can_tell_them(lab: Lab) -> None:
    probe = 'add table bridge probe; add chain bridge probe c; add rule bridge probe c meta ibrname "x" accept'
    done = lab.host.run("nft", probe, check=False)
    lab.host.run("nft", "delete", "table", "bridge", "probe", check=False)
    if "Operation not supported" in done.stderr:
        message = lab.host.refuse(MODULE, lab.task(unlisted="drop"))
        assert "unlisted: drop needs a kernel" in message
        pytest.skip("EOPNOTSUPP: this kernel has no CONFIG_NFT_BRIDGE_META; its refusal has been tested")
    lab.host.converge(MODULE, lab.task(unlisted="drop"))
    lab.host.assert_rests(MODULE, lab.task(unlisted="drop"))
    lab.host.run("ip", "tuntap", "add", "lstap", "mode", "tap")
    lab.host.run("ip", "link", "set", "lstap", "master", BRIDGE, "up")
    lab.watch()
    unlisted = frames.arp(FOREIGN_MAC, FREE4, FREE4)
    assert unlisted.hex() not in lab.heard_from_tap("lstap", unlisted)
    lab.host.converge(MODULE, lab.task())
    assert unlisted.hex() in lab.heard_from_tap("lstap", unlisted)


def _state(lab: Lab, port: str) -> str:
    shown = lab.host.json("bridge", "-j", "link", "show", "dev", port)
    return str(shown[0].get("state")) if shown else ""
