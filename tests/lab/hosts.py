# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lab hosts, and the LAN that they are on, as namespaces of this machine.

A lab host has its own network, mount, process, host name and IPC namespaces and its own /run; what is written to /etc
and /var/lib stays with it. A system host has a whole disk of its own, and a systemd on it. A host ends with its process
1, and everything inside ends with that. The machine's own network is never entered: each function that could do so
compares first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

from support import ssh

from lab import vm
from lab.processes import Process, systemd_of, wait_until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STATE = Path("/run/labspan-lab")
NETNS = Path("/run/netns")
SYSTEM_TREE = ROOT / ".build" / "system_host"
TINY_GUEST = ROOT / ".build" / "tiny_guest"
TINY_GUEST_BUILDER = ROOT / "roles" / "tiny_guest" / "files" / "build_tiny_guest.py"

LAN = "lan"
UPLINK = "uplink0"
#: Networks for documentation (RFC 5737, RFC 3849): nobody's, so nothing can be reached by mistake.
LAN_NETWORKS = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8:1::/64"))
FIRST_HOST = 10
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
NAMESPACE, SYSTEM, VM = "namespace", "system", "vm"
#: Those with a systemd, and an sshd.
WHOLE = (SYSTEM, VM)
TIMEOUT = 90.0

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")

# Outside the namespaces: when the host has ended, its network's name goes, too, and the network with it.
_SUPERVISOR = """
netns=$1 steps=$2
shift 2
unshare "$@"
ip netns delete "$netns" 2>/dev/null
"$steps" forget "$netns"
exit 0
"""

_UNSHARE = ("--net", "--mount", "--propagation", "private")

# A system host's own networkd gives the uplink its addresses, as soon as the cable is there.
_UPLINK_FILE = """\
[Match]
Name={uplink}

[Network]
{lines}
LLMNR=no
"""


class LabError(Exception):
    """A sentence for whoever called the lab."""


@dataclasses.dataclass(frozen=True)
class Host:
    """A lab host, or the LAN: one set of namespaces, held by one process."""

    lab: str
    name: str
    addresses: tuple[str, ...]
    """Those on the LAN, with prefix length."""
    supervisor: Process
    init: t.Optional[Process] = None
    """Process 1 of the host as the machine numbers it; None until it is ready."""
    kind: str = NAMESPACE
    """Or SYSTEM: whether process 1 is a systemd, on a disk of its own. Or VM: it is QEMU."""

    @property
    def netns(self) -> str:
        """The name of its network namespace in /run/netns."""
        return f"labspan-{self.lab}-{self.name}"

    @property
    def pid_file(self) -> Path:
        """Holds the number and start time of process 1, for the connection plugin."""
        return STATE / self.lab / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        """What its process 1 had to say."""
        return STATE / self.lab / f"{self.name}.log"

    @property
    def door(self) -> ssh.Door:
        """The way in by SSH, from the LAN."""
        address = self.addresses[0].partition("/")[0]
        return ssh.Door(STATE / self.lab / "ssh", address, str(NETNS / f"labspan-{self.lab}-{LAN}"))

    @property
    def alive(self) -> bool:
        """Whether it runs, and its network has its name."""
        return self.init is not None and self.init.alive and (NETNS / self.netns).exists()

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command on the host."""
        if self.init is None or not self.init.alive:
            raise LabError(f"{self.name} of lab {self.lab} does not run.")
        if self.kind == VM:
            return self.door.argv(*command)
        _refuse_own_network(Path(f"/proc/{self.init.pid}/ns/net"))
        cgroup = ("--cgroup",) if self.kind == SYSTEM else ()
        return ["nsenter", "--target", str(self.init.pid), *NAMESPACES, *cgroup, "--", *command]

    def run(self, *command: str, check: bool = True, **options: t.Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and collect its output."""
        return subprocess.run(self.argv(*command), check=check, capture_output=True, text=True, **options)


@dataclasses.dataclass(frozen=True)
class Lab:
    """A LAN and the hosts on it."""

    name: str
    lan: Host
    hosts: tuple[Host, ...]

    @property
    def members(self) -> tuple[Host, ...]:
        """The LAN and the hosts."""
        return (self.lan, *self.hosts)

    @property
    def keys(self) -> Path:
        """The directory with the keys for SSH into its system hosts."""
        return STATE / self.name / "ssh"

    @property
    def alive(self) -> bool:
        """Whether all of it runs."""
        return all(member.alive for member in self.members)

    def member(self, name: str) -> Host:
        """A host by name, or the LAN."""
        for member in self.members:
            if member.name == name:
                return member
        raise LabError(f"lab {self.name} has no host {name}; it has {', '.join(m.name for m in self.members)}.")


