# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The life of QEMU processes: begin them, pause them, plug their cables, wait for what a guest says, end them.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process, _tun, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _argv,
    _blocks,
    _firmware,
    _limits,
    _live,
    _qmp,
    _services,
    _store,
    _tpm,
    _vhost,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import SYSTEMD, GuestSpec, Nic, Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import (
    BROKEN_STATES,
    PAUSED,
    RUNNING,
    Definition,
    Stop,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account, Process

_ANSWER_TIMEOUT = 30.0
_POWERDOWN_TIMEOUT = 3.0
#: Seconds after which a guest is asked again: one that was still booting has not heard the first time.
_ASK_AGAIN = 10.0
#: SIGTERM makes QEMU write back and close its images at once, unless a disk hangs.
_TERM_PATIENCE = 15.0
_LAST_LINES = 12

POWERDOWN = "powerdown"
SIGTERM = "sigterm"
SIGKILL = "sigkill"


class Starting:
    """A guest whose process has begun, until it is known to have come up."""

    def __init__(self, definition: Definition, process: Process, qmp: _qmp.Qmp, wanted: str) -> None:
        self.definition = definition
        self.spec = definition.spec
        self.process = process
        self._qmp = qmp
        self._wanted = wanted

    def settle(self) -> None:
        """Wait for QEMU's answer, and bring the guest from its first state into the wanted one."""
        try:
            with self._qmp as qmp:
                qmp.greet()
                _pull(qmp, self.definition)
                if self._wanted == RUNNING and qmp.status() == "prelaunch":
                    qmp.execute("cont")
        except _qmp.QmpClosed:
            raise _did_not_start(self.definition) from None


def _did_not_start(definition: Definition) -> SystemFailure:
    name = definition.spec.name
    by_systemd = definition.manager == SYSTEMD
    said = _services.said(name) if by_systemd else last_lines(Places(name).output).rstrip(".")
    return SystemFailure(f"guest {name} did not start. QEMU said: {said}.")


def begin_services(wanted: t.Sequence[tuple[Definition, Account, str]]) -> list[Starting]:
    """Start guests through systemd, all at once."""
    for definition, account, _to in wanted:
        _hand_over(Places(definition.spec.name), definition.spec, account)
    processes = _services.start(
        {definition.spec.name: _is_held_back(definition, to) for definition, _account, to in wanted}
    )
    return [_greet(definition, processes[definition.spec.name], to) for definition, _account, to in wanted]


def _greet(definition: Definition, process: Process, wanted: str) -> Starting:
    """QEMU makes its control socket itself, a moment after systemd has started it."""
    path = Places(definition.spec.name).qmp_socket
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while True:
        try:
            return Starting(definition, process, _qmp.Qmp(path, timeout=_ANSWER_TIMEOUT), wanted)
        except _qmp.QmpClosed:
            if not process.alive or time.monotonic() > deadline:
                raise _did_not_start(definition) from None
        time.sleep(0.01)


def _is_held_back(definition: Definition, wanted: str) -> bool:
    return wanted == PAUSED or any(not nic.link for nic in definition.spec.nics)


def begin(definition: Definition, account: Account, wanted: str) -> Starting:
    """Start the process; what it may not open itself is opened for it."""
    spec = _vhost.settle(definition.spec, None)
    places = Places(spec.name)
    numbers = _argv.descriptors(spec)
    _prepare(places, spec, account)
    with contextlib.ExitStack() as ours:
        if spec.tpm:
            _tpm.begin(spec, places, account, _listen(ours, places.tpm_socket, account))
        handed: dict[int, int] = {numbers.qmp: _listen(ours, places.qmp_socket, account)}
        if numbers.console is not None:
            handed[numbers.console] = _listen(ours, places.console_socket, account)
        if numbers.agent is not None:
            handed[numbers.agent] = _listen(ours, places.agent_socket, account)
        for nic in spec.nics:
            for number in numbers.taps[nic.tap] if nic.tap is not None else ():
                handed[number] = _tun.attach(str(nic.tap), multi_queue=nic.queues > 1)
                ours.callback(os.close, handed[number])
        for number in (number for opened in numbers.vhost.values() for number in opened):
            handed[number] = _vhost.open_device()
            ours.callback(os.close, handed[number])
        # Connected before QEMU is there, the connection tells by itself whether QEMU answers or ends.
        qmp = _qmp.Qmp(places.qmp_socket, timeout=_ANSWER_TIMEOUT)
        argv = [*definition.argv, *([_argv.PAUSED] if _is_held_back(definition, wanted) else [])]
        try:
            process = _process.spawn(
                argv, pid_file=places.pid_file, output=places.output, account=account, descriptors=handed
            )
        except Exception:
            qmp.close()
            raise
    if spec.limits.cpu_affinity:
        _limits.pin(process, spec.limits.cpu_affinity)
    return Starting(definition, process, qmp, wanted)


def _prepare(places: Places, spec: GuestSpec, account: Account) -> None:
    _store.make_state_directory(places)
    _store.clear_runtime(places)
    _whole_files.make_directories(places.runtime, 0o711)
    os.chmod(places.runtime, 0o711)
    if spec.display == "vnc":
        _whole_files.make_directories(places.display, 0o700)
        os.chown(places.display, account.uid, account.gid)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.output)
    _hand_over(places, spec, account)
    if spec.console:
        with contextlib.suppress(FileNotFoundError):
            os.rename(places.console_log, f"{places.console_log}.1")
        descriptor = os.open(places.console_log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchown(descriptor, account.uid, account.gid)
        os.close(descriptor)


def _hand_over(places: Places, spec: GuestSpec, account: Account) -> None:
    """Give QEMU's account what it must write to, whoever the guest ran as before."""
    if spec.uefi is not None:
        _firmware.hand_over(places.variables, account.uid, account.gid)
    if spec.tpm:
        _tpm.prepare(places, account)


def _listen(ours: contextlib.ExitStack, path: str, account: Account) -> int:
    listener: socket.socket = _qmp.listen(path, account.uid, account.gid)
    ours.callback(listener.close)
    return listener.fileno()


def _pull(qmp: _qmp.Qmp, definition: Definition) -> None:
    """Pull the cables that are not to be plugged in when the guest begins."""
    for device in _live.devices(definition):
        if isinstance(device.what, Nic) and not device.what.link:
            qmp.execute("set_link", name=device.part.id, up=False)


def set_activity(definition: t.Optional[Definition], name: str, wanted: str) -> None:
    """Pause the guest or let it go on."""
    with _qmp.Qmp(Places(name).qmp_socket, timeout=_ANSWER_TIMEOUT) as qmp:
        qmp.greet()
        if wanted == PAUSED:
            qmp.execute("stop")
            return
        if definition is not None and qmp.status() == "prelaunch":
            _pull(qmp, definition)
        qmp.execute("cont")


@dataclasses.dataclass
class _Awaited:
    wish: Wish
    process: Process
    pattern: t.Pattern[str]
    deadline: float


def wait_for_consoles(guests: t.Iterable[tuple[Wish, Process]]) -> None:
    """Wait until each guest has written on its serial console what its wish waits for."""
    now = time.monotonic()
    awaited = [
        _Awaited(wish, process, re.compile(wish.console_pattern or "", re.MULTILINE), now + wish.wait_timeout)
        for wish, process in guests
    ]
    while awaited:
        awaited = [guest for guest in awaited if not _has_said(guest)]
        if awaited:
            time.sleep(0.05)


def _has_said(guest: _Awaited) -> bool:
    path = Places(guest.wish.name).console_log
    alive = guest.process.alive
    with open(path, encoding="utf-8", errors="replace") as file:
        if guest.pattern.search(file.read().replace("\r\n", "\n")):
            return True
    if alive and time.monotonic() < guest.deadline:
        return False
    what = f"did not write {guest.wish.console_pattern!r} on its console within {guest.wish.wait_timeout:g} seconds"
    if not alive:
        what = f"ended before it wrote {guest.wish.console_pattern!r} on its console"
    raise SystemFailure(f"guest {guest.wish.name} {what}. The last lines there: {last_lines(path)} (all: {path}).")


def last_lines(path: str) -> str:
    """The end of a log, for an error message."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    except OSError:
        lines = []
    return " | ".join("".join(filter(str.isprintable, line)) for line in lines[-_LAST_LINES:]) or "nothing"


def end(stops: t.Sequence[tuple[Stop, Process]]) -> dict[str, str]:
    """End the processes, all at once; returns for each guest what it took. Raises when one would not go."""
    means: dict[str, str] = {}
    left = _power_down(list(stops))
    for stop, process in left:
        means[stop.guest] = SIGTERM
        _process.send(process, signal.SIGTERM)
    left = _still_there(left, _TERM_PATIENCE)
    for stop, process in left:
        if stop.force:
            means[stop.guest] = SIGKILL
            _process.send(process, signal.SIGKILL)
    killed = _still_there([(stop, process) for stop, process in left if stop.force], _TERM_PATIENCE)
    left = [(stop, process) for stop, process in left if not stop.force]
    ended = [stop for stop, process in stops if not process.alive]
    for stop in ended:
        means.setdefault(stop.guest, POWERDOWN)
        _store.clear_runtime(Places(stop.guest))
    if killed:
        raise SystemFailure(
            f"did not end within {_TERM_PATIENCE:g} seconds after SIGKILL: {_named(killed)}. The kernel ends them when "
            "what they write at the moment is written; until then they hold their disks."
        )
    if left:
        raise SystemFailure(
            f"did not end within {_TERM_PATIENCE:g} seconds after SIGTERM: {_named(left)}. Nothing harder was done; "
            "force: true allows SIGKILL, which loses what QEMU has not written to the disks yet."
        )
    return means


def _named(pairs: t.Iterable[tuple[Stop, Process]]) -> str:
    return ", ".join(f"{stop.guest} (pid {process.pid})" for stop, process in pairs)


def _power_down(stops: list[tuple[Stop, Process]]) -> list[tuple[Stop, Process]]:
    """Press the power button of each guest, now and then again; returns those that still run after their time."""
    if len(stops) > 1:  # one that cannot be asked would keep us from waiting for those that were
        for stop, _process_of in stops:
            _check_that_it_listens(stop)
    begin = time.monotonic()
    waiting = [(stop, process) for stop, process in stops if _press_power_button(stop)]
    others = [pair for pair in stops if pair not in waiting]
    late: list[tuple[Stop, Process]] = []
    asked = begin
    while waiting:
        now = time.monotonic()
        late += [(stop, process) for stop, process in waiting if now >= begin + stop.patience]
        waiting = [pair for pair in waiting if pair not in late]
        if waiting and now >= asked + _ASK_AGAIN:
            asked = now
            for stop, _process_of in waiting:
                _press_power_button(stop)
        next_time = min([asked + _ASK_AGAIN, *(begin + stop.patience for stop, _process_of in waiting)])
        waiting = _still_there(waiting, min(max(next_time - now, 0), 0.5) if len(waiting) > 1 else next_time - now)
    return [pair for pair in [*others, *late] if pair[1].alive]


def _still_there(pairs: t.Sequence[tuple[Stop, Process]], timeout: float) -> list[tuple[Stop, Process]]:
    left = _process.wait_gone([process for _stop, process in pairs], max(timeout, 0)) if pairs else []
    return [(stop, process) for stop, process in pairs if process in left]


def _press_power_button(stop: Stop) -> bool:
    """Whether the guest was asked, and has a chance to notice it."""
    try:
        with _qmp.Qmp(Places(stop.guest).qmp_socket, timeout=_POWERDOWN_TIMEOUT) as qmp:
            qmp.greet()
            status = qmp.status()
            if status in ("prelaunch", *BROKEN_STATES):
                return False
            if status in ("paused", _blocks.IO_ERROR):  # there may be space for what could not be written
                qmp.execute("cont")
            qmp.execute("system_powerdown")
    except _qmp.QmpSilent as error:
        if stop.force:
            return False
        raise _cannot_be_asked(stop, error) from error
    except SystemFailure:
        return False
    return True


def _check_that_it_listens(stop: Stop) -> None:
    try:
        with _qmp.Qmp(Places(stop.guest).qmp_socket, timeout=_POWERDOWN_TIMEOUT) as qmp:
            qmp.greet()
    except _qmp.QmpSilent as error:
        if not stop.force:
            raise _cannot_be_asked(stop, error) from error
    except SystemFailure:  # it has ended, or is about to
        return


def _cannot_be_asked(stop: Stop, error: _qmp.QmpSilent) -> SystemFailure:
    return SystemFailure(
        f"guest {stop.guest} cannot be asked to power off. {error} Disconnect that program, or give force: true to end "
        "QEMU without asking the guest."
    )
