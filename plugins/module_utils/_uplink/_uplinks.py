# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The uplink of a host as a resource: what it is, what is to be done about it, and the move.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _links
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import (
    _connection,
    _entries,
    _guard,
    _journal,
    _managers,
    _mentions,
    _preflight,
    _putback,
    _reach,
    _record,
    _transaction,
    _words,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import Address, Interface, Route, Timed
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import Kernel
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3, is_passing
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._record import Record
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import WriteFile, keep
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._wanted import WantedUplink

# Of a bridge that does not exist yet, in a prediction.
_FUTURE = 2**31 - 1
# Addresses that are asked whether they are there, at most.
_GATEWAYS = 16
_ROUTES = 2000
_PROBE_PATIENCE = 1.5


@dataclasses.dataclass(frozen=True)
class UplinkState:
    """The two interfaces, and what is on the disk about them."""

    links: dict[str, Link]
    layer3: Layer3
    """Of the card and the bridge; routes and rules of the whole host."""
    record: t.Optional[Record]
    files: tuple[WriteFile, ...] = ()
    """As they are now: those that the wanted state would have, or that the record knows."""

    def owned(self, index: int) -> Layer3:
        """What of layer 3 is on this one interface."""
        name = next((link.name for link in self.links.values() if link.index == index), "")
        return Layer3(
            addresses=tuple(timed for timed in self.layer3.addresses if timed.address.index == index),
            routes=tuple(route for route in self.layer3.routes if index in route.indices),
            rules=tuple(rule for rule in self.layer3.rules if rule.names(name)),
            neighbours=tuple(each for each in self.layer3.neighbours if each.header[1] == index and each.is_lasting),
        )


@dataclasses.dataclass(frozen=True)
class FileChange(Change):
    """A file of the host's configuration; states are C(WriteFile)."""


@dataclasses.dataclass(frozen=True)
class Done(Change):
    """Something that cannot be taken back, or was done already."""

    @property
    def reversible(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Settling(Done):
    """The manager is told of the files."""

    manager: Manager
    move: Move


class Uplink(Resource[UplinkState]):
    """The uplink of this host, up to the confirmation: in the kernel, and on the disk where nothing must be moved."""

    plural = "uplinks"
    singular = "uplink"

    def __init__(self, want: WantedUplink, transaction: Transaction, *, check_mode: bool) -> None:
        super().__init__(single=True)
        self.want = want
        self.transaction = transaction
        self.check_mode = check_mode
        self.manager: Manager = _managers.find(want.interface)
        self._recovered: t.Optional[str] = None
        self._moved = False
        self._order: t.Optional[_transaction.Order] = None
        self._at_risk: list[str] = []

    # Reading

    def read(self) -> UplinkState:
        self._recover()
        return read(self.want, self.manager)

    def _recover(self) -> None:
        """Take back what was left by a run that died; a move that is under way is not ours to touch."""
        for transaction in _journal.unfinished():
            if self._moved and transaction.identity == self.transaction.identity:
                continue
            phase = transaction.phase()
            mover_lives = transaction.read().mover.alive
            if mover_lives or _guard.watches(transaction):
                raise _refused(
                    f"the uplink of this host is being moved by the transaction {transaction.identity} (phase "
                    f"'{phase.name if phase else ''}'). Wait until it is confirmed or has gone back, and run again."
                )
            self._recovered = f"Roll back the interrupted move {transaction.identity}"
            if not self.check_mode:
                _putback.put_back(transaction, "The run that began it died, and its dead-man, too.")

    # Planning

    def plan(self, have: UplinkState, ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        changes: list[Change] = []
        if self._recovered and not self._moved:
            changes.append(Done("recovery", self._recovered, None, None))
        move = self._plan_move(have)
        changes += move
        if self._moved or (move and not self.check_mode):
            return changes  # what is on the disk follows the confirmation
        rest = rest_of_plan(self.want, self.manager, have, self.warnings)
        if not move:
            self._look_at_next_boot(have, rest)
        return [*changes, *rest]

    def _plan_move(self, have: UplinkState) -> list[Change]:
        want = self.want
        self._refuse_to_lose_edits(have)
        if not want.present and not self._is_to_go_back(have):
            return []
        if want.present and is_moved(want, have):
            return []
        if want.interface not in have.links:
            raise _refused(f"interface: this host has no {want.interface}. 'ip link' shows the names that it has.")
        self._refuse(have)
        order = self._make_order(have)
        self._order = order
        return [Done(*words) for words in _sentences(order, have)]

    def _refuse_to_lose_edits(self, have: UplinkState) -> None:
        """What was written into our files since is in no backup."""
        edited = [file.path for file in _edited(self.want, have)]
        if edited and not self.want.force:
            raise _refused(
                f"{' and '.join(edited)} was changed by somebody else since {self.want.interface} became a port of "
                f"{self.want.bridge}, and state: absent would put the file of before in its place. Take the change out "
                "and make it again afterwards, or go on with force: true, which keeps the changed file in "
                f"{_record.DIRECTORY}."
            )

    def _is_to_go_back(self, have: UplinkState) -> bool:
        want = self.want
        card, bridge = have.links.get(want.interface), have.links.get(want.bridge)
        if bridge is None or card is None or card.master != bridge.name:
            return False
        ours = have.record is not None or _links.owner_of(bridge.alias) == want.network
        if not ours and not want.force:
            self.warnings.append(
                f"bridge {want.bridge} with its uplink {want.interface} was not made by labspan.vmnet and was left "
                "alone. Move the uplink back all the same with force: true."
            )
            return False
        others = sorted(name for name, link in have.links.items() if link.master == bridge.name and name != card.name)
        if others and not want.force:
            problem = (
                f"bridge {want.bridge} has other ports ({', '.join(others)}), which would lose their network. Remove "
                "them first, or let go of them with force: true."
            )
            if not self.check_mode:
                raise _refused(problem)
            self.warnings.append(f"Outside check mode this would be refused if it were still so then: {problem}")
        return True

    def _refuse(self, have: UplinkState) -> None:
        """Everything that must not be moved, in one message."""
        want = self.want
        reasons: list[str] = []
        if want.present:
            facts = _preflight.gather(want.interface, want.bridge, network=want.network)
            reasons += _preflight.refusals(facts, force=want.force)
            self.warnings += _preflight.warnings(facts)
            for mention in _mentions.find(want.interface, want.bridge):
                if want.accept_risk:
                    self.warnings.append(f"accepted as a risk: {mention.where} {mention.consequence}: {mention.what}.")
                else:
                    reasons.append(mention.sentence)
        login = _connection.ssh_peer() if want.local else None
        if login is not None:
            (self.warnings if want.accept_risk else reasons).append(
                f"the task runs on the host itself (connection: local), for somebody who came in over SSH ({login}). "
                "It would be confirmed by itself, whether a new login gets in or not. Run it from another machine over "
                "SSH, or on the host's console, or accept that nobody guards it with accept_risk: true."
            )
        source = have.links[want.bridge if not want.present else want.interface]
        reasons += _unmovable(have.owned(source.index), source.name, have)
        leased = [timed for timed in have.owned(source.index).addresses if _is_leased(timed)]
        if leased and not self.manager.leases(source.name) and move_of(want, have).carries_leases:
            static = "give address_mode: static, " if want.present else ""
            (self.warnings if want.accept_risk else reasons).append(
                f"{_words.address(leased[0])} on {source.name} was leased, and no DHCP client that labspan.vmnet knows "
                f"renews it: the address would end with its lease. Start the client under a manager, {static}"
                "or move it as it is with accept_risk: true."
            )
        reasons += _dropped_defaults(want, have.owned(source.index), have)
        if (
            want.mode == "none"
            and want.present
            and any(not timed.address.is_link_local for timed in have.owned(source.index).addresses)
        ):
            reasons.append(
                f"address_mode: none would take {_words.address(have.owned(source.index).addresses[0])} from the host; "
                f"no address is dropped. Remove the addresses of {source.name} first, or give another mode."
            )
        refusal = self.manager.refusal(move_of(self.want, have), persistent=want.persistent)
        if refusal:
            reasons.append(refusal)
        if reasons:
            raise Refused(
                f"{want.interface} is not moved {'to' if want.present else 'from'} {want.bridge}: {' '.join(reasons)}",
                refusals=reasons,
            )

    def _look_at_next_boot(self, have: UplinkState, rest: t.Sequence[Change]) -> None:
        """Where nothing is moved, what cannot be written for the next boot is not passed over in silence."""
        want = self.want
        settled = have.files and not any(isinstance(change, FileChange) for change in rest)
        if not (want.present and want.persistent) or settled:
            return
        move = move_of(want, have)
        problem = self.manager.refusal(move, persistent=True)
        if problem is None or (have.files and problem == self.manager.refusal(move, persistent=False)):
            return
        if not have.files and (have.record is None or have.record.files):
            # Somebody else made the bridge, or it was written down before: the next boot may well have it.
            self.warnings.append(
                f"what the next boot makes of {want.bridge} and {want.interface} was not looked at, and nothing is "
                f"written for it: {problem}"
            )
            return
        raise _refused(
            f"{want.interface} is a port of {want.bridge}, and that cannot be written down for the next boot: {problem}"
        )

    def _make_order(self, have: UplinkState) -> _transaction.Order:
        want = self.want
        source = have.links[want.interface if want.present else want.bridge]
        peer = None if want.local else _connection.ssh_peer()
        own = [str(ipaddress.ip_address(timed.address.local)) for timed in have.owned(source.index).addresses]
        self._at_risk = [str(each) for each in _connection.at_risk(_connection.established(), own)]
        if peer is not None and ipaddress.ip_address(peer.server_address).is_link_local:
            self.warnings.append(
                f"the controller's connection ({peer}) is to a link-local address, which is bound to {source.name} and "
                "may not live on. The confirmation is made over a new one all the same."
            )
        return _transaction.Order(
            move=move_of(self.want, have),
            manager=self.manager,
            alias=_links.alias_of(want.network),
            gateways=self._gateways(have, source),
            confirm_timeout=want.confirm_timeout,
            connection=str(peer) if peer is not None else None,
            leased=self.manager.leases(source.name),
            static=tuple(_static_address(address, want.bridge) for address in want.addresses),
            default_routes=tuple(_default_route(gateway) for gateway in want.gateways),
        )

    def _gateways(self, have: UplinkState, source: Link) -> dict[str, t.Optional[str]]:
        """Those that answer now. Asking is a packet on the wire, which check mode does without."""
        if self.check_mode or self.want.probe == ():
            return {}
        asked = self.want.probe
        if asked is None:
            found = [gateway for route in have.owned(source.index).routes for _index, gateway in route.gateways]
            asked = tuple(dict.fromkeys(str(ipaddress.ip_address(gateway)) for gateway in found))[:_GATEWAYS]
        own = [
            f"{ipaddress.ip_address(timed.address.local)}/{timed.address.header[1]}"
            for timed in have.owned(source.index).addresses
        ]
        sources = _reach.choose_sources(asked, own)
        answering = _reach.answers(source.name, asked, sources=sources, timeout=_PROBE_PATIENCE) if asked else set()
        silent = [gateway for gateway in asked if gateway not in answering]
        if silent and self.want.probe is not None:
            raise _refused(
                f"probe: {', '.join(silent)} does not answer on {source.name} now, so its silence afterwards would say "
                "nothing. Leave it out, or see why it is silent."
            )
        return {gateway: sources.get(gateway) for gateway in asked if gateway in answering}

    # Applying

    def predict(self, have: UplinkState, changes: t.Sequence[Change]) -> UplinkState:
        if self._order is None or self._moved:
            return _with_files(have, changes)
        want = self.want
        card = have.links[want.interface]
        links = dict(have.links)
        move = self._order.move
        if want.present and want.bridge not in links:
            bridge = dataclasses.replace(
                card, index=_FUTURE, name=want.bridge, kind="bridge", mac=move.mac, master=None
            )
            links[want.bridge] = dataclasses.replace(bridge, alias=self._order.alias)
        source, target = (Interface(links[name].index, name) for name in (move.source, move.target))
        links[want.interface] = dataclasses.replace(card, master=want.bridge if want.present else None)
        state = dataclasses.replace(
            have, links=links, layer3=_transaction.target_state(self._order, have.layer3, source, target)
        )
        if not want.present and removes_bridge(want, have):
            del links[want.bridge]
        return _with_files(state, changes)

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        if self._order is not None and any(
            isinstance(change, Done) and change.subject != "recovery" for change in changes
        ):
            _transaction.carry_out(self._order, self.transaction)
            self._moved = True
            done += [change for change in changes if isinstance(change, Done)]
            return
        for change in changes:
            apply_rest(change)
            done.append(change)

    def render(self, state: UplinkState) -> dict[str, dict[str, t.Any]]:
        return render(self.want, self.manager, state)

    def facts(self, state: UplinkState) -> dict[str, t.Any]:
        if self._order is None:
            return {"phase": "at rest", "transaction": self.transaction.identity}
        if not self._moved:
            return {"phase": "planned", "transaction": self.transaction.identity, "at_risk": self._at_risk}
        pending = {
            "transaction": self.transaction.identity,
            "deadline": self.want.confirm_timeout,
            "phase": _journal.MOVED,
        }
        gateways = sorted(self._order.gateways)
        return {"pending": pending, "phase": _journal.MOVED, "gateways": gateways, "at_risk": self._at_risk}


def read(want: WantedUplink, manager: Manager) -> UplinkState:
    """The state now."""
    kernel = Kernel()
    try:
        links = kernel.links()
        indices = {links[name].index for name in (want.bridge, want.interface) if name in links}
        state = UplinkState(links, kernel.layer3(indices), _record.read(want.bridge))
    finally:
        kernel.close()
    return dataclasses.replace(state, files=tuple(keep(file.path) for file in wanted_files(want, manager, state)))


def move_of(want: WantedUplink, have: UplinkState) -> Move:
    """What the managers are told."""
    bridge, card = have.links.get(want.bridge), have.links.get(want.interface)
    mac = card.mac if card is not None else ""
    if bridge is not None and (want.mac == "keep" or not want.present):
        mac = bridge.mac
    elif want.mac not in ("interface", "keep"):
        mac = want.mac
    taps = sorted(name for name, link in have.links.items() if link.master == want.bridge and name != want.interface)
    return want.move(mac, card.mtu if card is not None else 1500, taps)


def is_moved(want: WantedUplink, have: UplinkState) -> bool:
    """Whether the card is a port of the bridge and has no layer 3 of its own but what every interface has."""
    card, bridge = have.links.get(want.interface), have.links.get(want.bridge)
    if card is None or bridge is None or bridge.kind != "bridge" or card.master != bridge.name:
        return False
    own = have.owned(card.index)
    if any(not timed.address.is_link_local for timed in own.addresses) or own.rules or own.neighbours:
        return False
    if any(not is_passing(route) for route in own.routes):
        return False
    if want.mode != "static":
        return True
    there = {(timed.address.local, timed.address.header[1]) for timed in have.owned(bridge.index).addresses}
    return {(address.ip.packed, address.network.prefixlen) for address in want.addresses} <= there


def _refused(problem: str) -> Refused:
    """The only reason for which nothing is moved."""
    return Refused(problem, refusals=[problem])


def _is_leased(timed: Timed) -> bool:
    """Whether a client must renew it. IPv6 addresses live by router advertisements, which the kernel hears itself."""
    return timed.address.family == _entries.AF_INET and timed.lifetimes.valid != _entries.FOREVER


def _unmovable(own: Layer3, name: str, have: UplinkState) -> list[str]:
    names = {link.index: link.name for link in have.links.values()}
    reasons = [
        f"The route '{_words.route(route, names)}' has {what}, which cannot be made again from here; take it away."
        for route in own.routes
        for what in [route.cannot_be_rebuilt]
        if what is not None
    ]
    if len(have.layer3.routes) > _ROUTES:
        reasons.append(
            f"This host has {len(have.layer3.routes)} routes; more than {_ROUTES} cannot be moved within one batch. It "
            "is a router: give its guests a routed network instead."
        )
    return reasons


def _dropped_defaults(want: WantedUplink, own: Layer3, have: UplinkState) -> t.Iterator[str]:
    """With C(address_mode: static) the default routes are those of C(gateway); none goes away unsaid."""
    if not want.present or want.mode != "static":
        return
    given = {ipaddress.ip_address(gateway).version for gateway in want.gateways}
    names = {link.index: link.name for link in have.links.values()}
    for route in own.routes:
        version = 6 if route.family == _entries.AF_INET6 else 4
        if route.is_default and not route.is_advertised_default and version not in given:
            yield (
                f"gateway: address_mode: static without an IPv{version} gateway would take the route "
                f"'{_words.route(route, names)}' from the host. Give the gateway, or take the route away first."
            )


def _sentences(order: _transaction.Order, have: UplinkState) -> t.Iterator[tuple[str, str, t.Any, t.Any]]:
    """Subject, sentence, before and after of each thing that the move does."""
    move = order.move
    source, target = move.source, move.target
    if not move.back and move.bridge not in have.links:
        yield (move.bridge, f"Make the bridge {move.bridge} with the MAC address {move.mac}", None, move.mac)
    elif not move.back and have.links[move.bridge].mac != move.mac:
        was = have.links[move.bridge].mac
        yield (move.bridge, f"Give the bridge {move.bridge} the MAC address {move.mac}", was, move.mac)
    for step in order.manager.before(move):
        yield (source, step.sentence, None, None)
    links = have.links
    own = have.owned(links[source].index)
    names = {link.index: link.name for link in links.values()}
    if move.back:
        yield (move.interface, f"Take {move.interface} off {move.bridge}", move.bridge, None)
    elif links[move.interface].master != move.bridge:
        yield (move.interface, f"Make {move.interface} a port of {move.bridge}", None, move.bridge)
    static = move.mode == "static" and not move.back
    for timed in own.addresses:
        text = _words.address(timed)
        if static and not timed.address.is_link_local:
            yield (source, f"Take {text} from {source}, as addresses asks for", text, None)
        else:
            yield (source, f"Move {text} from {source} to {target}", source, target)
    for text in (*move.addresses, *(f"the default route by {gateway}" for gateway in move.gateways)):
        if static:
            yield (target, f"Give {target} {text}", None, text)
    for route in own.routes:
        if static and _transaction.is_replaced(order, route):
            yield (source, f"Take the route '{_words.route(route, names)}' away, as gateway asks for", source, None)
        elif not is_passing(route) or route.gateways:
            yield (source, f"Move the route '{_words.route(route, names)}' to {target}", source, target)
    for rule in own.rules:
        yield (source, f"Move the rule '{_words.rule(rule)}' to {target}", source, target)
    for neighbour in own.neighbours:
        yield (source, f"Move the neighbour {_words.neighbour(neighbour)} to {target}", source, target)
    for step in order.manager.after(move):
        yield (target, step.sentence, None, None)


def _static_address(address: t.Any, bridge: str) -> Timed:
    with_broadcast = address.version == 4 and address.network.prefixlen < 31
    broadcast = address.network.broadcast_address.packed if with_broadcast else None
    made = Address.make(address.ip.packed, address.network.prefixlen, label=bridge, broadcast=broadcast)
    return Timed(made, _entries.Lifetimes())


def _default_route(gateway: str) -> Route:
    return Route.make_default(ipaddress.ip_address(gateway).packed)


# What is on the disk, and what is left of a bridge: after the confirmation, or where nothing must be moved.


def wanted_files(want: WantedUplink, manager: Manager, have: UplinkState) -> t.Sequence[WriteFile]:
    """The files as they must be, in the order of writing."""
    if not want.present:
        return [kept.before for kept in reversed(have.record.files)] if have.record is not None else []
    if not want.persistent or want.interface not in have.links:
        return []
    return manager.files(move_of(want, have))


def _edited(want: WantedUplink, have: UplinkState) -> t.Sequence[WriteFile]:
    """What somebody else wrote into the files that go."""
    return () if want.present or have.record is None else have.record.edited(have.files)


def removes_bridge(want: WantedUplink, have: UplinkState) -> bool:
    """Whether the bridge goes, too: it is ours."""
    bridge = have.links.get(want.bridge)
    if want.present or bridge is None:
        return False
    return have.record.created if have.record is not None else _links.owner_of(bridge.alias) == want.network


def rest_of_plan(
    want: WantedUplink,
    manager: Manager,
    have: UplinkState,
    warnings: list[str],
    *,
    created: t.Optional[bool] = None,
) -> list[Change]:
    """The files that differ, the record, the bridge that is left over, and what the manager makes of it.

    C(created): right after a move, whether it made the bridge. What the administrator must know comes to C(warnings).
    """
    changes = _rest_on_disk(want, manager, have, warnings, created=created)
    if not changes or (want.present and not want.persistent) or type(manager).settle is Manager.settle:
        return changes
    sentence = f"Have {manager.name} read its files"
    return [*changes, Settling(manager.name, sentence, None, None, manager, move_of(want, have))]


def _rest_on_disk(
    want: WantedUplink, manager: Manager, have: UplinkState, warnings: list[str], *, created: t.Optional[bool]
) -> list[Change]:
    changes: list[Change] = []
    now = {file.path: file for file in have.files}
    files = wanted_files(want, manager, have)
    for file in files:
        before = now.get(file.path, WriteFile(file.path, None))
        if (before.content, before.mode) == (file.content, file.mode) or (
            before.content is None and file.content is None
        ):
            continue
        verb = "Remove" if file.content is None else "Write" if want.present else "Bring back"
        changes.append(FileChange(file.path, f"{verb} {file.path}", before, file))
    if want.present:
        written = [change.after for change in changes]
        record = _record_then(want, have, files, written, created)
        copies = _keep_edits(want, have, written, warnings)
        if record is None or record == have.record:
            return [*copies, *changes]
        copies += [_put_aside(want, "before", file) for file in (have.record or record).superseded(record)]
        path = _record.path_of(want.bridge)
        remembered = FileChange(path, f"Remember the uplink in {path}", keep(path), record.to_file())
        # First: what was there before must be known before it is changed.
        return [*copies, remembered, *changes]
    changes = [*(_put_aside(want, "edited", file) for file in _edited(want, have)), *changes]
    if removes_bridge(want, have):
        others = [name for name, link in have.links.items() if link.master == want.bridge and name != want.interface]
        if not others or want.force:
            changes.append(Done(want.bridge, f"Remove the bridge {want.bridge}", want.bridge, None))
    if have.record is not None:
        path = _record.path_of(want.bridge)
        changes.append(FileChange(path, f"Forget {path}", keep(path), WriteFile(path, None)))
    return changes


def _put_aside(want: WantedUplink, what: str, file: WriteFile) -> Change:
    copy = _record.aside(want.bridge, what, file)
    which = f"{file.path} as it was before" if what == "before" else file.path
    return FileChange(copy.path, f"Keep {which} as {copy.path}", keep(copy.path), copy)


def _keep_edits(
    want: WantedUplink, have: UplinkState, written: t.Sequence[WriteFile], warnings: list[str]
) -> list[Change]:
    """What somebody else wrote into our files, and is to be written over, is in no backup."""
    paths = {file.path for file in written}
    copies: list[Change] = []
    for file in have.record.edited([file for file in have.files if file.path in paths]) if have.record else ():
        if have.record is not None and have.record.is_replaced(file):
            continue  # it is what comes back with state: absent
        copy = _put_aside(want, "edited", file)
        copies.append(copy)
        warnings.append(
            f"{file.path} was changed by somebody else since it was written for {want.bridge}, and is written anew. "
            f"The changed file is kept as {copy.subject}; look whether something of it is missing in the new one."
        )
    return copies


def _record_then(
    want: WantedUplink,
    have: UplinkState,
    files: t.Sequence[WriteFile],
    written: t.Sequence[WriteFile],
    created: t.Optional[bool],
) -> t.Optional[Record]:
    """The record, where there is none yet of what is ours, other files come to it, or the uplink is made again."""
    known = have.record
    if known is None:
        bridge = have.links.get(want.bridge)
        ours = bridge is not None and _links.owner_of(bridge.alias) == want.network
        if created is None and not files and not ours:
            return None
        made = Record(want.bridge, want.interface, want.network, ours if created is None else created)
        return made.with_files(files)
    if not created:
        return known.with_files(written) if written else known
    # The bridge was gone, so the record is of an uplink that somebody undid by hand, or by a reboot.
    noted = {kept.before.path for kept in known.files}
    more = [file for file in files if file in written or file.path not in noted]
    again = dataclasses.replace(known.made_again(files), interface=want.interface, network=want.network, created=True)
    return again.with_files(more) if more else again


def apply_rest(change: Change) -> None:
    """Carry out one change of C(rest_of_plan)."""
    if isinstance(change, FileChange):
        change.after.perform()
    elif isinstance(change, Settling):
        for step in change.manager.settle(change.move):
            step.action.perform()
    elif change.subject != "recovery":
        _transaction.remove_bridge(change.subject)


def _with_files(state: UplinkState, changes: t.Sequence[Change]) -> UplinkState:
    after = {change.subject: change.after for change in changes if isinstance(change, FileChange)}
    return dataclasses.replace(state, files=tuple(after.get(file.path, file) for file in state.files))


def _shown(file: WriteFile) -> list[str]:
    """The lines of a file that everybody on the host may read; of another one, which may hold secrets, a checksum."""
    if file.mode & 0o004:
        return (file.content or "").splitlines()
    return [f"SHA-256 {_record.digest(file.content)}"]


def render(want: WantedUplink, manager: Manager, state: UplinkState) -> dict[str, dict[str, t.Any]]:
    """The uplink as plain data, under the bridge's name."""
    names = {link.index: link.name for link in state.links.values()}
    shown: dict[str, t.Any] = {
        "interface": want.interface,
        "manager": manager.name,
        "exists": want.bridge in state.links,
        "files": {file.path: _shown(file) for file in state.files if file.content is not None},
    }
    for key, name in (("", want.bridge), ("interface_", want.interface)):
        link = state.links.get(name)
        own = state.owned(link.index) if link is not None else Layer3()
        shown[f"{key}mac_address"] = link.mac if link is not None else None
        shown[f"{key}addresses"] = [_words.address(timed) for timed in own.addresses]
        shown[f"{key}routes"] = [_words.route(route, names) for route in own.routes]
        shown[f"{key}rules"] = [_words.rule(rule) for rule in own.rules]
    card = state.links.get(want.interface)
    shown["is_port"] = card is not None and card.master == want.bridge
    return {want.bridge: shown}
