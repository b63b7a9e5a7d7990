#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tap_device
short_description: Manage tap devices, the network cables of virtual machines
version_added: 0.1.0
description:
  - Creates tap devices, attaches them to bridges, keeps them as described, and removes them.
  - Many taps (O(taps)) are one task, one read of the system and a handful of requests to the kernel, however many there are.
  - A tap that somebody else made is adopted. It is converged like any other, and O(state=absent) puts it back as it was found
    instead of deleting it.
  - A tap that a process holds open is never taken from it unless O(force=true) says so.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
  - labspan.vmnet._requirements.pyroute2
options:
  name:
    description:
      - The name of the tap, up to 15 characters.
      - Exactly one of O(name) and O(taps) is required.
    type: str
  taps:
    description:
      - Many taps at once. Each entry takes the options of the module; what an entry leaves out comes from the top level.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the tap, up to 15 characters.
        type: str
        required: true
      state: &state
        description:
          - With V(present), the tap exists as described.
          - With V(absent), a tap of ours is gone, and an adopted one is as it was found. One that is neither is left alone, with
            a warning.
        type: str
        choices: [present, absent]
      network: &network
        description:
          - The network that the tap belongs to. It is written into the alias of the tap.
          - Taps of another network are refused.
          - The default is the name of the bridge, or the tap's own where no bridge is given. So a task that takes a tap off its
            bridge, moves it to another one, or removes it without naming the bridge, names the network instead.
        type: str
      bridge: &bridge
        description:
          - The bridge that the tap is attached to.
          - The empty string takes the tap off its bridge.
        type: str
      owner: &owner
        description:
          - The user who may open the tap, by name or number.
          - The default for a tap that is created is C(root), because a tap without owner can be opened by everybody.
          - It cannot change on a living tap, see O(recreate).
        type: str
      group: &group
        description:
          - The group whose members may open the tap, by name or number.
          - With both O(owner) and O(group), a process must match both.
          - It cannot change on a living tap, see O(recreate).
        type: str
      multi_queue: &multi_queue
        description:
          - Whether the tap has several queues. It must agree with the queues of the virtual machine's interface.
          - Creating such a tap takes the kernel a dozen times as long.
          - It cannot change on a living tap, see O(recreate).
        type: bool
      vnet_hdr: &vnet_hdr
        description:
          - Whether a tap that is created begins with the virtio header switched on.
          - Whoever opens the tap sets this anew, therefore it is not compared later.
        type: bool
      enabled: &enabled
        description:
          - Whether the tap is up. The default for a tap that is created is V(true).
        type: bool
      mtu: &mtu
        description: The MTU.
        type: int
      mac_address: &mac_address
        description:
          - The MAC address of the host's end. The guest's end has its own.
          - The default for a tap that is created is derived from the host's machine id and the name of the tap, so that it is the
            same after a reboot. An existing tap keeps its own.
        type: str
      isolated: &isolated
        description: Whether the port can talk only to ports of the bridge that are not isolated.
        type: bool
      learning: &learning
        description: Whether the bridge learns the addresses that it sees on the port.
        type: bool
      flooding: &flooding
        description: Whether the bridge sends frames for unknown unicast addresses to the port.
        type: bool
      hairpin: &hairpin
        description: Whether frames may leave on the port that they came in on.
        type: bool
      bpdu_guard: &bpdu_guard
        description:
          - Whether the port is disabled when a spanning tree message arrives on it.
          - Does nothing while STP is off on the bridge; the task warns then.
        type: bool
      vlans: &vlans
        description:
          - The VLANs of the port, all of them. Others are removed.
          - The kernel must have been built with bridge VLAN filtering.
        type: list
        elements: dict
        suboptions:
          id:
            description: A VLAN, or a range such as C(10-20).
            type: str
            required: true
          pvid:
            description: Whether frames that arrive without a tag belong to this VLAN.
            type: bool
          untagged:
            description: Whether frames of this VLAN leave without a tag.
            type: bool
      alias: &alias
        description:
          - A text that is shown with the tap, behind the mark of its owner.
        type: str
      recreate: &recreate
        description:
          - What to do about a difference that a living tap cannot get rid of, which is in O(owner), O(group) or O(multi_queue).
          - V(if_needed), the default, replaces the tap if no process holds it open, and is an error with that process's name
            otherwise.
          - V(never) makes each such difference an error.
          - V(always) replaces the tap on each run.
        type: str
        choices: [never, if_needed, always]
      adopt: &adopt
        description:
          - Whether a tap that labspan.vmnet did not make may be taken in. The default is V(true).
        type: bool
      force: &force
        description:
          - Take over a tap of another network, remove a tap that is neither ours nor adopted, or take a tap away from the
            process that uses it.
        type: bool
      persistent: &persistent
        description:
          - Whether the tap is there again after a reboot, without Ansible or Python.
          - With V(true), files in C(/etc/labspan/networks/) under the network's name describe the tap, and the unit
            C(labspan-network@NETWORK.service) brings it back. NetworkManager and systemd-networkd are told to leave it alone.
          - V(auto) is V(true) where systemd runs the host, and writes nothing elsewhere. V(true) is refused there.
          - V(false) takes the tap out of these files, as O(state=absent) does. No file is left where nothing is in it.
          - Where this is left out, the tap lasts if it did before, and the files follow what the task changes.
        type: str
        choices: [auto, 'true', 'false']
  state:
    <<: *state
    default: present
  network: *network
  bridge: *bridge
  owner: *owner
  group: *group
  multi_queue: *multi_queue
  vnet_hdr: *vnet_hdr
  enabled: *enabled
  mtu: *mtu
  mac_address: *mac_address
  isolated: *isolated
  learning: *learning
  flooding: *flooding
  hairpin: *hairpin
  bpdu_guard: *bpdu_guard
  vlans: *vlans
  alias: *alias
  recreate: *recreate
  adopt: *adopt
  force: *force
  persistent: *persistent
