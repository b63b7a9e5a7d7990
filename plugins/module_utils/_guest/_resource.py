# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests that a task asks for, as a resource of the runner.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight, _process, _systemd, _tun, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _interfaces, _tap_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import (
    _accelerator,
    _accounts,
    _addresses,
    _argv,
    _blocks,
    _cache,
    _checks,
    _dependence,
    _disks,
    _firmware,
    _hotplug,
    _hugepages,
    _life,
    _limits,
    _live,
    _seed,
    _seed_iso,
    _services,
    _spec,
    _state,
    _store,
    _taps_at_boot,
    _tpm,
    _units,
    _vhost,
    _waiting,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._change import GuestChange
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._checks import Network, PlannedTap
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._former import FormerGuests
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places, defined_guests, known_guests
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Wish
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, GuestState, Want
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._unit_files import FormerUnitFiles, UnitFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Account, Process
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._taps import TapDevices, TapsState

State = t.Mapping[str, GuestState]

_IN_CHECK_MODE = "In check mode this is only a warning, because an earlier task may make it."


class Guests(Resource[State]):
    """QEMU guests, one for each wish."""

    plural: t.ClassVar[str] = "guests"
    singular: t.ClassVar[str] = "guest"

    def __init__(self, wishes: t.Sequence[Wish], *, single: bool = False, check_mode: bool = False) -> None:
        super().__init__(single=single)
        self._wishes = wishes
        self._check_mode = check_mode
        self._found: t.Optional[dict[str, t.Optional[Process]]] = None
        self._processes: dict[str, Process] = {}
        self._accelerators: dict[tuple[str, str], str] = {}
        self._ended: dict[str, str] = {}
        self._addresses: dict[str, _addresses.Addresses] = {}
        self._awaited: list[_waiting.Awaited] = []
        self._stopping: set[str] = set()
        self._unplugging: set[str] = set()
        self._seeds = _seed_iso.Seeds({wish.name: wish.cloud_init for wish in wishes if wish.cloud_init is not None})
        self._services: set[str] = set()

    def read(self) -> State:
        processes = _store.Processes()
        state = {
            wish.name: _store.read_state(
                wish.name, [path for options in wish.disks or () for path in _spec.files_of(options)], processes
            )
            for wish in self._wishes
        }
        state = _services.with_units(state)
        self._services = {
            name
            for name, guest in state.items()
            if guest.unit.drop_in is not None or (guest.definition and guest.definition.manager == _spec.SYSTEMD)
        }
        self._processes = {name: guest.process for name, guest in state.items() if guest.process is not None}
        if self._found is None:
            self._found = {name: guest.process for name, guest in state.items()}
        running = [guest.definition.spec for guest in state.values() if guest.definition and guest.process]
        self._addresses = _addresses.known(running)
        return state

    def plan(self, have: State, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        wants = {wish.name: self._want(wish, have[wish.name]) for wish in self._wishes}
        drafts = {name: _state.plan(have[name], want) for name, want in wants.items()}
        starting = [name for name, changes in drafts.items() if any(isinstance(c, _state.Start) for c in changes)]
        self._stopping = {
            change.guest for changes in drafts.values() for change in changes if isinstance(change, _state.Stop)
        }
        self._unplugging = {
            change.guest for changes in drafts.values() for change in changes if isinstance(change, _live.Unplug)
        }
        problems = self._disk_problems(have, wants, drafts)
        problems += self._dependence_problems(have, wants, drafts)
        problems += [
            f"guest {name} cannot go on: {trouble}. Make room there."
            for name, changes in drafts.items()
            if any(isinstance(change, _state.SetActivity) and change.after == _state.RUNNING for change in changes)
            for trouble in have[name].troubles
            if trouble.goes_on
        ]
        problems += self._start_problems(have, wants, drafts, starting, ahead)
        problems += self._unless_checking(self._seeds.problems(drafts))
        self.warnings += self._seeds.warnings(drafts)
        problems += [problem for name, want in wants.items() for problem in _wait_problems(want)]
        problems += [
            f"wait_for: console of guest {name} needs a console, and it is defined with console: false. Give console: "
            "true, or wait for something else."
            for name in starting
            if wants[name].wish.wait_for == "console" and not wants[name].spec.console
        ]
        problems += self._limit_problems(wants)
        _refuse(problems)
        for name in starting:
            wants[name] = self._with_accelerator(wants[name])
        changes = _state.once(change for name, want in wants.items() for change in _state.plan(have[name], want))
        self._warn(have, wants)
        self._warn_of_limits([wants[name].spec for name in starting])
        return sorted(changes, key=_state.phase)

    def predict(self, have: State, changes: t.Sequence[Change]) -> State:
        ours = t.cast("t.Sequence[GuestChange]", changes)
        return {
            name: _state.predict(state, [change for change in ours if change.guest == name])
            for name, state in have.items()
        }

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: State) -> None:
        world.leaving |= self.leaving()
        gone = (wish.name for wish in self._wishes if wish.state == "absent")
        world.guests.update({name: then[name] for name in gone})

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        for kind, group in itertools.groupby(t.cast("t.Sequence[GuestChange]", changes), key=type):
            run = list(group)
            if kind is _state.Stop:
                self._stop(t.cast("list[_state.Stop]", run), done)
            elif kind is _state.Start:
                self._start(t.cast("list[_state.Start]", run), done)
            elif kind is _state.SetUnit:
                _services.set_units({change.guest: change.after for change in run})
                done += run
            else:
                for change in run:
                    self._apply_one(change)
                    done.append(change)

    def render(self, state: State) -> dict[str, dict[str, t.Any]]:
        rendered = {}
        for wish in self._wishes:
            guest = state[wish.name]
            if guest.is_there:
                rendered[wish.name] = _render(guest, self._pending(wish, guest), wish.name)
                for nic in rendered[wish.name].get("nics", ()):
                    nic["addresses"] = self._addresses_of(wish.name, nic["mac"])
        return rendered

    def wait(self, state: State) -> State:
        for wish in self._wishes:
            guest = state[wish.name]
            if _waits(wish) and guest.process is not None and guest.definition is not None:
                declared = _addresses.declared(wish.cloud_init.parts.get("network_config") if wish.cloud_init else None)
                spec = guest.definition.spec
                self._awaited.append(_waiting.Awaited(spec, guest.process, wish.wait_for, wish.wait_timeout, declared))
        if not self._awaited:
            return state
        _waiting.wait(self._awaited)
        return self.read()

    def facts(self, state: State) -> dict[str, t.Any]:
        return {
            "ended_by": dict(self._ended),
            "waited": {guest.spec.name: guest.told() for guest in self._awaited},
        }

    def leaving(self) -> set[int]:
        """The processes that are gone when this resource has been applied."""
        stopping = {self._processes[name].pid for name in self._stopping if name in self._processes}
        return stopping.union(_foresight.leaving())

    def letting_go(self) -> set[int]:
        """The processes that hold taps which they will have given back when this resource has been applied."""
        giving = {self._processes[name].pid for name in self._unplugging if name in self._processes}
        return self.leaving() | giving

    def _addresses_of(self, name: str, mac: str) -> list[str]:
        """What is known of a NIC, and what was seen of it while it was waited for."""
        seen = [
            address
            for guest in self._awaited
            if guest.spec.name == name
            for address, owner in guest.addresses.items()
            if owner == mac
        ]
        return list(_values.in_order([*self._addresses.get(name, {}).get(mac, ()), *seen]))

    def _pending(self, wish: Wish, guest: GuestState) -> list[str]:
        return _state.pending_restart(guest, self._want(wish, guest))

    def _want(self, wish: Wish, have: GuestState) -> Want:
        defined = have.definition
        disks = None
        if wish.disks is not None:
            known = {disk.path: disk for disk in defined.spec.disks} if defined else {}
            disks = tuple(
                _disks.complete(options, known.get(options["path"]), have.images.get(options["path"]))
                for options in wish.disks
            )
        elif defined is not None:
            disks = tuple(_disks.as_found(disk, have.images.get(disk.path)) for disk in defined.spec.disks)
        user = _accounts.default_for(wish.name, expected=self._check_mode) if defined is None else ""
        spec = _spec.define(wish, defined.spec if defined else None, disks, user=user)
        spec = _firmware.settle(spec, defined.spec if defined else None, _checks.find_program(spec))
        accelerator = spec.accelerator
        if accelerator == "auto":
            accelerator = defined.accelerator if defined and defined.spec.accelerator == "auto" else ""
        definition = _definition(spec, accelerator, _services.manager(spec, have))
        process = (self._found or {}).get(wish.name)
        return Want(wish, definition, process, _seed_iso.wanted(spec), lambda defined: _services.unit_of(wish, defined))

    def _with_accelerator(self, want: Want) -> Want:
        spec = want.spec
        program, account = _checks.find_program(spec), _account(spec)
        accelerator = spec.accelerator
        if accelerator == "auto":
            accelerator = "" if program is None or account is None else self._choose(program, spec, account)
        return dataclasses.replace(want, definition=_definition(spec, accelerator, want.definition.manager))

    def _choose(self, program: str, spec: GuestSpec, account: Account) -> str:
        key = (program, spec.user)
        if key not in self._accelerators:
            self._accelerators[key] = self._find_out(program, spec, account)
        return self._accelerators[key]

    def _find_out(self, program: str, spec: GuestSpec, account: Account) -> str:
        if not _accelerator.is_native(spec.architecture):
            return "tcg"
        verdict = _accelerator.remembered(program, account)
        if verdict is None and self._check_mode:
            return ""
        if verdict is None:
            verdict = _accelerator.try_kvm(program, spec.architecture, account)
            _accelerator.remember(program, account, verdict)
        if verdict.works:
            return "kvm"
        self.warnings.append(
            f"KVM does not work on this host for {account.name} ({verdict.reason}); guests are emulated (TCG), which "
            "is slower and no security boundary. Give accelerator: tcg to choose this without a warning."
        )
        return "tcg"

    def _disk_problems(
        self, have: State, wants: t.Mapping[str, Want], drafts: t.Mapping[str, t.Sequence[Change]]
    ) -> list[str]:
        problems: list[str] = []
        for name, want in wants.items():
            if want.wish.state == "absent":
                continue
            process, definition = have[name].process, have[name].definition
            defined = {disk.path for disk in definition.spec.disks} if definition else set()
            running = defined if process else set()
            new = {change.after.path for change in drafts[name] if isinstance(change, _state.CreateDisk)}
            starts = any(isinstance(change, _state.Start) for change in drafts[name])
            for disk in (disk for disk in want.spec.disks if not disk.is_empty):
                image = have[name].images.get(disk.path)
                faults = [have[name].faults[path] for path in _spec.files_of(disk) if path in have[name].faults]
                if faults:
                    problems += faults if starts or disk.path not in defined else []
                    continue
                lacks = disk.path in new or (disk.is_cdrom and image is None)
                missing = _checks.missing_for_disk(want.spec, disk) if lacks else []
                problems += self._unless_checking(missing)
                if not missing and (image is not None or disk.path in new):
                    problems += _checks.disk_problems(want.spec, disk, image, running=disk.path in running)
        return problems

    def _dependence_problems(
        self, have: State, wants: t.Mapping[str, Want], drafts: t.Mapping[str, t.Sequence[Change]]
    ) -> list[str]:
        concerned = {name for name, changes in drafts.items() if changes and wants[name].wish.state != "absent"}
        going = [
            _dependence.Leftover(name, made.path)
            for name, want in wants.items()
            if want.wish.remove_disks
            for made in have[name].made
        ]
        if not concerned and not going:
            return []
        uses, leftovers = [], []
        for name in sorted({*known_guests(), *wants}):
            want = wants.get(name)
            definition = have[name].definition if name in have else _store.read_definition(name)
            specs = [definition.spec] if definition and (want is None or have[name].process) else []
            if want is not None:
                specs = [] if want.wish.state == "absent" else [*specs, want.spec]
            uses += [_dependence.Use(name, disk) for spec in specs for disk in spec.disks]
            if not specs and not (want is not None and want.wish.remove_disks):
                leftovers += [_dependence.Leftover(name, made.path) for made in _store.read_made_disks(name)]
        return [*_dependence.problems(uses, leftovers, concerned), *_dependence.removals(going, uses, leftovers)]

    def _start_problems(
        self,
        have: State,
        wants: t.Mapping[str, Want],
        drafts: t.Mapping[str, t.Sequence[Change]],
        starting: t.Sequence[str],
        ahead: t.Mapping[str, t.Any],
    ) -> list[str]:
        specs = [wants[name].spec for name in starting]
        then = {name: _state.predict(have[name], changes) for name, changes in drafts.items()}
        plugged = [
            definition.spec
            for name, definition in ((name, guest.definition) for name, guest in then.items())
            if definition is not None
            and any(isinstance(change, (_live.Plug, _live.SetMedium)) for change in drafts[name])
        ]
        if not (specs or plugged):
            return []
        network = _network([*specs, *plugged], ahead)
        problems: list[str] = []
        for spec in plugged:
            problems += self._unless_checking(_vhost.problems(spec, None))
            own = {self._processes[spec.name].pid} if spec.name in self._processes else set()
            problems += _checks.tap_problems(spec, network, self.leaving() | own)
            if wants[spec.name].definition.manager == _spec.SYSTEMD:
                problems += _checks.service_problems(spec, network, _account(spec), running=_systemd.is_running())
            problems += self._unless_checking(
                [_checks.missing_tap_problem(spec, tap) for tap in _checks.missing_taps(spec, network)]
            )
            account = _account(spec)
            if account is not None:
                problems += _checks.access_problems(spec, have[spec.name].images, account)
        for spec in specs:
            problems += _checks.program_problems(spec)
            if wants[spec.name].definition.manager == _spec.SYSTEMD:
                problems += _checks.service_problems(spec, network, _account(spec), running=_systemd.is_running())
            problems += _checks.tap_problems(spec, network, self.leaving())
            problems += self._unless_checking(
                [_checks.missing_tap_problem(spec, tap) for tap in _checks.missing_taps(spec, network)]
            )
            problems += self._unless_checking(_checks.boot_file_problems(spec))
            problems += self._unless_checking(_tpm.problems(spec))
            opener = _account(spec) if wants[spec.name].definition.manager == _spec.SYSTEMD else None
            problems += self._unless_checking(_vhost.problems(spec, opener))
            problems += self._unless_checking(_firmware.problems(spec, Places(spec.name).variables))
            account = _account(spec)
            if account is None:
                problems += self._unless_checking([_checks.account_problem(spec)])
            else:
                problems += _checks.access_problems(spec, have[spec.name].images, account)
                problems += self._accelerator_problems(spec, account)
        ending = [have[name].definition for name in self._stopping]
        leaving = [definition.spec for definition in ending if definition is not None]
        problems += _hugepages.problems(specs, leaving, _hugepages.pool())
        new = [spec.name for spec in [*specs, *plugged]]
        others = [spec for spec in self._others(wants, then) if spec.name not in new]
        problems += _checks.sharing_problems([*specs, *plugged, *others], new, network)
        return problems

    def _limit_problems(self, wants: t.Mapping[str, Want]) -> list[str]:
        return [
            problem
            for want in wants.values()
            if want.wish.state != "absent"
            for problem in _limits.problems(want.spec, by_systemd=want.definition.manager == _spec.SYSTEMD)
        ]

    def _accelerator_problems(self, spec: GuestSpec, account: Account) -> list[str]:
        program = _checks.find_program(spec)
        if spec.accelerator != "kvm" or program is None:
            return []
        if not _accelerator.is_native(spec.architecture):
            return [f"accelerator: kvm cannot run guests of the architecture {spec.architecture} on this host."]
        verdict = _accelerator.remembered(program, account)
        if verdict is None or not verdict.works:
            if self._check_mode:
                return []
            verdict = _accelerator.try_kvm(program, spec.architecture, account)
            _accelerator.remember(program, account, verdict)
        if verdict.works:
            return []
        return [
            f"accelerator: kvm of guest {spec.name} does not work on this host for {account.name} ({verdict.reason}). "
            "Give accelerator: auto or tcg to emulate."
        ]

    def _unless_checking(self, problems: t.Sequence[str]) -> list[str]:
        if not self._check_mode:
            return list(problems)
        self.warnings += [f"{problem} {_IN_CHECK_MODE}" for problem in problems]
        return []

    def _others(self, wants: t.Mapping[str, Want], then: State) -> t.Iterator[GuestSpec]:
        """The guests of this host that run and go on running, as they will be."""
        processes = _store.Processes()
        for name in defined_guests():
            if name not in wants and processes.find(name) is not None:
                definition = _store.read_definition(name)
                if definition is not None:
                    yield definition.spec
        for guest in then.values():
            if guest.process is not None and guest.definition is not None:
                yield guest.definition.spec

    def _warn(self, have: State, wants: t.Mapping[str, Want]) -> None:
        for name, want in wants.items():
            if have[name].activity == _state.UNKNOWN and want.wish.wants_process:
                self.warnings.append(
                    f"guest {name} has a process that does not answer on its control socket, because it hangs or "
                    "another program is connected to it; it is taken for running."
                )
            if want.wish.state != "absent":
                self.warnings += have[name].faults.values()
            if have[name].troubles and want.wish.state != "absent":
                self.warnings.append(
                    f"guest {name} was paused by QEMU: {'; '.join(map(str, have[name].troubles))}. Nothing is lost; "
                    "once that is mended, state: running lets it go on."
                )
            pending = _state.pending_restart(have[name], want)
            if pending and want.wish.state in ("running", "paused") and want.wish.restart == "never":
                self.warnings.append(
                    f"guest {name} runs with other settings than asked for, which need a restart (state: restarted, or "
                    f"restart: if_needed): {'; '.join(pending)}."
                )

    def _warn_of_limits(self, starting: t.Sequence[GuestSpec]) -> None:
        for spec in starting:
            self.warnings += _limits.warnings(spec)
        self.warnings += _limits.memory_warnings(starting)

    def _stop(self, stops: t.Sequence[_state.Stop], done: list[Change]) -> None:
        pairs = [(stop, self._processes[stop.guest]) for stop in stops if stop.guest in self._processes]
        try:
            self._ended.update(_life.end(pairs))
        finally:  # it takes the end of a process that was killed for a failure, and would start it again
            gone = {stop.guest for stop in stops} - {stop.guest for stop, process in pairs if process.alive}
            done += [stop for stop in stops if stop.guest in gone]
            _services.ended(sorted(gone & self._services))
        for name, means in self._ended.items():
            if means != _life.POWERDOWN:
                self.warnings.append(
                    f"guest {name} was not powered off by its own system; QEMU was ended with {means.upper()}."
                )

    def _start(self, starts: t.Sequence[_state.Start], done: list[Change]) -> None:
        wishes = {wish.name: wish for wish in self._wishes}
        begun: list[_life.Starting] = []
        accounts = {start.guest: self._account_of(start) for start in starts}
        services = [start for start in starts if start.definition.manager == _spec.SYSTEMD]
        if services:
            self._services |= {start.guest for start in services}
            done += services  # systemd goes on trying what it could not start at once: all are to be ended
            begun += _life.begin_services(
                [(start.definition, accounts[start.guest], start.after) for start in services]
            )
            self._processes.update({starting.spec.name: starting.process for starting in begun})
        for start in starts:
            if start not in services:
                starting = _life.begin(start.definition, accounts[start.guest], start.after)
                self._processes[start.guest] = starting.process
                begun.append(starting)
                done.append(start)
        for starting in begun:
            starting.settle()
        _life.wait_for_consoles(
            (wishes[starting.spec.name], starting.process)
            for starting in begun
            if wishes[starting.spec.name].wait_for == "console" and wishes[starting.spec.name].state != "paused"
        )

    def _account_of(self, start: _state.Start) -> Account:
        account = _account(start.definition.spec)
        if account is None:
            raise Refused(_checks.account_problem(start.definition.spec))
        return account

    def _apply_one(self, change: GuestChange) -> None:
        name = change.guest
        if isinstance(change, _state.FetchImage):
            _cache.fetch(change.after)
        elif isinstance(change, _state.Define):
            _store.write_definition(name, change.after)
            if isinstance(change, _state.Recall):
                _store.end_removal(name)
        elif isinstance(change, _state.Forget):
            _store.forget(name)
        elif isinstance(change, _state.CreateDisk):
            self._make_disk(name, change.after)
        elif isinstance(change, _state.CreateVariables):
            _make_variables(name, change.after)
        elif isinstance(change, _state.SetAffinity):
            _limits.pin(self._processes[name], change.after)
        elif isinstance(change, _state.RemoveTpm):
            _tpm.remove_state(Places(name))
        elif isinstance(change, _state.GrowDisk):
            if change.running:
                _blocks.grow(name, change.after.path, change.after.size)
            else:
                _disks.grow(change.after)
        elif isinstance(change, _state.RemoveDisk):
            for made in _store.read_made_disks(name):
                if made.path == change.before:
                    _disks.remove(made)
        elif isinstance(change, _state.SetSeed):
            self._seeds.apply(change, _store.read_definition(name))
        elif isinstance(change, _state.SetActivity):
            _life.set_activity(_store.read_definition_of(name, self._processes.get(name)), name, change.after)
        else:
            _hotplug.apply(change, _store.read_definition(name))

    def _make_disk(self, name: str, disk: _spec.Disk) -> None:
        definition = _store.read_definition(name)
        account = _account(definition.spec) if definition else None
        uid, gid = (account.uid, account.gid) if account else (0, 0)
        _store.make_state_directory(Places(name))
        _disks.make(disk, name, uid, gid, lambda made: _store.record_made_disk(name, made))


