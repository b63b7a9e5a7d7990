# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long-running programs of ours: start them detached, know them again, wait for them, end them.

A number alone does not name a process, because the kernel uses numbers again. A process is its number and its start
time (field 22 of /proc/PID/stat), and that pair is what a pid file holds.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import grp
import os
import pwd
import select
import signal
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

# Below this nothing is handed over; above it descriptors are parked while they change places.
_FIRST_HANDED_OVER = 3
_PARKING = 512

_LONGEST_PID_FILE = 64


@dataclasses.dataclass(frozen=True)
class Process:
    """One run of one program; never mistaken for a later process with the same number."""

    pid: int
    started: int
    """Start time in clock ticks since boot."""

    @property
    def alive(self) -> bool:
        """Whether any of its threads still runs. What only waits for its parent to fetch its exit status is dead."""
        return identify(self.pid) == self

    def argv(self) -> list[str]:
        """Its command line; empty when it is gone."""
        return argv_of(self.pid) if self.alive else []


@dataclasses.dataclass(frozen=True)
class Account:
    """Whom a program runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def assume(self) -> None:
        """Become this account for good, in a child process that holds nothing else."""
        os.setgroups(self.groups)
        os.setgid(self.gid)
        os.setuid(self.uid)


def find_account(name: str, *, extra_groups: t.Iterable[str] = ()) -> t.Optional[Account]:
    """The account with its groups and those of C(extra_groups) that exist; None when there is no such account."""
    try:
        uid = _foresight.uid_of(name)
        try:
            entry = pwd.getpwnam(name)
        except KeyError:  # one that will be made, with a group of the same number
            groups, gid = {uid}, uid
        else:
            groups, gid = set(os.getgrouplist(name, entry.pw_gid)), entry.pw_gid
    except KeyError:
        return None
    for group in extra_groups:
        with contextlib.suppress(KeyError):
            groups.add(grp.getgrnam(group).gr_gid)
    return Account(name, uid, gid, tuple(sorted(groups)))


def identify(pid: int) -> t.Optional[Process]:
    """The process that has this number now, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    fields = _fields(stat)
    # The first thread of a program that was killed may be gone while another one still writes to a disk, and with it
    # all files are open and locked. The kernel counts the threads (field 20 of proc_pid_stat(5)) to the last one.
    if fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1):
        return None
    return Process(pid, int(fields[19]))


def _fields(stat: bytes) -> list[bytes]:
    """What follows the program's name, which stands in parentheses and may hold spaces and parentheses itself."""
    return stat[stat.rindex(b")") + 2 :].split()


def parent_of(pid: int) -> int:
    """The number of the process's parent; 0 when it has none, or is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(_fields(file.read())[1])
    except OSError:
        return 0


def of_session(leader: int) -> list[Process]:
    """The living processes of the session that this number leads, or led: what a daemon started, and it itself."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/stat", "rb") as file:
                session = int(_fields(file.read())[3])
            process = identify(int(entry)) if session == leader else None
            if process is not None:
                found.append(process)
    return found


def argv_of(pid: int) -> list[str]:
    """The command line of a process; empty when it is gone or is a kernel thread."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def here() -> t.Iterator[tuple[Process, list[str]]]:
    """Every process of this network namespace with its command line."""
    namespace = os.stat("/proc/self/ns/net")
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        argv = argv_of(pid)
        if not argv:
            continue
        try:
            inside = os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), namespace)
        except OSError:
            continue
        process = identify(pid)
        if inside and process is not None:
            yield process, argv


def read_pid_file(path: str) -> t.Optional[Process]:
    """The living process that the file names; None when it is gone, whatever has its number now."""
    try:
        # The directory may be an unprivileged account's: a pipe there is not waited for, nor is much read.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="ascii") as file:
            pid, started = file.read(_LONGEST_PID_FILE).split()[:2]
        process = Process(int(pid), int(started))
    except (OSError, ValueError):
        return None
    return process if process.alive else None


def write_pid_file(path: str, process: Process) -> None:
    """Write C(PID START) so that a reader sees the old content or the new one."""
    _whole_files.replace(path, f"{process.pid} {process.started}\n")


def spawn(
    argv: t.Sequence[str],
    *,
    pid_file: str,
    output: str,
    account: t.Optional[Account] = None,
    descriptors: t.Optional[t.Mapping[int, int]] = None,
) -> Process:
    """Start a program that outlives this one: own session, no terminal, nothing inherited.

    The new process writes the pid file itself before it becomes the program, so that it is never running unrecorded,
    even when the caller is killed in between. A lock that the caller holds with flock(2) stays held until then.

    C(output) is a file that gets what the program writes to its standard output and error, C(account) whom it runs as.
    C(descriptors) maps the numbers that the program shall find (from 3 on) to descriptors of the caller.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_program(writer, list(argv), pid_file, output, account, dict(descriptors or {}))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = os.fsdecode(pipe.read())
    os.waitpid(child, 0)
    identity, _newline, error = report.partition("\n")
    error = error.strip()
    if error or not identity:
        with contextlib.suppress(OSError):
            os.unlink(pid_file)
        raise SystemFailure(f"{argv[0]} could not be started: {error or 'its process ended at once'}.")
    pid, started = identity.split()
    return Process(int(pid), int(started))