seealso:
  - module: labspan.vmnet.linux_bridge
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: A tap for one virtual machine
  labspan.vmnet.tap_device:
    name: tap0
    bridge: br0
    owner: alice

- name: Two taps on a bridge, each for one virtual machine of the user A_Username
  labspan.vmnet.tap_device:
    bridge: Gefyra0
    owner: A_Username
    taps:
      - name: QemuTap0
      - name: QemuTap1

- name: Guests that reach the host but not each other
  labspan.vmnet.tap_device:
    bridge: br0
    isolated: true
    taps:
      - name: tap0
      - name: tap1

- name: A tap that is there again after a reboot
  labspan.vmnet.tap_device:
    name: tap0
    bridge: br0
    persistent: true

- name: Take the tap away
  labspan.vmnet.tap_device:
    name: tap0
    bridge: br0
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
  sample: [Create tap tap0 on bridge br0]
taps:
  description: The taps as they are now, read back from the kernel. In check mode, as they would be.
  type: list
  elements: dict
  returned: success
  contains:
    name: &return_name
      description: The name.
      type: str
      sample: tap0
    adopted: &return_adopted
      description: Whether the tap was there before and will be put back rather than deleted.
      type: bool
      sample: false
    alias: &return_alias
      description: The alias, with the mark of the owner.
      type: str
      sample: labspan.vmnet:br0
    bridge: &return_bridge
      description: The bridge that the tap is attached to, or null.
      type: str
      sample: br0
    enabled: &return_enabled
      description: Whether the tap is up.
      type: bool
      sample: true
    group: &return_group
      description: The group that may open the tap, or null.
      type: str
      sample: kvm
    mac_address: &return_mac_address
      description: The MAC address of the host's end.
      type: str
      sample: 6a:0e:5f:11:22:33
    mtu: &return_mtu
      description: The MTU.
      type: int
      sample: 1500
    multi_queue: &return_multi_queue
      description: Whether the tap has several queues.
      type: bool
      sample: false
    network: &return_network
      description: The network that the tap belongs to.
      type: str
      sample: br0
    owner: &return_owner
      description: The user who may open the tap, or null for everybody.
      type: str
      sample: alice
    hairpin: &return_hairpin
      description: As the option; null for a tap without bridge.
      type: bool
      sample: false
    bpdu_guard: &return_bpdu_guard
      description: As the option; null for a tap without bridge.
      type: bool
      sample: false
    learning: &return_learning
      description: As the option; null for a tap without bridge.
      type: bool
      sample: true
    flooding: &return_flooding
      description: As the option; null for a tap without bridge.
      type: bool
      sample: true
    isolated: &return_isolated
      description: As the option; null for a tap without bridge.
      type: bool
      sample: false
    vlans: &return_vlans
      description: The VLANs of the port, where the task names any.
      type: list
      elements: dict
      sample: [{id: 1, pvid: true, untagged: true}]
tap:
  description: The tap of a task that names one by O(name); null when it is absent.
  type: dict
  returned: success and O(name) is given
  contains:
    name: *return_name
    adopted: *return_adopted
    alias: *return_alias
    bridge: *return_bridge
    enabled: *return_enabled
    group: *return_group
    mac_address: *return_mac_address
    mtu: *return_mtu
    multi_queue: *return_multi_queue
    network: *return_network
    owner: *return_owner
    hairpin: *return_hairpin
    bpdu_guard: *return_bpdu_guard
    learning: *return_learning
    flooding: *return_flooding
    isolated: *return_isolated
    vlans: *return_vlans
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils import _items, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _tap_files
from ansible_collections.labspan.vmnet.plugins.module_utils._tap_options import OPTIONS
from ansible_collections.labspan.vmnet.plugins.module_utils._taps import TapDevices


def main() -> None:
    """Run the module."""
    module = AnsibleModule(**_items.bulk_spec(OPTIONS, "taps"))

    def build(params: _items.Options) -> list[_runner.Resource[t.Any]]:
        options = _items.items(params, "taps")
        single = _items.is_single(params, "taps")
        return _tap_files.between(TapDevices(options, single=single, check_mode=module.check_mode), options)

    _runner.run(module, build)


if __name__ == "__main__":
    main()
