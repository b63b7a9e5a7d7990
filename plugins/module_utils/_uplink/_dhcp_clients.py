# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""DHCP clients that run on a host by themselves, and how one goes on for another interface with the same lease.

dhclient is ended with SIGKILL, which it cannot take as a reason to give the lease back, and started on the other
interface with its lease file (the lease renamed, the client's identity as it was) and every option that it had. It
then asks the server for the very address it holds. What it writes from then on is in /run.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import shutil
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _guard
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import (
    EndProgram,
    KeepDaemon,
    RunProgram,
    Step,
    WriteFile,
    keep,
)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIGURATIONS = ("/etc/dhcp/dhclient.conf", "/etc/dhclient.conf")
_LEASES = ("/var/lib/dhcp/dhclient.leases", "/var/lib/dhclient/dhclient.leases")

_WITH_VALUE = {
    "-4o6", "-D", "-cf", "-df", "-e", "-g", "-lf", "-p", "-pf", "-s", "-sf",
    "--address-prefix-len", "--dad-wait-time", "--decline-wait-time", "--prefix-len-hint",
}  # fmt: skip
_ALONE = {
    "-1", "-4", "-6", "-B", "-I", "-N", "-P", "-S", "-T", "-d", "-i", "-n", "-nw", "-q", "-v", "-w", "--no-pid",
}  # fmt: skip
# These give a lease back, or end another client, and end themselves.
_ERRANDS = {"-r", "-x"}
# Into the background before there is a lease; else that is where it goes with a lease, or after a minute without.
_AT_ONCE = "-nw"
# A client that does not wait for the lease would be taken for one that has it.
_NOT_AGAIN = {_AT_ONCE, "-q"}
# Such a client ends when the server is silent for a minute.
_GIVES_UP = {"-1"}

_LEASE = re.compile(r"^lease6?[ \t]*\{.*?^\}[ \t]*\n", re.MULTILINE | re.DOTALL)
_IDENTITY = re.compile(r"^default-duid[ \t]+(?P<duid>.*);[ \t]*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Client:
    """A DHCP client that runs, by its command line."""

    program: str
    argv: tuple[str, ...]
    interfaces: tuple[str, ...]
    """Those it is told to run; none for one that takes whatever it finds."""
    options: tuple[tuple[str, ...], ...] = ()
    """Each with its value; of dhclient only."""
    unknown: tuple[str, ...] = ()
    """Options that are not known here, so that nobody knows what else on the line is a value."""
    pid: int = 0

    def has(self, option: str) -> bool:
        return any(words[0] == option for words in self.options)

    def value(self, option: str) -> t.Optional[str]:
        """The last value given, as the program takes it."""
        return next((words[1] for words in reversed(self.options) if words[0] == option and len(words) > 1), None)

    @property
    def ipv6(self) -> bool:
        return self.has("-6")

    def __str__(self) -> str:
        return f"{' '.join(self.argv)} (pid {self.pid})"


@dataclasses.dataclass(frozen=True)
class Lease:
    """What a lease file says of the lease that the client holds."""

    address: str
    """With prefix length."""
    seconds: int


def parse(argv: t.Sequence[str], pid: int = 0) -> t.Optional[Client]:
    """The DHCP client that has this command line; None for any other program, and for one that only ends another."""
    program, words = os.path.basename(argv[0]), list(argv[1:])
    if program == "busybox" and words[:1] == ["udhcpc"]:
        program, words = "udhcpc", words[1:]
    if program == "udhcpc":
        return Client("udhcpc", tuple(argv), (_udhcpc_interface(words),), pid=pid)
    if program.startswith("dhcpcd"):
        return _parse_dhcpcd(argv, words, pid)
    if program == "dhclient":
        return _parse_dhclient(argv, words, pid)
    return None


def _udhcpc_interface(words: t.Sequence[str]) -> str:
    for index, word in enumerate(words):
        if word in {"-i", "--interface"} and index + 1 < len(words):
            return words[index + 1]
        if word.startswith("--interface="):
            return word.partition("=")[2]
        if word.startswith("-i") and not word.startswith("--"):
            return word[2:]
    return "eth0"


def _parse_dhcpcd(argv: t.Sequence[str], words: t.Sequence[str], pid: int) -> t.Optional[Client]:
    # Its processes call themselves "dhcpcd: eth0 [ip4]", in one word, and the manager "dhcpcd: [manager] [ip4]".
    title = argv[0].partition("dhcpcd: ")[2].split()
    names = title[:1] if title else [word for word in words if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,14}", word)][-1:]
    return Client("dhcpcd", tuple(argv), tuple(name for name in names if not name.startswith("[")), pid=pid)


def _parse_dhclient(argv: t.Sequence[str], words: list[str], pid: int) -> t.Optional[Client]:
    options: list[tuple[str, ...]] = []
    interfaces, unknown = [], []
    rest = iter(words)
    for word in rest:
        if word in _ERRANDS:
            return None
        if word in _WITH_VALUE:
            options.append((word, next(rest, "")))
        elif word in _ALONE:
            options.append((word,))
        elif word.startswith("-"):
            unknown.append(word)
        else:
            interfaces.append(word)
    return Client("dhclient", tuple(argv), tuple(interfaces), tuple(options), tuple(unknown), pid)


def running(interface: str) -> list[Client]:
    """The clients of this network namespace that run the interface, or that run all interfaces."""
    found = [parse(argv, process.pid) for process, argv in _process.here()]
    serving = [client for client in found if client and (interface in client.interfaces or not client.interfaces)]
    # Between its fork and the start of its script, which is soon over, a client is there twice.
    parents = {client.pid: _process.parent_of(client.pid) for client in serving}
    words = {client.pid: client.argv for client in serving}
    alone = [client for client in serving if words.get(parents[client.pid]) != client.argv]
    return sorted((client for client in alone if _process.identify(client.pid)), key=lambda client: client.pid)


class Clients:
    """The clients of a host as they were found first: once a move has ended them, they are started from memory."""

    def __init__(self) -> None:
        self._found: dict[str, list[Client]] = {}

    def of(self, interface: str) -> list[Client]:
        """Those of the interface: the ones that run, else the ones that did."""
        now = running(interface)
        if now:
            self._found[interface] = now
        return now or self._found.get(interface, [])

    def leases(self, interface: str) -> bool:
        """Whether a client renews the interface's address, or that of its bridge, and can do it for the other one."""
        names = (interface, *master(interface))
        return any(_trouble(client, name) is None for name in names for client in self.of(name))

    def refusal(self, move: Move) -> t.Optional[str]:
        """Why the clients that run the source cannot go on for the target, as a sentence; None when they can."""
        clients = self.of(move.source)
        for client in clients:
            trouble = _trouble(client, move.source)
            if trouble:
                return trouble
        if len(clients) > 1:
            return (
                f"{move.source} has {len(clients)} DHCP clients: {'; '.join(map(str, clients))}. "
                "End all but the one that configures it."
            )
        if move.mode == "dhcp" and not move.back and not clients and _which("dhclient") is None:
            return (
                f"address_mode: 'dhcp' needs a DHCP client for {move.target}, and this host has no dhclient. "
                "Install isc-dhcp-client."
            )
        return _change_of_identity(clients[0], move) if clients and (move.back or move.mode == "move") else None

    def before(self, move: Move) -> list[Step]:
        """End the clients of the source; they give no lease back."""
        return [step for client in self.of(move.source) for step in _ending(client, move.source)]

    def after(self, move: Move) -> list[Step]:
        """Start on the target what ran on the source, for the lease that it had; on the way back in every mode."""
        if not move.carries_leases:
            return []
        clients = self.of(move.source)
        if not clients:
            return [_beginning(move, _fresh())] if move.mode == "dhcp" and not move.back else []
        client = clients[0]
        carried = carry(read(lease_file(client)), move.source, move.target)
        path = run_lease_file(move.target)
        steps = [Step(f"carry the DHCP lease over to {move.target}", WriteFile(path, carried), (keep(path),))]
        lease = read_lease(carried, move.target)
        if lease is not None:
            steps.append(_lasting(move, lease))
        return [*steps, _beginning(move, client)]


def _lasting(move: Move, lease: Lease) -> Step:
    # The client finds its address there and leaves the lifetime as it is. That would end before the next renewal if
    # the last one is long ago.
    words = ("address", "change", lease.address, "dev", move.target)
    lifetimes = ("valid_lft", str(lease.seconds), "preferred_lft", str(lease.seconds))
    return Step(
        f"let {lease.address} last as long as a lease does, until it is renewed on {move.target}",
        RunProgram((_which("ip") or "ip", *words, *lifetimes)),
    )


def master(interface: str) -> list[str]:
    """The bridge that the interface is a port of, if it is one."""
    try:
        return [os.path.basename(os.readlink(f"/sys/class/net/{interface}/master"))]
    except OSError:
        return []


def _trouble(client: Client, interface: str) -> t.Optional[str]:
    if client.program != "dhclient":
        return (
            f"{client} configures {interface}, and labspan.vmnet cannot carry the lease of {client.program} over to "
            f"another interface. Let dhclient, systemd-networkd or NetworkManager run {interface}, or end it and give "
            "the address by address_mode: static."
        )
    if client.ipv6:
        return (
            f"{client} configures {interface} by DHCPv6, and it removes the IPv6 addresses of the interface on which "
            "it is started. Use router advertisements or a static IPv6 address, and end it."
        )
    if client.unknown:
        return (
            f"{client} runs {interface} with options that are not known here: {' '.join(client.unknown)}. "
            "Start it without them."
        )
    if client.interfaces != (interface,):
        others = "all interfaces that it finds" if not client.interfaces else " ".join(client.interfaces)
        return f"{client} runs {others}, and cannot be moved for {interface} alone. Start one client per interface."
    if client.has("-d"):
        return (
            f"{client} runs {interface} in the foreground, for a program that would start it again. "
            "Let ifupdown, systemd-networkd or NetworkManager run it."
        )
    return None


def _change_of_identity(client: Client, move: Move) -> t.Optional[str]:
    mac = read(f"/sys/class/net/{move.source}/address").strip()
    if mac and move.mac.lower() != mac:
        return (
            f"mac: {move.mac!r} is not the MAC of {move.source} ({mac}), by which the DHCP server knows this host: its "
            "address would change. Leave out mac, or use address_mode: dhcp."
        )
    path = client.value("-cf") or next(filter(os.path.exists, _CONFIGURATIONS), _CONFIGURATIONS[0])
    named = set(re.findall(r'^\s*interface\s+"([^"]+)"', read(path), re.MULTILINE))
    if move.source in named and move.target not in named:
        return (
            f"{path} has a section for {move.source}, which {move.target} would not get. "
            f"Write the same section for {move.target} beside it."
        )
    return None


def _ending(client: Client, interface: str) -> t.Iterator[Step]:
    yield Step(
        f"end the DHCP client of {interface}, without giving its lease back",
        EndProgram(client.argv, "KILL"),
        (_again(client, interface),),
    )
    pid_file = client.value("-pf") or "/run/dhclient.pid"
    if read(pid_file).strip() == str(client.pid):
        # A later process with this number would keep the next client from starting.
        yield Step(f"remove {pid_file} of the client that was ended", WriteFile(pid_file, None))


def _fresh() -> Client:
    return Client("dhclient", ("dhclient",), (), (("-4",), ("-v",), ("-i",)))


def _beginning(move: Move, client: Client) -> Step:
    argv = command(client, move.target)
    gone = (EndProgram(argv, "KILL"), WriteFile(run_pid_file(move.target), None))
    return Step(f"start the DHCP client on {move.target}", RunProgram(_apart(argv)), gone)


def command(client: Client, interface: str) -> tuple[str, ...]:
    """The command line of the client for another interface: its files in /run, all else as it was."""
    options = [words for words in client.options if words[0] not in {"-pf", "-lf", "--no-pid", *_NOT_AGAIN}]
    files = (("-pf", run_pid_file(interface)), ("-lf", run_lease_file(interface)))
    words = [word for option in (*options, *files) for word in option]
    return (_which(client.argv[0]) or client.argv[0], *words, interface)


def _again(client: Client, interface: str) -> KeepDaemon:
    """The client as it was, for the way back: there it goes on to ask, however long the server is silent."""
    options = [words for words in client.options if words[0] not in {*_NOT_AGAIN, *_GIVES_UP}]
    words = [word for option in options for word in option]
    argv = (_which(client.argv[0]) or client.argv[0], _AT_ONCE, *words, *client.interfaces)
    return KeepDaemon(_apart(argv), client.program, interface)


def _apart(argv: tuple[str, ...]) -> tuple[str, ...]:
    # In a unit of its own the client outlives both the session of the connection and the dead-man's unit.
    scope = _which("systemd-run") if _guard.runs_systemd() else None
    return (scope, "--scope", "--quiet", "--collect", *argv) if scope else argv


def _which(program: str) -> t.Optional[str]:
    return shutil.which(program, path=PATH)


# These names are the ones that distributions let a confined dhclient write.
def run_pid_file(interface: str) -> str:
    return f"/run/dhclient.{interface}.pid"


def run_lease_file(interface: str) -> str:
    return f"/run/dhclient.{interface}.leases"


def lease_file(client: Client) -> str:
    """Where the client keeps its leases."""
    return client.value("-lf") or next(filter(os.path.exists, _LEASES), _LEASES[0])


def carry(text: str, source: str, target: str) -> str:
    """The lease file of one interface as that of another: the client's identity, and the leases of the one renamed."""
    identity = [match.group() + "\n" for match in _IDENTITY.finditer(text)][-1:]
    mine = re.compile(rf'(?<=^  interface "){re.escape(source)}(?=";$)', re.MULTILINE)
    renamed = [mine.subn(target, match.group()) for match in _LEASE.finditer(text)]
    return "".join([*identity, *(lease for lease, count in renamed if count)])


def identity(text: str) -> t.Optional[str]:
    """The client's identity as the lease file has it."""
    found = [match.group("duid") for match in _IDENTITY.finditer(text)]
    return found[-1] if found else None


def read_lease(text: str, interface: str) -> t.Optional[Lease]:
    """The newest lease of the interface; None when there is none, or it lasts for ever."""
    mine = [match.group() for match in _LEASE.finditer(text) if f'  interface "{interface}";' in match.group()]
    for lease in reversed(mine):
        address = re.search(r"^  fixed-address ([0-9.]+);", lease, re.MULTILINE)
        mask = re.search(r"^  option subnet-mask ([0-9.]+);", lease, re.MULTILINE)
        seconds = re.search(r"^  option dhcp-lease-time ([0-9]+);", lease, re.MULTILINE)
        if not (address and mask and seconds) or int(seconds.group(1)) >= 2**32 - 1:
            return None
        return Lease(
            ipaddress.ip_interface(f"{address.group(1)}/{mask.group(1)}").with_prefixlen, int(seconds.group(1))
        )
    return None


def read(path: str) -> str:
    """The text of a file; nothing when there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except OSError:
        return ""