def up(name: str, hosts: t.Sequence[str], *, tiny_guest: bool = False, kind: str = NAMESPACE) -> Lab:
    """The lab with these hosts: the one that runs if it is whole, else a new one in its place."""
    _check_names(name, *hosts)
    if LAN in hosts or len(set(hosts)) != len(hosts) or not 0 < len(hosts) <= 200:
        raise LabError("a lab has 1 to 200 hosts, each with a name of its own, and not 'lan'.")
    if tiny_guest:
        build_tiny_guest()
    if kind == SYSTEM:
        build_system_tree()
    if kind == VM:
        build_tiny_guest()
        build_vm_image()
    with _locked():
        lab = load(name)
        wanted = [(host, kind) for host in hosts]
        if lab is not None and lab.alive and [(host.name, host.kind) for host in lab.hosts] == wanted:
            return lab
        _end(name, lab)
        try:
            return _make(name, hosts, kind)
        except BaseException:
            _end(name, load(name))
            raise


def down(name: str) -> bool:
    """End the lab and everything in it; whether there was anything to end."""
    _check_names(name)
    with _locked():
        return _end(name, load(name))


def load(name: str) -> t.Optional[Lab]:
    """The lab as its state file has it, or None."""
    try:
        state = json.loads((STATE / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    members = [_host_from_json(member) for member in state["members"]]
    return Lab(name, members[0], tuple(members[1:]))


def labs() -> list[str]:
    """The names of all labs that have a state file."""
    return sorted(path.stem for path in STATE.glob("*.json"))


def build_tiny_guest() -> Path:
    """Make sure that the tiny guest that all lab hosts share is there and current."""
    subprocess.run(
        [sys.executable, str(TINY_GUEST_BUILDER), "--output", str(TINY_GUEST)], check=True, stdout=subprocess.DEVNULL
    )
    return TINY_GUEST


def build_system_tree() -> Path:
    """Make sure that the Debian that all system hosts lie over is there and current."""
    if shutil.which("systemd-nspawn") is None:
        raise LabError("a system host needs the program systemd-nspawn (Debian package systemd-container).")
    if subprocess.run([str(HERE / "system_tree.sh"), str(SYSTEM_TREE)], check=False).returncode:
        raise LabError("the Debian tree of the system hosts could not be made.")
    return SYSTEM_TREE / "tree"


def build_vm_image() -> Path:
    """Make sure that the disk of all VM hosts is there and current; its directory."""
    try:
        return vm.image()
    except (OSError, subprocess.CalledProcessError):
        raise LabError("the disk of the VM hosts could not be made.") from None


def _check_names(*names: str) -> None:
    for name in names:
        if not _NAME.match(name):
            raise LabError(f"{name!r} cannot name a lab or a host: use up to 32 lower-case letters, digits and '-'.")


def _make(name: str, hosts: t.Sequence[str], kind: str) -> Lab:
    """Start all members at once, then lay the cables."""
    (STATE / name).mkdir(parents=True, exist_ok=True)
    if kind in WHOLE:
        (STATE / name / "ssh").mkdir(mode=0o700)
        ssh.make_keys(STATE / name / "ssh")
    kinds = [(LAN, NAMESPACE), *((host, kind) for host in hosts)]
    starting = [_start(name, *member, _lan_addresses(index)) for index, member in enumerate(kinds)]
    _save(name, [host for host, _pipe in starting])
    members = [_await_ready(host, pipe) for host, pipe in starting]
    _save(name, members)
    lab = Lab(name, members[0], tuple(members[1:]))
    _connect(lab)
    for host in lab.hosts:
        patience = vm.PATIENCE if host.kind == VM else TIMEOUT
        is_up = _is_up if host.kind in WHOLE else _has_addresses
        wait_until(lambda h=host, up=is_up: up(h), patience, f"{host.name} to be up on the LAN")  # type: ignore[misc]
    return lab


def _lan_addresses(index: int) -> tuple[str, ...]:
    """The LAN itself (index 0) has the first address of each network, the hosts come from FIRST_HOST on.

    The last group of the IPv6 address has the digits of the IPv4 address: .10 goes with ::10.
    """
    number = FIRST_HOST + index - 1 if index else 1
    v4, v6 = LAN_NETWORKS
    return f"{v4[number]}/{v4.prefixlen}", f"{v6[int(str(number), 16)]}/{v6.prefixlen}"


def _start(lab: str, name: str, kind: str, addresses: tuple[str, ...]) -> tuple[Host, subprocess.Popen[str]]:
    netns, steps = f"labspan-{lab}-{name}", str(HERE / "system_host.sh")
    if kind == SYSTEM:
        files = _system_files(lab, name, addresses)
        command = [*_UNSHARE, "--", steps, "run", str(SYSTEM_TREE / "tree"), str(files), netns, name]
        command += ["systemd-networkd", "ssh"]
    elif kind == VM:
        directory, mac = STATE / lab / f"{name}.vm", vm.mac(addresses[0])
        directory.mkdir(mode=0o700)
        vm.prepare(directory, vm.current(), {**_files(lab, name, addresses), **vm.card_file(mac)})
        vm.share(directory, {"tiny_guest": TINY_GUEST})
        command = ["--net", "--", "sh", "-c", vm.START, "vm", *vm.qemu(directory, vm.current(), mac, vm.Size(2048, 2))]
    else:
        program = [sys.executable, str(HERE / "web_server.py"), name] if name == LAN else ["sleep", "infinity"]
        command = [*_UNSHARE, "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"]
        command += [str(HERE / "host.sh"), name, str(TINY_GUEST), *program]
    log = STATE / lab / f"{name}.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            ["sh", "-c", _SUPERVISOR, "labspan-lab", netns, steps, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            cwd="/",
        )
    return Host(lab, name, addresses, Process.of(process.pid), kind=kind), process


def _files(lab: str, name: str, addresses: tuple[str, ...]) -> dict[str, vm.File]:
    """What a host with a systemd has on its disk before it starts."""
    lines = [f"Address={address}" for address in addresses] + [f"Gateway={network[1]}" for network in LAN_NETWORKS]
    return {
        **ssh.system_files(STATE / lab / "ssh"),
        "/etc/hostname": f"{name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n",
        "/etc/machine-id": f"{os.urandom(16).hex()}\n",
        "/etc/resolv.conf": "nameserver 192.0.2.1\n",
        f"/etc/systemd/network/{UPLINK}.network": _UPLINK_FILE.format(uplink=UPLINK, lines="\n".join(lines)),
    }


def _system_files(lab: str, name: str, addresses: tuple[str, ...]) -> Path:
    """The directory with what is laid over a system host's disk before it starts."""
    directory = STATE / lab / f"{name}.files"
    for path, file in _files(lab, name, addresses).items():
        text, mode = (file, 0o644) if isinstance(file, str) else file
        target = directory / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(mode)
    return directory


def _await_ready(host: Host, process: subprocess.Popen[str]) -> Host:
    """Wait for the host's first word, and give its network a name."""
    with t.cast("t.IO[str]", process.stdout) as pipe:
        if pipe.readline() != "ready\n":
            raise LabError(
                f"{host.name} of lab {host.lab} did not start (this needs root, unshare(1) and overlayfs): "
                f"{host.log.read_text(encoding='utf-8').strip()}"
            )
    if host.kind == SYSTEM:
        wait_until(
            lambda: not host.supervisor.alive or _system_init_of(host.supervisor) is not None,
            TIMEOUT,
            f"process 1 of {host.name}",
        )
        init = _system_init_of(host.supervisor)
    elif host.kind == VM:
        init = next(iter(host.supervisor.children()), None)
    else:
        init = _init_of(host.supervisor)
    if init is None:
        raise LabError(f"{host.name} of lab {host.lab} ended as soon as it had started.")
    _refuse_own_network(Path(f"/proc/{init.pid}/ns/net"))
    subprocess.run(["ip", "netns", "attach", host.netns, str(init.pid)], check=True)
    host.pid_file.write_text(f"{init.pid} {init.started}\n", encoding="ascii")
    return dataclasses.replace(host, init=init)


def _init_of(supervisor: Process) -> t.Optional[Process]:
    """The supervisor's child is unshare(1), whose child is process 1 of the host."""
    for unshare in supervisor.children():
        for init in unshare.children():
            return init
    return None


def _system_init_of(supervisor: Process) -> t.Optional[Process]:
    """Below the supervisor and unshare(1) is systemd-nspawn(1), whose child is process 1."""
    nspawn = _init_of(supervisor)
    return systemd_of(nspawn) if nspawn is not None else None


def _has_addresses(host: Host) -> bool:
    """Whether nobody on the LAN has been found to have the same ones."""
    return not host.run("ip", "-6", "address", "show", "dev", UPLINK, "tentative").stdout


def _is_up(host: Host) -> bool:
    """Whether a host with a systemd has started everything, and has its addresses."""
    state = host.run("systemctl", "is-system-running", check=False).stdout.strip()
    shown = host.run("ip", "-br", "address", "show", "dev", UPLINK, check=False).stdout.split()
    return state in ("running", "degraded") and set(host.addresses) <= set(shown)


def _connect(lab: Lab) -> None:
    """A bridge in the LAN, and a cable from it to each host's uplink."""
    # Without a querier, multicast snooping would cut IPv6 neighbour discovery off after some minutes.
    lines = ["link add name lan0 type bridge mcast_snooping 0"]
    lines += [f"address add {address} dev lan0 nodad" for address in lab.lan.addresses]
    lines.append("link set dev lan0 up")
    for number, host in enumerate(lab.hosts):
        lines.append(f"link add name port{number} master lan0 up type veth peer name {UPLINK} netns {host.netns}")
    _ip(lab.lan, lines)
    for host in lab.hosts:
        if host.kind == VM:
            _ip(host, [f"link set dev {UPLINK} master {vm.JOINT} up"])
        if host.kind in WHOLE:
            continue  # it has read in its configuration what to do
        lines = [f"address add {address} dev {UPLINK} nodad" for address in host.addresses]
        lines.append(f"link set dev {UPLINK} up")
        lines += [f"route add default via {network[1]} dev {UPLINK}" for network in LAN_NETWORKS]
        _ip(host, lines)


def _ip(host: Host, lines: t.Sequence[str]) -> None:
    """Run a batch of ip(8) commands in the network of a host."""
    _refuse_own_network(NETNS / host.netns)
    done = subprocess.run(
        ["ip", "-netns", host.netns, "-batch", "-"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"the network of {host.name} of lab {host.lab} could not be set up: {done.stderr.strip()}")


def _refuse_own_network(path: Path) -> None:
    """Raise unless this namespace is neither the machine's network nor the caller's."""
    for own in (Path("/proc/self/ns/net"), Path("/proc/1/ns/net")):
        # In a container, process 1 may be another user's; then it cannot be the lab's either.
        with contextlib.suppress(PermissionError):
            if own.samefile(path):
                raise LabError(f"{path} is the machine's own network, not that of a lab host: nothing is done there.")


def _end(name: str, lab: t.Optional[Lab]) -> bool:
    """End what the state file names, and forget the lab."""
    if lab is not None:
        ssh.end_shared_connections(lab.keys)
        for member in lab.members:
            _kill(member)
        for member in lab.members:
            wait_until(lambda m=member: not m.supervisor.alive, TIMEOUT, f"the end of {member.netns}")  # type: ignore[misc]
    for leftover in NETNS.glob(f"labspan-{name}-*"):
        # The supervisor was killed before it could do this.
        if lab is not None and leftover.name in {member.netns for member in lab.members}:
            subprocess.run(["ip", "netns", "delete", leftover.name], check=False)
    shutil.rmtree(STATE / name, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (STATE / f"{name}.json").unlink()
        return True
    return False


def _kill(host: Host) -> None:
    """Process 1 takes all others of the host with it; without one, its maker is ended."""
    for process in (host.init, _init_of(host.supervisor), *host.supervisor.children()):
        if process is not None and process.alive:
            process.kill()
            return


def _save(name: str, members: t.Sequence[Host]) -> None:
    state = {"name": name, "members": [dataclasses.asdict(member) for member in members]}
    path = STATE / f"{name}.json"
    temporary = STATE / name / "state.new"
    temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _host_from_json(state: dict[str, t.Any]) -> Host:
    return Host(
        lab=state["lab"],
        name=state["name"],
        addresses=tuple(state["addresses"]),
        supervisor=Process(**state["supervisor"]),
        init=Process(**state["init"]) if state["init"] else None,
        kind=state.get("kind", NAMESPACE),
    )


@contextlib.contextmanager
def _locked() -> t.Iterator[None]:
    """One change at a time; the lock is on the directory and leaves nothing behind."""
    if os.geteuid() != 0:
        raise LabError("labs are made of namespaces, which needs root.")
    STATE.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
