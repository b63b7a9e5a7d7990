#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: linux_bridge
short_description: Manage Linux bridges, the switches that virtual machines are plugged into
version_added: 0.1.0
description:
  - Creates bridges, gives them addresses and ports, keeps them as described, and removes them.
  - An option that is left out leaves that side of an existing bridge alone.
  - A bridge that somebody else made is adopted. It is converged like any other, and O(state=absent) puts it back as it was
    found instead of deleting it.
  - The ports that lead to virtual machines are managed with M(labspan.vmnet.tap_device).
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
  - labspan.vmnet._requirements.pyroute2
options:
  name:
    description:
      - The name of the bridge, up to 15 characters.
      - Exactly one of O(name) and O(bridges) is required.
    type: str
  bridges:
    description:
      - Many bridges at once. Each entry takes the options of the module; what an entry leaves out comes from the top level.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the bridge, up to 15 characters.
        type: str
        required: true
      state: &state
        description:
          - With V(present), the bridge exists as described.
          - With V(absent), a bridge of ours is taken down and removed, and an adopted one is as it was found. One that is neither
            is left alone, with a warning.
        type: str
        choices: [present, absent]
      network: &network
        description:
          - The network that the bridge belongs to. It is written into the alias of the bridge.
          - A bridge of another network is refused.
          - The default is the name of the bridge.
        type: str
      addresses: &addresses
        description:
          - The addresses of the host on the bridge, IPv4 and IPv6, with prefix length, such as V(192.168.6.10/24).
          - An address that another interface has is refused, as is a subnet that the host reaches through another interface.
        type: list
        elements: str
      exclusive_addresses: &exclusive_addresses
        description:
          - Whether addresses that are not in O(addresses) are removed, where that option is given. Link-local ones stay.
        type: bool
      allow_overlap: &allow_overlap
        description:
          - Make it a warning rather than an error that the host reaches a part of the subnet through another interface.
        type: bool
      host_access: &host_access
        description:
          - V(false) closes the host off on the bridge. It has no address and no IPv6 there, and whatever guests send to the host
            is dropped, ARP included. Guests still reach each other.
          - A network has one closed bridge. Another one of it is refused as long as the first is there and closed.
          - V(true) opens a host that was closed off.
        type: bool
      enabled: &enabled
        description: Whether the bridge is up. The default for a bridge that is created is V(true).
        type: bool
      mtu: &mtu
        description: The MTU.
        type: int
      mac_address: &mac_address
        description:
          - The MAC address.
          - The default for a bridge that is created is derived from the host's machine id and the name of the bridge. It is set,
            so that ports that come and go do not change it. An existing bridge keeps its own.
        type: str
      stp: &stp
        description:
          - Whether the bridge takes part in the spanning tree protocol.
          - With it, a new port stays silent for twice O(forward_delay).
        type: bool
      priority: &priority
        description: The priority of the bridge in the spanning tree, from 0 to 65535.
        type: int
      forward_delay: &forward_delay
        description: The forward delay of the spanning tree in seconds, from 0 (2 with O(stp)) to 30.
        type: int
      hello_time: &hello_time
        description: The hello time of the spanning tree in seconds, from 1 to 10.
        type: int
      max_age: &max_age
        description: The maximum message age of the spanning tree in seconds, from 6 to 40.
        type: int
      ageing_time: &ageing_time
        description: After how many seconds the bridge forgets where an address is.
        type: int
      vlan_filtering: &vlan_filtering
        description:
          - Whether the bridge looks at VLAN tags. The kernel must have been built with it.
        type: bool
      vlan_default_pvid: &vlan_default_pvid
        description: The VLAN of ports that are attached from now on; 0 for none.
        type: int
      multicast_snooping: &multicast_snooping
        description:
          - Whether the bridge sends multicast only where somebody listens. The default for a bridge that is created is V(false),
            because without a querier on the network it stops IPv6 neighbor discovery after some minutes.
        type: bool
      multicast_querier: &multicast_querier
        description: Whether the bridge itself asks who listens to multicast.
        type: bool
      group_forward_mask: &group_forward_mask
        description:
          - Which link-local multicast groups (C(01:80:c2:00:00:0X)) the bridge forwards, as a mask. The lowest three bits are never
            allowed.
        type: int
      ports: &ports
        description:
          - Interfaces that are attached to the bridge, other than taps. For example a C(veth), a C(vxlan) or a NIC.
          - An interface that has addresses is refused, because they do not work on a port.
        type: list
        elements: str
      exclusive_ports: &exclusive_ports
        description:
          - Whether ports that are not in O(ports) are taken off, where that option is given. Taps stay.
        type: bool
      vlans: &vlans
        description:
          - The VLANs of the bridge itself, and of its ports. For each of them that is named, all of its VLANs must be listed.
          - The kernel must have been built with bridge VLAN filtering.
        type: list
        elements: dict
        suboptions:
          id:
            description: A VLAN, or a range such as C(10-20).
            type: str
            required: true
          port:
            description: The port; the bridge itself where this is left out.
            type: str
          pvid:
            description: Whether frames that arrive without a tag belong to this VLAN.
            type: bool
          untagged:
            description: Whether frames of this VLAN leave without a tag.
            type: bool
      adopt: &adopt
        description:
          - Whether a bridge that labspan.vmnet did not make may be taken in. The default is V(true).
        type: bool
      force: &force
        description:
          - Take over a bridge of another network, or remove one that is neither ours nor adopted or that has ports of others.
        type: bool
      persistent: &persistent
        description:
          - Whether the bridge is there again after a reboot, without Ansible or Python.
          - With V(true), files in C(/etc/labspan/networks/) under the network's name describe the bridge, and the unit
            C(labspan-network@NETWORK.service) brings it back. NetworkManager and systemd-networkd are told to leave it alone.
          - V(auto) is V(true) where systemd runs the host, and writes nothing elsewhere. V(true) is refused there.
          - V(false) takes the bridge out of these files, as O(state=absent) does. No file is left where nothing is in it.
          - Where this is left out, the bridge lasts if it did before, and the files follow what the task changes.
        type: str
        choices: [auto, 'true', 'false']
  state:
    <<: *state
    default: present
  network: *network
  addresses: *addresses
  exclusive_addresses:
    <<: *exclusive_addresses
    default: true
  allow_overlap:
    <<: *allow_overlap
    default: false
  host_access: *host_access
  enabled: *enabled
  mtu: *mtu
  mac_address: *mac_address
  stp: *stp
  priority: *priority
  forward_delay: *forward_delay
  hello_time: *hello_time
  max_age: *max_age
  ageing_time: *ageing_time
  vlan_filtering: *vlan_filtering
  vlan_default_pvid: *vlan_default_pvid
  multicast_snooping: *multicast_snooping
  multicast_querier: *multicast_querier
  group_forward_mask: *group_forward_mask
  ports: *ports
  exclusive_ports:
    <<: *exclusive_ports
    default: false
  vlans: *vlans
  adopt: *adopt
  force: *force
  persistent: *persistent
