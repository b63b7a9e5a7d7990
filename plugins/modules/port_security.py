#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: port_security
short_description: Keep guests on a bridge from speaking as somebody else
version_added: 0.1.0
author:
  - The labspan.vmnet authors (@labspan)
description:
  - Filters what comes in from guests through their ports of a bridge, so that a guest in the LAN is no danger to the LAN.
  - From a listed port pass only ARP, IPv4 and IPv6, with the guest's own MAC address and, where its addresses are known, with its own
    addresses. No spanning tree or other frames between bridges, no router advertisements, no redirects, no answers of a DHCP server.
  - What goes to guests is not filtered. What they send to the host itself is.
  - The rules of a network are one nftables table of the family C(bridge), C(labspan_NAME), replaced in one transaction and only when
    it differs. Their number does not depend on the number of ports.
  - Ports are matched by name, so the rules can be there before the tap is. Have them in force before a guest starts.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
requirements:
  - nftables >= 1.0.6
  - Linux >= 5.10
options:
  name:
    description:
      - The name of the network, up to 63 letters, digits, V(_), V(.) or V(-). The nftables table is C(bridge labspan_NAME), and what is
        in it carries the comment C(labspan.vmnet:NAME).
      - Either this or O(networks) is required.
    type: str
  state:
    description:
      - V(present) has the filter in force.
      - V(absent) removes it.
    type: str
    choices: [present, absent]
    default: present
  bridge: &bridge
    description:
      - The bridge, for O(unlisted). By default the one that is named like the network.
    type: str
  ports: &ports
    description:
      - All ports of the network's guests. A port that an earlier task listed and this one does not is no longer filtered.
    type: list
    elements: dict
    suboptions:
      tap:
        description:
          - The tap, or another port of the bridge with one guest behind it.
          - Either this or O(ports[].guest) is required.
        type: str
      guest:
        description:
          - The name of a guest of M(labspan.vmnet.qemu_guest). What O(ports[].tap) and O(ports[].mac) leave out is then what that module
            gives to a NIC without C(tap) or C(mac) of its own.
        type: str
      nic:
        description:
          - With O(ports[].guest), which of the guest's NICs is meant; the first one is V(0).
        type: int
        default: 0
      mac:
        description:
          - The guest's MAC address, in quotes. Either this or O(ports[].guest) is required.
          - Frames with another sender are dropped, and so are ARP and neighbour discovery that name another one as the guest's.
        type: str
      addresses:
        description:
          - All addresses that the guest may have, of both IP versions, such as V(192.168.1.50) and V(2001:db8::50). A network in CIDR
            form stands for any of its addresses; V(::/0) is any IPv6 address.
          - A guest that makes its IPv6 addresses of router advertisements may be given the LAN's prefix, such as V(2001:db8::/64).
          - Beside them, all link-local IPv6 addresses are allowed, unless one is listed. Then only those that are listed are.
          - Left out, the addresses are not known, as with a guest that has them from the LAN's DHCP server. Then only the MAC address
            is enforced, ARP may name any address as the sender's, and the guest may have any address that is neither listed for
            another port nor in O(protected_addresses).
          - The empty list means that the guest has no address but its link-local one.
        type: list
        elements: str
      allow_bpdu:
        description:
          - Let frames to C(01:80:c2:00:00:00) to C(01:80:c2:00:00:0f) in, such as those of the spanning tree.
          - A bridge that runs the spanning tree itself takes these frames before any rule sees them. A warning says so, and only
            O(labspan.vmnet.tap_device#module:bpdu_guard) keeps them out.
        type: bool
        default: false
      allow_ra:
        description:
          - Let router advertisements and redirects in, for a guest that is a router. It then also needs the networks behind it in
            O(ports[].addresses).
        type: bool
        default: false
      allow_dhcp_server:
        description:
          - Let the answers of a DHCP server in.
        type: bool
        default: false
      allow_ethertypes:
        description:
          - What may come in beside ARP, IPv4 and IPv6. V(vlan) for tagged frames, or numbers such as V(0x88cc).
          - Of such frames only the sender's MAC address is checked, not what is inside.
        type: list
        elements: str
  protected_addresses: &protected_addresses
    description:
      - Addresses that no guest may have unless they are listed for it, such as those of the host and the gateway, of both IP versions
        and without prefix length. Listed addresses of other ports are always protected.
      - They matter for guests with unknown addresses, with networks, and for link-local addresses. Without them, such a guest can take
        the gateway's address and have its neighbours' traffic.
    type: list
    elements: str
  unlisted: &unlisted
    description:
      - What becomes of frames that come from a tap of the bridge that is not listed. The uplink and other kinds of ports are not
        concerned.
      - V(accept), the default, leaves taps of others alone.
      - V(drop) lets nothing in from them. It needs a kernel with CONFIG_NFT_BRIDGE_META, which those of distributions have.
    type: str
    choices: [accept, drop]
  persistent: &persistent
    description:
      - Whether the filter is there again after a reboot, without Ansible or Python, before any port of the bridge is up.
      - With V(true), C(ports.nft) in C(/etc/labspan/networks/NAME/) holds it as nft reads it. The unit C(labspan-network@NAME.service) loads it at
        boot, and C(labspan-rules.service) whenever somebody has flushed it.
      - V(auto), which is the default, is V(true) where systemd runs the host, and writes nothing elsewhere. V(true) is refused there.
      - V(false) leaves no file.
    type: str
    choices: [auto, 'true', 'false']
  networks:
    description:
      - Many networks in one task. The options are the same, and those of the top level are their defaults.
      - All are checked before anything is written.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the network.
        type: str
        required: true
      state:
        description: As O(state).
        type: str
        choices: [present, absent]
      bridge: *bridge
      persistent: *persistent
      ports: *ports
      protected_addresses: *protected_addresses
      unlisted: *unlisted
notes:
  - A guest whose address comes from DHCP by IPv4 and from router advertisements by IPv6 has unknown addresses. To know them, give it a
    reservation in the LAN's DHCP server and list it.
  - A guest that answers with the addresses of other machines, such as a hypervisor with bridged guests of its own or a member of a
    cluster with a floating address, needs all of them listed; more than one MAC address on a port is not possible.
  - Fragments of neighbour discovery are dropped (RFC 6980). Other fragments pass.
seealso:
  - module: labspan.vmnet.tap_device
  - module: labspan.vmnet.linux_bridge
"""

EXAMPLES = r"""
- name: Guests in the LAN, one with known addresses, one that asks the LAN's DHCP server, one whose tap and MAC address are derived
  labspan.vmnet.port_security:
    name: lan
    bridge: br0
    ports:
      - tap: tap-web
        mac: "52:54:00:00:00:01"
        addresses: [192.168.1.50, "2001:db8::50"]
      - tap: tap-desk
        mac: "52:54:00:00:00:02"
      - guest: play
    protected_addresses: [192.168.1.1, "fe80::1"]

- name: A guest that is a router for a network of its own, with tagged frames as well
  labspan.vmnet.port_security:
    name: lan
    bridge: br0
    ports:
      - tap: tap-router
        mac: "52:54:00:00:00:03"
        addresses: [192.168.1.2, 10.9.0.0/16, "2001:db8:9::/48"]
        allow_ra: true
        allow_ethertypes: [vlan]

- name: No filter any more
  labspan.vmnet.port_security:
    name: lan
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be in check mode, as sentences.
  returned: success
  type: list
  elements: str
  sample: ["Create the nftables table bridge labspan_lan, which filters tap-desk, tap-web"]
boot_files:
  description: The files of the networks of the task that bring them back after a reboot.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The path.
      type: str
      sample: /etc/labspan/networks/lab/ports.nft
    lines:
      description: What the file holds.
      type: list
      elements: str
      sample: ["table bridge labspan_lab", "delete table bridge labspan_lab"]
network:
  description: The network, when O(name) is given; null if it is absent. The keys are those of RV(networks).
  returned: when O(name) is given
  type: dict
networks:
  description: The networks whose filters are in force.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the network.
      type: str
      sample: lan
    ports:
      description: The ports that are filtered.
      type: list
      elements: str
      sample: [tap-desk, tap-web]
    table:
      description: The nftables table as C(nft list table) prints it, by lines.
      type: list
      elements: str
      sample: ["table bridge labspan_lan {", "}"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._port_security import build
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._port_security_options import OPTIONS
from ansible_collections.labspan.vmnet.plugins.module_utils._items import bulk_spec
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import run


def main() -> None:
    run(AnsibleModule(**bulk_spec(OPTIONS, "networks")), build)


if __name__ == "__main__":
    main()
