#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge_uplink
short_description: Put the host's own network card under a bridge, and come back when that locks anybody out
description:
  - "Makes the network card that the host itself uses a port of a bridge, and moves every address and route, rule and
    neighbour of the card to the bridge in one batch of netlink messages: connections live, and no packet is lost. Guests
    on the bridge are then peers on the host's LAN."
  - "The move is guarded. Before anything is touched, the state of the host is written down and a process of its own (a
    service where systemd runs) is set to restore it. Afterwards the gateways are asked afresh, and the controller must
    confirm the move over a B(new) connection. Otherwise everything goes back to what it was, and the task fails and says
    why."
  - "Only then is the configuration of the host's network manager written (systemd-networkd, netplan, NetworkManager,
    ifupdown), so that a power cut in the middle boots the host as it was. What a manager must do at run time to follow the
    addresses (a DHCP client changes over, systemd-networkd is restarted, NetworkManager gets a profile) is done under the
    guard, in the way that was measured to lose nothing."
  - "O(state=absent) moves everything back in the same way."
version_added: 0.1.0
author:
  - The labspan.vmnet authors (@labspan)
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
attributes:
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: none
    details: "The controller's confirmation is part of the task."
options:
  bridge:
    description:
      - "The bridge. It is made with the card's MAC address and MTU, without spanning tree and multicast snooping. One that
        is there already is used when it has no other owner, so that a host on which the move was begun by hand converges."
    type: str
    required: true
  interface:
    description:
      - "The network card: wired Ethernet, with a carrier."
    type: str
    required: true
  network:
    description:
      - "The network's name, which goes into the bridge's alias as its owner. By default the bridge's name."
    type: str
  state:
    description:
      - "V(present): the card is a port of the bridge, which has the addresses."
      - "V(absent): the card has its addresses again; the bridge is removed if it was made by this module, and the files of
        before are brought back. Refused while the bridge has other ports, unless O(force)."
    type: str
    choices: [present, absent]
    default: present
  address_mode:
    description:
      - "V(move): the bridge gets all that the card has. When a DHCP client runs the card, the client goes on on the bridge
        with the same lease and the same identity, so that the address stays."
      - "V(dhcp): as V(move), and the bridge is configured by DHCP even if the card was not. Unless a server gives it an
        address within 30 seconds, all goes back. From the next boot on it has what DHCP and router advertisements give."
      - "V(static): the bridge gets O(addresses) and O(gateway) instead of the card's addresses and default routes; all
        else moves. Refused when the card has a default route of a family for which no O(gateway) is given."
      - "V(none): the host has no address on this LAN but its IPv6 link-local one; refused when the card has any other."
      - "With O(state=absent) it says nothing: the card gets all that the bridge has, its DHCP client included."
    type: str
    choices: [move, dhcp, static, none]
    default: move
  addresses:
    description:
      - "For O(address_mode=static): addresses with prefix length, IPv4 and IPv6."
    type: list
    elements: str
  gateway:
    description:
      - "For O(address_mode=static): the default gateway, one for each family at most."
    type: list
    elements: str
  dns:
    description:
      - "For O(address_mode=static): name servers for the manager's configuration."
    type: list
    elements: str
  mac:
    description:
      - "V(interface): the bridge has the card's MAC address, by which DHCP servers and switches know the host. V(keep): a
        bridge that is there keeps its own. Or a MAC address."
    type: str
    default: interface
  stp:
    description:
      - "Whether a bridge that is made takes part in the spanning tree. The LAN is silent for twice O(forward_delay) then."
    type: bool
    default: false
  forward_delay:
    description:
      - "With O(stp): seconds in the listening and in the learning state."
    type: float
    default: 15
  confirm_timeout:
    description:
      - "Seconds that the host waits for the controller's confirmation before it goes back; 5 to 3600, and at least twice
        O(forward_delay) and 30 seconds with O(stp)."
    type: float
    default: 90
  probe:
    description:
      - "What must answer ARP or neighbour solicitations after the move: V(gateway) for those gateways of the card's routes
        that answer before, V(none), or a list of addresses on the LAN."
    type: list
    elements: str
    default: [gateway]
  persistent:
    description:
      - "Whether the configuration of the host's network manager is written, after the confirmation, so that the next boot
        has the bridge. Without, a reboot undoes the move."
    type: bool
    default: true
  accept_risk:
    description:
      - "Go on although firewall rules, traffic control or sockets name the card, and will not see its packets any more.
        They are warned of then instead of refused. The guard is the same."
      - "Go on also where nobody guards the move: with C(connection: local) in an SSH login on the host itself."
    type: bool
    default: false
  force:
    description:
      - "Take over a bridge that belongs to another network of this collection, or has a name that another program uses."
      - "With O(state=absent): also when the bridge has other ports, which lose their network, when it was not made by
        this collection, and when somebody else changed the files that were written for it. Those are kept in
        C(/var/lib/labspan/uplink) before the files of before come back."
    type: bool
    default: false
  transaction:
    description:
      - "Internal: the controller's name for the move. Set by the action plugin; a task must not set it."
    type: str
  step:
    description:
      - "Internal: the part of the move that is asked for. Set by the action plugin; a task must not set it."
    type: str
    choices: [begin, confirm, status]
    default: begin
  local:
    description:
      - "Internal: whether the controller is the host itself. Set by the action plugin; a task must not set it."
    type: bool
    default: false