seealso:
  - module: labspan.vmnet.tap_device
  - module: labspan.vmnet.nat_masquerade
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: A bridge with an address of the host
  labspan.vmnet.linux_bridge:
    name: br0
    addresses:
      - 192.168.6.10/24
      - fd00:6::10/64

- name: A bridge whose guests cannot reach the host
  labspan.vmnet.linux_bridge:
    name: Gefyra0
    host_access: false

- name: Three bridges at once
  labspan.vmnet.linux_bridge:
    stp: false
    bridges:
      - name: br-web
        addresses: [10.1.0.1/24]
      - name: br-db
        addresses: [10.2.0.1/24]
        mtu: 9000
      - name: br-lan
        ports: [veth0]

- name: Remove a bridge
  labspan.vmnet.linux_bridge:
    name: br0
    state: absent
"""

RETURN = r"""
boot_files:
  description: The files of the networks of the task that bring them back after a reboot.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The path.
      type: str
      sample: /etc/labspan/networks/br0/links
    lines:
      description: What the file holds.
      type: list
      elements: str
      sample: ['link set dev br0 up']
keep_off:
  description: The files by which NetworkManager and systemd-networkd are told to leave interfaces of the networks alone.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The path.
      type: str
      sample: /etc/systemd/network/00-labspan-br0.network
    interfaces:
      description: The interfaces.
      type: list
      elements: str
      sample: [br0, tap0]
actions:
  description: What was done, or in check mode would be done, in order. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Create bridge br0, Add the address 192.168.6.10/24 to bridge br0, Bring bridge br0 up]
