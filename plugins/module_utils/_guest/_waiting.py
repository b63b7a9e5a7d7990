# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait until guests have come as far as their tasks want them: an address, an SSH server, the end of cloud-init.

All guests are looked at in rounds, and each has its own time. A guest that does not come so far is left as it is, since
it is what the administrator wants to look at then; the error tells how far each of them came.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import os
import re
import select
import socket
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _addresses, _agent, _life
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process

ADDRESS = "address"
SSH = "ssh"
CLOUD_INIT = "cloud_init"
GOALS = (ADDRESS, SSH, CLOUD_INIT)

SSH_PORT = 22

_PROBE = 0.5
_ROUND = 0.2
_CONNECT = 0.5
#: How long a connection is kept that is made, and that is not: the kernel's own tries soon come seldom.
_KEEP = 60.0
_RING = 2.0
_AGENT = 1.0
_BANNER_LENGTH = 4096

# Left by cloud-init of this boot, with the errors that it had (cloudinit/cmd/main.py).
_RESULT = "/run/cloud-init/result.json"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FINISHED = re.compile(r"Cloud-init v\. \S+ finished at .*$", re.MULTILINE)
_NO_DATASOURCE = "DataSourceNone"
_FAILURES = (
    re.compile(r"Running module (\S+) \(.*?\) failed"),
    # The stages' units as systemd tells of them: by name and description, or by description alone.
    re.compile(
        r"Failed to start ((?:cloud-(?:init|config|final)|Initial cloud-init|Apply the settings specified in cloud"
        r"|Execute cloud user)[^\n]*)"
    ),
)


@dataclasses.dataclass
class Awaited:
    """A guest on its way."""

    spec: GuestSpec
    process: Process
    goal: str
    timeout: float
    declared: tuple[str, ...] = ()
    """Addresses that it may have been told to take."""
    addresses: dict[str, str] = dataclasses.field(default_factory=dict)
    """Those that it has -> the MAC address of the NIC."""
    stage: str = "nothing was heard of it"
    reached: bool = False
    seconds: t.Optional[float] = None
    problem: t.Optional[str] = None

    @property
    def is_settled(self) -> bool:
        return self.reached or self.problem is not None

    @property
    def mac_addresses(self) -> list[str]:
        return [nic.mac for nic in self.spec.nics]

    def told(self) -> dict[str, t.Any]:
        """What a task's result says about it."""
        return {
            "goal": self.goal,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "addresses": list(_values.in_order(self.addresses)),
            "reached": self.reached,
            "stage": self.stage,
        }


def problems(spec: GuestSpec, goal: str) -> list[str]:
    """Why this can never be seen of this guest."""
    if goal in (ADDRESS, SSH) and not spec.guest_agent and all(nic.tap is None for nic in spec.nics):
        return [
            f"wait_for: {goal} of guest {spec.name} needs a NIC on a tap, or guest_agent: true with the agent in the "
            "guest; an address on QEMU's user-mode network cannot be seen."
        ]
    if goal == CLOUD_INIT and not spec.console and not spec.guest_agent:
        return [
            f"wait_for: cloud_init of guest {spec.name} needs its serial console, where cloud-init tells that it has "
            "finished, or guest_agent: true with the agent in the guest. Give console: true."
        ]
    return []


def wait(guests: t.Sequence[Awaited]) -> None:
    """Return when all have come where they shall; raise when one has not, after every other had its time."""
    begin = time.monotonic()
    with Doors() as doors:
        while True:
            waiting = [guest for guest in guests if not guest.is_settled]
            if not waiting:
                break
            now = time.monotonic()
            _look_at_all(waiting, doors)
            for guest in waiting:
                _judge(guest, time.monotonic() - begin)
            if any(not guest.is_settled for guest in waiting):
                time.sleep(max(0.0, now + _ROUND - time.monotonic()))
    failed = [guest for guest in guests if guest.problem is not None]
    if failed:
        raise SystemFailure(_tell(failed, guests), waited={guest.spec.name: guest.told() for guest in guests})