def _become_program(
    writer: int,
    argv: list[str],
    pid_file: str,
    output: str,
    account: t.Optional[Account],
    descriptors: dict[int, int],
) -> t.NoReturn:
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        writer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, _PARKING)
        parked = {
            number: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _PARKING) for number, source in descriptors.items()
        }
        os.umask(0o077)
        os.chdir("/")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        standard = [os.open(os.devnull, os.O_RDONLY), os.open(output, flags, 0o600)]
        os.dup2(standard[0], 0)
        os.dup2(standard[1], 1)
        os.dup2(standard[1], 2)
        # A pipe of Ansible or ssh that stays open here would make them wait for the program's end.
        for entry in os.listdir("/proc/self/fd"):
            if int(entry) >= _FIRST_HANDED_OVER:
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(entry), False)
        for number, source in parked.items():
            os.dup2(source, number)
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        process = t.cast(Process, identify(os.getpid()))
        write_pid_file(pid_file, process)
        os.write(writer, f"{process.pid} {process.started}\n".encode())
        if account is not None and account.uid != os.geteuid():
            account.assume()
        os.execve(argv[0], argv, _ENVIRONMENT)
    except BaseException as error:
        # The first line of the report is the identity, also when there was none yet.
        with contextlib.suppress(OSError, NameError):
            os.write(writer, f"\n{type(error).__name__}: {error}".encode())
    finally:
        os._exit(127)


def wait_gone(processes: t.Iterable[Process], timeout: float) -> list[Process]:
    """Wait until all are gone; returns those that still run when the seconds are over."""
    left = [process for process in processes if process.alive]
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        watch = _ExitWatch(stack, left)
        while left and time.monotonic() < deadline:
            watch.wait(deadline - time.monotonic())
            left = [process for process in left if process.alive]
    return left


class _ExitWatch:
    """Sleeps until one of the processes ends; by looking again and again where the kernel (before 5.3) cannot tell."""

    def __init__(self, stack: contextlib.ExitStack, processes: t.Iterable[Process]) -> None:
        self.poll = select.poll()
        self.can_tell = True
        for process in processes:
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            except (OSError, AttributeError):
                self.can_tell = False
                return
            stack.callback(os.close, descriptor)
            self.poll.register(descriptor, select.POLLIN)

    def wait(self, timeout: float) -> None:
        if not self.can_tell:
            time.sleep(min(0.02, max(timeout, 0)))
            return
        for descriptor, _event in self.poll.poll(max(timeout, 0) * 1000):
            self.poll.unregister(descriptor)


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to exactly this process; to nobody when it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        if process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        return
    try:
        # The descriptor holds on to whoever had the number when it was opened: compare after that.
        if process.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


def end(process: Process, *, timeout: float, force: bool = False) -> bool:
    """SIGTERM and up to C(timeout) seconds of patience, then SIGKILL if C(force); returns whether it is gone."""
    send(process, signal.SIGTERM)
    if not wait_gone([process], timeout):
        return True
    if not force:
        return False
    send(process, signal.SIGKILL)
    return not wait_gone([process], 10.0)