bridges:
  description: The bridges as they are now, read back from the kernel. In check mode, as they would be.
  type: list
  elements: dict
  returned: success
  contains:
    name: &return_name
      description: The name.
      type: str
      sample: br0
    addresses: &return_addresses
      description: The addresses of the host on the bridge, without the link-local one.
      type: list
      elements: str
      sample: [192.168.6.10/24]
    adopted: &return_adopted
      description: Whether the bridge was there before and will be put back rather than removed.
      type: bool
      sample: false
    enabled: &return_enabled
      description: Whether the bridge is up.
      type: bool
      sample: true
    host_access: &return_host_access
      description: Whether guests may send to the host; null where the task does not ask.
      type: bool
      sample: true
    id: &return_id
      description: The identity of the bridge in the spanning tree.
      type: str
      sample: 8000.0242ac110001
    mac_address: &return_mac_address
      description: The MAC address.
      type: str
      sample: 02:42:ac:11:00:01
    mtu: &return_mtu
      description: The MTU.
      type: int
      sample: 1500
    network: &return_network
      description: The network that the bridge belongs to.
      type: str
      sample: br0
    ports: &return_ports
      description: The interfaces on the bridge, taps included.
      type: list
      elements: str
      sample: [tap0, tap1]
    stp: &return_stp
      description: Whether the bridge takes part in the spanning tree protocol.
      type: bool
      sample: false
    priority: &return_priority
      description: The priority of the bridge in the spanning tree.
      type: int
      sample: 32768
    forward_delay: &return_forward_delay
      description: The forward delay in seconds.
      type: float
      sample: 15
    hello_time: &return_hello_time
      description: The hello time in seconds.
      type: float
      sample: 2
    max_age: &return_max_age
      description: The maximum message age in seconds.
      type: float
      sample: 20
    ageing_time: &return_ageing_time
      description: After how many seconds the bridge forgets where an address is.
      type: float
      sample: 300
    group_forward_mask: &return_group_forward_mask
      description: Which link-local multicast groups the bridge forwards.
      type: int
      sample: 0
    multicast_snooping: &return_multicast_snooping
      description: Whether the bridge sends multicast only where somebody listens.
      type: bool
      sample: false
    multicast_querier: &return_multicast_querier
      description: Whether the bridge itself asks who listens to multicast.
      type: bool
      sample: false
    vlan_filtering: &return_vlan_filtering
      description: Whether the bridge looks at VLAN tags.
      type: bool
      sample: false
    vlan_default_pvid: &return_vlan_default_pvid
      description: The VLAN of new ports; null where the kernel has no bridge VLAN filtering.
      type: int
      sample: 1
    vlans: &return_vlans
      description: The VLANs of the bridge itself, where the task names any.
      type: list
      elements: dict
      sample: [{id: 1, pvid: true, untagged: true}]
bridge:
  description: The bridge of a task that names one by O(name); null when it is absent.
  type: dict
  returned: success and O(name) is given
  contains:
    name: *return_name
    addresses: *return_addresses
    adopted: *return_adopted
    enabled: *return_enabled
    host_access: *return_host_access
    id: *return_id
    mac_address: *return_mac_address
    mtu: *return_mtu
    network: *return_network
    ports: *return_ports
    stp: *return_stp
    priority: *return_priority
    forward_delay: *return_forward_delay
    hello_time: *return_hello_time
    max_age: *return_max_age
    ageing_time: *return_ageing_time
    group_forward_mask: *return_group_forward_mask
    multicast_snooping: *return_multicast_snooping
    multicast_querier: *return_multicast_querier
    vlan_filtering: *return_vlan_filtering
    vlan_default_pvid: *return_vlan_default_pvid
    vlans: *return_vlans
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils import _items, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _bridge_files
from ansible_collections.labspan.vmnet.plugins.module_utils._bridge_options import OPTIONS
from ansible_collections.labspan.vmnet.plugins.module_utils._bridges import Bridges


def main() -> None:
    """Run the module."""
    module = AnsibleModule(**_items.bulk_spec(OPTIONS, "bridges"))

    def build(params: _items.Options) -> list[_runner.Resource[t.Any]]:
        options = _items.items(params, "bridges")
        single = _items.is_single(params, "bridges")
        return _bridge_files.lasting(Bridges(options, single=single, check_mode=module.check_mode), options)

    _runner.run(module, build)


if __name__ == "__main__":
    main()
