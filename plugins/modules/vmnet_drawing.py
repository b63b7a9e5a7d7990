#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vmnet_drawing
short_description: Draw the topology of lab hosts into files of the controller
version_added: 0.1.0
description:
  - Keeps drawings of lab hosts in a directory of the controller, C(fleet.svg) of all of them and C(HOST.svg) of each, and the same in
    the language of Mermaid as C(fleet.mmd) and C(HOST.mmd).
  - It runs on the controller alone, and no host is asked anything. What M(labspan.vmnet.vmnet_info) returned is what is drawn.
  - Nothing in a drawing depends on the time, and only what has changed is written.
extends_documentation_fragment:
  - labspan.vmnet._attributes.actiongroup_vmnet
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Returns details on what has changed (or would change, in C(check_mode)), when in diff mode.
    support: none
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
  platform:
    description: Target OS/families that can be operated against.
    platforms: all
    support: full
options:
  hosts:
    description: For each host, by its name, what M(labspan.vmnet.vmnet_info) returned, or how that failed.
    type: dict
    required: true
  path:
    description:
      - The directory on the controller. It is made if it is not there.
      - A path that does not begin with C(/) begins where Ansible was started.
    type: path
    required: true
  title:
    description: What stands above the drawing of all hosts; by default C(Lab hosts), or the name of the only one.
    type: str
    default: ""
seealso:
  - module: labspan.vmnet.vmnet_info
  - plugin: labspan.vmnet.vmnet_svg
    plugin_type: filter
  - plugin: labspan.vmnet.vmnet_mermaid
    plugin_type: filter
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Look at every host
  labspan.vmnet.vmnet_info:
  register: lab

- name: Draw them
  labspan.vmnet.vmnet_drawing:
    hosts: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'lab'))) }}"
    path: drawings
  run_once: true
"""

RETURN = r"""
actions:
  description: What was drawn, or in check mode would be drawn. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Draw /home/ada/drawings/fleet.svg]
files:
  description: All drawings.
  type: list
  elements: str
  returned: success
  sample: [/home/ada/drawings/fleet.svg, /home/ada/drawings/fleet.mmd]
"""