def _look_at_all(guests: t.Sequence[Awaited], doors: Doors) -> None:
    _find_addresses([guest for guest in guests if guest.goal != CLOUD_INIT])
    _ask_for_ssh([guest for guest in guests if guest.goal == SSH and guest.addresses], doors)
    for guest in guests:
        if guest.goal == ADDRESS and guest.addresses:
            guest.reached, guest.stage = True, "it has an address"
        elif guest.goal == CLOUD_INIT:
            _look_at_cloud_init(guest)


def _judge(guest: Awaited, elapsed: float) -> None:
    if guest.reached:
        guest.seconds = elapsed
    elif guest.problem is not None:
        return
    elif not guest.process.alive:
        guest.problem = "ended while it was waited for"
    elif elapsed > guest.timeout:
        guest.problem = f"{_LACKS[guest.goal]} within {guest.timeout:g} seconds: {guest.stage}"


_LACKS = {
    ADDRESS: "has not got an address",
    SSH: "has not answered by SSH",
    CLOUD_INIT: "has not come to the end of cloud-init",
}


def _tell(failed: t.Sequence[Awaited], guests: t.Sequence[Awaited]) -> str:
    sentences = []
    for guest in failed:
        name, log = guest.spec.name, Places(guest.spec.name).console_log
        sentences.append(f"guest {name} {guest.problem}.")
        if guest.spec.console:
            sentences.append(f"The last lines of its console: {_life.last_lines(log)} (all: {log}).")
    came = [guest for guest in guests if guest.seconds is not None]
    if came:
        sentences.append("In time were: " + ", ".join(f"{one.spec.name} ({one.seconds:.1f} s)" for one in came) + ".")
    return " ".join([*sentences, "The guests were left as they are, and the next run waits again."])


