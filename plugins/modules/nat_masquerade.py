#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nat_masquerade
short_description: Let the guests of a bridge out, with or without NAT, and nothing in
author:
  - The labspan.vmnet authors (@labspan)
description:
  - Gives each network a set of rules of its own, so that guests reach the LAN and the internet through the host, and what may reach
    the guests is decided here. Works for IPv4 and IPv6.
  - Nothing reaches a guest but answers, what O(port_forwards) name, and with O(lan_access) the LAN. A neighbour in the LAN that adds
    a route to the guests' subnet gets nowhere. Networks of one host do not reach each other.
  - Guests can send only from addresses of their own subnets. Only what they send out of the uplink is masqueraded, never what passes
    between guests.
  - Switches forwarding on for the bridge and the uplink, not for the whole host. IPv6 default routes that come from router
    advertisements survive.
  - Where a firewall of the host drops forwarded traffic, the rule that lets it pass is put into that firewall, since an accept
    elsewhere would not help. What still drops is an error.
  - All rules of a network are replaced in one transaction, and only when they differ.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
  - labspan.vmnet._requirements.iptc
requirements:
  - nftables, or iptables for O(backend=iptables) and O(backend=iptables_legacy)
  - conntrack (recommended; without it connections that began under other rules keep them)
options:
  name:
    description:
      - The name of the network, up to 63 letters, digits, V(_), V(.) or V(-). The nftables table is C(inet labspan_NAME), and every
        rule carries the comment C(labspan.vmnet:NAME).
      - Either this or O(networks) is required.
    type: str
  state:
    description:
      - V(present) has the rules and settings in force.
      - V(absent) removes them from every backend, and puts settings back that no other network needs.
    type: str
    choices: [present, absent]
    default: present
  bridge: &bridge
    description:
      - The bridge that the guests are on. By default the one that is named like the network.
    type: str
  sources: &sources
    description:
      - The guests' subnets in CIDR form, of either IP version.
      - By default the subnets of the bridge's addresses. If it has none, all senders are accepted and masqueraded, with a warning.
      - A subnet that the host reaches through another interface is refused.
    type: list
    elements: str
  out_interface: &out_interface
    description:
      - The uplink, where guests leave the host. V(auto) is the interface of the default route, for each IP version; that of the other
        version where one has none. This is the default.
      - The bridge itself is accepted with a warning. It masquerades what goes to the guests, which is not how they reach the internet.
    type: str
  masquerade: &masquerade
    description:
      - Whether guests appear with the host's address. V(false) makes a routed network, for a LAN whose router has a route to the guests.
      - The default is V(true).
    type: bool
  exclude_destinations: &exclude_destinations
    description:
      - Destinations in CIDR form that see the guests' own addresses, such as the other end of a tunnel.
    type: list
    elements: str
  to_ports: &to_ports
    description:
      - The source ports of masqueraded TCP and UDP, such as V(1024-65535), so that a guest's privileged port does not become the host's.
    type: str
  random: &random
    description:
      - Choose source ports at random.
      - The default is V(false).
    type: bool
  forward: &forward
    description:
      - Let the guests' traffic pass wherever a firewall of the host drops it. Rules of iptables, of both kinds, and of Docker are
        handled. If anything else drops it, the task fails before it writes, and RV(forward_blockers) says what.
      - V(false) touches no other firewall. That is for a host where ufw, firewalld or a chain of somebody's nftables drops, once the traffic
        is opened there, since what their rules come to is not seen from here. RV(forward_blockers) goes on to name them.
      - The default is V(true).
    type: bool
  forwarding: &forwarding
    description:
      - Switch IP forwarding on for the bridge and the uplink.
      - V(false) leaves the settings to somebody else, and puts back what this network had changed.
      - The default is V(true).
    type: bool
  persistent: &persistent
    description:
      - Whether the network's rules and the settings of O(forwarding) are there again after a reboot, without Ansible or Python.
      - With V(true), C(rules.nft) in C(/etc/labspan/networks/NAME/) holds the rules as nft reads them, and C(forwarding) the settings. What stands in
        chains of iptables is in C(rules.PROGRAM) where iptables is the O(backend), and in C(accept.PROGRAM) where it lets packets pass the chains
        of others, such as Docker's. The unit C(labspan-network@NAME.service) loads them at boot, after the host's own firewall.
      - The unit C(labspan-rules.service) then loads again what somebody flushes, at once, as long as the files are there. What is there it leaves alone.
      - The files name the uplink that O(out_interface=auto) found when the task ran. A host whose default route moves to another interface
        needs the task again.
      - V(auto), which is the default, is V(true) where systemd runs the host. Elsewhere V(true) is refused, and V(auto) keeps the settings alone,
        in C(/etc/sysctl.d/60-labspan-NAME.conf).
      - V(false) leaves none of these files.
    type: str
    choices: [auto, 'true', 'false']
  host_services: &host_services
    description:
      - Let DHCP, DNS and ping from the guests to the host pass where an iptables INPUT chain drops them.
      - The default is V(true).
    type: bool
  host_access: &host_access
    description:
      - What guests may begin towards the host. V(full) leaves it to the host's own firewall. V(services) allows DHCP, DNS and ping, and
        drops all else. V(none) drops all but what IPv6 needs to find its gateway.
      - Answers to the host always pass. So does what goes through the host to the LAN.
      - The default is V(full).
    type: str
    choices: [full, services, none]
  lan_access: &lan_access
    description:
      - Whether what comes in from the uplink may reach the guests.
      - By default V(true) if O(masquerade=false), else V(false).
    type: bool
  port_forwards: &port_forwards
    description:
      - Ports of the host that lead to a guest, from the LAN, from the host itself and from the guests of this network.
      - Ports of C(127.0.0.1) and C(::1) are not forwarded.
    type: list
    elements: dict
    suboptions:
      protocol:
        description:
          - The protocol. The default is V(tcp).
        type: str
        choices: [tcp, udp]
      host_address:
        description:
          - An address of the host. By default any of them.
        type: str
      host_port:
        description:
          - A port, or a range such as V(8000-8010).
        type: str
        required: true
      guest_address:
        description:
          - The guest's address; it decides about the IP version.
        type: str
        required: true
      guest_port:
        description:
          - The guest's port. By default the same; a range keeps its numbers.
        type: str
  backend: &backend
    description:
      - Where the rules are. V(auto), the default, is nftables where it is installed, else iptables.
      - V(iptables) writes through the host's own C(iptables-restore), whichever kind that is.
      - V(iptables_legacy) writes legacy tables through python-iptables, and registers them in the kernel.
      - Changing it moves the rules.
    type: str
    choices: [auto, nftables, iptables, iptables_legacy]
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
      sources: *sources
      out_interface: *out_interface
      masquerade: *masquerade
      exclude_destinations: *exclude_destinations
      to_ports: *to_ports
      random: *random
      forward: *forward
      forwarding: *forwarding
      persistent: *persistent
      host_services: *host_services
      host_access: *host_access
      lan_access: *lan_access
      port_forwards: *port_forwards
      backend: *backend
