# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The dnsmasq of each network: whether it runs, what it has read, and what brings it to what is wanted.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import grp
import hashlib
import os
import pwd
import signal
import socket
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import (
    _commands,
    _deps,
    _dhcp_unit,
    _foresight,
    _ports,
    _systemd,
    _whole_files,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import persistence
from ansible_collections.labspan.vmnet.plugins.module_utils._dhcp_unit import Unit
from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import (
    Account,
    Files,
    Paths,
    Wish,
    bridge_of,
    parse_leases,
    read_wish,
    serves_dns,
    settle,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import (
    InvalidInput,
    LabspanError,
    MissingDependency,
    Refused,
    SystemFailure,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options, is_single, items
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import MAIN_TABLE, Netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._process import (
    Process,
    end,
    here,
    identify,
    read_pid_file,
    send,
    spawn,
    write_pid_file,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._values import Address

#: How long dnsmasq may take to listen, and to end, in seconds.
START_TIMEOUT = 15.0
STOP_TIMEOUT = 5.0

_BULK = "servers"
_UNKNOWN = Files("# Not known before the bridge is there.\n", "", "")


@dataclasses.dataclass(frozen=True)
class Server:
    """One network's server as it is, or as it is wanted."""

    network: str
    files: t.Optional[Files]
    running: bool
    configured: bool
    """Whether the running process was started with the configuration in C(files), on the bridge that there is now."""
    informed: bool
    """Whether it has read the static leases and names in C(files)."""
    process: t.Optional[Process] = dataclasses.field(default=None, compare=False)
    leases: str = dataclasses.field(default="", compare=False)
    lasting: t.Optional[bool] = False
    """Whether it is a unit of systemd, which comes back after a reboot; None for something between the two."""
    current: bool = True
    """Whether the unit's template is the one that this version would write."""

    @property
    def bridge(self) -> t.Optional[str]:
        return bridge_of(self.files.configuration) if self.files else None


@dataclasses.dataclass(frozen=True)
class Serve(Change):
    """Brings one network's server from one state to another."""

    network: str
    before: t.Optional[Server]
    after: t.Optional[Server]


@dataclasses.dataclass(frozen=True)
class Bridge:
    """What is looked at of a bridge."""

    kind: t.Optional[str]
    addresses: tuple[Address, ...]
    default_route: bool
    hears_itself: bool
    """Whether the host configures itself from router advertisements, its own included."""


@dataclasses.dataclass(frozen=True)
class State:
    """The servers that the task names, and the bridges they are for."""

    servers: t.Mapping[str, t.Optional[Server]]
    bridges: t.Mapping[str, Bridge]


def build(params: Options, *, check_mode: bool) -> list[Resource[t.Any]]:
    """The resource that a task's parameters ask for."""
    single = is_single(params, _BULK)
    wishes = [
        read_wish("" if single else f"{_BULK}[{index}].", options) for index, options in enumerate(items(params, _BULK))
    ]
    return [Servers(wishes, single=single, check_mode=check_mode)]


class Servers(Resource[State]):
    """The servers that a task asks for."""

    plural = "servers"
    singular = "server"

    def __init__(self, wishes: t.Sequence[Wish], *, single: bool = False, check_mode: bool = False) -> None:
        super().__init__(single=single)
        self._wishes = wishes
        self._check_mode = check_mode
        bridges: dict[str, str] = {}
        for index, wish in enumerate(wishes):
            if not wish.present:
                continue
            other = bridges.setdefault(wish.bridge, wish.name)
            if other != wish.name:
                raise InvalidInput(
                    f"{self._where(index)}bridge",
                    wish.bridge,
                    f"is also the bridge of server {other}. A bridge has one DHCP server.",
                )

    def _where(self, index: int) -> str:
        return "" if self.single else f"{_BULK}[{index}]."

    def read(self) -> State:
        servers = read_servers([wish.name for wish in self._wishes])
        wanted = {wish.bridge for wish in self._wishes if wish.present}
        return State(servers, read_bridges(wanted) if wanted else {})

    def plan(self, have: State, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        have = State(have.servers, {**have.bridges, **foreseen_bridges(have.bridges, ahead)})
        changes: list[Serve] = []
        untested: list[tuple[str, Server]] = []
        for index, wish in enumerate(self._wishes):
            server = have.servers[wish.name]
            want = self._want(self._where(index), wish, have.bridges) if wish.present else None
            change = plan_server(wish.name, server, want)
            if change is None:
                continue
            changes.append(change)
            if want is not None and want.files not in (None, _UNKNOWN):
                untested.append((wish.name, want))
                self._warn_of_lent_addresses(server, wish)
        # What is stopped first makes its bridge free for what is started after.
        changes.sort(key=lambda change: change.after is not None)
        self._check_startable(have, changes, untested)
        return changes

    def _want(self, where: str, wish: Wish, bridges: t.Mapping[str, Bridge]) -> Server:
        bridge = bridges.get(wish.bridge)
        lasting = is_lasting(where, wish)
        if bridge is None:
            message = f"{where}bridge: there is no bridge {wish.bridge} on the managed host."
            if not self._check_mode:
                raise Refused(f"{message} Make it first, with linux_bridge.")
            self.warnings.append(
                f"{message} In check mode this is no error, as a task before may make it; addresses are not checked."
            )
            return Server(wish.name, _UNKNOWN, True, True, True, lasting=lasting)
        if bridge.kind != "bridge":
            raise Refused(
                f"{where}bridge: {wish.bridge} is not a bridge ({bridge.kind or 'a physical interface'}). "
                "A DHCP server is for the guests on a bridge."
            )
        if bridge.default_route:
            raise Refused(
                f"{where}bridge: the host's default route leaves through {wish.bridge}, so that its guests are on the "
                "LAN and get their addresses from the LAN's DHCP server. A second one would disturb the LAN."
            )
        if wish.router_advertisements and bridge.hears_itself:
            self.warnings.append(
                f"{where}router_advertisements: the host takes an address, and a default route if one is offered, from "
                f"its own advertisements: net.ipv6.conf.{wish.bridge}.accept_ra is on and the bridge does not forward."
            )
        files = settle(where, wish, bridge.addresses, find_account())
        return Server(wish.name, files, True, True, True, lasting=lasting)

    def _warn_of_lent_addresses(self, server: t.Optional[Server], wish: Wish) -> None:
        lent = {lease.address: lease for lease in parse_leases(server.leases)} if server else {}
        for reservation in wish.reservations:
            lease = lent.get(str(reservation.address))
            if lease is not None and lease.mac != reservation.mac:
                self.warnings.append(
                    f"the static lease of {reservation.mac} takes effect when {lease.mac} gives up {lease.address}, "
                    f"which it has until {lease.expires or 'it releases it'}."
                )

    def _check_startable(
        self, have: State, changes: t.Sequence[Serve], untested: t.Sequence[tuple[str, Server]]
    ) -> None:
        if not untested:
            return
        try:
            dnsmasq = _deps.program("dnsmasq", purpose="to serve DHCP")
        except MissingDependency as error:
            if not self._check_mode:
                raise
            self.warnings.append(f"{error} In check mode this is no error, as a task before may install it.")
            return
        # Sockets of processes that this very task ends or restarts are no obstacle.
        ours = {server.process.pid for server in have.servers.values() if server and server.process}
        ours.update(_foresight.leaving())
        leaving = {change.before.process.pid for change in changes if change.before and change.before.process}
        leaving.update(_foresight.leaving())
        for network, want in untested:
            files = t.cast(Files, want.files)
            server = have.servers[network]
            if server is None or server.files is None or server.files.configuration != files.configuration:
                check_syntax(dnsmasq, network, files.configuration)
            if server is None or server.process is None or server.bridge != want.bridge:
                check_dhcp_port(t.cast(str, want.bridge), ours)
            if serves_dns(files.configuration) and not _answers_already(server, want):
                check_dns_port(have.bridges[t.cast(str, want.bridge)].addresses, leaving)

    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        servers = dict(have.servers)
        for change in t.cast("t.Sequence[Serve]", changes):
            servers[change.network] = change.after
        return State(servers, have.bridges)

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: State) -> None:
        for change in t.cast("t.Sequence[Serve]", changes):
            if change.after is None and change.before is not None and change.before.process is not None:
                world.leaving.add(change.before.process.pid)

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for change in t.cast("t.Sequence[Serve]", changes):
            before = read_server(change.network)
            try:
                bring(change.network, change.after)
            except LabspanError as error:
                _put_back(change.network, before, error)
                raise
            done.append(change)

    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        return {name: _render(server) for name, server in state.servers.items() if server is not None}

    def facts(self, state: State) -> dict[str, t.Any]:
        return {
            "leases": [
                {"network": name, **dataclasses.asdict(lease)}
                for name, server in state.servers.items()
                if server is not None
                for lease in parse_leases(server.leases)
            ]
        }


def _render(server: Server) -> dict[str, t.Any]:
    paths = Paths(server.network)
    files = server.files or Files("", "", "")
    return {
        "bridge": server.bridge,
        "running": server.running,
        "pid": server.process.pid if server.process else None,
        "unit": _dhcp_unit.instance(server.network) if server.lasting else None,
        "configuration_file": _dhcp_unit.configuration(server.network) if server.lasting else paths.configuration,
        "lease_file": paths.leases,
        "configuration": files.configuration.splitlines(),
        "static_leases": files.reservations.splitlines(),
        "names": files.names.splitlines(),
    }


def plan_server(network: str, have: t.Optional[Server], want: t.Optional[Server]) -> t.Optional[Serve]:
    """The one change that brings this server to what is wanted; None when it is there."""
    if have == want:
        return None
    subject = f"DHCP server of network {network}"
    sentence, after = f"Stop the {subject} and remove its configuration and its lease file", want
    if want is not None and have is not None:
        keeps = have.running and have.configured and have.files is not None and want.files is not None
        keeps = keeps and have.lasting == want.lasting
        if keeps and have == dataclasses.replace(want, current=False):
            sentence = f"Write the unit of the {subject} anew"
            after = dataclasses.replace(want, process=have.process, leases=have.leases)
        elif keeps and t.cast(Files, have.files).configuration == t.cast(Files, want.files).configuration:
            sentence = f"Let the {subject} read its changed static leases"
            after = dataclasses.replace(want, process=have.process, leases=have.leases)
        else:
            how = "with its changed configuration"
            if have.lasting != want.lasting:
                how = "as a unit of systemd" if want.lasting else "as a process of its own"
            elif have.files == want.files:
                how = "for its bridge made again" if have.informed else "with its configuration"
            sentence = f"{'Restart' if have.running else 'Start'} the {subject} {how}"
            after = dataclasses.replace(want, leases=have.leases)
    elif want is not None:
        sentence = f"Start the {subject} on bridge {want.bridge or '(not there yet)'}"
    return Serve(subject, sentence, have, after, network)


def read_bridges(names: t.Collection[str]) -> dict[str, Bridge]:
    """The interfaces of these names that are there."""
    with Netlink() as netlink:
        links = netlink.links()
        addresses = netlink.addresses()
        defaults = {
            route.interface for route in netlink.routes() if route.destination is None and route.table == MAIN_TABLE
        }
    return {
        name: Bridge(
            links[name].kind,
            tuple(entry.address for entry in addresses if entry.interface == name),
            name in defaults,
            _accepts_advertisements(name),
        )
        for name in names
        if name in links
    }


def foreseen_bridges(bridges: t.Mapping[str, Bridge], ahead: t.Mapping[str, t.Any]) -> dict[str, Bridge]:
    """The bridges as a resource before this one in the same run is going to leave them."""
    foreseen = {}
    for name, bridge in ahead["bridges"].bridges.items() if "bridges" in ahead else ():
        if bridge is not None:
            now = bridges.get(name, Bridge("bridge", (), False, False))
            foreseen[name] = dataclasses.replace(now, addresses=tuple(entry.address for entry in bridge.addresses))
    return foreseen


def _accepts_advertisements(bridge: str) -> bool:
    settings = f"/proc/sys/net/ipv6/conf/{bridge}"
    accepts, forwards = ((_read(f"{settings}/{name}") or "0").strip() for name in ("accept_ra", "forwarding"))
    return accepts == "2" or (accepts == "1" and forwards == "0")


def is_lasting(where: str, wish: Wish) -> bool:
    """Whether the server is to be a unit of systemd."""
    manager, option = f"{where}service_manager", wish.service_manager
    lasting = bool(persistence(wish.persistent))
    if option == "none":
        if wish.persistent == "true":
            raise InvalidInput(manager, option, "is a plain process, which is not persistent. Leave one out.")
        return False
    if option == "systemd" and wish.persistent == "false":
        raise InvalidInput(manager, option, "is a unit that starts at boot, against persistent: false. Leave one out.")
    if option == "systemd" and not lasting:
        raise Refused(
            f"{manager}: systemd does not run this host, or not in this network namespace. Set service_manager: auto."
        )
    return lasting


def read_servers(networks: t.Sequence[str]) -> dict[str, t.Optional[Server]]:
    """What there is of the servers of these networks."""
    units = _dhcp_unit.read(networks)
    return {network: read_server(network, units[network]) for network in networks}


def read_server(network: str, unit: t.Optional[Unit] = None) -> t.Optional[Server]:
    """What there is of this network's server, or None; C(unit) is what systemd has of it, if that is known."""
    unit = _dhcp_unit.read([network])[network] if unit is None else unit
    paths = Paths(network)
    lasting_text = _read(_dhcp_unit.configuration(network)) if _systemd.is_running() else None
    plain_text = _read(paths.configuration)
    configuration = plain_text if lasting_text is None else lasting_text
    texts = [configuration, _read(paths.reservations), _read(paths.names)]
    files = None if texts == [None] * 3 else Files(*(text or "" for text in texts))
    process = identify(unit.pid) if unit.pid else find_process(paths)
    leases = _read(paths.leases)
    left = any(os.path.exists(path) for path in (paths.pid, paths.loaded, paths.output))
    if files is None and process is None and leases is None and not left and not unit.enabled:
        return None
    loaded = (_read(paths.loaded) or "").split()
    mark = [unit.run, "unit"] if unit.pid else [str(process.pid), str(process.started)] if process else []
    mine = process is not None and loaded[:2] == mark
    expected = _fingerprint(files) if files else ()
    lasting: t.Optional[bool] = None
    if lasting_text is not None and plain_text is None and unit.enabled and (unit.pid or process is None):
        lasting = True
    elif lasting_text is None and not unit.enabled and not unit.active:
        lasting = False
    return Server(
        network,
        files,
        running=process is not None,
        configured=mine and loaded[2:4] == list(expected[:2]),
        informed=mine and loaded[4:] == list(expected[2:]),
        process=process,
        leases=leases or "",
        lasting=lasting,
        current=lasting is not True or _dhcp_unit.is_current(_dnsmasq()),
    )


def _dnsmasq() -> str:
    return _deps.program("dnsmasq", purpose="to serve DHCP")


def find_process(paths: Paths) -> t.Optional[Process]:
    """The running dnsmasq of a network; looked for by its command line when the pid file does not name it."""
    process = read_pid_file(paths.pid)
    if process is None:
        arguments = {_configuration_argument(paths), f"--conf-file={_dhcp_unit.configuration(paths.network)}"}
        return next((found for found, argv in here() if arguments.intersection(argv)), None)
    try:
        inside = os.path.samestat(os.stat(f"/proc/{process.pid}/ns/net"), os.stat("/proc/self/ns/net"))
    except OSError:
        return None
    if not inside:
        raise Refused(
            f"the DHCP server of network {paths.network} (pid {process.pid}) runs in another network namespace of this "
            "host. Networks of one host need different names; rename one of them."
        )
    return process


def find_account() -> Account:
    """Whom dnsmasq runs as: the account of the distribution's package, else nobody."""
    for name in ("dnsmasq", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, grp.getgrgid(entry.pw_gid).gr_name)
    raise MissingDependency(
        "the managed host has neither the account dnsmasq nor nobody for DHCP servers to run as. Install dnsmasq-base."
    )


def check_syntax(dnsmasq: str, network: str, configuration: str) -> None:
    """Raise when dnsmasq does not take the configuration."""
    done = _commands.run([dnsmasq, "--test", "--conf-file=-"], stdin=configuration, cwd="/")
    if done.returncode:
        lines = configuration.splitlines()
        found = done.stderr.strip()
        number = found.rpartition(" at line ")[2].split(" ")[0]
        line = f": {lines[int(number) - 1]!r}" if number.isdigit() and 0 < int(number) <= len(lines) else ""
        raise LabspanError(
            f"dnsmasq does not take the configuration of network {network}: {found}{line}. Correct the option, most "
            "likely one of options."
        )


def check_dhcp_port(bridge: str, ours: t.Collection[int]) -> None:
    """Raise when somebody else already answers DHCP on the bridge; C(ours) are processes."""
    if not _ports.dhcp_port_is_taken(bridge):
        return
    found = [process for process in _ports.holders("udp", _ports.DHCP_PORT) if not _serves_elsewhere(process, bridge)]
    others = [process for process in found if process.pid not in ours]
    if found and not others:
        return
    names = " or ".join(_ports.name_process(process) for process in others)
    raise Refused(
        f"bridge {bridge} already has a DHCP server: its port 67 is held by "
        f"{names or 'a process of another container'}. Stop that one, or leave this bridge to it."
    )


def _serves_elsewhere(process: Process, bridge: str) -> bool:
    """Whether this is a server of ours for another bridge."""
    for word in process.argv():
        option, _equals, path = word.partition("=")
        ours = os.path.dirname(path) == Paths("").state or fnmatch.fnmatch(path, _dhcp_unit.configuration("*"))
        if option == "--conf-file" and ours:
            return bridge_of(_read(path) or "") not in (None, bridge)
    return False


def check_dns_port(addresses: t.Iterable[Address], leaving: t.Collection[int]) -> None:
    """Raise when somebody else already answers DNS at an address of the bridge."""
    for address in addresses:
        if address.is_link_local:
            continue
        protocol = _ports.dns_port_is_taken(address)
        if protocol is None:
            continue
        found = [
            process for process in _ports.holders(protocol, _ports.DNS_PORT, address) if process.pid not in leaving
        ]
        if found:
            names = " or ".join(_ports.name_process(process) for process in found)
            raise Refused(
                f"{address.ip} port 53/{protocol} is held by {names}. Stop that one, keep it away from the bridge, or "
                "set dns: false."
            )


def _answers_already(server: t.Optional[Server], want: Server) -> bool:
    return (
        server is not None
        and server.process is not None
        and server.files is not None
        and serves_dns(server.files.configuration)
        and server.bridge == want.bridge
    )


def bring(network: str, target: t.Optional[Server]) -> None:
    """Make the network's server what C(target) says, from whatever is there."""
    now = read_server(network)
    paths = Paths(network)
    if target is None:
        _stop(paths, now)
        _leave_unit(paths, now)
        _remove(paths)
        return
    for directory in (paths.state, paths.runtime):
        _whole_files.make_directories(directory)
    files = target.files
    if files is None:
        _stop(paths, now)
        return
    lasting = bool(target.lasting)
    same = now is not None and now.files is not None and now.files.configuration == files.configuration
    keep = same and now is not None and now.configured and target.running and now.lasting is lasting
    if not keep:
        _stop(paths, now)
    if lasting:
        _dhcp_unit.install(_dnsmasq())
    else:
        _leave_unit(paths, now)
    _write_files(paths, files, lasting=lasting)
    if _read(paths.leases) is None and target.leases:
        _write(paths.leases, target.leases)
    if not target.running:
        return
    if keep and now is not None and now.process is not None:
        if not now.informed or now.files != files:
            send(now.process, signal.SIGHUP)
        _record(paths, now.process, files)
    else:
        process = _start_unit(paths) if lasting else _start(paths)
        _record(paths, process, files)


def _leave_unit(paths: Paths, now: t.Optional[Server]) -> None:
    if _systemd.is_running() and (now is None or now.lasting is not False):
        _dhcp_unit.forget(paths.network)


def _put_back(network: str, before: t.Optional[Server], error: LabspanError) -> None:
    try:
        bring(network, before)
    except (LabspanError, OSError) as second:
        raise SystemFailure(f"{error} What was there before could not be put back either: {second}") from error


def _start_unit(paths: Paths) -> Process:
    _dhcp_unit.start(paths.network)
    pid = _dhcp_unit.read([paths.network])[paths.network].pid
    process = identify(pid) if pid else None
    deadline = time.monotonic() + START_TIMEOUT
    while process is not None and process.alive and time.monotonic() < deadline:
        if _has_left_root(process):
            return process
        time.sleep(0.002)
    said = " ".join(_systemd.log(_dhcp_unit.instance(paths.network)).split())
    _dhcp_unit.stop(paths.network)
    raise SystemFailure(f"the DHCP server of network {paths.network} did not start: {said or 'it said nothing'}.")


def _start(paths: Paths) -> Process:
    dnsmasq = _dnsmasq()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.output)
    process = spawn([dnsmasq, _configuration_argument(paths)], pid_file=paths.pid, output=paths.output)
    deadline = time.monotonic() + START_TIMEOUT
    while process.alive and not _has_left_root(process):
        if time.monotonic() > deadline:
            end(process, timeout=STOP_TIMEOUT, force=True)
            raise SystemFailure(
                f"the DHCP server of network {paths.network} did not listen within {START_TIMEOUT:.0f} seconds and "
                "was stopped again."
            )
        time.sleep(0.002)
    if not process.alive:
        said = " ".join((_read(paths.output) or "").split())
        raise SystemFailure(f"the DHCP server of network {paths.network} did not start: {said or 'it said nothing'}.")
    return process


def _has_left_root(process: Process) -> bool:
    """Giving up root is the last thing that dnsmasq does before it serves: by then it listens and has its files."""
    for line in (_read(f"/proc/{process.pid}/status") or "").splitlines():
        if line.startswith("Uid:"):
            return line.split()[1] != "0"
    return False


def _stop(paths: Paths, server: t.Optional[Server]) -> None:
    if server is not None and server.lasting is not False:
        _dhcp_unit.stop(paths.network)
    if server is None or server.process is None:
        return
    if not end(server.process, timeout=STOP_TIMEOUT, force=True):
        raise SystemFailure(f"the DHCP server of network {paths.network} (pid {server.process.pid}) does not end.")


def _record(paths: Paths, process: Process, files: Files) -> None:
    unit = _dhcp_unit.read([paths.network])[paths.network]
    if unit.pid == process.pid:
        _write(paths.loaded, " ".join([unit.run, "unit", *_fingerprint(files)]) + "\n")
        return
    if read_pid_file(paths.pid) != process:
        write_pid_file(paths.pid, process)
    _write(paths.loaded, " ".join([str(process.pid), str(process.started), *_fingerprint(files)]) + "\n")


def _fingerprint(files: Files) -> tuple[str, str, str]:
    """What a process has read. Its socket is bound to a bridge's number, and is deaf when the bridge is made again."""
    try:
        index = socket.if_nametoindex(bridge_of(files.configuration) or "")
    except OSError:
        index = 0
    return str(index), _digest(files.configuration), _digest(f"{files.reservations}\0{files.names}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _configuration_argument(paths: Paths) -> str:
    return f"--conf-file={paths.configuration}"


def _read(path: str) -> t.Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _write_files(paths: Paths, files: Files, *, lasting: bool) -> None:
    for path, text in (
        (paths.reservations, files.reservations),
        (paths.names, files.names),
    ):
        if _read(path) != text:
            _write(path, text)
    if not lasting:
        if _read(paths.configuration) != files.configuration:
            _write(paths.configuration, files.configuration)
        return
    if _read(_dhcp_unit.configuration(paths.network)) != files.configuration:
        _files.put(_dhcp_unit.configuration(paths.network), files.configuration)
    for path in (paths.configuration, paths.pid, paths.output):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _write(path: str, text: str) -> None:
    """Replace a file in one step. Readable by all: dnsmasq reads it again as an unprivileged user."""
    _whole_files.replace(path, text)


def _remove(paths: Paths) -> None:
    for path in (
        paths.configuration,
        paths.reservations,
        paths.names,
        paths.leases,
        paths.pid,
        paths.loaded,
        paths.output,
    ):
        _whole_files.remove(path)
    for directory in (paths.state, paths.runtime):
        for path in (directory, os.path.dirname(directory)):
            # Others may have files there.
            with contextlib.suppress(OSError):
                os.rmdir(path)
