# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts around the confirmation: each leaves a host that boots with a working network, and a rerun converges."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import typing as t

import pytest
from support.hosts import Host, Result, await_condition
from support.lans import GATEWAY, GATEWAY6, Lan
from support.ssh import Ssh
from support.system_host import PYTHON_PATH, File, SystemHost, needs_system_host
from support.uplinks import begin, identity, move, options, reaches

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

MAC = "52:54:00:00:00:20"
ADDRESS, ADDRESS6 = "10.77.0.5", "fd77::5"
# The directories of all files that a move could leave on the disk.
_CONFIGURATION = ("/etc/network", "/etc/systemd/network", "/etc/netplan", "/etc/NetworkManager", "/var/lib/labspan")

# Runs the module and dies while it writes the file of this number, or right after it.
_DYING = """
import importlib, os, runpy, signal, sys
from ansible.module_utils import basic
steps = importlib.import_module("ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps")
place, number = sys.argv[1], int(sys.argv[2])
original = steps.WriteFile.perform
count = 0

def die(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def perform(self):
    global count
    count += 1
    if (place, number) == ("in", count):
        os.rename = os.unlink = die
    original(self)
    if (place, number) == ("after", count):
        die()

steps.WriteFile.perform = perform
basic._ANSIBLE_ARGS = sys.argv[3].encode()
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_module("ansible_collections.labspan.vmnet.plugins.modules.bridge_uplink", run_name="__main__", alter_sys=True)
"""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a host's network is configured."""

    unit: str
    path: str
    text: str
    mode: int = 0o644
    more: t.Mapping[str, File] = dataclasses.field(default_factory=dict)

    @property
    def static(self) -> bool:
        return ADDRESS in self.text


_WITHOUT_UDEV = "[keyfile]\nunmanaged-devices=interface-name:labspan-c*\n"
_PROFILE = """\
[connection]
id=uplink
uuid=7d6b0c6e-3f0f-4a57-9a39-3e9f9b3f7a1{number}
type=ethernet
interface-name=eth0

[ipv4]
{v4}

[ipv6]
{v6}
"""
_NETWORKD, _NM = "/etc/systemd/network/20-wired.network", "/etc/NetworkManager/system-connections/uplink.nmconnection"
_PLAN, _INTERFACES = "/etc/netplan/50-cloud-init.yaml", "/etc/network/interfaces"
_NM_FILES = {"/etc/NetworkManager/conf.d/without-udev.conf": _WITHOUT_UDEV}
_STATIC_LINES = f"""\
iface eth0 inet static
    address {ADDRESS}/24
    gateway {GATEWAY}
iface eth0 inet6 static
    address {ADDRESS6}/64
    gateway {GATEWAY6}
"""
KINDS = {
    "networkd-static": Kind(
        "systemd-networkd",
        _NETWORKD,
        "[Match]\nName=eth0\n\n[Network]\nIPv6AcceptRA=no\n"
        + "".join(f"Address={ADDRESS}/24\nAddress={ADDRESS6}/64\nGateway={GATEWAY}\nGateway={GATEWAY6}\n"),
    ),
    "networkd-dhcp": Kind("systemd-networkd", _NETWORKD, "[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n"),
    "ifupdown-static": Kind(
        "networking",
        "/etc/network/interfaces.d/eth0",
        f"auto eth0\n{_STATIC_LINES}",
        more={_INTERFACES: "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n"},
    ),
    "ifupdown-dhcp": Kind(
        "networking",
        _INTERFACES,
        "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\niface eth0 inet6 auto\n",
    ),
    "networkmanager-static": Kind(
        "NetworkManager",
        _NM,
        _PROFILE.format(
            number=1,
            v4=f"address1={ADDRESS}/24,{GATEWAY}\nmethod=manual",
            v6=f"address1={ADDRESS6}/64\ngateway={GATEWAY6}\nmethod=manual",
        ),
        0o600,
        more=_NM_FILES,
    ),
    "networkmanager-dhcp": Kind(
        "NetworkManager", _NM, _PROFILE.format(number=2, v4="method=auto", v6="method=auto"), 0o600, more=_NM_FILES
    ),
    "netplan-static": Kind(
        "systemd-networkd",
        _PLAN,
        "network:\n  version: 2\n  ethernets:\n    eth0:\n"
        f"      addresses: [{ADDRESS}/24, '{ADDRESS6}/64']\n      accept-ra: false\n"
        f"      routes: [{{to: default, via: {GATEWAY}}}, {{to: '::/0', via: '{GATEWAY6}'}}]\n",
        0o600,
    ),
    "netplan-dhcp": Kind(
        "systemd-networkd", _PLAN, "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n", 0o600
    ),
}
# A .netdev alone makes a bridge that is down, which the next run finds and leaves so. And where only files had to be
# brought back, systemd-networkd (of static addresses) and netplan go on with what they made of those of the last boot.
_STALE = pytest.mark.xfail(strict=True, reason="a bridge that is down stays down; managers go on with the files before")
EVERY_DAY = [name for name in KINDS if name.endswith("static") and not name.startswith("netplan")]


