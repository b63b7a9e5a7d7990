# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host as the readers would have found it, put together by hand."""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._dnsmasq import Lease
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _counted
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk, GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Files, Guest, Seen, Server
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import (
    Address,
    BridgeInfo,
    Learnt,
    Link,
    Neighbour,
    PortInfo,
    TunInfo,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._process import Process
from ansible_collections.labspan.vmnet.plugins.module_utils._tun import Holder

MACS = {name: f"52:54:00:00:00:{number:02x}" for number, name in enumerate(("vm1", "vm2", "vm2b", "vm3", "vm4"), 0x11)}

_BRIDGE = BridgeInfo(1500, 200, 2000, 30000, 0, 32768, 0, False, False, False, 1, "", "")
_PORT = PortInfo(False, False, True, True, False, 3)


def link(
    name: str, kind: t.Optional[str] = None, master: t.Optional[str] = None, owner: str = "", **more: t.Any
) -> Link:
    alias = f"labspan.vmnet:{owner}" if owner else ""
    settings: dict[str, t.Any] = {
        "index": sum(name.encode()),
        "up": True,
        "carrier": True,
        "mtu": 1500,
        "mac": "02:00:00:00:00:01",
        "group": 0,
        "bridge": _BRIDGE if kind == "bridge" else None,
        "port": _PORT if master else None,
        "tun": TunInfo("tap", 65534, None, False, True, True, False) if kind == "tun" else None,
        **more,
    }
    return Link(name=name, kind=kind, alias=alias, master=master, **settings)


def guest(
    name: str, *nics: Nic, pid: t.Optional[int] = None, run_state: t.Optional[str] = None, **more: t.Any
) -> Guest:
    disk = Disk(f"/var/lib/labspan/guests/{name}/disk0.qcow2", "qcow2", "virtio", size=1 << 30)
    spec = GuestSpec(name, nics=nics, disks=(disk,), **more)
    process = Process(pid, 1) if pid else None
    return Guest(
        name, Definition(spec, "tcg", ("qemu",), "systemd"), process, run_state=run_state, sizes={disk.path: 9}
    )


def nic(mac: str, tap: t.Optional[str], bridge: t.Optional[str] = None) -> Nic:
    return Nic(MACS.get(mac, mac), "virtio-net-pci", tap, bridge)


def lab() -> Seen:
    """Networks web (nat), quiet (private), office (routed) and lan (l2), with four guests, and Docker beside them."""
    links = [
        link("lo"),
        link("eth0", master="br-lan"),
        link("br-lan", "bridge", owner="lan"),
        link("tap-vm4", "tun", "br-lan", "lan", carrier=False, port=dataclasses.replace(_PORT, state=0)),
        link("br-web", "bridge", owner="web"),
        link("tap-vm1", "tun", "br-web", "web"),
        link("tap-vm2", "tun", "br-web", "web"),
        link("br-quiet", "bridge", owner="quiet"),
        link("tap-vm2b", "tun", "br-quiet", "quiet"),
        link("br-office", "bridge", owner="office"),
        link("tap-vm3", "tun", "br-office", "office"),
        link("docker0", "bridge"),
        link("veth7", "veth", "docker0"),
    ]
    addresses = [
        ("br-web", "192.168.6.1/24"),
        ("br-web", "fe80::1/64"),
        ("br-office", "10.20.0.1/24"),
        ("br-lan", "192.0.2.20/24"),
        ("docker0", "172.17.0.1/16"),
    ]
    guests = [
        guest("vm1", nic("vm1", "tap-vm1", "br-web"), pid=101, run_state="running", network="web"),
        guest("vm2", nic("vm2", "tap-vm2", "br-web"), nic("vm2b", "tap-vm2b"), pid=102, run_state="paused"),
        guest("vm3", nic("vm3", "tap-vm3"), nic("52:54:00:00:00:99", None), pid=103, run_state="running"),
        guest("vm4", nic("vm4", "tap-vm4")),
    ]
    return Seen(
        links={one.name: one for one in links},
        addresses=[Address(name, ipaddress.ip_interface(address)) for name, address in addresses],
        default_interfaces={4: "br-lan", 6: None},
        neighbours=[
            Neighbour("br-web", "192.168.6.12", MACS["vm2"]),
            Neighbour("br-web", "fe80::99", MACS["vm2"]),
            Neighbour("br-office", "10.20.0.14", MACS["vm3"]),
            Neighbour("br-lan", "192.0.2.1", "00:00:5e:00:53:01"),
            Neighbour("docker0", "172.17.0.9", MACS["vm1"]),
        ],
        learnt=[
            Learnt("tap-vm1", MACS["vm1"]),
            Learnt("tap-vm1", "52:54:00:aa:bb:cc"),
            Learnt("eth0", "00:00:5e:00:53:01"),
            Learnt("veth7", "02:42:ac:11:00:02"),
        ],
        holders={"tap-vm1": Holder(101, "qemu-system-x86"), "tap-vm3": Holder(999, "socat")},
        servers={
            "web": Server(
                "web",
                "interface=br-web\ndomain=web.lab\ndhcp-range=192.168.6.2,192.168.6.254,255.255.255.0,43200\n",
                "/etc/labspan/networks/web/dnsmasq.conf",
                f"{MACS['vm1']},192.168.6.11,vm1\n{MACS['vm2']},192.168.6.77\n",
                (Lease(MACS["vm1"], "192.168.6.11", "vm1", "2030-01-01T00:00:00Z"),),
                "/var/lib/labspan/dhcp/web.leases",
                Process(81, 1),
                "labspan-dhcp@web.service",
                "br-web",
            )
        },
        guests={one.name: one for one in guests},
        rules=_counted.Rules(
            _counted.by_network(
                [
                    *_rules("web", "web", ("postrouting", 'oifname "br-lan" ip saddr 192.168.6.0/24 masquerade')),
                    *_rules("office", "office", ("forward", 'iifname "br-office" oifname "br-lan" accept')),
                    *_rules("office", "office", ("postrouting", 'oifname "br-office" ct status dnat masquerade')),
                    *_rules("quiet", "quiet_closed", ("input", 'iifname "br-quiet" drop')),
                ]
            ),
            Survey((), {}),
        ),
        files={
            "web": Files(("/etc/labspan/networks/web/links",), "labspan-network@web.service"),
            "office": Files(("/etc/labspan/networks/office/links",), None),
        },
        moved={"br-lan": "eth0"},
        forwarding={4: (True, ["br-web", "gone0"]), 6: (False, [])},
        bridge_netfilter=(4,),
        systemd=True,
    )


def _rules(network: str, table: str, *rules: tuple[str, str]) -> t.Iterator[_counted.Rule]:
    for chain, text in rules:
        words = f'{text} comment "labspan.vmnet:{network}"'
        yield _counted.Rule("nftables", "inet", f"labspan_{table}", chain, 1, 7, 3, 252, words)
