#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: dhcp_server
short_description: Serve DHCP, DNS and IPv6 router advertisements on a bridge
author:
  - The labspan.vmnet authors (@labspan)
description:
  - Runs one dnsmasq for each network as declared state. It hears only the network's bridge, runs as an unprivileged account with
    a configuration file of its own, and reads nothing of the host's own dnsmasq, nor its C(/etc/hosts).
  - Addresses are taken from the bridge. What is derived from them follows when the task runs again.
  - Changed static leases and names are read by the running server. Any other change restarts it; leases are kept.
  - A task that finds everything as wanted starts no process and sends no signal.
  - It is for bridges that make a network of their own. A bridge that holds the host's default route is a part of the LAN, which
    has its own DHCP server, and is refused.
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
requirements:
  - dnsmasq (in Debian the package dnsmasq-base)
options:
  name:
    description:
      - The name of the network, up to 63 letters, digits, V(_), V(.) or V(-). Files are named after it.
      - Either this or O(servers) is required.
    type: str
  state:
    description:
      - V(present) has the server run with the given options.
      - V(absent) stops it and removes its files, B(including the leases) that it handed out.
    type: str
    choices: [present, absent]
    default: present
  bridge: &bridge
    description:
      - The bridge to serve. By default the one that is named like the network.
      - It must carry an IPv4 address, or an IPv6 address and O(router_advertisements=true).
    type: str
  range: &range
    description:
      - The addresses for guests without a static lease.
      - By default all of the subnet but the bridge's and the gateway's. The address of a static lease is never given to another guest.
    type: dict
    suboptions: &range_options
      start:
        description: The first address.
        type: str
        required: true
      end:
        description: The last address.
        type: str
        required: true
  ranges: &ranges
    description:
      - Several ranges, in place of O(range).
      - An empty list hands out static leases only; other guests get no answer.
    type: list
    elements: dict
    suboptions: *range_options
  lease_time: &lease_time
    description:
      - How long a lease lasts, in seconds or with the unit V(m), V(h), V(d) or V(w), or V(infinite). At least two minutes.
      - The default is V(12h).
    type: str
  leases: &leases
    description:
      - Static leases. No address may be the bridge's or the gateway's; each MAC address, address and name may appear once.
      - A guest that already has another lease gets the new one when it asks again.
    type: list
    elements: dict
    suboptions:
      mac:
        description: The MAC address of the guest's interface. Write it in quotes, since YAML takes some for numbers.
        type: str
        required: true
      address:
        description: The IPv4 address in the subnet of the bridge. Without one the guest has a name and an address of the range.
        type: str
      name:
        description: The guest's host name, without a domain. It is sent to the guest and answered by DNS.
        type: str
  dns: &dns
    description:
      - V(true) answers DNS on the bridge for the names of static leases and of guests that sent their name, forwards the rest, and announces
        the bridge's address as DNS server. V(false) leaves port 53 alone.
      - The default is V(true).
    type: bool
  dns_servers: &dns_servers
    description:
      - With O(dns=true) the servers that the rest is forwarded to. By default those of the host's C(/etc/resolv.conf); an empty list
        forwards nothing.
      - With O(dns=false) the servers that guests are told of. By default none.
    type: list
    elements: str
  domain: &domain
    description:
      - The DNS domain of the network, sent to the guests. Queries for names in it are never forwarded.
    type: str
  gateway: &gateway
    description:
      - The router that guests are told of; V(none) tells them of none, for networks without a way out.
      - By default the bridge's address.
    type: str
  router_advertisements: &router_advertisements
    description:
      - Whether guests are told of the bridge's IPv6 prefixes, so that they take addresses of their own (SLAAC). Needs an address with the
        prefix length 64 on the bridge.
      - The default is V(false).
    type: bool
  ipv6_default_route: &ipv6_default_route
    description:
      - Whether router advertisements offer the host as the default route. Without it guests reach their own prefix only.
      - The default is V(false).
    type: bool
  options: &options
    description:
      - Further DHCP options as dnsmasq writes them (its C(dhcp-option)), such as V(option:ntp-server,192.168.6.10) or V(26,1400).
    type: list
    elements: str
  log_dhcp: &log_dhcp
    description:
      - Whether to log every option that is sent, to syslog.
      - The default is V(false).
    type: bool
  log_queries: &log_queries
    description:
      - Whether to log every DNS query, to syslog.
      - The default is V(false).
    type: bool
  persistent: &persistent
    description:
      - Whether the server is there again after a reboot, without Ansible or Python.
      - With V(true) it is a unit of systemd, C(labspan-dhcp@NAME.service), which also starts it again when it dies. Its configuration is
        C(/etc/labspan/networks/NAME/dnsmasq.conf). A server that runs as a plain process becomes the unit, and its leases are kept.
      - V(auto), which is the default, is V(true) where systemd runs the host. V(true) is refused elsewhere.
      - V(false) leaves no unit, and no file in C(/etc).
    type: str
    choices: [auto, 'true', 'false']
  service_manager: &service_manager
    description:
      - What runs the server. V(systemd) is refused where systemd does not run the host; V(none) is a plain process, which ends with the host's uptime.
      - The default, V(auto), is systemd where O(persistent) is or means V(true), and a plain process elsewhere.
    type: str
    choices: [auto, systemd, none]
  servers:
    description:
      - Many servers in one task, in place of O(name). The options beside the list are the defaults of its entries.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the network.
        type: str
        required: true
      state:
        description: Whether the server is there.
        type: str
        choices: [present, absent]
      bridge: *bridge
      range: *range
      ranges: *ranges
      lease_time: *lease_time
      leases: *leases
      dns: *dns
      dns_servers: *dns_servers
      domain: *domain
      gateway: *gateway
      router_advertisements: *router_advertisements
      ipv6_default_route: *ipv6_default_route
      options: *options
      log_dhcp: *log_dhcp
      log_queries: *log_queries
      persistent: *persistent
      service_manager: *service_manager