def _make_variables(name: str, uefi: _firmware.Uefi) -> None:
    places = Places(name)
    _store.make_state_directory(places)

    def record(found: os.stat_result) -> None:
        _store.record_made_disk(name, _disks.MadeDisk(places.variables, found.st_dev, found.st_ino))

    _firmware.make_store(uefi, places.variables, record)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Guests, and what goes with them."""

    wishes: t.Sequence[Wish]
    guests: Guests
    coming: t.Sequence[dict[str, t.Any]]
    """The options of the taps that they are given."""
    going: t.Sequence[dict[str, t.Any]]
    """Those of taps that they no longer have."""
    tap_guests: t.Mapping[str, str]
    """Whose each of these taps is."""
    used: t.Collection[str]
    """All taps that they have, those that others make with them."""
    served: bool
    """Whether systemd runs any of them."""


def build(items: t.Sequence[_spec.Options], *, single: bool, check_mode: bool) -> t.Sequence[Resource[t.Any]]:
    """The guests that the items ask for, between the taps that are made for them and those that go with them."""
    made = parts(items, single=single, check_mode=check_mode)
    resources: list[Resource[t.Any]] = [made.guests]
    taps: list[tuple[TapDevices, t.Sequence[dict[str, t.Any]]]] = []
    if made.coming:
        taps.append((TapDevices(made.coming, check_mode=check_mode), made.coming))
        resources.insert(0, taps[-1][0])
    if made.going:
        former = FormerTaps(made.going, check_mode=check_mode, leaving=made.guests.letting_go)
        taps.append((former, made.going))
        resources.append(former)
    if taps:
        before_taps, after_taps = _tap_files.lasting(taps)
        resources = [before_taps, *resources, after_taps]
    if made.served:
        resources = [UnitFiles(), *resources, _taps_at_boot.TapsAtBoot()]
    elif _systemd.is_running():
        resources.append(FormerUnitFiles(lambda state: is_service_left(made.wishes, state)))
    return [*resources, FormerGuests(made.wishes)]


def parts(
    items: t.Sequence[_spec.Options],
    *,
    single: bool = False,
    check_mode: bool,
    kind: type[Guests] = Guests,
) -> Parts:
    """The guests that the items ask for, the taps that are made for them, and those that go with them."""
    identity = _values.host_identity()
    wishes = [_spec.wish(options, identity=identity) for options in items]
    coming: list[dict[str, t.Any]] = []
    going: list[dict[str, t.Any]] = []
    tap_guests: dict[str, str] = {}
    used: set[str] = set()
    served = False
    processes = _store.Processes()
    for wish in wishes:
        defined = _store.read_definition(wish.name)
        owner = _tap_owner(wish, defined, processes, check_mode=check_mode)
        served = served or (owner is not None and wish.state != "absent")
        before = _taps_of(_store.read_former(wish.name))  # a run that was killed may have left them
        before.update(_taps_of(defined))
        network = wish.given.get("network", defined.spec.network if defined else None)
        wanted = wish.given.get("nics", defined.spec.nics if defined else ())
        after = {} if wish.state == "absent" else _bridged_taps(wanted, network, owner)
        coming += after.values()
        going += [{**tap, "state": "absent"} for name, tap in before.items() if name not in after]
        tap_guests.update(dict.fromkeys((*before, *after), wish.name))
        if wish.state != "absent":
            used.update(nic.tap for nic in wanted if nic.tap is not None)
    guests = kind(wishes, single=single, check_mode=check_mode)
    return Parts(wishes, guests, coming, going, tap_guests, used, served)


def _tap_owner(
    wish: Wish, defined: t.Optional[Definition], processes: _store.Processes, *, check_mode: bool
) -> t.Optional[str]:
    """The account that opens the guest's taps itself, as it does under systemd; None where they are opened for it."""
    new = GuestSpec(wish.name, user=_accounts.default_for(wish.name, expected=check_mode))
    spec = defined.spec if defined else new
    asked = dataclasses.replace(spec, service_manager=wish.given.get("service_manager", spec.service_manager))
    running = GuestState(defined, processes.find(wish.name) if defined else None)
    if _services.manager(asked, running) != _spec.SYSTEMD:
        return None
    return str(wish.given.get("user", spec.user))