notes:
  - "Moving takes one run of the module; it is confirmed by a second one over a new connection. The connection plugin's own
    persistence (C(ControlPersist)) is ended in between."
  - "In check mode the gateways are not asked, since that is a packet on the wire."
  - "What happens second by second is in the collection's C(docs/uplink.md)."
seealso:
  - module: labspan.vmnet.linux_bridge
    description: Bridges that the host's own network does not run over.
  - module: labspan.vmnet.port_security
    description: What guests on the LAN may send.
"""

EXAMPLES = r"""
- name: Make the host's network card a port of br0
  labspan.vmnet.bridge_uplink:
    bridge: br0
    interface: eth0

- name: See what would be moved, written, and put at risk
  labspan.vmnet.bridge_uplink:
    bridge: br0
    interface: eth0
  check_mode: true
  diff: true

- name: Until the next reboot only, and without much patience
  labspan.vmnet.bridge_uplink:
    bridge: br0
    interface: eth0
    persistent: false
    confirm_timeout: 30

- name: Give the bridge a static address
  labspan.vmnet.bridge_uplink:
    bridge: br0
    interface: eth0
    address_mode: static
    addresses: [192.0.2.10/24, "2001:db8:1::10/64"]
    gateway: [192.0.2.1, "2001:db8:1::1"]
    dns: [192.0.2.1]

- name: Give the card its addresses back and remove the bridge
  labspan.vmnet.bridge_uplink:
    bridge: br0
    interface: eth0
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, as sentences in order.
  type: list
  elements: str
  returned: success
  sample: ["Make the bridge br0 with the MAC address 02:00:00:00:00:10", "Make eth0 a port of br0",
           "Move 192.0.2.10/24 from eth0 to br0"]
at_risk:
  description: The established TCP connections to addresses that move, which live on if all goes well.
  type: list
  elements: str
  returned: when something was moved, or would be
  sample: ["192.0.2.5:51000 to 192.0.2.10:22"]
phase:
  description:
    - "V(confirmed) after a move, V(planned) in check mode, V(at rest) when there was nothing to move."
    - "Of a task that failed after the move had begun, if the host still says so: V(rolled back), for instance."
  type: str
  returned: success, and when a move failed
  sample: confirmed
gateways:
  description: The gateways that answered before the move and had to answer after it.
  type: list
  elements: str
  returned: when something was moved
  sample: [192.0.2.1]
refusals:
  description: Why the card is not moved, a sentence each.
  type: list
  elements: str
  returned: when the task was refused
  sample: []
transaction:
  description: The name of the move.
  type: str
  returned: success
  sample: 5f0c2b7d9a1e4c33
uplinks:
  description: The uplink, as a list of one.
  type: list
  elements: dict
  returned: success
  sample: []
uplink:
  description: The uplink as it is now, or would be in check mode.
  type: dict
  returned: success
  contains:
    name:
      description: The bridge.
      type: str
      sample: br0
    exists:
      description: Whether the bridge is there.
      type: bool
      sample: true
    interface:
      description: The network card.
      type: str
      sample: eth0
    is_port:
      description: Whether the card is a port of the bridge.
      type: bool
      sample: true
    manager:
      description: What configures the card at boot; V(none) for nothing that is known.
      type: str
      sample: networkd
    mac_address:
      description: The bridge's MAC address.
      type: str
      sample: "02:00:00:00:00:10"
    addresses:
      description: The bridge's addresses; those with an end are marked C(dynamic).
      type: list
      elements: str
      sample: [192.0.2.10/24]
    routes:
      description: The routes over the bridge, of every table.
      type: list
      elements: str
      sample: ["default via 192.0.2.1 dev br0"]
    rules:
      description: The routing rules that name the bridge.
      type: list
      elements: str
      sample: []
    interface_mac_address:
      description: The card's MAC address.
      type: str
      sample: "02:00:00:00:00:10"
    interface_addresses:
      description: As RV(uplink.addresses), of the card.
      type: list
      elements: str
      sample: []
    interface_routes:
      description: As RV(uplink.routes), of the card.
      type: list
      elements: str
      sample: []
    interface_rules:
      description: As RV(uplink.rules), of the card.
      type: list
      elements: str
      sample: []
    files:
      description:
        - The files of the manager's configuration that belong to the uplink, each with its lines. Of a file that not
          everybody on the host may read, which may hold secrets, only a checksum is shown.
      type: dict
      sample: {}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _resource

OPTIONS = {
    "bridge": {"type": "str", "required": True},
    "interface": {"type": "str", "required": True},
    "network": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "address_mode": {"type": "str", "choices": ["move", "dhcp", "static", "none"], "default": "move"},
    "addresses": {"type": "list", "elements": "str"},
    "gateway": {"type": "list", "elements": "str"},
    "dns": {"type": "list", "elements": "str"},
    "mac": {"type": "str", "default": "interface"},
    "stp": {"type": "bool", "default": False},
    "forward_delay": {"type": "float", "default": 15},
    "confirm_timeout": {"type": "float", "default": 90},
    "probe": {"type": "list", "elements": "str", "default": ["gateway"]},
    "persistent": {"type": "bool", "default": True},
    "accept_risk": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "transaction": {"type": "str"},
    "step": {"type": "str", "choices": ["begin", "confirm", "status"], "default": "begin"},
    "local": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    _runner.run(module, lambda params: [_resource.build(params, check_mode=module.check_mode)])


if __name__ == "__main__":
    main()
