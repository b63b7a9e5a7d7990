#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_agent
short_description: Ask the agent in a running guest, freeze its file systems, run programs in it
version_added: 0.1.0
description:
  - Talks to the agent (C(qemu-ga), the package C(qemu-guest-agent)) that runs in guests of M(labspan.vmnet.qemu_guest) with
    O(labspan.vmnet.qemu_guest#module:guest_agent=true). No network and no account in the guest is needed.
  - Many guests (O(guests)) are one task. Programs run in all of them at the same time.
  - What the agent tells is what the guest tells about itself. Do not trust it further than the guest.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
attributes:
  check_mode:
    details:
      - Nothing is run, frozen or thawed. A guest that cannot be asked is a warning, because an earlier task may start it.
  idempotent:
    support: partial
    details:
      - V(exec) runs the program each time, and says so. Use C(changed_when) of the task where the program changes nothing.
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
      command: &command
        description:
          - What is asked of the agent. An agent that does not answer is an error with each of these.
          - V(ping) asks whether it is there.
          - V(addresses) returns the guest's network interfaces with their addresses, as the guest sees them.
          - V(freeze) writes everything to the guest's disks and lets nothing be written until V(thaw). What writes in the guest stands
            still meanwhile, so be quick.
          - V(thaw) lets the guest go on.
          - V(exec) runs a program in the guest, without a shell, as the account that the agent runs as (root, as a rule). An exit
            status other than 0 is an error; the result has what the program printed all the same.
        type: str
        choices: [ping, addresses, freeze, thaw, exec]
      argv: &argv
        description:
          - The program to run in the guest, and its arguments. Everybody in the guest can see them while it runs.
        type: list
        elements: str
      stdin: &stdin
        description:
          - What the program reads from its standard input. Give the task C(no_log=true) if that is a secret.
        type: str
      timeout: &timeout
        description: Seconds that the agent may take for an answer.
        type: float
      exec_timeout: &exec_timeout
        description:
          - Seconds that the program may run. It is not ended after that, because the agent cannot do that; the error has its number.
        type: float
  command:
    <<: *command
    default: ping
  argv: *argv
  stdin: *stdin
  timeout:
    <<: *timeout
    default: 10.0
  exec_timeout:
    <<: *exec_timeout
    default: 60.0
notes:
  - The agent answers one program at a time. While another one is connected to the socket, nobody answers.
seealso:
  - module: labspan.vmnet.qemu_guest
  - module: labspan.vmnet.guest_snapshot
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Make the account that the guest runs as
  labspan.vmnet.guest_account:
    name: vm1

- name: A guest with a line to its agent
  labspan.vmnet.qemu_guest:
    name: vm1
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2
    guest_agent: true

- name: Is the agent there?
  labspan.vmnet.guest_agent:
    name: vm1

- name: Which addresses does the guest have?
  labspan.vmnet.guest_agent:
    name: vm1
    command: addresses
  register: vm1

- name: Look which kernel two guests run
  labspan.vmnet.guest_agent:
    command: exec
    argv: [uname, -r]
    guests:
      - name: vm1
      - name: vm2
  register: kernels
  changed_when: false

- name: Set a password in a guest that cannot be reached
  labspan.vmnet.guest_agent:
    name: vm1
    command: exec
    argv: [chpasswd]
    stdin: "admin:{{ admin_password }}"
  no_log: true
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in order. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Run uname in guest vm1]
guests:
  description: What the agents tell.
  type: list
  elements: dict
  returned: success
  contains:
    name: &return_name
      description: The name of the guest.
      type: str
      sample: vm1
    version: &return_version
      description: The agent's version; null in check mode, if it could not be asked.
      type: str
      sample: 7.2.22
    frozen: &return_frozen
      description: Whether the guest's file systems are frozen; null if the agent cannot freeze them.
      type: bool
      sample: false
    interfaces: &return_interfaces
      description: The guest's network interfaces but the loopback one.
      type: list
      elements: dict
      returned: with O(command=addresses)
      sample:
        - name: enp0s2
          mac: "52:54:00:21:34:56"
          addresses: [192.168.6.11/24, "fe80::5054:ff:fe21:3456/64"]
guest:
  description: What the agent of the guest named by O(name) tells.
  type: dict
  returned: success and O(name) is given
  contains:
    name: *return_name
    version: *return_version
    frozen: *return_frozen
    interfaces: *return_interfaces
executed:
  description:
    - How the programs ended. Each output is cut after 1 MiB (C(truncated)). C(rc) is null for a program that was ended by a C(signal).
  type: list
  elements: dict
  returned: always but with a program that could not be started
  sample:
    - name: vm1
      rc: 0
      signal: null
      stdout: "6.1.0-26-amd64\n"
      stderr: ""
      truncated: false
rc:
  description: The exit status of the program.
  type: int
  returned: with O(command=exec) and O(name)
  sample: 0
stdout:
  description: What the program printed.
  type: str
  returned: with O(command=exec) and O(name)
  sample: "6.1.0-26-amd64\n"
stderr:
  description: What the program printed as errors.
  type: str
  returned: with O(command=exec) and O(name)
  sample: ""
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _items, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _agent_resource

OPTIONS = {
    "name": {"type": "str"},
    "command": {"type": "str", "choices": list(_agent_resource.COMMANDS), "default": "ping"},
    "argv": {"type": "list", "elements": "str"},
    "stdin": {"type": "str"},
    "timeout": {"type": "float", "default": 10.0},
    "exec_timeout": {"type": "float", "default": 60.0},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(**_items.bulk_spec(OPTIONS, "guests"))

    def build(params: _items.Options) -> t.Sequence[_runner.Resource[t.Any]]:
        single = _items.is_single(params, "guests")
        return _agent_resource.build(_items.items(params, "guests"), single=single, check_mode=module.check_mode)

    _runner.run(module, build)


if __name__ == "__main__":
    main()
