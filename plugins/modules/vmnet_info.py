#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vmnet_info
short_description: See the networks of a host, who is behind each port, the rules with their counters, and the guests
version_added: 0.1.0
description:
  - Tells what is there of the networks and guests of a lab host, bridges, taps, rules, leases and guests, as data.
  - It reads only, and reading leaves nothing behind. No table of the firewall comes into being and no kernel module is loaded,
    because what is not loaded is not asked for. Legacy tables of iptables are read only where they are in use already.
  - Whatever cannot be read is a warning, and the rest is told all the same. Without root that is nearly all of the firewall, and
    who holds the taps.
  - It does not wait for other tasks that are changing the host at the moment, so it may see them half-way.
extends_documentation_fragment:
  - labspan.vmnet._attributes.read_only
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
options:
  gather:
    description:
      - What to tell. Each is a key of the result.
      - Less is faster. V(guests) without V(rules) and V(forward_blockers) asks no program of the firewall.
      - V(networks) asks the firewall, too, because a network's scenario shows in its rules.
    type: list
    elements: str
    choices: [all, host, networks, bridges, taps, guests, rules, forward_blockers, leases, foreign_bridges]
    default: [all]
  networks:
    description: Tell of these networks only, and of the bridges, taps, guests, rules and leases that belong to them.
    type: list
    elements: str
  guests:
    description: Tell of these guests only, and of their taps. Other lists are as they are without it.
    type: list
    elements: str
  agent:
    description:
      - Whether to ask the agents in running guests for the guests' addresses.
      - What an agent tells is what the guest tells about itself.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that each QEMU, and each agent, may take for an answer. All guests are asked at the same time.
      - A guest whose QEMU does not answer is in the state V(unknown).
    type: float
    default: 2.0
notes:
  - A QEMU talks to one program at a time. While this module asks it how the guest is, a task that changes the guest waits.
seealso:
  - module: labspan.vmnet.linux_bridge
  - module: labspan.vmnet.tap_device
  - module: labspan.vmnet.nat_masquerade
  - module: labspan.vmnet.dhcp_server
  - module: labspan.vmnet.qemu_guest
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Look at everything
  labspan.vmnet.vmnet_info:
  register: lab

- name: Show who is behind which port
  ansible.builtin.debug:
    msg: "{{ item.0.name }} {{ item.1.name }}: {{ item.1.neighbours | map(attribute='addresses') | flatten | join(', ') }}"
  loop: "{{ lab.bridges | subelements('ports') }}"
  loop_control:
    label: "{{ item.1.name }}"

- name: See whether anything passed the rules of one network
  labspan.vmnet.vmnet_info:
    gather: [rules]
    networks: [web]
  register: web

- name: Find the addresses of two guests, by the word of their agents, too
  labspan.vmnet.vmnet_info:
    gather: [guests]
    guests: [vm1, vm2]
    agent: true
  register: found
"""

RETURN = r"""
host:
  description: The host itself.
  type: dict
  returned: with O(gather=host)
  contains:
    hostname:
      description: Its name.
      type: str
      sample: lab1
    kernel:
      description: The release of its kernel.
      type: str
      sample: 6.1.0-26-amd64
    machine:
      description: The architecture.
      type: str
      sample: x86_64
    service_manager:
      description: C(systemd) where that runs the host, else C(none).
      type: str
      sample: systemd
    uplinks:
      description: The interfaces of the default routes; null where there is none.
      type: dict
      sample: {ipv4: br-lan, ipv6: null}
    forwarding:
      description: Whether the whole host forwards, and the interfaces on which it does.
      type: dict
      sample: {ipv4: false, ipv6: false, ipv4_interfaces: [br-lan, br-web], ipv6_interfaces: []}
    bridge_netfilter:
      description: Whether the kernel shows frames that pass from port to port of a bridge to the rules for IP (C(br_netfilter)).
      type: bool
      sample: true
    firewalls:
      description: >-
        Who else has rules here, as far as that shows in the rules: C(docker), C(firewalld), C(libvirt), C(ufw). Null where the rules could
        not be read.
      type: list
      elements: str
      sample: [docker]
