# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taps that last.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import functools
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _interfaces, _link_text
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._interfaces import (
    LINKS,
    VLANS,
    Edit,
    InterfaceFiles,
    Item,
    KeepOff,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import Directories
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._tap_plan import Tap, WantedTap
from ansible_collections.labspan.vmnet.plugins.module_utils._taps import TapDevices, TapsState


def lasting(sources: t.Sequence[tuple[TapDevices, t.Sequence[Options]]]) -> tuple[KeepOff, TapFiles]:
    """What stands before all resources of taps of a task, and after them, to make those taps last."""
    items = items_of(sources)
    return KeepOff(("tap", items)), TapFiles([taps for taps, _options in sources], items)


def items_of(sources: t.Sequence[tuple[TapDevices, t.Sequence[Options]]]) -> t.Callable[[], t.Sequence[Item]]:
    """What the options say about the lasting of the taps, found out when it is first asked for."""

    @functools.cache
    def items() -> t.Sequence[Item]:
        return [item for taps, options in sources for item in _interfaces.lasting_items("tap", taps.wanted(), options)]

    return items


def between(taps: TapDevices, options: t.Sequence[Options]) -> list[Resource[t.Any]]:
    """Taps between what has to be told before them, and what is written after them for the next boot."""
    before, after = lasting([(taps, options)])
    return [before, taps, after]


class TapFiles(InterfaceFiles):
    """The sections of taps."""

    def __init__(self, sources: t.Sequence[TapDevices], items: t.Callable[[], t.Sequence[Item]]) -> None:
        super().__init__(items)
        self._sources = sources

    def contribute(self, directories: Directories, ahead: t.Mapping[str, t.Any]) -> Directories:
        edit = Edit(directories)
        wanted = [
            (want, t.cast(TapsState, ahead[taps.plural]).taps.get(want.name))
            for taps in self._sources
            for want in taps.wanted()
        ]
        items = {(item.name, item.present): item for item in self._items()}
        for want, tap in wanted:
            if tap is None or not want.present or not edit.lasts("tap", items[want.name, want.present]):
                edit.drop(want.network, f"tap {want.name}")
            else:
                _put_in(edit, want, tap)
        return edit.result(self._networks())


def _put_in(edit: Edit, want: WantedTap, tap: Tap) -> None:
    heading = f"tap {want.name}"
    edit.drop_elsewhere(want.network, heading)
    links = edit.sections(want.network, LINKS)
    vnet_hdr = _link_text.has_vnet_hdr(links.get(heading, ())) if want.vnet_hdr is None else want.vnet_hdr
    links[heading] = tuple(_link_text.tap_lines(tap, vnet_hdr=vnet_hdr))
    if want.vlans is not None and tap.attachment is not None:
        edit.sections(want.network, VLANS)[heading] = tuple(_link_text.vlan_lines(want.name, want.vlans))
    elif tap.attachment is None:
        edit.sections(want.network, VLANS).pop(heading, None)
