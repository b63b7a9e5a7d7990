# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way back: whatever became of the two interfaces, they are made again what the journal says they were.

It looks at the difference between then and now, so it does not matter where a move was interrupted, nor whether an
earlier attempt to go back was. Of the standard library alone: the dead-man carries this file.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import signal
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _journal, _kernel, _routers
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._journal import Journal, Transaction
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import Kernel, Snapshot
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._moves import Layer3, batch, is_passing, lacks
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import Action
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import Message

#: The cable that gives a new bridge a carrier before the card is there.
CABLE = ("labspan-c0", "labspan-c1")
# How often the state is looked at again and mended.
_LOOKS = 4
_ANY = (_journal.PREPARED, _journal.MOVING, _journal.MOVED, _journal.ROLLING_BACK, _journal.STUCK)


def put_back(transaction: Transaction, reason: str) -> bool:
    """Go back for this reason, unless the move was confirmed meanwhile; whether the host is as it was before.

    Raises when it could not be made so; the transaction is then C(stuck), and may be put back again.
    """
    if not transaction.advance(_ANY, _journal.ROLLING_BACK, reason):
        phase = transaction.phase()
        return phase is not None and phase.name == _journal.ROLLED_BACK
    journal = transaction.read()
    kernel = Kernel()
    try:
        failures = _undo(journal.undo_after)
        failures += restore(kernel, journal)
        if journal.undo_before:
            failures += _undo(journal.undo_before)
            # A manager that takes the card again may begin with what it knows of, and drop the rest.
            _converge(kernel, journal.before, journal)
    finally:
        kernel.close()
    if failures:
        transaction.advance((_journal.ROLLING_BACK,), _journal.STUCK, f"{reason} {' '.join(failures)}")
        raise SystemFailure(f"{reason} The way back did not succeed wholly: {' '.join(failures)}")
    transaction.advance((_journal.ROLLING_BACK,), _journal.ROLLED_BACK)
    transaction.forget()
    return True


def _undo(actions: t.Sequence[Action]) -> list[str]:
    failures = []
    for action in actions:
        try:
            action.perform()
        except Exception as error:  # pylint: disable=broad-except  # the rest of the way back matters more
            failures.append(str(error))
    return failures


def stop_mover(journal: Journal) -> None:
    """End the process that moves, so that nobody moves on while another goes back."""
    _process.send(journal.mover, signal.SIGKILL)
    _process.wait_gone([journal.mover], 5.0)


def restore(kernel: Kernel, journal: Journal) -> list[str]:
    """Make the two interfaces what they were; sentences about what could not be done."""
    before = journal.before
    links = kernel.links()
    card = before.links[journal.interface]
    if links.get(card.name) is None or links[card.name].index != card.index:
        return [f"The network card {card.name} is gone; there is nothing to put its addresses on."]
    remove_cable(kernel, links)
    _calm(before, links)
    kernel.send([*_restored_links(before, links, to_up=True)])
    _converge(kernel, before, journal)
    failures = _remove_bridge(kernel, journal) if journal.created else []
    _kernel.await_addresses(*before.links)
    for name in before.links:
        _kernel.write_sysctls(name, before.sysctls[name])
    kernel.send(_restored_links(before, kernel.links(), to_up=False))
    for link in before.links.values():
        _routers.hear(kernel, link.name, link.index, _of(before.layer3, link.index))
    left = _converge(kernel, before, journal)
    if left:
        failures.append(
            f"{len(left)} of the addresses, routes, rules and neighbours of before could not be made again."
        )
    return failures


def _of(layer3: Layer3, index: int) -> Layer3:
    return Layer3(routes=tuple(route for route in layer3.routes if index in route.indices))


def remove_cable(kernel: Kernel, links: t.Mapping[str, Link]) -> None:
    """Take away the cable that gave a new bridge its carrier, if it is there still."""
    cable = links.get(CABLE[0])
    if cable is not None and cable.kind == "veth":
        kernel.send([_kernel.delete_link(cable.index)])


def _calm(before: Snapshot, links: t.Mapping[str, Link]) -> None:
    """Have the interfaces take addresses as they are given, IPv6 where there was IPv6."""
    for name, sysctls in before.sysctls.items():
        if name in links:
            _kernel.write_sysctls(name, {key: value for key, value in _kernel.IN_BETWEEN.items() if key in sysctls})
            if sysctls.get(_kernel.DISABLE_IPV6) == "0":
                _kernel.write_sysctls(name, {_kernel.DISABLE_IPV6: "0"})


def _restored_links(before: Snapshot, links: t.Mapping[str, Link], *, to_up: bool) -> list[Message]:
    """What differs of MAC address and size; whether an interface is up before its addresses come, or down after all."""
    messages = []
    for name, link in before.links.items():
        found = links.get(name)
        if found is None:
            continue
        wanted: dict[str, t.Any] = {}
        if found.mtu != link.mtu:
            wanted["mtu"] = link.mtu
        if found.mac != link.mac:
            wanted["mac"] = link.mac
        if found.alias != link.alias:
            wanted["alias"] = link.alias
        if found.up != link.up and link.up == to_up:
            wanted["up"] = link.up
        if wanted:
            messages.append(_kernel.set_link(link.index, **wanted))
    return messages


def _converge(kernel: Kernel, before: Snapshot, journal: Journal) -> list[str]:
    """Send what differs from the state of before until nothing does; what is left of it."""
    indices = {link.index for link in before.links.values()}
    bridge = kernel.links().get(journal.bridge)
    if bridge is not None:
        indices.add(bridge.index)
    for look in range(_LOOKS):
        have = kernel.layer3(indices)
        want = _wanted(before, have)
        # What was moved there is taken back from a bridge, what was moved back is put under it again.
        masters = _masters(before, kernel.links())
        messages = batch(have, want, masters, trust_kernel=look == 0, links_last=not journal.back)
        if not messages:
            break
        kernel.send(messages)
    return [str(entry) for entry in lacks(kernel.layer3(indices), _wanted(before, have))]


def _wanted(before: Snapshot, have: Layer3) -> Layer3:
    """The state of before, by now; what others keep up by themselves (leases, router advertisements) as it is."""
    aged = before.aged(_kernel.now() - before.taken)
    there = {route.identity for route in aged.routes}
    indices = {link.index for link in before.links.values()}
    passing = [
        route
        for route in have.routes
        if route.identity not in there and is_passing(route) and not route.indices & indices
    ]
    return Layer3((*aged.addresses,), (*aged.routes, *passing), aged.rules, aged.neighbours)


def _masters(before: Snapshot, links: t.Mapping[str, Link]) -> list[Message]:
    """The requests that make the interfaces ports of what they were ports of."""
    messages = []
    for name, link in before.links.items():
        if name in links and links[name].master != link.master:
            master = links[link.master].index if link.master and link.master in links else 0
            messages.append(_kernel.set_link(link.index, master=master))
    return messages


def _remove_bridge(kernel: Kernel, journal: Journal) -> list[str]:
    links = kernel.links()
    bridge = links.get(journal.bridge)
    if bridge is None:
        return []
    ports = [name for name, link in links.items() if link.master == journal.bridge]
    if ports:
        return [f"The bridge {journal.bridge} stays, since {', '.join(sorted(ports))} became a port of it meanwhile."]
    kernel.send([_kernel.delete_link(bridge.index)])
    return []
