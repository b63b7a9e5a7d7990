# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of lab hosts as hosts of the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guests
short_description: The guests of lab hosts as hosts of the inventory
version_added: 0.1.0
description:
  - Asks each lab host for its networks and guests (M(labspan.vmnet.vmnet_info)), over the connection that the
    inventory has for it, and makes a host of each guest, with the way to it, its facts, and groups that read like a
    map of the lab.
  - The lab hosts are asked at the same time. One that cannot be reached, or fails, is a warning, and the others are
    there.
  - The inventory's file must be named C(guests.yml) or C(guests.yaml), or end with that.
extends_documentation_fragment:
  - constructed
  - inventory_cache
author:
  - The labspan.vmnet authors (@labspan)
requirements:
  - Root on the lab hosts, as for the modules of this collection (C(ansible_user), C(ansible_become) or O(become)).
  - C(socat) on the controller, for guests behind lab hosts with the connection P(labspan.vmnet.netns#connection).
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [labspan.vmnet.guests]
  lab_hosts:
    description:
      - The pattern that the lab hosts match, usually a group. V(localhost) works without any inventory.
    type: str
    default: lab_hosts
  sources:
    description:
      - The inventory sources in which the lab hosts are. Paths are relative to the directory of the inventory's file.
      - Without it, they are looked for in the sources that come before this one in the same inventory. In a directory,
        that is the order of the files' names, so C(hosts.yml) and C(zz-guests.yml).
      - The hosts of these sources do not become hosts of the inventory.
    type: list
    elements: str
    default: []
  jump:
    description:
      - Whether SSH goes to guests through their lab host.
      - With V(auto), it does for guests of networks that are C(private), C(routed) and C(nat), and not for those in
        the LAN (C(l2)).
      - With V(never), the controller must have a way to the guests of its own, such as a route to a network that is
        C(routed).
      - Nothing is jumped through when the controller is the lab host (connection C(local)).
    type: str
    choices: [auto, always, never]
    default: auto
  prefer:
    description: Which addresses come first, where a guest has both.
    type: str
    choices: [ipv4, ipv6]
    default: ipv4
  hostname:
    description:
      - A Jinja2 expression for the name of each guest in the inventory, of the variables that are listed in the notes.
      - The default is the guest's name. Where two lab hosts have a guest of that name, or a lab host has it itself, it
        is C(GUEST.HOST). As that depends on what the other lab hosts have, and on whether they are reached, a fleet
        with guests of the same name had better set this to V(vmnet_guest ~ '.' ~ vmnet_host).
    type: str
  agent:
    description: Whether the agents in the guests are asked for addresses.
    type: bool
    default: true
  become:
    description: Whether to become root on the lab hosts, also where their variables do not say so.
    type: bool
    default: false
  forks:
    description: How many lab hosts are asked at the same time. The default is Ansible's own C(forks).
    type: int
  timeout:
    description: Seconds that each lab host may take for the answer, once it is connected. Zero is without end.
    type: int
    default: 60
notes:
  - Each guest has the variables C(vmnet_guest) (its name), C(vmnet_host) (that of its lab host in the inventory),
    C(vmnet_state), C(vmnet_network_names), C(vmnet_scenarios), C(vmnet_addresses), C(vmnet_macs), C(vmnet_taps),
    C(vmnet_labels), C(vmnet_memory), C(vmnet_cpus), C(vmnet_architecture), C(vmnet_machine), C(vmnet_firmware),
    C(vmnet_accelerator), C(vmnet_user), C(vmnet_unit), C(vmnet_autostart), C(vmnet_guest_agent),
    C(vmnet_pending_restart), C(vmnet_nics) and C(vmnet_disks), as M(labspan.vmnet.vmnet_info) returns them.
  - All guests are in the group C(vmnet_guests), which has a group C(vmnet_host_HOST) for each lab host, and those have
    a group C(vmnet_host_HOST_network_NETWORK) for each of its networks. Across lab hosts, there are
    C(vmnet_network_NETWORK), C(vmnet_scenario_SCENARIO), C(vmnet_state_STATE), and C(vmnet_label_KEY_VALUE), or
    C(vmnet_label_KEY) for labels without value.
  - C(ansible_host) is the best of the guest's addresses to which its lab host has a way. A lease comes before the word
    of the agent in the guest, that before the host's neighbour table, and an address that the DHCP server merely keeps
    for the guest comes last.
  - Guests without such an address, those of C(private) networks first of all, have the connection
    P(labspan.vmnet.guest#connection), and so have guests behind a lab host that SSH needs a password for, since nobody
    could type it on the way through. So have guests that do not run, of which it says so. In no case a guest's name is
    looked up in the DNS.
  - C(ansible_connection) is set for each guest, so that what is said of all hosts, such as C(local), is not taken to be
    about guests. Where it should be another one, O(compose) sets it.
  - The way through a lab host is in C(ansible_ssh_common_args) of each guest. Arguments of your own belong into
    C(ansible_ssh_extra_args). Host keys of guests are known as C(GUEST.HOST), not by address.
  - How to log in is not known here. Set C(ansible_user) and the key for the group C(vmnet_guests).
  - With O(cache), what the lab hosts told is kept, for each by itself; those that could not be reached are asked
    again. Nothing that came out of a vault is in it.
  - A password for the vault, or one for C(become), that Ansible asks for at the terminal (C(--ask-become-pass)) is not
    known here. Those that are variables are.
seealso:
  - module: labspan.vmnet.vmnet_info
  - plugin: labspan.vmnet.guest
    plugin_type: connection
"""

EXAMPLES = r"""
# guests.yml: the guests of this machine
plugin: labspan.vmnet.guests
lab_hosts: localhost
become: true
---
# guests.yml: the guests of all hosts in the group lab_hosts of another file
plugin: labspan.vmnet.guests
sources: [hosts.yml]
---
# inventory/zz-guests.yml: beside inventory/hosts.yml, in a fleet where guests have the same names everywhere
plugin: labspan.vmnet.guests
lab_hosts: lab_hosts:!spare
hostname: vmnet_guest ~ '.' ~ vmnet_host
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/labspan
cache_timeout: 300
compose:
  ansible_user: "'admin' if 'debian' in vmnet_labels.get('os', '') else 'root'"
groups:
  databases: vmnet_labels.role | default('') == 'db'
keyed_groups:
  - key: vmnet_architecture
    prefix: arch
"""

import os
import typing as t

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _ask, _guest_map, _lab_hosts

FILES = ("guests.yml", "guests.yaml")

# A change of what is kept makes it another.
_KEPT = "1"


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The plugin."""

    NAME = "labspan.vmnet.guests"

    _being_read: t.ClassVar[set[str]] = set()

    def verify_file(self, path: str) -> bool:
        return path.endswith(FILES) and os.access(path, os.R_OK)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._untyped._read_config_data(path)
        if path in self._being_read:
            raise AnsibleParserError("sources: lead back to this file. Name the files that the lab hosts are in.")
        self._being_read.add(path)
        try:
            self._parse(path, cache)
        finally:
            self._being_read.discard(path)

    def _parse(self, path: str, cache: bool) -> None:
        hosts = self._hosts(path)
        answers = self._answers(path, hosts, cache)
        settings = _guest_map.Settings(jump=self._option("jump"), prefer=self._option("prefer"))
        groups: list[_guest_map.Group] = []
        guests: list[_guest_map.Guest] = []
        for host in hosts:
            if host.name in answers:
                drawn = _guest_map.draw(host, answers[host.name], settings)
                groups += drawn[0]
                guests += drawn[1]
        for group in _guest_map.in_order(groups):
            self._untyped.inventory.add_group(group.name)
            if group.parent is not None:
                self._untyped.inventory.add_child(group.parent, group.name)
        for name, guest in zip(self._names(guests, {host.name for host in hosts}), guests):
            self._add(name, guest)

    def _hosts(self, path: str) -> list[_guest_map.LabHost]:
        """The lab hosts that can be asked."""
        pattern, given = self._option("lab_hosts"), self._option("sources")
        beside = os.path.dirname(os.path.abspath(path))
        sources = [source if "," in source else os.path.join(beside, os.path.expanduser(source)) for source in given]
        for source in sources:
            if "," not in source and not os.path.exists(source):
                raise AnsibleParserError(f"sources: {source} is not there; paths are relative to {beside}.")
        sources_of_hosts = sources or self._untyped.inventory.processed_sources
        hosts, problems = _lab_hosts.find(self.loader, sources_of_hosts, pattern, become=self._option("become"))
        for name, problem in problems.items():
            self._warn(name, problem)
        if not hosts and not problems:
            where = ", ".join(sources) if sources else "the inventory that comes before this file"
            raise AnsibleParserError(
                f"lab_hosts: no host in {where} matches {pattern!r}. Name the lab hosts' group with lab_hosts, and the "
                "files that they are in with sources."
            )
        return hosts

    def _answers(
        self, path: str, hosts: t.Sequence[_guest_map.LabHost], cache: bool
    ) -> dict[str, t.Mapping[str, t.Any]]:
        """What each lab host tells, or told a while ago."""
        request = _ask.Request(
            {"gather": ["networks", "bridges", "guests"], "agent": self._option("agent")},
            forks=self._option("forks"),
            timeout=self._option("timeout"),
        )
        keeps = self._option("cache")
        keys = {host.name: self.get_cache_key(f"{path}\0{host.name}\0{_KEPT}") for host in hosts}
        found = {}
        if keeps and cache:
            for name, key in keys.items():
                kept = self._kept(key)
                if kept is not None:
                    found[name] = kept
        answers = _ask.ask([host for host in hosts if host.name not in found], request)
        for name, problem in answers.problems.items():
            self._warn(name, problem)
        for name, told in answers.told.items():
            found[name] = told
            if keeps:
                self._cache[keys[name]] = dict(told)
        return found

    def _kept(self, key: str) -> t.Optional[t.Mapping[str, t.Any]]:
        try:
            kept = self._cache[key]
        except KeyError:
            return None
        return kept if isinstance(kept, t.Mapping) else None

    def _names(self, guests: t.Sequence[_guest_map.Guest], taken: t.Collection[str]) -> list[str]:
        expression = self._option("hostname")
        if not expression:
            return _guest_map.names(guests, taken)
        found: list[str] = []
        for guest in guests:
            try:
                name = str(self._untyped._compose(expression, dict(guest.variables)))
            except AnsibleError as error:
                raise AnsibleParserError(f"hostname: {expression!r} fails for guest {guest.guest}: {error}") from error
            if not name or name in found or name in taken:
                raise AnsibleParserError(
                    f"hostname: {expression!r} makes {name!r} of guest {guest.guest} on {guest.host}, which is the "
                    "name of another guest or lab host, or none. Have vmnet_host in it."
                )
            found.append(name)
        return found

    def _add(self, name: str, guest: _guest_map.Guest) -> None:
        self._untyped.inventory.add_host(name)
        for group in guest.groups:
            self._untyped.inventory.add_child(group, name)
        variables = dict(guest.variables)
        variables["vmnet_host_connection"] = _lab_hosts.shown(variables["vmnet_host_connection"])
        for variable, value in variables.items():
            self._untyped.inventory.set_variable(name, variable, value)
        strict = self._option("strict")
        self._untyped._set_composite_vars(self._option("compose"), variables, name, strict)
        self._untyped._add_host_to_composed_groups(self._option("groups"), variables, name, strict)
        self._untyped._add_host_to_keyed_groups(self._option("keyed_groups"), variables, name, strict)

    def _warn(self, host: str, problem: str) -> None:
        self.display.warning(f"The guests of {host} are not in the inventory: {problem}")

    @property
    def _untyped(self) -> t.Any:
        """Itself; what it inherits has no types."""
        return self

    def _option(self, name: str) -> t.Any:
        return self._untyped.get_option(name)
