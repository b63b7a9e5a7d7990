# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that a host shall hold, as one list of resources for one run.

What goes, goes first, so that a network may have the subnet, the bridge or the name of a tap of one that it replaces;
and guests before what they hang on. What comes is planned in the world that is left then. Files are written last: the
lock of the run is held until then, so that nobody loads rules again that have just been removed.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _dnsmasq, _netlink, _values
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import (
    _bridge_files,
    _interfaces,
    _rules_files,
    _tap_files,
    _together,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import NetworkFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._bridges import Bridges
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import (
    _lasting,
    _networks,
    _options,
    _port_security,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import (
    _exclusive,
    _language,
    _removed,
    _result,
    _scenarios,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._language import L2
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import Lab
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._traces import Traces
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Outcome, Resource
from ansible_collections.labspan.vmnet.plugins.module_utils._taps import TapDevices

if t.TYPE_CHECKING:
    from ansible_collections.labspan.vmnet.plugins.module_utils._lab._guests import Parts

_Resources = t.List[Resource[t.Any]]
_TapSource = t.Tuple[TapDevices, t.Sequence[Options]]


class LabHost:
    """One run of lab_host: what it asks for, and what is told of it."""

    def __init__(self, *, check_mode: bool) -> None:
        self._check_mode = check_mode
        self._made: t.Optional[_Composer] = None

    def build(self, params: Options) -> _Resources:
        """The resources that the module's options ask for."""
        lab, traces = _expand(params), Traces()
        remarks: list[str] = []
        if params["exclusive"]:
            lab, remarks = _exclusive.with_leftovers(lab, traces)
        if any(network.scenario == L2 for network in lab.networks.values()):
            remarks += _exclusive.uplinks_that_stay(lab)
        self._made = _Composer(lab, traces, self._check_mode, exclusive=params["exclusive"], remarks=remarks)
        return self._made.resources()

    def present(self, outcome: Outcome) -> dict[str, t.Any]:
        """The result."""
        made = t.cast(_Composer, self._made)
        return _result.present(made.lab, _result.Subjects(made.lab, made.taps, made.tap_guests), outcome)

    @property
    def is_empty(self) -> bool:
        """Whether the task leaves no network and no guest that it names."""
        lab = t.cast(_Composer, self._made).lab
        states = [*(network.state for network in lab.networks.values()), *(guest["state"] for guest in lab.guests)]
        return all(state == "absent" for state in states)


def _expand(params: Options) -> Lab:
    """What each module would be told; refuses what cannot be right."""
    lab = _scenarios.expand(
        params["networks"],
        params["guests"],
        state=params["state"],
        account=params["account"],
        persistent=params["persistent"],
        identity=_values.host_identity(),
        protected=_protected,
        parts=params["parts"],
    )
    if params["exclusive"] and set(params["parts"]) != set(_language.PARTS):
        raise InvalidInput("exclusive", True, "goes with both parts: what is left out is not known to be unwanted.")
    return lab


class _Composer:
    def __init__(
        self, lab: Lab, traces: Traces, check_mode: bool, *, exclusive: bool, remarks: t.Sequence[str]
    ) -> None:
        self._exclusive = exclusive
        self._remarks = remarks
        self.lab = lab
        self.taps: list[Options] = []
        """The options of all taps that come or go."""
        self.tap_guests: dict[str, str] = {}
        """The guests of taps."""
        self._traces = traces
        self._check_mode = check_mode
        self._files: list[NetworkFiles] = []
        self._keep_off: list[tuple[str, t.Callable[[], t.Sequence[_interfaces.Item]]]] = []
        self._bridge_of = {network.bridge: network.name for network in lab.networks.values()}

    def resources(self) -> _Resources:
        """Everything in its order."""
        guests = self._guests()
        servers, removed_servers = self._servers()
        rules, removed_rules = self._rules()
        filters, removed_filters = self._port_security()
        bridges, removed_bridges = self._bridges()
        taps, removed_taps, left_taps = self._taps(guests)
        before: _Resources = [
            *(guests.first if guests else ()),
            *(guests.removed if guests else ()),
            *removed_servers,
            *removed_rules,
            *removed_taps,
            *removed_filters,
            *removed_bridges,
        ]
        after: _Resources = [*bridges, *filters, *taps, *rules, *servers, *(guests.main if guests else ()), *left_taps]
        keep_off: _Resources = [_interfaces.KeepOff(*self._keep_off)] if self._keep_off else []
        files: _Resources = [_together.FilesTogether(self._files)] if self._files else []
        if self._remarks:
            before.insert(0, _removed.Remarks(self._remarks))
        return [*before, *keep_off, *after, *files, *(guests.last if guests else ())]

    def _servers(self) -> tuple[_Resources, _Resources]:
        coming, going = _split(self.lab.servers)
        going = [options for options in going if self._traces.has_server(options["name"])]
        return (
            [self._servers_of(_removed.Servers, coming)] if coming else [],
            [self._servers_of(_removed.RemovedServers, going)] if going else [],
        )

    def _servers_of(self, kind: type[_removed.Servers], items: t.Sequence[Options]) -> Resource[t.Any]:
        wishes = [_dnsmasq.read_wish(f"network {options['name']}: dhcp.", options) for options in items]
        return kind(wishes, check_mode=self._check_mode)

    def _rules(self) -> tuple[_Resources, _Resources]:
        coming, going = _split(self.lab.rules)
        going = [options for options in going if self._traces.has_rules(options["name"])]
        asked = [[_options.asked(each, f"network {each['name']}: ") for each in some] for some in (coming, going)]
        if coming or going:
            entries = _networks.lasting_entries([*asked[1], *asked[0]])
            owns = _rules_files.is_of_networks
            plural = _removed.Rules.plural
            self._files.append(_rules_files.RulesFiles(entries, _networks.files_of, owns, follows=plural))
        return (
            [_removed.Rules(asked[0])] if coming else [],
            [_removed.RemovedRules(asked[1])] if going else [],
        )

    def _port_security(self) -> tuple[_Resources, _Resources]:
        coming, going = _split(self.lab.port_security)
        going = [options for options in going if self._traces.has_port_security(options["name"])]
        made: list[_Resources] = []
        entries: list[_rules_files.Entry] = []
        for kind, some in ((_removed.RemovedPortSecurity, going), (_removed.PortSecurity, coming)):
            if not some:
                made.append([])
                continue
            named = [(f"network {options['name']}: port_security_options.", options) for options in some]
            resource, lasting = _port_security.make(named, kind=kind)
            made.append([resource])
            entries += lasting
        if entries:
            plural = _removed.PortSecurity.plural
            self._files.append(
                _rules_files.RulesFiles(
                    entries, _lasting.port_files, lambda name: name == _rules_files.PORTS, follows=plural
                )
            )
        return made[1], made[0]

    def _bridges(self) -> tuple[_Resources, _Resources]:
        coming, going = _split(self.lab.bridges)
        going = [
            options
            for options in going
            if self._traces.has_interface("bridge", options["name"]) or self._traces.is_closed(options["network"])
        ]
        removed: _Resources = []
        if going:
            names = [options["name"] for options in coming]
            former = _removed.RemovedBridges(going, check_mode=self._check_mode, coming=names)
            removed.append(former)
            self._add_bridges(former, going)
        made: _Resources = []
        if coming:
            bridges = Bridges(coming, check_mode=self._check_mode)
            made.append(bridges)
            self._add_bridges(bridges, coming)
        return made, removed

    def _add_bridges(self, bridges: Bridges, options: t.Sequence[Options]) -> None:
        items = _bridge_files.items_of(bridges, options)
        self._keep_off.append(("bridge", items))
        self._files.append(_bridge_files.BridgeFiles(bridges, items))

    def _taps(self, guests: t.Optional[Parts]) -> tuple[_Resources, _Resources, _Resources]:
        declared, going = _split(self.lab.taps)
        coming = [*declared, *map(self._settled, guests.coming if guests else ())]
        named = {options["name"] for options in coming}
        left = self._former(guests.left if guests else (), named)
        named.update(options["name"] for options in left)
        named.update(guests.used if guests and self._exclusive else ())  # one that is not listed goes with its guest
        going = self._former([*going, *(guests.going if guests else ())], named)
        removed: _Resources = []
        sources: list[_TapSource] = []
        if going:
            former = _removed.RemovedTaps(going, check_mode=self._check_mode)
            removed.append(former)
            sources.append((former, going))
        self.taps = [*going, *left, *coming]
        self.tap_guests = dict(guests.tap_guests) if guests else {}
        made: _Resources = []
        if coming:
            # A tap goes on with its guest to another network of the host.
            taps = TapDevices(coming, check_mode=self._check_mode, taken_from=tuple(self.lab.networks))
            made.append(taps)
            sources.append((taps, coming))
        after: _Resources = []
        if left and guests is not None:
            sources.append((guests.make_left(left), left))
            after.append(sources[-1][0])
        if sources:
            items = _tap_files.items_of(sources)
            self._keep_off.append(("tap", items))
            self._files.append(_tap_files.TapFiles([taps for taps, _options in sources], items))
        return made, removed, after

    def _former(self, taps: t.Iterable[Options], others: t.Container[str]) -> list[Options]:
        """Those of the taps that are there, but for others; each as that of the network that it is marked as."""
        unique = {options["name"]: options for options in taps}
        return [
            self._owned(options)
            for name, options in unique.items()
            if name not in others and self._traces.has_interface("tap", name)
        ]

    def _settled(self, options: Options) -> Options:
        """The tap of a guest, with what is known here of its bridge."""
        bridge = next((each for each in self.lab.bridges if each["name"] == options["bridge"]), None)
        network = self._bridge_of.get(options["bridge"], options["network"])
        lasting = options.get("persistent") == _interfaces.AS_BRIDGE and bridge is not None
        return {
            **options,
            "network": network,
            **({"persistent": bridge["persistent"]} if lasting and bridge is not None else {}),
        }

    def _owned(self, options: Options) -> Options:
        """A tap as that of the network that it is marked as, if that is one of the host's."""
        owner = self._traces.owner(options["name"])
        return {**options, "network": owner} if owner in self.lab.networks else options

    def _guests(self) -> t.Optional[Parts]:
        if not (self.lab.guests or self.lab.accounts):
            return None
        from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _guests

        return _guests.of(self.lab, check_mode=self._check_mode)


def _split(items: t.Iterable[Options]) -> tuple[list[Options], list[Options]]:
    """What is to be there, and what is not."""
    items = list(items)
    going = [options for options in items if options["state"] == "absent"]
    return [options for options in items if options["state"] != "absent"], going


def _protected(bridge: str) -> t.Sequence[str]:
    """The addresses of the host on a bridge, and of the gateways behind it: no guest may take them."""
    with _netlink.Netlink() as netlink:
        own = {str(each.address.ip) for each in netlink.addresses() if each.interface == bridge}
        routers = {each.gateway for each in netlink.routes() if each.interface == bridge and each.gateway}
    return sorted({*own, *routers})
