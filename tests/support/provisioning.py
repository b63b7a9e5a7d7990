# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole lab as the roles private, routed and nat ask for it; its provisioning; and all that there is of it then.

The guests do not run: what is of interest is what is written.
"""

from __future__ import annotations

import json
import subprocess
import time
import typing as t

from support.hosts import AnyHost

Lab = t.Sequence[t.Tuple[str, t.Dict[str, t.Any]]]
"""Modules and their options, in the order in which they run."""

_GUEST: dict[str, t.Any] = {"state": "stopped", "memory": "96", "accelerator": "tcg"}
LAB: Lab = [
    ("guest_account", {"guests": [{"name": name} for name in ("hermit", "peer", "web")]}),
    (
        "linux_bridge",
        {
            "persistent": "true",
            "bridges": [
                {"name": "labnat0", "network": "nat", "addresses": ["10.97.0.1/24", "fd00:97::1/64"]},
                {"name": "labrouted0", "network": "routed", "addresses": ["10.98.0.1/24"], "vlan_filtering": True},
                {"name": "labprivate0", "network": "private", "host_access": False},
            ],
        },
    ),
    (
        "tap_device",
        {
            "persistent": "true",
            "taps": [
                {"name": "tapn", "network": "nat", "bridge": "labnat0", "owner": "labspan-web"},
                {
                    "name": "tapr",
                    "network": "routed",
                    "bridge": "labrouted0",
                    "owner": "labspan-peer",
                    "vlans": [{"id": "1", "pvid": True, "untagged": True}, {"id": "40-42"}],
                },
                {"name": "tapp", "network": "private", "bridge": "labprivate0", "owner": "labspan-hermit"},
            ],
        },
    ),
    (
        "nat_masquerade",
        {
            "persistent": "true",
            "out_interface": "uplink0",
            "networks": [
                {
                    "name": "nat",
                    "bridge": "labnat0",
                    "port_forwards": [{"host_port": 8080, "guest_address": "10.97.0.2", "guest_port": 80}],
                },
                {"name": "routed", "bridge": "labrouted0", "sources": ["10.98.0.0/24"], "masquerade": False},
            ],
        },
    ),
    (
        "port_security",
        {"name": "private", "bridge": "labprivate0", "persistent": "true", "ports": [{"guest": "hermit"}]},
    ),
    (
        "dhcp_server",
        {
            "persistent": "true",
            "servers": [{"name": name, "bridge": f"lab{name}0", "dns_servers": []} for name in ("nat", "routed")],
        },
    ),
    (
        "qemu_guest",
        {
            "guests": [
                {**_GUEST, "name": "hermit", "nics": [{"tap": "tapp"}], "firmware": "uefi"},
                {
                    **_GUEST,
                    "name": "peer",
                    "nics": [{"tap": "tapr"}],
                    "disks": [{"size": "64M"}, {"size": "8M", "format": "raw"}],
                },
                {
                    **_GUEST,
                    "name": "web",
                    "nics": [{"tap": "tapn"}, {"bridge": "labnat0"}],
                    "disks": [{"size": "64M"}],
                    "cloud_init": {"user_data": {"hostname": "web"}},
                },
            ]
        },
    ),
]

#: For a kernel whose bridges know no VLANs.
WITHOUT_VLANS: Lab = json.loads(json.dumps(LAB))
for _entry in (*WITHOUT_VLANS[1][1]["bridges"], *WITHOUT_VLANS[2][1]["taps"]):
    _entry.pop("vlan_filtering", None)
    _entry.pop("vlans", None)

#: Runs the modules one after the other, each in a process of its own, by one Python that has imported all of them.
_PLAY = """
import importlib, json, os, sys, time
from ansible.module_utils import basic

lab, power = json.load(sys.stdin)
package = "ansible_collections.labspan.vmnet.plugins.modules."
modules = {name: importlib.import_module(package + name) for name, _params in lab}
basic._ANSIBLE_PROFILE = "legacy"
print("begun", flush=True)
if power is not None and not os.fork():
    time.sleep(power)
    with open("/proc/sysrq-trigger", "w") as kernel:
        kernel.write("b")
    sys.exit()
