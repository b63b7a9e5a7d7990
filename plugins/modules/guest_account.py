#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_account
short_description: Give each QEMU guest an account of its own
version_added: 0.1.0
description:
  - Makes the system account that a guest's QEMU runs as. A guest that breaks out of QEMU then reaches neither the disks nor the
    taps of another.
  - The account of the guest C(vm1) is C(labspan-vm1). For a name that no account can have it is made of a checksum.
  - M(labspan.vmnet.qemu_guest) takes it for a new guest when it is there. Taps that systemd starts guests on must belong to it,
    see O(labspan.vmnet.tap_device#module:owner).
  - An account of which only a part is there, as a power cut leaves it, is made anew with its number.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
requirements:
  - useradd and userdel
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
      state: &state
        description:
          - Whether the account is to be there.
          - With V(absent), one that still has a guest, or disks that were made for it, stays with a warning; the next account would
            get its number, and with it the disks.
        type: str
        choices: [present, absent]
  state:
    <<: *state
    default: present
seealso:
  - module: labspan.vmnet.qemu_guest
  - module: labspan.vmnet.tap_device
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Accounts for two guests
  labspan.vmnet.guest_account:
    guests:
      - name: vm1
      - name: vm2

- name: A tap that only the first one can open
  labspan.vmnet.tap_device:
    name: tap1
    bridge: br0
    owner: labspan-vm1
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in order. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Make the account labspan-vm1]
accounts:
  description: The accounts that are there now. In check mode, that would be.
  type: list
  elements: dict
  returned: success
  contains:
    name: &return_name
      description: The name of the guest.
      type: str
      sample: vm1
    account: &return_account
      description: The name of its account.
      type: str
      sample: labspan-vm1
    uid: &return_uid
      description: The number of the account; null in check mode for one that would be made.
      type: int
      sample: 995
account:
  description: The account of a task that names one guest by O(name); null when it is absent.
  type: dict
  returned: success and O(name) is given
  contains:
    name: *return_name
    account: *return_account
    uid: *return_uid
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils import _items, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _accounts
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._accounts import OPTIONS


def main() -> None:
    """Run the module."""
    module = AnsibleModule(**_items.bulk_spec(OPTIONS, "guests"))

    def build(params: _items.Options) -> t.Sequence[_runner.Resource[t.Any]]:
        single = _items.is_single(params, "guests")
        return [_accounts.Accounts(_items.items(params, "guests"), single=single)]

    _runner.run(module, build)


if __name__ == "__main__":
    main()
