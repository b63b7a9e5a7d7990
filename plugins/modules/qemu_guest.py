#!/usr/bin/python
# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qemu_guest
short_description: Run virtual machines with QEMU, without libvirt
version_added: 0.1.0
description:
  - Defines QEMU guests, makes their disks, starts, pauses, stops and removes them.
  - Many guests (O(guests)) are one task. They start and stop at the same time.
  - An option that is left out leaves a guest as it is defined, or takes the default for a new one.
  - QEMU runs as an account without privileges and in a sandbox. Where systemd starts it, its taps must belong to that account;
    elsewhere they are opened for it and may belong to root. See O(service_manager).
  - While a guest runs, NICs and disks that O(nics) and O(disks) gain are plugged in, those that they lose are pulled out, CDs are
    changed and cables are plugged and pulled. The guest's own system has to take part in what is pulled out. On C(q35) and C(virt)
    there is room for four more than the guest was started with, and on the buses C(ide) and C(sata) nothing can come or go.
  - A NIC with the address or on the tap of one that is there, and a disk with the path of one that is there, is that one. When
    it is to be different otherwise, it waits for a restart.
  - A change that a running guest cannot take is reported in RV(guests[].pending_restart) and as a warning, unless O(restart) allows
    the restart.
  - Disks are made exclusively, never over a file that is there. They are never shrunk, and removed only with O(remove_disks=true).
extends_documentation_fragment:
  - labspan.vmnet._attributes
  - labspan.vmnet._attributes.actiongroup_vmnet
  - labspan.vmnet._requirements
  - labspan.vmnet._requirements.pyroute2