def _find_addresses(guests: t.Sequence[Awaited]) -> None:
    """What the host knows, asked on the wire; an agent is believed."""
    if not guests:
        return
    knowledge = _addresses.look()
    candidates: dict[str, dict[str, list[Awaited]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for guest in guests:
        if guest.spec.guest_agent:
            for mac, addresses in _addresses.from_agent(guest.spec).items():
                guest.addresses.update(dict.fromkeys(addresses, mac))
        silent = []
        for nic in guest.spec.nics:
            segment = knowledge.segment(nic)
            known = knowledge.of(nic)
            silent += known
            for address in dict.fromkeys([*known, *guest.declared]) if segment else ():
                if address not in guest.addresses:
                    candidates[str(segment)][address].append(guest)
        guest.stage = _why_no_address(guest, silent)
    for segment, waiting in candidates.items():
        found = _addresses.answering(knowledge, segment, list(waiting), timeout=_PROBE)
        for address, mac in found.items():
            for guest in waiting[address]:
                if mac in guest.mac_addresses:
                    guest.addresses[address] = mac


def _why_no_address(guest: Awaited, silent: t.Sequence[str]) -> str:
    if silent:
        return f"nobody with its MAC address answers for {', '.join(dict.fromkeys(silent))}"
    if guest.declared:  # which ones is part of what no message shows
        return "nobody with its MAC address answers for an address of its network_config"
    macs = ", ".join(guest.mac_addresses)
    agent = ", and no agent in it tells of one" if guest.spec.guest_agent else ""
    return f"the host's DHCP servers have leased none to {macs}, its neighbour tables know none{agent}"


def _ask_for_ssh(guests: t.Sequence[Awaited], doors: Doors) -> None:
    if not guests:
        return
    said = doors.listen(dict.fromkeys(address for guest in guests for address in guest.addresses), timeout=_CONNECT)
    for guest in guests:
        guest.stage = "; ".join(
            f"it has the address {address}, where port {SSH_PORT} {said[address]}" for address in guest.addresses
        )
        for address in guest.addresses:
            if said[address].startswith("SSH-"):
                guest.reached, guest.stage = True, f"{address} answers with {said[address]}"


class Doors:
    """Connections to servers, kept from round to round: one in a busy guest may need many seconds for its first line.

    That line is what a server says first (RFC 4253, section 4.2).
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[socket.socket, float]] = {}
        self._heard: dict[str, bytes] = {}

    def __enter__(self) -> Doors:
        return self

    def __exit__(self, *_exception: object) -> None:
        for address in list(self._open):
            self._shut(address)

    def listen(self, addresses: t.Iterable[str], *, timeout: float) -> dict[str, str]:
        """Address -> the server's first line, or how far it came; waits a moment for the silent ones."""
        found = {address: self._knock(address) for address in addresses}
        deadline = time.monotonic() + timeout
        while "" in found.values() and time.monotonic() < deadline:
            poll = select.poll()
            waiting = {self._open[address][0].fileno(): address for address, said in found.items() if not said}
            for number in waiting:
                poll.register(number, select.POLLIN)
            for number, _event in poll.poll(max(deadline - time.monotonic(), 0.001) * 1000):
                found[waiting[number]] = self._hear(waiting[number])
        return {address: said or "does not answer yet" for address, said in found.items()}

    def _knock(self, address: str) -> str:
        if address in self._open:
            connection, opened = self._open[address]
            patience = _KEEP if _is_connected(connection) else _RING
            if time.monotonic() < opened + patience:
                return ""
            self._shut(address)  # the guest may have come up, or booted again, meanwhile
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        connection.setblocking(False)
        self._open[address] = (connection, time.monotonic())
        self._heard[address] = b""
        code = connection.connect_ex((address, SSH_PORT))
        if code in (0, errno.EINPROGRESS):
            return ""
        self._shut(address)
        return f"cannot be reached ({os.strerror(code)})"

    def _hear(self, address: str) -> str:
        """What was heard, or why nothing will be; empty while there may be more."""
        try:
            received = self._open[address][0].recv(_BANNER_LENGTH)
        except BlockingIOError:
            return ""
        except OSError as error:
            self._shut(address)
            return f"cannot be reached ({error.strerror or error})"
        self._heard[address] += received
        *lines, _rest = self._heard[address].split(b"\n")
        banner = next((line for line in lines if line.startswith(b"SSH-")), None)  # others may come before it
        if banner is not None:
            said = "".join(filter(str.isprintable, banner.decode("ascii", "replace")))[:255]
        elif not received or len(self._heard[address]) > _BANNER_LENGTH:
            said = "is open and does not speak SSH"
        else:
            return ""
        self._shut(address)
        return said

    def _shut(self, address: str) -> None:
        self._open.pop(address)[0].close()


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def _look_at_cloud_init(guest: Awaited) -> None:
    """By the result that cloud-init leaves, where an agent can read it; else by what it writes on the console."""
    errors = _result_by_agent(guest.spec) if guest.spec.guest_agent else None
    if errors is None and guest.spec.console:
        errors = cloud_init_errors(_console(guest.spec.name))
        if errors is None:
            guest.stage = "it has not written on its console that cloud-init has finished"
    elif errors is None:
        guest.stage = f"the agent in it tells of no {_RESULT}"
    if errors:
        guest.problem = f"has come to the end of cloud-init, which reports: {'; '.join(errors)}"
    elif errors is not None:
        guest.reached, guest.stage = True, "cloud-init has finished"


def _result_by_agent(spec: GuestSpec) -> t.Optional[list[str]]:
    if not _agent.is_listening(spec.name, timeout=_AGENT):
        return None
    try:
        with _agent.Agent(spec.name, timeout=_AGENT) as agent:
            content = agent.read_file(_RESULT)
    except LabspanError:
        return None
    try:
        result = json.loads(content or b"")["v1"]
        datasource, errors = str(result.get("datasource")), [str(error) for error in result.get("errors") or ()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return [*errors, *_datasource_problem(datasource)]


def _console(name: str) -> str:
    try:
        with open(Places(name).console_log, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def cloud_init_errors(console: str) -> t.Optional[list[str]]:
    """What cloud-init says on the console went wrong, once it has said that it has finished; None before that."""
    text = _ESCAPES.sub("", console.replace("\r", ""))
    finished = _FINISHED.search(text)
    if finished is None:
        return None
    found = [f"{match[1].strip()} failed" for pattern in _FAILURES for match in pattern.finditer(text)]
    return [*dict.fromkeys(found), *_datasource_problem(finished[0])]


def _datasource_problem(text: str) -> list[str]:
    return (
        ["it found no data source, so that nothing of what it was given is in force"] if _NO_DATASOURCE in text else []
    )