notes:
  - What the backends leave behind in the kernel, who may drop forwarded traffic, and what to do about it is described in
    C(docs/firewall.md) of the collection.
  - Connections of the subnet that began under other rules are forgotten when rules arrive, change or leave.
seealso:
  - module: labspan.vmnet.linux_bridge
  - module: labspan.vmnet.dhcp_server
"""

EXAMPLES = r"""
- name: Let the guests on br0 out through the default route's interface
  labspan.vmnet.nat_masquerade:
    name: lab
    bridge: br0

- name: The same with everything named, and a web server of a guest on the host's port 8080
  labspan.vmnet.nat_masquerade:
    name: lab
    bridge: br0
    sources: [10.0.0.0/24, "fd00:6c61:62::/64"]
    out_interface: eth0
    to_ports: 1024-65535
    port_forwards:
      - host_port: "8080"
        guest_address: 10.0.0.11
        guest_port: "80"

- name: A routed network, where the LAN has a route to the guests
  labspan.vmnet.nat_masquerade:
    name: test
    bridge: br1
    sources: [10.0.1.0/24]
    masquerade: false

- name: Many networks whose guests may use the host for DHCP and DNS only
  labspan.vmnet.nat_masquerade:
    host_access: services
    networks:
      - name: red
        bridge: br-red
      - name: blue
        bridge: br-blue

- name: Leave nothing of it
  labspan.vmnet.nat_masquerade:
    name: lab
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be in check mode, as sentences.
  returned: success
  type: list
  elements: str
  sample: [Create the nftables table inet labspan_lab]
boot_files:
  description: The files of the networks of the task that bring them back after a reboot.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The path.
      type: str
      sample: /etc/labspan/networks/lab/rules.nft
    lines:
      description: What the file holds.
      type: list
      elements: str
      sample: ["table inet labspan_lab", "delete table inet labspan_lab"]
forward_blockers:
  description: What drops traffic of the networks and is not the module's to open, a sentence each.
  returned: success, and when the task fails because of them
  type: list
  elements: str
  sample: []
network:
  description: The network, when O(name) is given; null if it is absent. The keys are those of RV(networks).
  returned: when O(name) is given
  type: dict
networks:
  description: The networks whose rules are in force.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the network.
      type: str
      sample: lab
    backend:
      description: Where the rules are.
      type: str
      sample: nftables
    bridge:
      description: The bridge.
      type: str
      sample: br0
    sources:
      description: The guests' subnets that the task asks for, or that were taken from the bridge.
      type: list
      elements: str
      sample: [10.0.0.0/24]
    out_interfaces:
      description: The uplinks for C(ipv4) and C(ipv6) that the task asks for, or that were found.
      type: dict
      sample: {ipv4: eth0, ipv6: eth0}
    masquerade:
      description: Whether the task asks for NAT.
      type: bool
      sample: true
    lan_routes:
      description:
        - The routes that the LAN needs to reach the guests, as C(ip route add) takes them. Empty with O(masquerade=true), and where the
          host has no address on its uplink.
      type: list
      elements: str
      sample: [10.0.1.0/24 via 192.168.1.20]
    host_access:
      description: What the task lets guests begin towards the host.
      type: str
      sample: full
    table:
      description: The nftables table as C(nft list table) prints it, by lines.
      type: list
      elements: str
      sample: ["table inet labspan_lab {", "}"]
    iptables:
      description: The network's rules in tables of iptables, by world and table.
      type: dict
      sample: {iptables-nft filter: ["-A FORWARD -j LABSPAN-lab-ACC"]}
    settings:
      description: The kernel settings that the network needs, and their values.
      type: dict
      sample: {net/ipv4/conf/br0/forwarding: "1"}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._networks import build
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._options import OPTIONS
from ansible_collections.labspan.vmnet.plugins.module_utils._items import bulk_spec
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import run


def main() -> None:
    run(AnsibleModule(**bulk_spec(OPTIONS, "networks")), build)


if __name__ == "__main__":
    main()