networks:
  description: The networks of which anything is there, by name.
  type: list
  elements: dict
  returned: with O(gather=networks)
  contains:
    name:
      description: The name.
      type: str
      sample: web
    scenario:
      description: >-
        C(private), C(routed), C(nat) or C(l2), or null where that does not show. A host that is closed off makes it private, an uplink that is
        a port of the bridge l2, rules that masquerade nat, and rules that let through without that routed.
      type: str
      sample: nat
    bridge:
      description: Its bridge, or null.
      type: str
      sample: br-web
    addresses:
      description: The addresses of the bridge but link-local ones.
      type: list
      elements: str
      sample: [192.168.6.1/24]
    uplinks:
      description: >-
        The interfaces by which its guests leave the host: those of the default routes for C(nat) and C(routed), the ports of the bridge that
        are no taps for C(l2).
      type: list
      elements: str
      sample: [br-lan]
    backend:
      description: Where its rules are, C(nftables), C(iptables-nft) or C(iptables-legacy); null if it has none.
      type: str
      sample: nftables
    persistent:
      description: Whether the network comes back after a reboot.
      type: bool
      sample: true
    unit:
      description: The service that brings it back, or null. An C(l2) network is brought back by the host's own manager of networks.
      type: str
      sample: labspan-network@web.service
    files:
      description: The files that bring it back.
      type: list
      elements: str
      sample: [/etc/labspan/networks/web/links, /etc/labspan/networks/web/rules.nft]
    taps:
      description: The names of its taps.
      type: list
      elements: str
      sample: [tap-vm1]
    guests:
      description: The names of the guests that have a NIC in it.
      type: list
      elements: str
      sample: [vm1]
    ports_guarded:
      description: The taps whose guests are held to their own addresses (M(labspan.vmnet.port_security)).
      type: list
      elements: str
      sample: []
    dhcp:
      description: Its DHCP server, or null.
      type: dict
      contains:
        running:
          description: Whether it runs.
          type: bool
          sample: true
        pid:
          description: Its process, or null.
          type: int
          sample: 812
        unit:
          description: Its service, or null for one that is a process of its own.
          type: str
          sample: labspan-dhcp@web.service
        bridge:
          description: The bridge that it serves.
          type: str
          sample: br-web
        ranges:
          description: The addresses that it hands out.
          type: list
          elements: dict
          sample: [{start: 192.168.6.2, end: 192.168.6.254}]
        domain:
          description: The domain of its guests, or null.
          type: str
          sample: web.lab
        dns:
          description: Whether it answers questions for names.
          type: bool
          sample: true
        static_leases:
          description: What certain guests always get.
          type: list
          elements: dict
          sample: [{mac: "52:54:00:00:06:0b", address: 192.168.6.11, name: vm1}]
        configuration_file:
          description: What it was told.
          type: str
          sample: /etc/labspan/networks/web/dnsmasq.conf
        lease_file:
          description: Where it keeps its leases.
          type: str
          sample: /var/lib/labspan/dhcp/web.leases