for name, params in lab:
    child = os.fork()
    if not child:
        basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": params}).encode()
        modules[name].main()
        sys.exit("the module has not ended")
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
_FILES = """
import hashlib, json, os, stat, subprocess, sys
from pathlib import Path

def content(path):
    if path.suffix == ".qcow2":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)
        shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", path]))
        return [shown[key] for key in ("format", "virtual-size")]
    if path.name.endswith("leases"):  # dnsmasq's own, with a number that it makes up
        return None
    if path.name == "seed.iso":  # with the time at which it was made
        return path.stat().st_size
    if path.name == "made_disks.json":  # with numbers of files
        return sorted(each["path"] for each in json.loads(path.read_text()))
    if path.name == "guest.json":  # with a checksum that nobody can guess
        found = json.loads(path.read_text())
        found["spec"].update(cloud_init=bool(found["spec"]["cloud_init"]))
        return json.dumps(found, sort_keys=True)
    if path.name == "seed.json":
        guest = json.loads((path.parent / "guest.json").read_text())
        return json.loads(path.read_text())["digest"] == guest["spec"]["cloud_init"]["digest"]
    return hashlib.sha256(path.read_bytes()).hexdigest()

def look(path):
    found = path.lstat()
    who = [stat.filemode(found.st_mode), found.st_uid, found.st_gid]
    if path.is_symlink():
        return [*who, os.readlink(path)]
    return [*who, content(path)] if path.is_file() else who

trees = [Path("/etc/labspan"), Path("/var/lib/labspan"), Path("/usr/local/lib/labspan"), Path("/etc/qemu")]
places = [path for tree in trees for path in [tree, *tree.rglob("*")] if path.exists()]
for tree in ("/etc/systemd", "/etc/sysctl.d", "/etc/NetworkManager", "/etc/udev", "/etc/nftables"):
    places += [path for path in Path(tree).rglob("*") if "labspan" in str(path)]
accounts = [
    line.split(":")[:4]
    for name in ("passwd", "group", "gshadow", "shadow")
    for line in Path("/etc", name).read_text().splitlines()
    if line.startswith("labspan")
]
for name, *_rest in accounts:
    subprocess.run(["getent", "passwd", name], check=True, stdout=subprocess.DEVNULL)
print(json.dumps({"accounts": accounts, "files": {str(path): look(path) for path in places}}))
"""
_VOLATILE = ("ifindex", "packets", "bytes", "handle")


class Run:
    """A provisioning that has begun on the host; C(power) is after how many seconds its kernel lets go."""

    def __init__(self, host: AnyHost, lab: Lab, power: t.Optional[float] = None) -> None:
        self._process = host.start_python(_PLAY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([lab, power]))
        self._process.stdin.close()
        self._process.stdin = None
        said = self._process.stdout.readline()
        assert said == "begun\n", said + self._process.stdout.read()
        self.begun = time.monotonic()

    def results(self) -> list[dict[str, t.Any]]:
        """What the modules returned, all of which must have succeeded."""
        assert self._process.stdout is not None
        lines = self._process.stdout.read().splitlines()
        assert self._process.wait() == 0, lines
        return [json.loads(line) for line in lines if line]

    def end(self) -> None:
        """Of one whose host is off."""
        self._process.kill()
        self._process.communicate()


def provision(host: AnyHost, lab: Lab, times: int = 1) -> list[list[str]]:
    """Have the lab; which of its modules changed something, for each time."""
    changed = [result["changed"] for result in Run(host, [*lab] * times).results()]
    names = [name for name, _params in lab]
    return [
        [name for name, is_changed in zip(names, changed[start:]) if is_changed]
        for start in range(0, len(changed), len(lab))
    ]


def stable(found: t.Any) -> t.Any:
    """Without what tells one boot or one packet from another."""
    if isinstance(found, dict):
        return {key: stable(value) for key, value in found.items() if key not in _VOLATILE}
    return [stable(value) for value in found] if isinstance(found, list) else found


def dump(host: AnyHost) -> dict[str, t.Any]:
    """Links, addresses, VLANs, rules, settings, units, accounts and files, as the programs of the system show them."""
    links = host.json("ip", "-d", "-j", "address", "show")
    return {
        "links": {link["ifname"]: [link.get(key) for key in ("address", "master", "mtu", "ifalias")] for link in links},
        "owners": {link["ifname"]: link.get("linkinfo", {}).get("info_data", {}).get("user") for link in links},
        "addresses": {
            link["ifname"]: sorted(each["local"] for each in link["addr_info"] if each["scope"] == "global")
            for link in links
        },
        "vlans": {entry["ifname"]: entry["vlans"] for entry in host.json("bridge", "-j", "vlan", "show")},
        "rules": sorted(map(str, stable(host.json("nft", "-j", "list", "ruleset")["nftables"][1:]))),
        "settings": host.out(
            "sh", "-c", "cd /proc/sys/net; grep . ipv*/conf/*/forwarding ipv6/conf/*/disable_ipv6 | sort"
        ),
        "units": sorted(
            line.split()[:3]
            for line in host.out("systemctl", "list-units", "--plain", "--no-legend", "labspan*").splitlines()
        ),
        **json.loads(host.out("python3", "-c", _FILES)),
    }


def differences(found: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[str]:
    """What two dumps do not agree about."""
    lines = []
    for key in sorted({*found, *wanted}):
        here, there = found.get(key), wanted.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            lines += [f"{key} {line}" for line in differences(here, there)]
        elif here != there:
            lines.append(f"{key}: {here}, not {there}")
    return lines


class Whole(t.NamedTuple):
    """What a provisioning leads to that nothing interrupts, and how long it takes."""

    dump: dict[str, t.Any]
    seconds: float


def whole(host: AnyHost, lab: Lab) -> Whole:
    """What it comes to on a host that nothing has been done to."""
    run = Run(host, lab)
    assert all(result["changed"] for result in run.results())
    seconds = time.monotonic() - run.begun
    assert provision(host, lab) == [[]]
    return Whole(dump(host), seconds)
