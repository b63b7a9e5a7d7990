# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab: two guests on a bridge of the host, a neighbour in the LAN behind the host's uplink, and a server there.

The neighbour has no route to the guests. Its server tells every client the address that it saw.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t

import pytest
from support.hosts import Host

BRIDGE = "lsfw0"
UPLINK = "lsup0"
SUBNET4 = "10.77.0.0/24"
SUBNET6 = "fd77::/64"
HOST4, HOST6 = "198.51.100.1", "2001:db8:1::1"
LAN4, LAN6 = "198.51.100.9", "2001:db8:1::9"
GATEWAY4, GATEWAY6 = "10.77.0.1", "fd77::1"
GUEST4, GUEST6 = "10.77.0.11", "fd77::11"
OTHER4, OTHER6 = "10.77.0.12", "fd77::12"
PORT = 7000

_SERVER = """
import socket, sys, threading
def answer(client, address):
    with client:
        client.sendall(address[0].replace("::ffff:", "").encode())
server = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
print("ready", flush=True)
while True:
    answer(*server.accept())
"""

_CLIENT = """
import socket, sys
address, port, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
try:
    with socket.create_connection((address, port), timeout) as connection:
        print(connection.makefile().read())
except OSError as error:
    sys.exit(str(error))
"""

_SEND = """
import socket, sys
source, destination = sys.argv[1:3]
family = socket.AF_INET6 if ":" in source else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as out:
    out.bind((source, 0))
    for _ in range(3):
        out.sendto(b"x", (destination, 9))
"""


def rules(saved: str) -> list[str]:
    """What iptables-save prints, without comments and counters."""
    return [line.split(" [")[0] for line in saved.splitlines() if not line.startswith("#")]


def _without_counts(entry: dict[str, t.Any]) -> dict[str, t.Any]:
    """An entry of nft's listing, where every rule of iptables counts packets."""
    rule = entry.get("rule")
    return (
        entry if rule is None else {"rule": {**rule, "expr": [part for part in rule["expr"] if "counter" not in part]}}
    )