bridges:
  description: The bridges of the networks, and bridges of others that guests or taps of the collection are on.
  type: list
  elements: dict
  returned: with O(gather=bridges)
  contains:
    name:
      description: The name.
      type: str
      sample: br-web
    network:
      description: Whose it is; null for a bridge of others.
      type: str
      sample: web
    by:
      description: For a bridge of others, whose it is by its name (C(libvirt), C(docker), ...), if that tells. Else null.
      type: str
      sample: null
    addresses:
      description: All of its addresses, link-local ones included.
      type: list
      elements: str
      sample: [192.168.6.1/24, "fe80::6/64"]
    mac:
      description: Its MAC address.
      type: str
      sample: "02:0f:1a:00:00:06"
    mtu:
      description: Its MTU.
      type: int
      sample: 1500
    stp:
      description: Whether the spanning tree protocol runs on it.
      type: bool
      sample: false
    vlan_filtering:
      description: Whether it heeds VLANs; null where the kernel cannot.
      type: bool
      sample: false
    up:
      description: Whether it is switched on.
      type: bool
      sample: true
    carrier:
      description: Whether any port of it is in use.
      type: bool
      sample: true
    ports:
      description: Its ports.
      type: list
      elements: dict
      contains:
        name:
          description: The interface.
          type: str
          sample: tap-vm1
        kind:
          description: >-
            C(tap), C(uplink) for the interface by which the bridge reaches the LAN, else C(other).
          type: str
          sample: tap
        guest:
          description: The guest whose NIC is plugged in there, by its definition, or null.
          type: str
          sample: vm1
        nic:
          description: The number of that NIC in the guest's list, from 0 on, or null.
          type: int
          sample: 0
        up:
          description: Whether the port is switched on.
          type: bool
          sample: true
        carrier:
          description: Whether anybody is at its other end. Of a tap, whether a process holds it.
          type: bool
          sample: true
        state:
          description: C(forwarding), or C(disabled), C(listening), C(learning), C(blocking).
          type: str
          sample: forwarding
        isolated:
          description: Whether it is kept from other isolated ports.
          type: bool
          sample: false
        neighbours:
          description: Whom the bridge has heard behind this port lately, and the guest whose port it is even if not.
          type: list
          elements: dict
          contains:
            mac:
              description: The MAC address.
              type: str
              sample: "52:54:00:00:06:0b"
            heard:
              description: Whether the bridge's forwarding database has the MAC address at this port.
              type: bool
              sample: true
            guest:
              description: The guest that has it, by its definition, or null.
              type: str
              sample: vm1
            name:
              description: The name in its lease, or null.
              type: str
              sample: vm1
            addresses:
              description: Its addresses, IPv4 first, as leases, the host's neighbour table and agents tell them.
              type: list
              elements: str
              sample: [192.168.6.11]
            lease:
              description: Its lease, or null.
              type: dict
              sample: {address: 192.168.6.11, expires: "2026-11-21T23:10:02Z"}
taps:
  description: The taps of the networks and guests, and others that are ports of their bridges.
  type: list
  elements: dict
  returned: with O(gather=taps)
  contains:
    name:
      description: The name.
      type: str
      sample: tap-vm1
    network:
      description: Whose it is; null for one that the collection did not make.
      type: str
      sample: web
    bridge:
      description: The bridge whose port it is, or null.
      type: str
      sample: br-web
    guest:
      description: The guest that is defined to have it, or null.
      type: str
      sample: vm1
    nic:
      description: The number of that guest's NIC, from 0 on, or null.
      type: int
      sample: 0
    owner:
      description: The account that may hold it; null if everybody may.
      type: str
      sample: labspan-qemu
    group:
      description: The group that may hold it, or null.
      type: str
      sample: null
    multi_queue:
      description: Whether it was made for several queues.
      type: bool
      sample: false
    mtu:
      description: Its MTU.
      type: int
      sample: 1500
    mac:
      description: The MAC address of the host's end. The guest's is another one.
      type: str
      sample: "02:0f:1a:00:06:0b"
    up:
      description: Whether it is switched on.
      type: bool
      sample: true
    carrier:
      description: Whether a process holds it.
      type: bool
      sample: true
    holders:
      description: >-
        Who holds it. C(guest) is the guest whose process that is, or null. C(pid) is 0 for a process that cannot be seen from here.
      type: list
      elements: dict
      sample: [{pid: 4711, program: qemu-system-x86, guest: vm1}]