notes:
  - Leases are in C(/var/lib/labspan/dhcp/NETWORK.leases), also when this module does not run; the filter P(labspan.vmnet.dhcp_leases#filter) reads
    such a file.
  - In check mode a missing bridge and a missing dnsmasq are warnings, as a task before may bring them.
  - The host's firewall must let the guests' DHCP and DNS in, see O(labspan.vmnet.nat_masquerade#module:host_services).
seealso:
  - module: labspan.vmnet.linux_bridge
  - module: labspan.vmnet.nat_masquerade
"""

EXAMPLES = r"""
- name: Serve the subnet of a bridge
  labspan.vmnet.dhcp_server:
    name: lab
    bridge: br0
    domain: lab.example

- name: Choose the range, and give two guests addresses and names of their own
  labspan.vmnet.dhcp_server:
    name: lab
    bridge: br0
    range:
      start: 192.168.6.100
      end: 192.168.6.199
    lease_time: 1h
    leases:
      - mac: "52:54:00:12:34:56"
        address: 192.168.6.11
        name: web
      - mac: "52:54:00:12:34:57"
        address: 192.168.6.12
        name: db

- name: Serve a network without a way out, and its IPv6 prefix
  labspan.vmnet.dhcp_server:
    name: island
    bridge: br1
    gateway: none
    dns_servers: []
    router_advertisements: true

- name: Serve many networks
  labspan.vmnet.dhcp_server:
    lease_time: 1d
    servers:
      - name: red
        bridge: br-red
      - name: blue
        bridge: br-blue
        dns: false
        dns_servers: [192.0.2.53]

- name: Remove a server with its leases
  labspan.vmnet.dhcp_server:
    name: lab
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be in check mode, as sentences.
  returned: success
  type: list
  elements: str
  sample: [Let the DHCP server of network lab read its changed static leases]
leases:
  description: The leases that guests hold, of all servers that the task names, as they stand in the lease files.
  returned: success
  type: list
  elements: dict
  contains:
    network:
      description: The name of the network.
      type: str
      sample: lab
    mac:
      description: The MAC address of the guest's interface.
      type: str
      sample: 52:54:00:12:34:56
    address:
      description: The address.
      type: str
      sample: 192.168.6.11
    name:
      description: The guest's name; null if it has none.
      type: str
      sample: web
    expires:
      description: When the lease ends, in UTC; null for a lease without end.
      type: str
      sample: "2030-01-31T12:00:00Z"
server:
  description: The server, when O(name) is given; null if it is absent. The keys are those of RV(servers).
  returned: when O(name) is given
  type: dict
servers:
  description: The servers that are there, in the order of the task.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the network.
      type: str
      sample: lab
    bridge:
      description: The bridge that it serves; null in check mode when it is not there.
      type: str
      sample: br0
    running:
      description: Whether the server runs.
      type: bool
      sample: true
    pid:
      description: The process; null in check mode when it would be started.
      type: int
      sample: 4711
    unit:
      description: The unit of systemd that runs it; null for a plain process.
      type: str
      sample: labspan-dhcp@lab.service
    configuration_file:
      description: The path of dnsmasq's configuration.
      type: str
      sample: /var/lib/labspan/dhcp/lab.conf
    lease_file:
      description: The path of the lease file.
      type: str
      sample: /var/lib/labspan/dhcp/lab.leases
    configuration:
      description: The lines of the configuration.
      type: list
      elements: str
      sample: [interface=br0, except-interface=lo, bind-dynamic]
    static_leases:
      description: The static leases as dnsmasq reads them.
      type: list
      elements: str
      sample: ["52:54:00:12:34:56,192.168.6.11,web"]
    names:
      description: The addresses and names that DNS answers for static leases.
      type: list
      elements: str
      sample: ["192.168.6.11 web"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils._dhcp import build
from ansible_collections.labspan.vmnet.plugins.module_utils._dhcp_options import OPTIONS
from ansible_collections.labspan.vmnet.plugins.module_utils._items import bulk_spec
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import run


def main() -> None:
    module = AnsibleModule(**bulk_spec(OPTIONS, "servers"))
    run(module, lambda params: build(params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