class Lab:
    """The host and everybody around it; C(guest), C(other) and C(lan) are namespaces of the host's own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._servers: list[subprocess.Popen[str]] = []
        self._no_detection("host")
        self._batch(
            f"link add {BRIDGE} type bridge",
            f"addr add {GATEWAY4}/24 dev {BRIDGE}",
            f"addr add {GATEWAY6}/64 dev {BRIDGE} nodad",
            f"link set {BRIDGE} up",
        )
        self._attach("guest", BRIDGE, [f"{GUEST4}/24", f"{GUEST6}/64"], (GATEWAY4, GATEWAY6))
        self._attach("other", BRIDGE, [f"{OTHER4}/24", f"{OTHER6}/64"], (GATEWAY4, GATEWAY6))
        self._attach("lan", None, [f"{LAN4}/24", f"{LAN6}/64"], None)
        self._batch(
            f"addr add {HOST4}/24 dev {UPLINK}",
            f"addr add {HOST6}/64 dev {UPLINK} nodad",
            f"link set {UPLINK} up",
            f"route add default via {LAN4}",
            f"-6 route add default via {LAN6}",
        )
        host.settle()

    def close(self) -> None:
        for server in self._servers:
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()

    def _batch(self, *lines: str) -> None:
        self.host.run("ip", "-batch", "-", stdin="\n".join(line.removeprefix("-6 ") for line in lines) + "\n")

    def _attach(
        self, name: str, bridge: t.Optional[str], addresses: list[str], gateways: t.Optional[tuple[str, str]]
    ) -> None:
        outer = f"ls{name}" if bridge else UPLINK
        self.host.run("ip", "netns", "add", name)
        self._no_detection(name)
        self.host.run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        if bridge:
            self.host.run("ip", "link", "set", outer, "master", bridge, "up")
        inner = [f"addr add {address} dev eth0{' nodad' if ':' in address else ''}" for address in addresses]
        inner += ["link set lo up", "link set eth0 up"]
        self.host.run("ip", "-n", name, "-batch", "-", stdin="\n".join(inner) + "\n")
        for gateway in gateways or ():
            self.host.run("ip", "-n", name, "route", "add", "default", "via", gateway)

    def _no_detection(self, name: str) -> None:
        # Without duplicate address detection every address is usable at once.
        self.on(name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")

    def on(self, name: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as one of the machines; C(host) is the host itself."""
        inside = () if name == "host" else ("ip", "netns", "exec", name)
        return self.host.run(*inside, *command, check=check)

    def serve(self, name: str, port: int = PORT) -> None:
        """Start the server that tells clients their address."""
        inside = () if name == "host" else ("ip", "netns", "exec", name)
        server = self.host.start(*inside, sys.executable, "-c", _SERVER, str(port), stdout=subprocess.PIPE)
        if server.stdout is None or server.stdout.readline().strip() != "ready":
            raise RuntimeError("the server did not start")
        self._servers.append(server)

    def seen(self, name: str, address: str, port: int = PORT, *, patience: float = 10) -> t.Optional[str]:
        """The address that a server sees when this machine connects to it; None when it cannot."""
        done = self.on(name, sys.executable, "-c", _CLIENT, address, str(port), str(patience), check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    def refused(self, name: str, address: str, port: int = PORT, *, expected: bool = True) -> bool:
        """Whether this machine gets no connection. A drop is silent, so this waits a little where one is expected."""
        return self.seen(name, address, port, patience=0.3 if expected else 10) is None

    def send(self, name: str, source: str, destination: str) -> None:
        """Send packets from any address that the machine has."""
        self.on(name, sys.executable, "-c", _SEND, source, destination)

    def count(self, name: str, *sources: str, match: str = "") -> None:
        """Have a machine count what reaches it from each address, once all of its own rules have let it in."""
        script = ["add table inet seen", "add chain inet seen input { type filter hook input priority 10; }"]
        for source in sources:
            family = "ip6" if ":" in source else "ip"
            script.append(f"add rule inet seen input {family} saddr {source} {match} counter")
        self.on(name, "nft", "; ".join(script))

    def counted(self, name: str) -> list[int]:
        """How many such packets have come, for each address."""
        listed = json.loads(self.on(name, "nft", "-j", "list", "table", "inet", "seen").stdout)
        rules_listed = [entry["rule"] for entry in listed["nftables"] if "rule" in entry]
        return [part["counter"]["packets"] for rule in rules_listed for part in rule["expr"] if "counter" in part]

    def route_to_guests(self) -> None:
        """Have the LAN's neighbour add routes to the guests by way of the host."""
        self.on("lan", "ip", "route", "add", SUBNET4, "via", HOST4)
        self.on("lan", "ip", "route", "add", SUBNET6, "via", HOST6)

    def dump(self) -> dict[str, t.Any]:
        """Everything on the host that a task could change, rules of iptables included."""
        dump = self.host.dump()
        dump["nft"] = [_without_counts(entry) for entry in dump["nft"]]
        dump["sysctl.d"] = self.host.out("sh", "-c", "cat /etc/sysctl.d/* 2>/dev/null || true")
        for names, program in (("ip_tables_names", "iptables"), ("ip6_tables_names", "ip6tables")):
            registered = self.host.out("cat", f"/proc/net/{names}").split()
            dump[names] = sorted(registered)
            for table in registered:  # a table that is not registered would be by looking at it
                dump[f"{program} {table}"] = rules(self.host.out(f"{program}-legacy-save", "-t", table))
        return dump

    def nat(self, **options: t.Any) -> dict[str, t.Any]:
        """The parameters of a task for this lab."""
        return {"name": "lab", "bridge": BRIDGE, "out_interface": UPLINK, **options}


def legacy_interpreter() -> str:
    """An interpreter that has python-iptables."""
    for interpreter in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run([interpreter, "-c", "import iptc"], capture_output=True, check=False)
        if done.returncode == 0:
            return interpreter
    pytest.skip("no interpreter of this machine can import iptc (python3-iptables)")


@pytest.fixture(params=["nftables", "iptables", "iptables_legacy"])
def backend(request: pytest.FixtureRequest, lab: Lab) -> str:
    """Each backend in turn, with the tables that it leaves in the kernel already registered."""
    if request.param == "iptables_legacy":
        lab.host.interpreter = legacy_interpreter()
    register(lab, request.param)
    return t.cast("str", request.param)


@pytest.fixture(params=["nftables", "iptables"])
def current_backend(request: pytest.FixtureRequest, lab: Lab) -> str:
    """The backends that need no library."""
    register(lab, request.param)
    return t.cast("str", request.param)


def register(lab: Lab, backend: str) -> None:
    """Have the kernel hold the empty tables that a backend of iptables leaves behind."""
    flavour = {"iptables": "nft", "iptables_legacy": "legacy"}.get(backend)
    for program in ("iptables", "ip6tables") if flavour else ():
        for table, chain in (("filter", "FORWARD"), ("nat", "POSTROUTING"), ("nat", "OUTPUT"), ("filter", "INPUT")):
            for action in ("-A", "-D"):
                lab.host.run(f"{program}-{flavour}", "-t", table, action, chain, "-j", "ACCEPT")


@pytest.fixture
def lab(host: Host) -> t.Iterator[Lab]:
    made = Lab(host)
    try:
        yield made
    finally:
        made.close()