def _name(name: str, *, every_day: bool) -> t.Any:
    return pytest.param(name, marks=() if every_day else pytest.mark.slow)


def _through_all(name: str) -> t.Any:
    return pytest.param(name, marks=_STALE) if name == "networkd-static" or name.startswith("netplan") else name


@pytest.fixture(scope="module")
def lan(python_path: pathlib.Path) -> t.Iterator[Lan]:
    with Host(python_path) as host:
        yield Lan(host, MAC)


@pytest.fixture(scope="module")
def ssh() -> t.Iterator[Ssh]:
    with Ssh() as made:
        yield made


class Subject:
    """A host whose power is cut, seen from its LAN."""

    def __init__(self, host: SystemHost, lan: Lan, ssh: Ssh, kind: Kind) -> None:
        self.host, self.lan, self.ssh, self.kind = host, lan, ssh, kind
        self.await_network()
        self.addresses = [each.partition("/")[0] for each in self.host.addresses("eth0") if "fe80" not in each]
        self.await_reached()
        self.configuration = self.read_configuration()

    def await_network(self) -> None:
        """Until addresses of both families can be used, wherever they are, and their manager is done."""

        def are_there() -> bool:
            shown = self.host.out("ip", "-o", "address", "show", "scope", "global")
            routes = [self.host.out("ip", family, "route", "show", "default") for family in ("-4", "-6")]
            families = set(re.findall(r" (inet6?) ", shown))
            return families == {"inet", "inet6"} and "tentative" not in shown and all(routes) and self._is_settled()

        await_condition(are_there, "addresses of both families")

    def _is_settled(self) -> bool:
        if self.kind.unit != "systemd-networkd":
            return True
        listed = self.host.run("networkctl", "--no-legend", "--no-pager", check=False).stdout
        return all("configured" in line for line in listed.splitlines() if "routable" in line)

    def await_reached(self) -> None:
        """Until the host is reached from its LAN as before, over new connections, and reaches it."""
        for address in self.addresses:
            await_condition(lambda to=address: reaches(self.lan.host, to), f"an answer of {address}")  # type: ignore[misc]
        await_condition(lambda: reaches(self.host, GATEWAY), "the gateway")
        await_condition(self.ssh.door(self.addresses[0], via=self.lan.host).open, "a login by SSH")

    def cut_power(self) -> None:
        self.host.power_cut()
        self.await_network()
        self.await_reached()

    def read_configuration(self) -> str:
        """Names and sums of all files of the host's configuration."""
        return self.host.run("find", *_CONFIGURATION, "-type", "f", "-exec", "md5sum", "{}", "+", check=False).stdout

    @property
    def bridged(self) -> bool:
        """Whether the host's addresses are on the bridge; they are nowhere else, then."""
        on = {name for name in ("br0", "eth0") if self.host.link(name) and self.host.addresses(name)}
        assert len(on) == 1, on
        return on == {"br0"}

    def rerun(self, **more: t.Any) -> Result:
        """The task of a playbook, once more."""
        # Systemd lets nobody start its units as often as the tests do.
        self.host.run("systemctl", "reset-failed", self.kind.unit, check=False)
        result = move(self.host, persistent=True, **more)
        self.await_network()
        return result

    def confirm_dying(self, place: str, number: int, **more: t.Any) -> bool:
        """Move, and confirm it until the process dies at the point; whether it did."""
        self.host.run("systemctl", "reset-failed", self.kind.unit, check=False)
        name = begin(self.host, persistent=True, **more)["pending"]["transaction"]
        arguments = {"ANSIBLE_MODULE_ARGS": options(transaction=name, step="confirm", persistent=True, **more)}
        point = [place, str(number), json.dumps(arguments)]
        environment = ["env", f"PYTHONPATH={PYTHON_PATH}"]
        done = self.host.run(*environment, self.host.interpreter, "-c", _DYING, *point, check=False)
        assert done.returncode in (0, -9, 137), (done.stdout, done.stderr)
        return done.returncode != 0

    def converge(self, **more: t.Any) -> None:
        """Run the task again, and once more, which finds nothing to do."""
        self.rerun(**more)
        again = self.host.converge("bridge_uplink", options(transaction=identity(), persistent=True, **more))
        assert (again["changed"], again["actions"]) == (False, [])
        self.await_reached()
        assert self.bridged == (more.get("state") != "absent")
        assert "labspan-new" not in self.read_configuration()