def is_service_left(wishes: t.Sequence[Wish], state: State) -> bool:
    """Whether a guest of this host is systemd's, with those of the task as C(state) has them."""
    here = [guest.definition for guest in state.values()]
    names = {wish.name for wish in wishes}
    elsewhere = [_store.read_definition(name) for name in defined_guests() if name not in names]
    return any(definition is not None and definition.manager == _spec.SYSTEMD for definition in [*here, *elsewhere])


class FormerTaps(TapDevices):
    """Taps that were made for guests and go with them, or with their NICs; a guest that runs on keeps what it has."""

    plural: t.ClassVar[str] = "former_taps"
    singular: t.ClassVar[str] = "former_tap"

    def plan(self, have: TapsState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        guests = t.cast("t.Mapping[str, GuestState]", ahead[Guests.plural])
        self.spare(
            nic.tap
            for guest in guests.values()
            if guest.process is not None and guest.definition is not None
            for nic in guest.definition.spec.nics
            if nic.tap is not None
        )
        return super().plan(have, ahead)


def _taps_of(defined: t.Optional[Definition]) -> dict[str, dict[str, t.Any]]:
    """The options of the taps that were made for a guest."""
    return _bridged_taps(defined.spec.nics, defined.spec.network, None) if defined else {}


def _bridged_taps(
    nics: t.Sequence[_spec.Nic], network: t.Optional[str], owner: t.Optional[str]
) -> dict[str, dict[str, t.Any]]:
    """The options of the taps that are made for these NICs; C(owner) None leaves theirs as it is, root for new ones."""
    return {
        nic.tap: {
            **({"owner": owner, "persistent": _interfaces.AS_BRIDGE} if owner is not None else {}),
            "name": nic.tap,
            "bridge": nic.bridge,
            "network": nic.network or network or nic.bridge,
            "multi_queue": nic.queues > 1,
        }
        for nic in nics
        if nic.tap is not None and nic.bridge is not None
    }


def _definition(spec: GuestSpec, accelerator: str, manager: str) -> Definition:
    program = _checks.find_program(spec) or f"qemu-system-{spec.architecture}"
    argv = []
    if accelerator:
        opener = _account(spec) if manager == _spec.SYSTEMD else None
        settled = _vhost.settle(spec, opener)
        argv = _argv.command_line(settled, program=program, accelerator=accelerator, manager=manager)
    return Definition(spec, accelerator, tuple(argv), manager)


def _waits(wish: Wish) -> bool:
    return wish.wait_for in _waiting.GOALS and wish.state in ("running", "restarted")


def _wait_problems(want: Want) -> list[str]:
    return _waiting.problems(want.spec, want.wish.wait_for) if _waits(want.wish) else []


def _account(spec: GuestSpec) -> t.Optional[Account]:
    return _process.find_account(spec.user, extra_groups=["kvm"])


def _network(specs: t.Sequence[GuestSpec], ahead: t.Mapping[str, t.Any]) -> Network:
    taps = {nic.tap for spec in specs for nic in spec.nics if nic.tap is not None}
    if not taps:
        return Network({}, {}, {})
    planned = {
        name: PlannedTap(tap.attachment.bridge if tap.attachment else None, bool(tap.multi_queue), tap.owner)
        for name, tap in (ahead["taps"].taps if "taps" in ahead else {}).items()
    }
    with Netlink() as netlink:
        links = netlink.links()
    in_use = {tap for tap in taps if tap in links and links[tap].carrier}
    return Network(links, planned, _tun.holders(taps & set(links), in_use))


def _refuse(problems: t.Sequence[str]) -> None:
    found = list(dict.fromkeys(problems))
    if len(found) == 1:
        raise Refused(found[0], problems=found)
    if found:
        numbered = " ".join(f"({number}) {problem}" for number, problem in enumerate(found, 1))
        raise Refused(f"{len(found)} things stand in the way. {numbered}", problems=found)


def _render(guest: GuestState, pending: list[str], name: str) -> dict[str, t.Any]:
    places = Places(name)
    rendered: dict[str, t.Any] = {
        "state": guest.activity,
        "pid": guest.process.pid if guest.process and guest.process.pid else None,
        "pending_restart": pending,
        "troubles": [str(trouble) for trouble in guest.troubles],
    }
    if guest.definition is None:
        return rendered
    spec = guest.definition.spec
    alive = guest.process is not None
    # A prediction that has no command line yet, because nobody has tried KVM or the account is not there, has no unit.
    expected = alive and guest.definition.manager == _spec.SYSTEMD and not guest.definition.argv
    rendered.update(
        {
            key: getattr(spec, key)
            for key in ("memory", "cpus", "architecture", "machine", "kernel", "initrd", "cmdline", "user", "sandbox")
        },
        tpm=spec.tpm,
        hugepages=spec.hugepages,
        limits=spec.limits.given(),
        labels=spec.labels.given(),
        **_firmware.render(spec, places.variables),
        service=_units.unit(name) if expected or guest.unit.drop_in is not None else None,
        autostart=spec.autostart if expected else guest.unit.enabled,
        accelerator=guest.definition.accelerator or None,
        disks=[_render_disk(disk, guest) for disk in spec.disks],
        nics=[{**dataclasses.asdict(nic), "user": nic.user} for nic in spec.nics],
        cloud_init=_seed.show(spec.cloud_init),
        console_log=places.console_log if spec.console else None,
        agent_socket=places.agent_socket if spec.guest_agent and alive else None,
        console_socket=places.console_socket if spec.console and alive else None,
        qmp_socket=places.qmp_socket if alive else None,
        vnc_socket=places.vnc_socket if spec.display == "vnc" and alive else None,
    )
    return rendered


def _render_disk(disk: _spec.Disk, guest: GuestState) -> dict[str, t.Any]:
    image = guest.images.get(disk.path)
    return {
        "path": disk.path,
        "format": disk.format,
        "bus": disk.bus,
        "read_only": disk.read_only,
        "media": disk.media,
        "base_image": image.backing if image is not None else disk.base_image,
        "size": image.size if image is not None else disk.size,
        "made": disk.path in {made.path for made in guest.made},
    }
