# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The move itself, in its order: journal, dead-man, an empty bridge with a carrier, one burst, a look at the result.

Until the burst nothing of the network card is touched. The burst is one C(sendmsg): address, port, routes and rules
change hands within a millisecond, and nothing is missing in between. Whatever fails takes the host back at once, and
whoever dies leaves that to the dead-man.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import (
    _guard,
    _journal,
    _kernel,
    _putback,
    _reach,
    _routers,
    _words,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._entries import (
    AF_INET,
    AF_INET6,
    Address,
    Entry,
    Interface,
    Lifetimes,
    Route,
    Timed,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Journal, Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import Kernel
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3, batch, is_passing, lacks
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._putback import CABLE
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import Step
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import Message, Refusal

#: Seconds that a move may take until it waits for its confirmation.
MOVE_TIMEOUT = 60.0
# Settings that a bridge does not take over from the card with the others: they come last, or follow by themselves.
_NOT_COPIED = (*_kernel.IN_BETWEEN, _kernel.DISABLE_IPV6, "ipv6/conf/mtu")
# A refusal that only says that what was asked for is so already.
_HARMLESS = {errno.EEXIST, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOENT}
# Looks at the result until what the kernel does by itself has settled, and seconds between them.
_LOOKS = 4
_CARRIER_PATIENCE = 2.0
_GATEWAY_PATIENCE = 3.0
_LEASE_PATIENCE = 30.0


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be moved, and how it is watched over."""

    move: Move
    manager: Manager
    alias: str
    """Of a bridge that the move makes."""
    gateways: t.Mapping[str, t.Optional[str]]
    """Those that answered before, each with the host's address to ask it from."""
    confirm_timeout: float
    connection: t.Optional[str]
    leased: bool = False
    """Whether a DHCP client runs the interface that has the addresses now."""
    static: tuple[Timed, ...] = ()
    """For C(address_mode: static): what takes the place of the card's addresses (without an interface, index 0)."""
    default_routes: tuple[Route, ...] = ()


def carry_out(order: Order, transaction: Transaction) -> None:
    """Move, and return when the move waits for its confirmation; raises when the host has gone back."""
    _Mover(order, transaction).run()


def is_replaced(order: Order, route: Route) -> bool:
    """Whether a gateway that the task gives takes the place of this route."""
    families = {each.family for each in order.default_routes}
    return route.is_default and not route.is_advertised_default and route.family in families


def target_state(order: Order, have: Layer3, source: Interface, target: Interface) -> Layer3:
    """What layer 3 must be after the move. Pure."""
    if order.move.mode != "static" or order.move.back:
        return have.moved(source, target)
    nowhere = Interface(0, "")
    replaced = [
        timed for timed in have.addresses if timed.address.index == source.index and not timed.address.is_link_local
    ]
    old = [timed.address for timed in replaced]
    kept = dataclasses.replace(
        have,
        addresses=tuple(timed for timed in have.addresses if timed not in replaced),
        routes=tuple(
            route
            for route in have.routes
            if not route.is_made_for(old) and not (route.indices == {source.index} and is_replaced(order, route))
        ),
    ).moved(source, target)
    given = (Timed(each.address.moved(nowhere, target), each.lifetimes) for each in order.static)
    defaults = (route.moved(nowhere, target) for route in order.default_routes)
    there = {timed.address.local for timed in kept.addresses}
    new = tuple(timed for timed in given if timed.address.local not in there)
    return dataclasses.replace(kept.with_addresses(new), routes=(*kept.routes, *defaults))


def remove_bridge(name: str) -> None:
    """Remove the bridge, which has no layer 3 any more."""
    kernel = Kernel()
    try:
        links = kernel.links()
        if name in links:
            (refusal,) = kernel.send([_kernel.delete_link(links[name].index)])
            if refusal is not None:
                raise SystemFailure(f"the bridge {name} cannot be removed: {refusal}.")
    finally:
        kernel.close()


class _Mover:
    def __init__(self, order: Order, transaction: Transaction) -> None:
        self.order = order
        self.move = order.move
        self.transaction = transaction
        self.kernel = Kernel()

    def run(self) -> None:
        journal = self._begin()
        try:
            _guard.arm(self.transaction)
            journal = self._prepare(journal)
            self._go(_journal.PREPARED, _journal.MOVING)
            want = self._burst(journal)
            self._settle(journal, want)
            journal = self._take(journal, self.order.manager.after(self.move), "undo_after")
            self._verify(want)
            self._go(_journal.MOVING, _journal.MOVED)
        except BaseException as error:
            self._go_back(error)
        finally:
            self.kernel.close()

    def _begin(self) -> Journal:
        names = (self.move.bridge, self.move.interface)
        before = self.kernel.snapshot(*names)
        mover = _process.identify(os.getpid())
        if mover is None:
            raise SystemFailure("/proc does not show this very process; a move cannot be watched over without it.")
        journal = Journal(
            bridge=self.move.bridge,
            interface=self.move.interface,
            back=self.move.back,
            created=self.move.bridge not in before.links,
            before=before,
            mover=mover,
            confirm_timeout=self.order.confirm_timeout,
            move_timeout=MOVE_TIMEOUT + self._listening(),
            gateways=dict(self.order.gateways),
            connection=self.order.connection,
        )
        _journal.sweep()
        self.transaction.begin(journal)
        return journal

    def _listening(self) -> float:
        """Seconds for which a new port says nothing (IEEE 802.1D, the listening and the learning state)."""
        return 2 * self.move.forward_delay if self.move.stp and not self.move.back else 0.0

    def _go(self, source: str, target: str) -> None:
        if not self.transaction.advance((source,), target):
            raise LabspanError("The host was taken back while the move was still under way.")

    def _go_back(self, error: BaseException) -> t.NoReturn:
        reason = str(error) or type(error).__name__
        _putback.put_back(self.transaction, reason)
        details = error.details if isinstance(error, LabspanError) else {}
        raise LabspanError(f"rolled back, the host is as it was before: {reason}", **details) from error

    def _prepare(self, journal: Journal) -> Journal:
        """Everything that can be done before the card is touched."""
        if journal.created:
            self._make_bridge(journal)
        elif not self.move.back:
            self._ready_bridge(journal)
        journal = self._take(journal, self.order.manager.before(self.move), "undo_before")
        # Lifetimes run, and somebody may have changed something since: this is what goes back if it must.
        fresh = self.kernel.snapshot(*journal.before.links)
        lost = lacks(fresh.layer3, _lasting(journal.before.layer3))
        if lost:
            names = {link.index: name for name, link in journal.before.links.items()}
            words = "; ".join(_words.any_entry(entry, names) for entry in lost)
            raise SystemFailure(f"while the move was prepared, the host lost {words}.")
        if journal.created:
            # What the manager has put on the new bridge goes with it, and could not be put back.
            made = self.kernel.links()[self.move.bridge].index
            routes = tuple(route for route in fresh.layer3.routes if made not in route.indices)
            fresh = dataclasses.replace(fresh, layer3=dataclasses.replace(fresh.layer3, routes=routes))
        # The bridge's MAC address, and that it is up, may be our own doing by now.
        links = {
            **fresh.links,
            **{name: link for name, link in journal.before.links.items() if name == self.move.bridge},
        }
        journal = dataclasses.replace(
            journal, before=dataclasses.replace(fresh, links=links, sysctls=journal.before.sysctls)
        )
        self.transaction.write(journal)
        return journal

    def _make_bridge(self, journal: Journal) -> None:
        move, bridge = self.move, self.move.bridge
        self._must(
            _kernel.create_bridge(
                bridge, mac=move.mac, mtu=move.mtu, stp=move.stp, forward_delay=round(move.forward_delay * 100)
            ),
            f"the bridge {bridge} cannot be made",
        )
        made = self.kernel.links()[bridge]
        card = journal.before.sysctls[move.interface]
        _kernel.write_sysctls(bridge, {key: value for key, value in card.items() if key not in _NOT_COPIED})
        self._calm(bridge, card)
        self._must(_kernel.set_link(made.index, up=True, alias=self.order.alias), f"{bridge} cannot be switched on")
        self._lay_cable(made)

    def _ready_bridge(self, journal: Journal) -> None:
        """A bridge that is there already takes addresses as one does that is made for the move."""
        links = journal.before.links
        bridge = links[self.move.bridge]
        # A card that is its port already has no IPv6, which must not go from the bridge, too.
        ported = links[self.move.interface].master == bridge.name
        self._calm(bridge.name, journal.before.sysctls[bridge.name if ported else self.move.interface])
        if bridge.mac != self.move.mac:
            mac = self.move.mac
            self._must(_kernel.set_link(bridge.index, mac=mac), f"{bridge.name} cannot be given the MAC address {mac}")
        if not bridge.up:
            self._must(_kernel.set_link(bridge.index, up=True), f"{bridge.name} cannot be switched on")

    def _calm(self, interface: str, like: t.Mapping[str, str]) -> None:
        """Have the interface take addresses as they are given, and IPv6 as the other one has it."""
        _kernel.write_sysctls(interface, {key: value for key, value in _kernel.IN_BETWEEN.items() if key in like})
        if _kernel.DISABLE_IPV6 in like:
            _kernel.write_sysctls(interface, {_kernel.DISABLE_IPV6: like[_kernel.DISABLE_IPV6]})

    def _lay_cable(self, bridge: Link) -> None:
        """Give the bridge a carrier before the card is there, so that it is ready to send when its addresses come.

        A host without veth does without: at most one packet is late then.
        """
        (refusal,) = self.kernel.send([_kernel.create_cable(*CABLE, mtu=bridge.mtu)])
        if refusal is not None:
            return
        links = self.kernel.links()
        for end in CABLE:
            _kernel.write_sysctls(end, {_kernel.DISABLE_IPV6: "1"})
        self.kernel.send(
            [
                _kernel.set_link(links[CABLE[0]].index, master=bridge.index, up=True),
                _kernel.set_link(links[CABLE[1]].index, up=True),
            ]
        )
        _await(lambda: _operstate(bridge.name) == "up", _CARRIER_PATIENCE)

    def _take(self, journal: Journal, steps: t.Sequence[Step], where: str) -> Journal:
        """Take the manager's steps, the way back of each in the journal first."""
        for step in steps:
            undo: dict[str, t.Any] = {where: (*step.undo, *getattr(journal, where))}
            journal = dataclasses.replace(journal, **undo)
            self.transaction.write(journal)
            step.action.perform()
        return journal

    def _ends(self) -> tuple[Interface, Interface]:
        links = self.kernel.links()
        ends = (Interface(links[name].index, name) for name in (self.move.source, self.move.target))
        return t.cast("tuple[Interface, Interface]", tuple(ends))

    def _burst(self, journal: Journal) -> Layer3:
        """One message after the other, all in one C(sendmsg); what must be there afterwards."""
        source, target = self._ends()
        if self.move.back:
            self._calm(target.name, journal.before.sysctls[source.name])
        have = self.kernel.layer3({source.index, target.index})
        want = target_state(self.order, have, source, target)
        if self.move.back:
            have = self._announce(have, want, source, target)
        messages = batch(have, want, self._master_messages(), links_last=self.move.back)
        answers = self.kernel.send(messages)
        _raise_refused(messages, answers)
        self._look_again(want, source, target)
        return want

    def _announce(self, have: Layer3, want: Layer3, source: Interface, target: Interface) -> Layer3:
        """Give the card its IPv6 addresses a moment before, since they work only when the kernel's worker has run.

        On the way there the card goes on to hear what comes for them; on the way back the bridge is deaf at once.
        """
        there = {timed.address for timed in have.addresses}
        arriving = [
            timed
            for timed in reversed(want.addresses)
            if timed.address.family == AF_INET6 and timed.address not in there and timed.address.index == target.index
        ]
        self.kernel.send([timed.addition() for timed in arriving])
        _kernel.await_addresses(target.name)
        return self.kernel.layer3({source.index, target.index})

    def _look_again(self, want: Layer3, source: Interface, target: Interface) -> None:
        """Mend what the kernel made otherwise than was foreseen, until nothing is left to mend."""
        for _look in range(_LOOKS):
            have = self.kernel.layer3({source.index, target.index})
            wanted = _with_passing(want, have, source)
            left = batch(have, wanted, self._master_messages(), trust_kernel=False, keep_order=False)
            if not left:
                break
            self.kernel.send(left)

    def _master_messages(self) -> list[Message]:
        links = self.kernel.links()
        card, bridge = links[self.move.interface], links[self.move.bridge]
        wanted = None if self.move.back else bridge.name
        if card.master == wanted:
            return []
        return [_kernel.set_link(card.index, master=0 if self.move.back else bridge.index)]

    def _settle(self, journal: Journal, want: Layer3) -> None:
        """The port has no IP of its own any more; the other one has the settings that the first one had."""
        source, target = self.move.source, self.move.target
        _kernel.write_sysctls(source, {_kernel.ADDR_GEN_MODE: "1", _kernel.DISABLE_IPV6: "1"})
        _kernel.await_addresses(target)
        # A bridge that was there before keeps its own settings; any other target has those of the source.
        before = journal.before.sysctls
        had = before[source if self.move.back or journal.created else target]
        kept = had if self.move.back else {key: had[key] for key in _kernel.IN_BETWEEN if key in had}
        _kernel.write_sysctls(target, kept)
        _putback.remove_cable(self.kernel, self.kernel.links())
        ends = self._ends()
        _routers.hear(self.kernel, target, ends[1].index, want)
        self._look_again(want, *ends)

    def _verify(self, want: Layer3) -> None:
        """Read all of it again, and ask the gateways afresh."""
        source, target = self._ends()
        indices = {source.index, target.index}
        loose = self.order.leased or bool(self.order.static)
        if self.order.leased:
            _await(lambda: not _missing(self.kernel.layer3(indices), want, loose=True), _LEASE_PATIENCE)
        elif self.move.mode == "dhcp" and not self.move.back:
            self._await_lease(target)
        missing = _missing(self.kernel.layer3(indices), want, loose=loose)
        if missing:
            raise SystemFailure(
                f"{len(missing)} of the addresses, routes, rules and neighbours did not arrive on {target.name}: "
                f"{', '.join(sorted({type(entry).__name__.lower() for entry in missing}))}."
            )
        back_again = self._left_on(source)
        if back_again:
            raise SystemFailure(
                f"something put {back_again} on {source.name} again after it had moved to {target.name}. See what "
                f"configures {source.name}, and stop it."
            )
        link = self.kernel.links()[self.move.interface]
        if (link.master == self.move.bridge) == self.move.back:
            raise SystemFailure(
                f"{self.move.interface} is {'still' if self.move.back else 'not'} a port of the bridge."
            )
        self._ask_gateways(target.name)

    def _await_lease(self, target: Interface) -> None:
        """A bridge that DHCP shall configure has a leased address, or nobody knows whether it will ever get one."""

        def leased() -> bool:
            return any(
                timed.address.family == AF_INET and timed.lifetimes != Lifetimes()
                for timed in self.kernel.layer3({target.index}).addresses
            )

        if not _await(leased, _LEASE_PATIENCE):
            raise SystemFailure(
                f"address_mode: dhcp, and no server gave {target.name} an address within {_LEASE_PATIENCE:g} seconds."
            )

    def _left_on(self, source: Interface) -> str:
        """The first thing of layer 3 that is on the interface that is to have none."""
        have = self.kernel.layer3({source.index})
        for timed in have.addresses:
            if not timed.address.is_link_local:
                return _words.address(timed)
        for route in have.routes:
            if source.index in route.indices and not is_passing(route):
                return _words.any_entry(route, {source.index: source.name})
        return ""

    def _ask_gateways(self, target: str) -> None:
        gateways = self.order.gateways
        patience = _GATEWAY_PATIENCE + self._listening()
        silent = set(gateways) - _reach.answers(target, gateways, sources=gateways, timeout=patience)
        if silent:
            raise SystemFailure(
                f"{', '.join(sorted(silent))} answered on {self.move.source} before and does not answer on {target}."
            )

    def _must(self, message: Message, failure: str) -> None:
        (refusal,) = self.kernel.send([message])
        if refusal is not None:
            raise SystemFailure(f"{failure}: {refusal}.")


def _lasting(layer3: Layer3) -> Layer3:
    """Without what comes and goes by itself."""
    return dataclasses.replace(
        layer3,
        addresses=tuple(timed for timed in layer3.addresses if timed.lifetimes == Lifetimes()),
        routes=tuple(route for route in layer3.routes if not is_passing(route)),
    )


def _with_passing(want: Layer3, have: Layer3, source: Interface) -> Layer3:
    """With what came of itself meanwhile, on other interfaces than the one that is to have nothing."""
    known = {route.identity for route in want.routes}
    routes = (
        route
        for route in have.routes
        if route.identity not in known and is_passing(route) and source.index not in route.indices
    )
    there = {(timed.address.index, timed.address.local) for timed in want.addresses}
    addresses = [
        timed
        for timed in have.addresses
        if (timed.address.index, timed.address.local) not in there
        and timed.address.index != source.index
        and (timed.lifetimes != Lifetimes() or timed.address.is_link_local)
    ]
    return dataclasses.replace(want.with_addresses(addresses), routes=(*want.routes, *routes))


def _missing(have: Layer3, want: Layer3, *, loose: bool) -> list[Entry]:
    """What is not there; C(loose) where it was made anew: then the address and the destination count."""
    missing = lacks(have, want)
    if not loose:
        return missing
    there = {(timed.address.index, timed.address.local) for timed in have.addresses}
    destinations = {route.group[:4] for route in have.routes}
    return [
        entry
        for entry in missing
        if not (isinstance(entry, Address) and (entry.index, entry.local) in there)
        and not (isinstance(entry, Route) and entry.group[:4] in destinations)
    ]


def _raise_refused(messages: t.Sequence[Message], answers: t.Sequence[t.Optional[Refusal]]) -> None:
    refused = [answer for answer in answers if answer is not None and answer.code not in _HARMLESS]
    if refused:
        raise SystemFailure(
            f"the kernel refused {len(refused)} of {len(messages)} messages of the move, the first with: {refused[0]}."
        )


def _operstate(interface: str) -> str:
    try:
        with open(f"/sys/class/net/{interface}/operstate", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _await(condition: t.Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