@contextlib.contextmanager
def subject(python_path: pathlib.Path, lan: Lan, ssh: Ssh, kind: Kind) -> t.Iterator[Subject]:
    files: dict[str, File] = {**ssh.files(), **kind.more, kind.path: (kind.text, kind.mode)}
    with SystemHost(python_path, files=files, enable=[kind.unit, "ssh"], wire=lan.wire) as host:
        yield Subject(host, lan, ssh, kind)


@pytest.mark.parametrize("name", [_name(name, every_day=name == "networkd-static") for name in KINDS])
def test_before_the_confirmation(python_path: pathlib.Path, lan: Lan, ssh: Ssh, name: str) -> None:
    with subject(python_path, lan, ssh, KINDS[name]) as host:
        begin(host.host, persistent=True)
        assert host.bridged
        host.cut_power()
        assert not host.bridged
        assert host.host.link("br0") is None
        assert host.read_configuration() == host.configuration
        host.converge()


@pytest.mark.parametrize("name", EVERY_DAY)
def test_in_the_middle_of_the_files(python_path: pathlib.Path, lan: Lan, ssh: Ssh, name: str) -> None:
    with subject(python_path, lan, ssh, KINDS[name]) as host:
        assert host.confirm_dying("in", 2)
        assert host.read_configuration() != host.configuration
        host.cut_power()
        host.converge()


@pytest.mark.slow
@pytest.mark.parametrize("name", [_through_all(name) for name in KINDS])
def test_in_and_after_every_file_forth_and_back(python_path: pathlib.Path, lan: Lan, ssh: Ssh, name: str) -> None:
    with subject(python_path, lan, ssh, KINDS[name]) as host:
        for way, other in (({}, {"state": "absent"}), ({"state": "absent"}, {})):
            number = 1
            while host.confirm_dying("in", number, **way):
                host.cut_power()
                host.converge(**way)
                host.rerun(**other)
                number += 1
            assert number > 2
            host.rerun(**other)
            assert host.confirm_dying("after", number - 1, **way)
            host.cut_power()
            host.converge(**way)
        assert host.read_configuration() == host.configuration


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_shut_down_before_the_confirmation(python_path: pathlib.Path, lan: Lan, ssh: Ssh, name: str) -> None:
    """As an administrator does it: managers stop one after the other, and the dead-man with them."""
    with subject(python_path, lan, ssh, KINDS[name]) as host:
        begin(host.host, persistent=True)
        host.host.reboot()
        host.await_network()
        host.await_reached()
        assert not host.bridged
        assert host.read_configuration() == host.configuration
