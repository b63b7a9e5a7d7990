# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests as data. Pure.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _spec, _state, _units
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import Places
from ansible_collections.labspan.vmnet.plugins.module_utils._info import _networks
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Guest, Seen
from ansible_collections.labspan.vmnet.plugins.module_utils._info._who import Who

Data = t.Dict[str, t.Any]

_OTHERWISE = "the running guest was started with another command line than the recorded one"
_UNRECORDED = "how the running guest was started is not recorded"

#: Attributes of the definition that are told as they are.
_TOLD = ("network", "user", "memory", "cpus", "architecture", "machine", "firmware")


def render(seen: Seen, who: Who) -> list[Data]:
    """All guests."""
    return [_guest(seen, who, guest) for guest in seen.guests.values()]


def _guest(seen: Seen, who: Who, guest: Guest) -> Data:
    spec = guest.definition.spec if guest.definition is not None else None
    by_systemd = guest.definition is not None and guest.definition.manager == _spec.SYSTEMD
    return {
        "name": guest.name,
        "state": _activity(guest),
        "run_state": None if guest.run_state == _state.UNKNOWN else guest.run_state,
        "pid": guest.process.pid if guest.process is not None else None,
        "unit": _units.unit(guest.name) if by_systemd else None,
        "autostart": guest.enabled,
        **{name: getattr(spec, name) if spec is not None else None for name in _TOLD},
        "accelerator": (guest.definition.accelerator or None) if guest.definition is not None else None,
        "labels": spec.labels.given() if spec is not None else {},
        "guest_agent": spec is not None and spec.guest_agent,
        **_sockets(guest, spec),
        "pending_restart": _pending(guest),
        "nics": [_nic(seen, who, nic) for nic in spec.nics] if spec is not None else [],
        "disks": [_disk(guest, disk) for disk in spec.disks] if spec is not None else [],
    }


def _activity(guest: Guest) -> str:
    if guest.hidden:
        return _state.UNKNOWN
    return _state.GuestState(process=guest.process, run_state=guest.run_state).activity


def _sockets(guest: Guest, spec: t.Optional[_spec.GuestSpec]) -> Data:
    places = Places(guest.name)
    runs = guest.process is not None
    console = spec is not None and spec.console
    return {
        "console_socket": places.console_socket if runs and console else None,
        "console_log": places.console_log if console else None,
        "agent_socket": places.agent_socket if runs and spec is not None and spec.guest_agent else None,
    }


def _pending(guest: Guest) -> list[str]:
    if guest.process is None:
        return []
    if guest.definition is None:
        return [_UNRECORDED]
    return [] if guest.as_defined else [_OTHERWISE]


def _nic(seen: Seen, who: Who, nic: _spec.Nic) -> Data:
    bridge = who.bridge(nic)
    addresses = who.addresses(nic.mac, who.segment(nic))
    return {
        "tap": nic.tap,
        "bridge": bridge,
        "network": _networks.of_bridge(seen, bridge, nic.tap),
        "mac": nic.mac,
        "model": nic.model,
        "link": nic.link,
        "addresses": [{"address": address, "source": source} for address, source in addresses.items()],
    }


def _disk(guest: Guest, disk: _spec.Disk) -> Data:
    return {
        "path": disk.path or None,
        "format": disk.format,
        "bus": disk.bus,
        "media": disk.media,
        "read_only": disk.read_only,
        "base_image": disk.base_image,
        "size": disk.size,
        "allocated": guest.sizes.get(disk.path),
    }