guests:
  description: The guests that the host has a definition or a process of, by name.
  type: list
  elements: dict
  returned: with O(gather=guests)
  contains:
    name:
      description: The name.
      type: str
      sample: vm1
    state:
      description: >-
        C(running), C(paused) or C(stopped); C(broken) if QEMU cannot go on, C(unknown) if it does not answer.
      type: str
      sample: running
    run_state:
      description: QEMU's own word for that; null if it was not heard.
      type: str
      sample: running
    pid:
      description: The process of QEMU, or null.
      type: int
      sample: 4711
    unit:
      description: Its service; null if systemd does not start it.
      type: str
      sample: labspan-guest@vm1.service
    autostart:
      description: Whether it starts when the host boots.
      type: bool
      sample: true
    network:
      description: The network that it was defined in, or null.
      type: str
      sample: web
    user:
      description: The account that QEMU runs as.
      type: str
      sample: labspan-qemu
    memory:
      description: The memory in MiB; null for a guest whose definition cannot be read.
      type: int
      sample: 512
    cpus:
      description: The number of processors, or null likewise.
      type: int
      sample: 1
    architecture:
      description: The architecture, or null likewise.
      type: str
      sample: x86_64
    machine:
      description: The machine type, or null likewise.
      type: str
      sample: q35
    firmware:
      description: C(bios), C(uefi) or C(none), or null likewise.
      type: str
      sample: bios
    accelerator:
      description: C(kvm) or C(tcg); null for a guest that has never been started.
      type: str
      sample: kvm
    labels:
      description: Its labels.
      type: dict
      sample: {role: web}
    guest_agent:
      description: Whether it has a line to an agent.
      type: bool
      sample: true
    console_socket:
      description: The socket of its serial console; null if it has none or does not run.
      type: str
      sample: /run/labspan/guests/vm1/console.sock
    console_log:
      description: What it has written to its console, or null.
      type: str
      sample: /var/lib/labspan/guests/vm1/console.log
    agent_socket:
      description: The socket of the line to its agent; null if it has none or does not run.
      type: str
      sample: /run/labspan/guests/vm1/agent.sock
    pending_restart:
      description: What is known to differ between the running guest and its definition. One sentence each.
      type: list
      elements: str
      sample: []
    nics:
      description: Its NICs, in the order of its definition.
      type: list
      elements: dict
      contains:
        tap:
          description: The tap, or null for a NIC on QEMU's user-mode network.
          type: str
          sample: tap-vm1
        bridge:
          description: The bridge that the tap is a port of, or would be if it were there; or null.
          type: str
          sample: br-web
        network:
          description: The network of that bridge, or null.
          type: str
          sample: web
        mac:
          description: The MAC address.
          type: str
          sample: "52:54:00:00:06:0b"
        model:
          description: The model.
          type: str
          sample: virtio-net-pci
        link:
          description: Whether its cable is plugged in.
          type: bool
          sample: true
        addresses:
          description: >-
            Its addresses, each once, with who told it. Those that the guest had or has come first, C(lease), C(agent), C(neighbour), then
            the one that the DHCP server keeps for it, C(declared). Link-local addresses are left out.
          type: list
          elements: dict
          sample: [{address: 192.168.6.11, source: lease}]
    disks:
      description: Its disks, in the order of its definition.
      type: list
      elements: dict
      contains:
        path:
          description: The image; null for a CD drive without a CD.
          type: str
          sample: /var/lib/labspan/guests/vm1/disk0.qcow2
        format:
          description: The format of the image.
          type: str
          sample: qcow2
        bus:
          description: The bus.
          type: str
          sample: virtio
        media:
          description: C(disk) or C(cdrom).
          type: str
          sample: disk
        read_only:
          description: Whether the guest can only read it.
          type: bool
          sample: false
        base_image:
          description: The image that it is built on, or null.
          type: str
          sample: /var/lib/libvirt/images/debian-12.qcow2
        size:
          description: The size in bytes that it was asked to have, or null.
          type: int
          sample: 21474836480
        allocated:
          description: The bytes that the image takes on the host's disk; null where there is none.
          type: int
          sample: 415236096
