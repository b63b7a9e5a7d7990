#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_host
short_description: Bring all networks and guests of a host to what an inventory says, in one task
version_added: 0.1.0
description:
  - Does for any number of networks and guests what M(labspan.vmnet.linux_bridge), M(labspan.vmnet.tap_device),
    M(labspan.vmnet.nat_masquerade), M(labspan.vmnet.dhcp_server), M(labspan.vmnet.port_security), M(labspan.vmnet.guest_account)
    and M(labspan.vmnet.qemu_guest) do for one part each, with the same planners. The host is read once; there is one plan and one diff. If
    anything fails, all of it is undone.
  - The collection's C(docs/fleet.md) describes the language of O(networks) and O(guests), and the playbook C(labspan.vmnet.site) that hands
    an inventory's variables to this module.
  - What the task takes away goes first, so that a network may have the subnet, the bridge or the taps of one that it replaces.
  - A network whose scenario changes keeps its bridge and its taps, and guests on it stay up.
  - The uplink of a network of the scenario V(l2) is not moved by this module. M(labspan.vmnet.bridge_uplink) does that, because the move has
    to be confirmed by the controller. The bridge must be there already; filter, taps and guests on it are this module's.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._lab
  - labspan.vmnet._requirements
  - labspan.vmnet._requirements.pyroute2
options:
  networks:
    description:
      - The networks. Each entry takes the variables of its scenario's role, without the role's name in front and with the same defaults.
    type: list
    elements: dict
    default: []
  guests:
    description:
      - Guests beside those of the networks. Each entry takes the options of M(labspan.vmnet.qemu_guest).
    type: list
    elements: dict
    default: []
  parts:
    description:
      - What to see to. What is left out is looked at only for whether it can be right, and stays as it is on the host.
      - Guests that are left out have their leases and the filters of their ports all the same, since these are of the networks.
    type: list
    elements: str
    choices: [networks, guests]
    default: [networks, guests]
  exclusive:
    description:
      - Whether networks and guests go that this collection made on the host and that the task does not list, as do interfaces of
        listed networks.
      - What was adopted is as it was found then. Disks of guests stay. The uplink of an V(l2) network stays, with a warning.
    type: bool
    default: false
  state:
    description:
      - With V(absent), all networks and guests go that the task lists, and with O(exclusive) all that there are.
    type: str
    choices: [present, absent]
    default: present
  account:
    description:
      - The account that guests run as and that owns their taps. It must be there.
      - By default each guest has its own, which is made, and removed with the guest unless disks of it are left.
    type: str
    default: ""
  persistent:
    description:
      - Whether networks are there again after a reboot, if they do not say themselves.
      - V(auto) is V(true) where systemd runs the host.
    type: str
    choices: [auto, 'true', 'false']
    default: auto
  release:
    description:
      - "Internal: what identifies the collection's code. Set by the action plugin; a task must not set it."
    type: str
  code:
    description:
      - "Internal: that code, for a host that does not have it yet. Set by the action plugin; a task must not set it."
    type: str
seealso:
  - module: labspan.vmnet.bridge_uplink
  - module: labspan.vmnet.qemu_guest
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Two networks, and a guest on both of them
  labspan.vmnet.lab_host:
    networks:
      - name: web
        scenario: nat
        subnet: 10.20.0.0/24
        port_forwards:
          - host_port: 8080
            guest_address: 10.20.0.11
            guest_port: 80
      - name: db
        scenario: private
    guests:
      - name: app
        memory: 1G
        disks:
          - size: 10G
        nics:
          - network: web
            address: 10.20.0.11
          - network: db

- name: This host holds one network with two taps and nothing else of this collection
  labspan.vmnet.lab_host:
    exclusive: true
    networks:
      - name: lan
        scenario: routed
        subnet: 10.30.0.0/24
        taps:
          - name: lan1
          - name: lan2

- name: Take everything down that this collection has made
  labspan.vmnet.lab_host:
    exclusive: true
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in order. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Create bridge lan0, Add the address 10.30.0.1/24 to bridge lan0]
networks:
  description: The networks that are listed, and those for which something was done.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The name.
      type: str
      sample: lan
    scenario:
      description: The scenario; null for a network that the task does not list.
      type: str
      sample: routed
    state:
      description: V(present) or V(absent).
      type: str
      sample: present
    bridge:
      description: The bridge; null for a network that the task does not list.
      type: str
      sample: lan0
    addresses:
      description: The addresses of the host on the bridge. Empty for V(l2), where they are of M(labspan.vmnet.bridge_uplink).
      type: list
      elements: str
      sample: [10.30.0.1/24]
    taps:
      description: Its taps, with those that are made for guests.
      type: list
      elements: str
      sample: [lan1, lan2]
    guests:
      description: The guests of the task that have a NIC on its bridge.
      type: list
      elements: str
      sample: []
    lan_routes:
      description: The routes that the LAN needs to reach guests, as C(ip route add) takes them.
      type: list
      elements: str
      sample: [10.30.0.0/24 via 192.0.2.10]
    changed:
      description: Whether anything was done for it.
      type: bool
      sample: true
    actions:
      description: Which of RV(actions) are about it.
      type: list
      elements: str
      sample: [Create bridge lan0, Add the address 10.30.0.1/24 to bridge lan0]
guests:
  description:
    - The guests that are listed, and those for which something was done. Beside what is described here each has what
      RV(labspan.vmnet.qemu_guest#module:guests) has.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The name.
      type: str
      sample: app
    state:
      description: V(running), V(paused), V(stopped), V(broken), V(unknown) or V(absent).
      type: str
      sample: running
    changed:
      description: Whether anything was done for it, its account or the taps that are made for it.
      type: bool
      sample: true
    actions:
      description: Which of RV(actions) are about it.
      type: list
      elements: str
      sample: [Make the account labspan-app, Start guest app]
leases:
  description: As RV(labspan.vmnet.dhcp_server#module:leases).
  type: list
  elements: dict
  returned: success and a network has a DHCP server
  sample: []
forward_blockers:
  description: As RV(labspan.vmnet.nat_masquerade#module:forward_blockers).
  type: list
  elements: str
  returned: success and a network is routed or nat
  sample: []
ended_by:
  description: By what each guest that was stopped has ended, C(powerdown) if its own system did it.
  type: dict
  returned: success and there are guests
  sample: {app: powerdown}
waited:
  description: As RV(labspan.vmnet.qemu_guest#module:waited).
  type: dict
  returned: success and there are guests
  sample: {}
"""

from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed, _carried_code

_as_needed.install()


def main() -> None:
    """Run the module."""
    _carried_code.run("_lab._module")


if __name__ == "__main__":
    main()