requirements:
  - QEMU, and C(qemu-img) where disks are made
  - C(genisoimage), C(mkisofs), C(xorriso) or the Python library C(pycdlib) where a cloud-init seed is made
  - UEFI firmware, and C(swtpm), for guests that have them
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
          - With V(running), the guest runs. A guest that is paused goes on.
          - With V(stopped), the guest is defined, its disks are there, and it does not run.
          - With V(paused), the guest is there with its memory, and does not run on.
          - With V(restarted), the guest is stopped if it runs, and started. This is a change on every run.
          - With V(absent), the guest is stopped and its definition removed. Its disks stay, see O(remove_disks).
          - A guest is stopped by pressing its power button. If it still runs after O(shutdown_timeout), QEMU gets SIGTERM, on
            which it closes the disks properly; nothing harder happens without O(force).
        type: str
        choices: [running, stopped, paused, restarted, absent]
      memory: &memory
        description:
          - The memory, as MiB or with a unit as in V(2G). The default for a new guest is V(512).
          - It changes while the guest runs only if the guest has a O(guests[].balloon), and up to what the guest was started with.
        type: str
      cpus: &cpus
        description: The number of processors. The default for a new guest is V(1).
        type: int
      cpu_model: &cpu_model
        description:
          - The processor that the guest sees, as QEMU names it.
          - The default is C(host) with KVM and C(max) without. The empty string goes back to it.
        type: str
      machine: &machine
        description: QEMU's machine type. The default for a new guest is V(q35), or V(virt) where there is none.
        type: str
      architecture: &architecture
        description:
          - The architecture of the guest; C(qemu-system-)I(architecture) is run.
          - The default for a new guest is the host's own.
        type: str
      accelerator: &accelerator
        description:
          - V(auto) tries whether KVM works, once after each boot of the host, and falls back to emulation with a warning. This is
            the default for a new guest.
          - V(kvm) fails where KVM does not work.
          - V(tcg) emulates. It is slower and no security boundary.
        type: str
        choices: [auto, kvm, tcg]
      disks: &disks
        description: The disks, all of them. One whose file is not there is made from its O(guests[].disks[].size) or base image.
        type: list
        elements: dict
        suboptions: &disk_options
          path:
            description:
              - The image file, or a block device. Its directory must be there.
              - One that is there already must be one that O(guests[].user) may read and write. A base image need only be readable.
              - The default is C(/var/lib/labspan/guests/NAME/diskN.qcow2). A CD drive has none, and is empty without O(guests[].disks[].path)
                or with an empty one.
            type: str
          size:
            description:
              - The size with its unit, as in V(20G). Needed for a new disk without base image.
              - A smaller disk grows to it, also while the guest runs, which sees it at once on most buses. A larger one is an error.
            type: str
          base_image:
            description:
              - The image that a new disk is an overlay of, as a path on the host or as a URL (C(https), C(http), C(file)).
              - It is never written to. Another guest that has it as its own disk is refused, whether it runs or not.
              - An image from a URL is downloaded once for all guests of the host, into C(/var/lib/labspan/images/), and
                gets its name there when it is whole and right. One whose URL ends in C(.xz), C(.gz) or C(.bz2) is unpacked. It is
                never downloaded again, but counts as another image when its URL or O(guests[].disks[].checksum) changes.
              - It must be readable for O(user). What it is built on itself, if anything, must be in its directory, that of the disk or
                of the guest. A downloaded one must stand alone.
            type: str
          base_format:
            description: The format of the base image. The default is what is found in it; another one is an error.
            type: str
            choices: [qcow2, raw, vmdk, vdi, vhdx, vpc]
          checksum:
            description:
              - The checksum of the base image as C(sha256:)I(digits); C(sha512), C(sha1) and C(md5) work, too.
              - For an image from a URL also C(sha256:)I(URL) of the list that its publisher has of them. It is of what is downloaded,
                before that is unpacked. With C(http), which anybody on the way can change, it is required, as it is where
                a server redirects C(https) to C(http); a list must not be redirected so.
              - It is checked when the image is downloaded, or else when the overlay is made, not afterwards.
            type: str
          format:
            description: The format of the disk. The default for a new one is V(qcow2); an existing one keeps its own.
            type: str
            choices: [qcow2, raw]
          bus:
            description:
              - How the guest sees the disk. V(ide) is the built-in controller of the machine, on q35 an AHCI one.
              - The default is V(virtio), and V(sata) for a CD drive, which can be V(ide) or V(scsi), too.
            type: str
            choices: [virtio, ide, sata, scsi, nvme]
          read_only:
            description: >-
              Whether the guest can only read the disk. An V(ide) or V(sata) disk cannot be read-only, unless it is a CD drive, which
              always is.
            type: bool
          media:
            description:
              - V(cdrom) is a CD drive, with the ISO image at O(guests[].disks[].path) in it.
              - The default is V(disk).
            type: str
            choices: [disk, cdrom]
      nics: &nics
        description: The network interfaces, all of them.
        type: list
        elements: dict
        suboptions: &nic_options
          tap:
            description:
              - The tap that the interface is plugged into. It must be there (M(labspan.vmnet.tap_device)), unless a bridge is given.
            type: str
          bridge:
            description:
              - The bridge that the interface is on. A tap is made for it, named by O(guests[].nics[].tap) or after the guest, and
                removed with the guest.
            type: str
          network:
            description:
              - The network that this tap belongs to, for a guest with interfaces on several. The default is O(guests[].network).
            type: str
          user:
            description: Use QEMU's own user-mode network, which reaches out and is not reached.
            type: bool
          mac:
            description:
              - The MAC address. Write it in quotes, since YAML takes some for numbers.
              - The default is derived from host, guest and number of the interface, and always the same.
            type: str
          model:
            description: What the guest sees. The default is V(virtio-net-pci).
            type: str
            choices: [virtio-net-pci, virtio-net, e1000, e1000e, rtl8139, vmxnet3]
          queues:
            description:
              - The number of queues. The tap must have been made with O(labspan.vmnet.tap_device#module:multi_queue=true) exactly
                when this is more than 1, the default.
            type: int
          vhost:
            description:
              - Whether the kernel moves the packets itself, which is faster. It needs a virtio NIC on a tap, and the kernel's module
                C(vhost_net) on the host.
              - V(auto), the default, does so where it works.
            type: str
            choices: [auto, "true", "false"]
          link:
            description: Whether the cable is plugged in. It can change while the guest runs. The default is V(true).
            type: bool
      firmware: &firmware
        description:
          - What starts the guest. V(bios) is what the machine brings along, V(uefi) an image that is found by the descriptors which
            its package installs (C(/etc/qemu/firmware), C(/usr/share/qemu/firmware)), in the order of their priority.
          - With V(uefi), the guest has a store of variables of its own, C(/var/lib/labspan/guests/NAME/uefi_vars.fd). It is made from
            the template once, never replaced, and removed only with O(remove_disks=true).
          - A guest keeps the image that it has, also when a package brings one of higher priority.
          - The default for a new guest is V(bios). On architectures that have none, it is V(uefi), or nothing when a O(kernel) is given.
        type: str
        choices: [bios, uefi]
      secure_boot: &secure_boot
        description:
          - Whether the firmware boots signed programs only. It needs O(firmware=uefi), and on x86 the machine V(q35).
          - A store of variables that has no platform key is an error, because the firmware would boot anything.
          - The default for a new guest is V(false).
        type: bool
      firmware_code: &firmware_code
        description:
          - The image of the UEFI firmware, to use another one than is found. The empty string goes back to that.
        type: str
      firmware_variables: &firmware_variables
        description:
          - The template for the guest's store of variables. The default is the one that belongs to O(firmware_code).
        type: str
      cloud_init: &cloud_init
        description:
          - What cloud-init in the guest is told (its data source NoCloud). The whole of it; what is left out is not told.
          - The dictionary may be empty, for a guest that only gets its name.
          - What cloud-init does, it does when the guest boots, and most of it once for each C(instance-id). A changed seed is made
            when the guest is not running, and is named in RV(guests[].pending_restart) of one that runs. The guest then boots with
            it and, as the C(instance-id) is the same, does not repeat what it has done. See
            O(guests[].cloud_init.new_instance_on_change).
          - The content of O(guests[].cloud_init.user_data), O(guests[].cloud_init.meta_data), O(guests[].cloud_init.network_config)
            and O(guests[].cloud_init.vendor_data) appears in no result, difference, error or log of this module. It stands in
            C(/var/lib/labspan/guests/NAME/seed.iso), which only root and O(user) can read, and the guest.
        type: dict
        suboptions: &cloud_init_options
          delivery:
            description:
              - V(iso) attaches an image with the label C(cidata) as a read-only virtio disk. It needs no network. One of the programs
                C(genisoimage), C(mkisofs) and C(xorriso) or the Python library C(pycdlib) must be on the managed host.
              - V(smbios) tells the guest by its serial number to fetch everything from O(guests[].cloud_init.seed_url), for which
                it must get an address by DHCP first.
              - V(none) takes away what there was before.
              - The default is V(iso).
            type: str
            choices: [iso, smbios, none]
          user_data:
            description:
              - A dictionary becomes C(#cloud-config), a list C(#cloud-config-archive). Text is passed on as it is, and must begin
                with C(#cloud-config), C(#!) or whatever else cloud-init knows.
              - Put secrets into variables in a vault. What is written in a playbook, Ansible itself quotes when it cannot make sense of
                the line, before this module is reached.
            type: raw
          meta_data:
            description:
              - A dictionary is completed by C(instance-id), which is C(labspan-NAME), and C(local-hostname), which is the name of
                the guest. Text is passed on as it is.
              - With another C(instance-id) the guest does everything as if it were new, and gets new SSH host keys.
            type: raw
          network_config:
            description:
              - The network of the guest, in cloud-init's format version 1 or 2, as data or text. Without it, the guest uses DHCP on its
                first interface.
              - Match interfaces by MAC address, since their names are up to the guest.
            type: raw
          vendor_data:
            description: As O(guests[].cloud_init.user_data), which takes precedence over it.
            type: raw
          new_instance_on_change:
            description:
              - Whether another content makes another C(instance-id), so that with the next boot the guest does everything as if it were
                new. The default is V(false).
            type: bool
          seed_url:
            description:
              - With O(guests[].cloud_init.delivery=smbios), where the guest finds C(user-data), C(meta-data) and C(vendor-data).
              - Everybody on the host can see it, so a URL with a password is refused.
            type: str
          datasource:
            description:
              - With O(guests[].cloud_init.delivery=smbios), what the data source is called. The default is V(nocloud), which cloud-init 24.1 and
                later want.
              - Older ones, as that of Debian 12, need V(nocloud-net). With V(nocloud) they fetch the seed and then do not heed it.
            type: str
            choices: [nocloud, nocloud-net]
      tpm: &tpm
        description:
          - Whether the guest has a TPM 2.0, which is C(swtpm) beside QEMU and as the same account. What it keeps is in
            C(/var/lib/labspan/guests/NAME/tpm) and removed only with O(remove_disks=true).
          - The default for a new guest is V(false).
        type: bool
      limits: &limits
        description:
          - What the guest may take of the host. The whole of it, what is left out is not limited; an empty dictionary takes all limits
            away.
          - Other limits come into force while the guest runs.
          - All but O(guests[].limits.cpu_affinity) are kept by systemd, and refused for a guest that it does not start. See
            O(service_manager).
        type: dict
        suboptions: &limits_options
          cpu_quota:
            description: The most processor time, as percent of one processor. V(150) is one and a half.
            type: int
          cpu_weight:
            description: The share of processor time when there is not enough for all, 1 to 10000. What has none, has 100.
            type: int
          memory_max:
            description:
              - The most memory, with its unit as in V(3G), for the guest's memory and QEMU itself. Above it, the kernel ends the guest.
              - Less than O(memory) is an error.
            type: str
          io_weight:
            description: The share of disk time when there is not enough for all, 1 to 10000. What has none, has 100.
            type: int
          cpu_affinity:
            description: The numbers of the processors that the guest runs on.
            type: list
            elements: int
      hugepages: &hugepages
        description:
          - Whether the guest's memory is made of huge pages, of the size that is usual on the host. They are taken at once when the
            guest starts; when not enough are free, it does not.
          - The default for a new guest is V(false).
        type: bool
      labels: &labels
        description:
          - Keys and values by which to sort guests. The whole of it; an empty dictionary takes all away.
          - They are kept with the guest's definition, for people and for the inventory (P(labspan.vmnet.guests#inventory)). QEMU does
            not hear of them, so a change of them never touches the guest.
        type: dict
      kernel: &kernel
        description: A Linux kernel to boot directly, on the managed host. The empty string goes back to booting from the disks.
        type: str
      initrd: &initrd
        description: The initial RAM disk for O(kernel).
        type: str
      cmdline: &cmdline
        description: The command line for O(kernel).
        type: str
      boot_order: &boot_order
        description: What is tried to boot from, in this order. Without it, the firmware decides.
        type: list
        elements: str
        choices: [disk, cdrom, network]
      console: &console
        description:
          - Whether the guest has a serial console. Its socket is C(/run/labspan/guests/NAME/console.sock), and what the guest writes
            is kept in C(/var/lib/labspan/guests/NAME/console.log), that of the run before in C(console.log.1).
          - The default for a new guest is V(true).
        type: bool
      guest_agent: &guest_agent
        description:
          - Whether the guest has a line to the host for an agent that runs in it, such as C(qemu-guest-agent), which
            M(labspan.vmnet.guest_agent) talks to. The agent itself is software in the guest.
          - The default for a new guest is V(false).
        type: bool
      balloon: &balloon
        description:
          - Whether the guest has a balloon, by which O(guests[].memory) can be changed while it runs, up to what it was started with.
            The default for a new guest is V(false).
        type: bool
      display: &display
        description:
          - V(none) gives no graphics card. This is the default for a new guest.
          - V(vnc) gives one whose screen is served on the socket C(/run/labspan/guests/NAME/display/vnc.sock).
        type: str
        choices: [none, vnc]
      user: &user
        description:
          - The account that QEMU runs as. It must be there.
          - The default for a new guest is its own account, if M(labspan.vmnet.guest_account) has made one, else V(labspan-qemu), which
            nobody makes by itself.
        type: str
      sandbox: &sandbox
        description:
          - Whether QEMU locks itself into a system call filter. The default for a new guest is V(true).
        type: bool
      service_manager: &service_manager
        description:
          - Who starts QEMU.
          - With V(systemd), the guest is the service C(labspan-guest@NAME). It comes back after a boot and after a crash, and is
            powered off properly when the host goes down. Neither needs Ansible or Python. What QEMU says is in the journal. Its taps
            must belong to O(user), because nobody can open them for it.
          - With V(none), QEMU is a process that lasts until the host goes down.
          - V(auto) is V(systemd) where systemd runs the host, for guests that do not run otherwise already. This is the default for
            a new guest.
        type: str
        choices: [auto, systemd, none]
      autostart: &autostart
        description:
          - Whether a guest that systemd runs is started when the host boots, unless O(state) says that it does not run.
          - The default for a new guest is V(true).
        type: bool
      network: &network
        description:
          - The network that taps made for the guest belong to, unless an interface names its own. The default is the name of the bridge.
        type: str
      extra_args: &extra_args
        description: More arguments for QEMU, one list entry for each word. They are passed as they are.
        type: list
        elements: str
      restart: &restart
        description:
          - Whether a running guest may be restarted for a change that needs it.
        type: str
        choices: [never, if_needed]
      shutdown_timeout: &shutdown_timeout
        description:
          - Seconds that the guest has to power itself off before QEMU gets SIGTERM.
          - What a task gives that makes the guest run, is kept with the guest, and holds for systemd and for tasks that do not say.
          - The default for a new guest is V(60).
        type: float
      live_timeout: &live_timeout
        description:
          - Seconds that a running guest has to give back a NIC or a disk that O(guests[].nics) or O(guests[].disks) does not name any
            more, or memory. The task fails when it does not, and the guest keeps what it has.
        type: float
      force: &force
        description:
          - Allow SIGKILL when QEMU does not end on SIGTERM, and ending QEMU without asking the guest when its control socket is taken.
            The guest loses what QEMU has not written yet.
        type: bool
      remove_disks: &remove_disks
        description: With O(state=absent), remove the disks that were made for this guest. Others are never removed.
        type: bool
      wait_for: &wait_for
        description:
          - What the task waits for. QEMU itself must come up and answer in any case, which is all for V(nothing) and V(qmp).
          - V(console) waits after a start until the guest writes O(console_pattern) on its serial console. If that does not happen,
            the start is undone.
          - V(address) waits until one of the guest's NICs has an address that is not link-local. It is looked for in the leases of the
            host's DHCP servers, in its neighbour table and in the C(network_config) that the task gives to cloud-init, and must
            answer on the wire from the NIC's MAC address; or the agent in the guest tells it (O(guest_agent)).
          - V(ssh) waits until such an address answers on port 22 as an SSH server does. The host must have a way to it.
          - V(cloud_init) waits until cloud-init has finished, as it tells on the serial console by its default C(final_message), or the
            agent in the guest tells (O(guest_agent)). What cloud-init reports as failed is an error then.
          - With V(address), V(ssh) and V(cloud_init) also a task waits that finds the guest running, and a guest that does not come so
            far is left as it is, to be looked at. Other tasks for the host can run meanwhile.
          - When time is over, the error tells how far each guest came, and shows the end of its serial console.
        type: str
        choices: [nothing, qmp, console, address, ssh, cloud_init]
      console_pattern: &console_pattern
        description: A regular expression for O(wait_for=console).
        type: str
      wait_timeout: &wait_timeout
        description: Seconds to wait for what O(wait_for) names.
        type: float
  state:
    <<: *state
    default: running
  memory: *memory
  cpus: *cpus
  cpu_model: *cpu_model
  machine: *machine
  architecture: *architecture
  accelerator: *accelerator
  disks: *disks
  nics: *nics
  firmware: *firmware
  secure_boot: *secure_boot
  firmware_code: *firmware_code
  firmware_variables: *firmware_variables
  cloud_init: *cloud_init
  tpm: *tpm
  limits: *limits
  hugepages: *hugepages
  labels: *labels
  kernel: *kernel
  initrd: *initrd
  cmdline: *cmdline
  boot_order: *boot_order
  console: *console
  guest_agent: *guest_agent
  balloon: *balloon
  display: *display
  user: *user
  sandbox: *sandbox
  service_manager: *service_manager
  autostart: *autostart
  network: *network
  extra_args: *extra_args
  restart:
    <<: *restart
    default: never
  shutdown_timeout: *shutdown_timeout
  live_timeout:
    <<: *live_timeout
    default: 20.0
  force:
    <<: *force
    default: false
  remove_disks:
    <<: *remove_disks
    default: false
  wait_for:
    <<: *wait_for
    default: qmp
  console_pattern: *console_pattern
  wait_timeout:
    <<: *wait_timeout
    default: 120.0
notes:
  - The command line of a running guest can be seen by everybody on the host. Put no secret into O(cmdline) and O(extra_args).
seealso:
  - module: labspan.vmnet.linux_bridge
  - module: labspan.vmnet.tap_device
author:
  - The labspan.vmnet authors (@labspan)
"""

EXAMPLES = r"""
- name: Make the account that a guest runs as
  labspan.vmnet.guest_account:
    name: vm1

- name: A guest on a bridge, with an overlay on a downloaded image
  labspan.vmnet.qemu_guest:
    name: vm1
    memory: 2G
    cpus: 2
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2
        size: 20G
    nics:
      - bridge: br0

- name: A guest on a cloud image that is downloaded once for all guests, with an empty CD drive
  labspan.vmnet.qemu_guest:
    name: vm2
    memory: 2G
    disks:
      - base_image: https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2
        checksum: sha512:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS
        size: 20G
      - media: cdrom
    nics:
      - bridge: br0

- name: Two guests that boot a kernel directly, each on a tap of its own, ready when they say so
  labspan.vmnet.qemu_guest:
    memory: 256
    kernel: /var/lib/labspan/tiny_guest/vmlinux
    initrd: /var/lib/labspan/tiny_guest/initrd.img
    cmdline: console=ttyS0 no_timer_check quiet
    wait_for: console
    console_pattern: "labspan: .* ready"
    guests:
      - name: vm1
        nics:
          - tap: QemuTap0
            mac: "52:54:00:21:34:56"
      - name: vm2
        nics:
          - tap: QemuTap1
            mac: "52:54:00:21:34:57"

- name: A cloud image with a name, a user, and an address that is set by hand elsewhere
  labspan.vmnet.qemu_guest:
    name: vm1
    memory: 1G
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2
        size: 20G
    nics:
      - bridge: br0
        mac: "52:54:00:21:34:56"
    cloud_init:
      user_data:
        manage_etc_hosts: true
        users:
          - name: ada
            groups: sudo
            shell: /bin/bash
            sudo: ALL=(ALL) NOPASSWD:ALL
            ssh_authorized_keys:
              - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFm3vYAXEjQWGEsUEAkr0i1gSEhTqpbRaFVWjrNsgbQl ada
      network_config:
        version: 2
        ethernets:
          eth0:
            match:
              macaddress: "52:54:00:21:34:56"
            set-name: eth0
            addresses: [192.168.1.169/24]
            nameservers:
              addresses: [192.168.1.1]
            routes:
              - to: 192.168.1.1/32
                via: 192.168.1.7
              - to: 0.0.0.0/0
                via: 192.168.1.7

- name: The same from a file, as a template, with a password that comes from a vault
  labspan.vmnet.qemu_guest:
    name: vm2
    memory: 1G
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2
        size: 20G
    nics:
      - bridge: br0
    cloud_init:
      user_data: "{{ lookup('ansible.builtin.template', 'vm2-user-data.yml.j2') }}"

- name: A guest that fetches its seed from a web server
  labspan.vmnet.qemu_guest:
    name: vm3
    memory: 1G
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2
        size: 20G
    nics:
      - bridge: br0
    cloud_init:
      delivery: smbios
      seed_url: http://192.168.100.1:8000/
      datasource: nocloud-net  # with cloud-init before 24.1, as in Debian 12

- name: Give a guest more memory, now
  labspan.vmnet.qemu_guest:
    name: vm1
    memory: 4G
    restart: if_needed

- name: A guest with UEFI that boots signed programs only, and with a TPM
  labspan.vmnet.qemu_guest:
    name: vm2
    firmware: uefi
    secure_boot: true
    tpm: true
    memory: 2G
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2

- name: Let a guest have half of a processor and not more than 3 GiB, whether it runs or not
  labspan.vmnet.qemu_guest:
    name: vm1
    limits:
      cpu_quota: 50
      memory_max: 3G

- name: Say what a guest is for, which the inventory makes groups of
  labspan.vmnet.qemu_guest:
    name: vm1
    labels:
      role: web
      stage: test

- name: Plug one more NIC and disk into a guest that runs; without them in the lists, they are pulled out again
  labspan.vmnet.qemu_guest:
    name: vm1
    disks:
      - base_image: /var/lib/libvirt/images/debian-12.qcow2
        size: 20G
      - path: /var/lib/labspan/guests/vm1/data.qcow2
        size: 5G
    nics:
      - bridge: br0
      - bridge: br1

- name: Shut a guest down, and do not wait for more than half a minute
  labspan.vmnet.qemu_guest:
    name: vm1
    state: stopped
    shutdown_timeout: 30

- name: Remove a guest with the disks that were made for it
  labspan.vmnet.qemu_guest:
    name: vm1
    state: absent
    remove_disks: true
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in order. One sentence each.
  type: list
  elements: str
  returned: success
  sample: [Define guest vm1, Start guest vm1]
waited:
  description: >-
    For each guest that was waited for with O(wait_for) V(address), V(ssh) or V(cloud_init), how far it came (C(stage)), after how many
    C(seconds), and which C(addresses) answered.
  type: dict
  returned: success, and when that fails
  sample:
    vm1: {goal: ssh, seconds: 14.2, addresses: [192.168.6.11], reached: true, stage: 192.168.6.11 answers with SSH-2.0-OpenSSH_9.2}
ended_by:
  description: >-
    For each guest that was stopped, what it took: C(powerdown) if the guest powered itself off, else C(sigterm) or C(sigkill).
  type: dict
  returned: success
  sample: {vm1: powerdown}
taps:
  description: The taps that were made for the guests, as M(labspan.vmnet.tap_device) returns them.
  type: list
  elements: dict
  returned: success and a NIC has a bridge
former_taps:
  description: Always empty, because the taps that go with a guest are gone.
  type: list
  elements: dict
  returned: success and taps that were made for guests go
boot_files:
  description: The files of the guests' networks that bring their taps back after a reboot, as M(labspan.vmnet.tap_device) returns them.
  type: list
  elements: dict
  returned: success and a NIC has a bridge
keep_off:
  description: The files by which the managers of the host's network are told to leave taps alone, as M(labspan.vmnet.tap_device) returns them.
  type: list
  elements: dict
  returned: success and a NIC has a bridge
guests:
  description: The guests as they are now. In check mode, as they would be.
  type: list
  elements: dict
  returned: success
  contains:
    name: &return_name
      description: The name.
      type: str
      sample: vm1
    state: &return_state
      description: >-
        C(running), C(paused) or C(stopped); C(broken) if QEMU cannot go on, C(unknown) if it does not answer.
      type: str
      sample: running
    pid: &return_pid
      description: The process of QEMU, or null.
      type: int
      sample: 4711
    pending_restart: &return_pending
      description: What differs between the running guest and the one asked for and needs a restart. One sentence each.
      type: list
      elements: str
      sample: ["memory is 512, wanted 2048"]
    service: &return_service
      description: The name of its service; null if systemd does not run it.
      type: str
      sample: labspan-guest@vm1.service
    autostart: &return_autostart
      description: Whether it starts when the host boots.
      type: bool
      sample: true
    troubles: &return_troubles
      description: >-
        Why QEMU paused the guest by itself, such as a disk for which no space is left. One sentence each.
      type: list
      elements: str
      sample: []
    accelerator: &return_accelerator
      description: C(kvm) or C(tcg); null for a guest that has never been started.
      type: str
      sample: kvm
    memory: &return_memory
      description: The memory in MiB.
      type: int
      sample: 512
    cpus: &return_cpus
      description: The number of processors.
      type: int
      sample: 1
    architecture: &return_architecture
      description: As the option.
      type: str
      sample: x86_64
    machine: &return_machine
      description: As the option.
      type: str
      sample: q35
    firmware: &return_firmware
      description: As the option; C(none) where a kernel is started by the machine itself.
      type: str
      sample: uefi
    secure_boot: &return_secure_boot
      description: As the option.
      type: bool
      sample: false
    firmware_code: &return_firmware_code
      description: The image of the UEFI firmware, or null.
      type: str
      sample: /usr/share/OVMF/OVMF_CODE_4M.fd
    firmware_variables: &return_firmware_variables
      description: The guest's store of UEFI variables, or null.
      type: str
      sample: /var/lib/labspan/guests/vm1/uefi_vars.fd
    tpm: &return_tpm
      description: As the option.
      type: bool
      sample: false
    limits: &return_limits
      description: As the option, with O(guests[].limits.memory_max) in bytes.
      type: dict
      sample: {cpu_quota: 150, cpu_affinity: [0, 1]}
    hugepages: &return_hugepages
      description: As the option.
      type: bool
      sample: false
    labels: &return_labels
      description: As the option.
      type: dict
      sample: {role: web}
    kernel: &return_kernel
      description: As the option, or null.
      type: str
      sample: /var/lib/labspan/tiny_guest/vmlinux
    initrd: &return_initrd
      description: As the option, or null.
      type: str
      sample: /var/lib/labspan/tiny_guest/initrd.img
    cmdline: &return_cmdline
      description: As the option, or null.
      type: str
      sample: console=ttyS0
    user: &return_user
      description: The account that QEMU runs as.
      type: str
      sample: labspan-qemu
    sandbox: &return_sandbox
      description: As the option.
      type: bool
      sample: true
    disks: &return_disks
      description: The disks. C(made) tells whether a disk was made for this guest, C(size) is in bytes.
      type: list
      elements: dict
      sample:
        - path: /var/lib/labspan/guests/vm1/disk0.qcow2
          format: qcow2
          bus: virtio
          read_only: false
          media: disk
          base_image: null
          size: 21474836480
          made: true
    nics: &return_nics
      description:
        - The network interfaces. C(addresses) are those that the host knows of while the guest runs, from the leases of its DHCP servers,
          its neighbour table and the agent in the guest. They are not asked whether they still answer; see O(wait_for).
      type: list
      elements: dict
      sample:
        - mac: "52:54:00:21:34:56"
          model: virtio-net-pci
          tap: QemuTap0
          bridge: null
          user: false
          queues: 1
          vhost: auto
          link: true
          addresses: [192.168.6.11]
    cloud_init: &return_cloud_init
      description: >-
        How cloud-init in the guest is told what to do; null if it is not. The digest stands for the content of the seed, and tells
        nothing of it.
      type: dict
      sample: {delivery: iso, digest: 24017f5c8c33efb3, seed_url: null}
    console_log: &return_console_log
      description: What the guest writes on its serial console; null without one.
      type: str
      sample: /var/lib/labspan/guests/vm1/console.log
    console_socket: &return_console_socket
      description: The socket of the serial console; null without one, or if the guest does not run.
      type: str
      sample: /run/labspan/guests/vm1/console.sock
    agent_socket: &return_agent_socket
      description: The socket to the agent in the guest; null without O(guest_agent), or if the guest does not run.
      type: str
      sample: /run/labspan/guests/vm1/agent.sock
    qmp_socket: &return_qmp_socket
      description: QEMU's control socket; null if the guest does not run.
      type: str
      sample: /run/labspan/guests/vm1/qmp.sock
    vnc_socket: &return_vnc_socket
      description: The socket of the screen; null without one, or if the guest does not run.
      type: str
      sample: /run/labspan/guests/vm1/display/vnc.sock
guest:
  description: The guest of a task that names one by O(name); null when it is absent.
  type: dict
  returned: success and O(name) is given
  contains:
    name: *return_name
    state: *return_state
    pid: *return_pid
    pending_restart: *return_pending
    troubles: *return_troubles
    service: *return_service
    autostart: *return_autostart
    accelerator: *return_accelerator
    memory: *return_memory
    cpus: *return_cpus
    architecture: *return_architecture
    machine: *return_machine
    firmware: *return_firmware
    secure_boot: *return_secure_boot
    firmware_code: *return_firmware_code
    firmware_variables: *return_firmware_variables
    tpm: *return_tpm
    limits: *return_limits
    hugepages: *return_hugepages
    labels: *return_labels
    kernel: *return_kernel
    initrd: *return_initrd
    cmdline: *return_cmdline
    user: *return_user
    sandbox: *return_sandbox
    disks: *return_disks
    nics: *return_nics
    cloud_init: *return_cloud_init
    console_log: *return_console_log
    console_socket: *return_console_socket
    agent_socket: *return_agent_socket
    qmp_socket: *return_qmp_socket
    vnc_socket: *return_vnc_socket
"""

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed

_as_needed.install()

from ansible_collections.labspan.vmnet.plugins.module_utils import _discreet, _items, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _resource, _seed
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._options import OPTIONS


def main() -> None:
    """Run the module."""
    module = _discreet.DiscreetModule(hidden=_seed.HIDDEN, **_items.bulk_spec(OPTIONS, "guests"))

    def build(params: _items.Options) -> t.Sequence[_runner.Resource[t.Any]]:
        single = _items.is_single(params, "guests")
        return _resource.build(_items.items(params, "guests"), single=single, check_mode=module.check_mode)

    _runner.run(module, build)


if __name__ == "__main__":
    main()