rules:
  description: Every rule of the networks, in the order in which the kernel goes through each chain.
  type: list
  elements: dict
  returned: with O(gather=rules)
  contains:
    network:
      description: Whose it is.
      type: str
      sample: web
    world:
      description: Where it is, C(nftables), C(iptables-nft) or C(iptables-legacy).
      type: str
      sample: nftables
    family:
      description: The family of its table, C(inet), C(ip), C(ip6), C(arp) or C(bridge).
      type: str
      sample: inet
    table:
      description: The table.
      type: str
      sample: labspan_web
    chain:
      description: The chain.
      type: str
      sample: postrouting
    position:
      description: Its place in the chain, from 1 on, as C(iptables --line-numbers) counts.
      type: int
      sample: 1
    handle:
      description: The number by which C(nft) deletes it; null for one of C(iptables-legacy), and where nft cannot be asked.
      type: int
      sample: 12
    packets:
      description: Packets that it matched; null for a rule that does not count.
      type: int
      sample: 4211
    bytes:
      description: Their bytes, or null likewise.
      type: int
      sample: 1839220
    text:
      description: The rule without its counters, as C(nft) or C(iptables-save) prints it.
      type: str
      sample: ip saddr 192.168.6.0/24 oifname "eth0" masquerade comment "labspan.vmnet:web"
forward_blockers:
  description: What drops what the networks forward, wherever it is.
  type: list
  elements: dict
  returned: with O(gather=forward_blockers)
  contains:
    network:
      description: The network whose packets do not pass.
      type: str
      sample: office
    world:
      description: Where that is, C(nftables), C(iptables-nft) or C(iptables-legacy).
      type: str
      sample: iptables-nft
    family:
      description: The family of the table.
      type: str
      sample: ip
    table:
      description: The table.
      type: str
      sample: filter
    chain:
      description: The chain.
      type: str
      sample: FORWARD
    by:
      description: Whose chain that is, C(docker), C(firewalld), C(libvirt) or C(ufw), if that shows. Else null.
      type: str
      sample: docker
    text:
      description: A sentence for people, who drops what and what to do about it.
      type: str
      sample: >-
        The chain FORWARD of iptables-nft (filter) drops what the network office forwards, and nothing of that network stands in front of
        the drop. Run nat_masquerade with forward: true, or accept what enters and leaves br-office there.
leases:
  description: The leases of all DHCP servers that have not run out.
  type: list
  elements: dict
  returned: with O(gather=leases)
  contains:
    network:
      description: The network.
      type: str
      sample: web
    bridge:
      description: The bridge that the server is for; null when its configuration is gone.
      type: str
      sample: br-web
    mac:
      description: The MAC address.
      type: str
      sample: "52:54:00:00:06:0b"
    address:
      description: The address.
      type: str
      sample: 192.168.6.11
    name:
      description: The name that the guest gave or was given, or null.
      type: str
      sample: vm1
    expires:
      description: When it ends, in UTC; null for one without end.
      type: str
      sample: "2026-11-21T23:10:02Z"
    guest:
      description: The guest that has this MAC address, by its definition, or null.
      type: str
      sample: vm1
foreign_bridges:
  description: Bridges of others, which the collection does not touch.
  type: list
  elements: dict
  returned: with O(gather=foreign_bridges)
  contains:
    name:
      description: The name.
      type: str
      sample: docker0
    by:
      description: Whose it is by its name, C(docker), C(libvirt), C(lxc), ...; null if that does not tell.
      type: str
      sample: docker
    addresses:
      description: Its addresses but link-local ones.
      type: list
      elements: str
      sample: [172.17.0.1/16]
    ports:
      description: The names of its ports.
      type: list
      elements: str
      sample: [veth1f2e3d]
    up:
      description: Whether it is switched on.
      type: bool
      sample: true
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labspan.vmnet.plugins.module_utils import _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._info import _gather


def main() -> None:
    """Run the module."""
    _runner.run_reader(AnsibleModule(_gather.OPTIONS, supports_check_mode=True), _gather.gather)


if __name__ == "__main__":
    main()
