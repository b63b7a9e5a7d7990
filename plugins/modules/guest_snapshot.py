#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_snapshot
short_description: Take snapshots of guests, go back to them, remove them
version_added: 0.1.0
description:
  - Keeps the state of guests of M(labspan.vmnet.qemu_guest) within their qcow2 images, whether they run or not.
  - A snapshot is of all disks that a guest writes to, or is not taken at all. A guest that writes to a raw image or a block device
    has none.
  - The variables of UEFI firmware and the state of a TPM are in no snapshot, of which the module warns.
  - Many guests (O(guests)) are one task.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
attributes:
  check_mode:
    details:
      - Nothing is written. A guest that is not there is a warning, because an earlier task may make it.
  idempotent:
    support: partial
    details:
      - V(reverted) goes back each time, and throws away what came since.
requirements:
  - C(qemu-img), for guests that do not run
  - QEMU >= 6.0, for guests that run
options:
  name:
    description:
      - The name of the guest.
      - Exactly one of O(name) and O(guests) is required.
    type: str
  guests:
    description:
      - Many guests at once. Each entry takes the options of the module; what an entry leaves out comes from the top level.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the guest.
        type: str
        required: true
      snapshot: &snapshot
        description:
          - The name of the snapshot, up to 63 letters, digits, V(_), V(.) or V(-), not digits alone. It must be given, here or for
            each guest.
        type: str
      state: &state
        description:
          - V(present) takes the snapshot, unless there is one of that name.
          - V(absent) removes it.
          - V(reverted) makes the guest what it was when the snapshot was taken. B(What was written to its disks since then is lost),
            and what it had in memory if it runs. Later snapshots stay.
          - A running guest goes back to a snapshot with its memory only, and goes on from there. For another one, stop it first.
          - A guest that does not run goes back with its disks only.
          - While a guest goes back, how its disks were is kept as the snapshot C(before-revert-to-SNAPSHOT). It is removed when that has
            worked, and left for you when it has not.
        type: str
        choices: [present, absent, reverted]
      memory: &memory
        description:
          - Whether a snapshot of a running guest holds its memory, too. The guest stands still while it is written.
          - Without it, going back to the snapshot is for the guest like a power cut at that moment.
          - The default is V(true) for a guest that runs.
        type: bool
      quiesce: &quiesce
        description:
          - Have the agent in the guest write everything to its disks and keep still for the moment of the snapshot, for a guest with
            O(labspan.vmnet.qemu_guest#module:guest_agent=true). Goes with O(memory=false). A guest that does not run is quiet by itself.
        type: bool
      timeout: &timeout
        description: Seconds that QEMU may take.
        type: float
  snapshot: *snapshot
  state:
    <<: *state
    default: present
  memory: *memory
  quiesce:
    <<: *quiesce
    default: false
  timeout:
    <<: *timeout
    default: 300.0
seealso:
  - module: labspan.vmnet.qemu_guest
  - module: labspan.vmnet.guest_agent
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Keep two guests as they are, running on, before an upgrade
  labspan.vmnet.guest_snapshot:
    snapshot: before-upgrade
    guests:
      - name: vm1
      - name: vm2

- name: Keep only the disks of a guest, when everything is written to them
  labspan.vmnet.guest_snapshot:
    name: vm1
    snapshot: nightly
    memory: false
    quiesce: true

- name: The upgrade went wrong, so throw it away
  labspan.vmnet.guest_snapshot:
    name: vm1
    snapshot: before-upgrade
    state: reverted

- name: It is not needed any more
  labspan.vmnet.guest_snapshot:
    name: vm1
    snapshot: before-upgrade
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in order. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Take the snapshot before-upgrade of guest vm1 with its memory]
guests:
  description: The guests with all their snapshots. In check mode, as they would be.
  type: list
  elements: dict
  returned: success
  contains:
    name: &return_name
      description: The name of the guest.
      type: str
      sample: vm1
    running: &return_running
      description: Whether it runs.
      type: bool
      sample: true
    snapshots: &return_snapshots
      description:
        - Its snapshots. C(memory) is the size of the kept memory in bytes, 0 for one of the disks alone. C(complete) tells whether all
          disks that the guest writes to are in it. C(created) is null for one that check mode would take.
      type: list
      elements: dict
      sample:
        - name: before-upgrade
          created: "2026-11-21T10:00:00Z"
          memory: 104857600
          disks: [/var/lib/labspan/guests/vm1/disk0.qcow2]
          complete: true
guest:
  description: The guest of a task that names one by O(name).
  type: dict
  returned: success and O(name) is given
  contains:
    name: *return_name
    running: *return_running
    snapshots: *return_snapshots
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _items, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _snapshot_resource

OPTIONS = {
    "name": {"type": "str"},
    "snapshot": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
    "memory": {"type": "bool"},
    "quiesce": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 300.0},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(**_items.bulk_spec(OPTIONS, "guests"))

    def build(params: _items.Options) -> t.Sequence[_runner.Resource[t.Any]]:
        single = _items.is_single(params, "guests")
        return _snapshot_resource.build(_items.items(params, "guests"), single=single, check_mode=module.check_mode)

    _runner.run(module, build)


if __name__ == "__main__":
    main()
