# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The system host is what tests of units, managers and reboots take it for."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import typing as t

import pytest
from lab import hosts
from support.hosts import Host, await_condition, cable
from support.ssh import Ssh
from support.system_host import STEPS, SystemHost, needs_system_host

pytestmark = needs_system_host

ROOT = pathlib.Path(__file__).resolve().parents[3]
MAC = "52:54:00:00:00:10"
NETWORKD = "[Match]\nName=eth0\n[Network]\nAddress=192.0.2.10/24\n"
NETWORK_MANAGER = """\
[connection]
id=uplink
type=ethernet
interface-name=eth0
[ipv4]
method=manual
address1=192.0.2.10/24
"""
IFUPDOWN = "auto eth0\niface eth0 inet static\n    address 192.0.2.10/24\n"
MANAGERS = {
    "networkd": ("systemd-networkd", "/etc/systemd/network/eth0.network", (NETWORKD, 0o644)),
    "NetworkManager": (
        "NetworkManager",
        "/etc/NetworkManager/system-connections/uplink.nmconnection",
        (NETWORK_MANAGER, 0o600),
    ),
    "ifupdown": ("networking", "/etc/network/interfaces.d/eth0", (IFUPDOWN, 0o644)),
}


@pytest.fixture(scope="module")
def lan(python_path: pathlib.Path) -> t.Iterator[Host]:
    with Host(python_path) as made:
        made.run("ip", "link", "add", "lan0", "type", "bridge")
        made.run("ip", "addr", "add", "192.0.2.1/24", "dev", "lan0")
        made.run("ip", "link", "set", "lan0", "up")
        yield made


@pytest.fixture(scope="module")
def wire(lan: Host) -> t.Callable[[SystemHost], None]:
    def lay(host: SystemHost) -> None:
        cable(lan, "port0", host, "eth0", mac=MAC)
        lan.run("ip", "link", "set", "port0", "master", "lan0")

    return lay


@pytest.fixture(scope="module")
def ssh() -> t.Iterator[Ssh]:
    with Ssh() as made:
        yield made


@pytest.fixture(scope="module")
def system(python_path: pathlib.Path, wire: t.Callable[[SystemHost], None], ssh: Ssh) -> t.Iterator[SystemHost]:
    """A host whose NIC is networkd's, and that runs sshd."""
    _unit, path, file = MANAGERS["networkd"]
    files = {**ssh.files(), path: file}
    with SystemHost(python_path, files=files, enable=["systemd-networkd", "ssh"], wire=wire) as made:
        yield made


def test_units_run_under_a_systemd_of_its_own(system: SystemHost) -> None:
    assert system.out("cat", "/proc/1/comm") == "systemd\n"
    timer = ("--unit=probe", "--on-active=0.01", "--timer-property=AccuracySec=1ms")
    system.run("systemd-run", *timer, "touch", "/run/probe")
    await_condition(lambda: system.run("test", "-e", "/run/probe", check=False).returncode == 0, "the timer's unit")
    await_condition(lambda: "probe.service" in system.journal("-u", "probe.service"), "the journal to tell of it")


def test_a_module_runs_on_it_with_the_libraries_of_debian(system: SystemHost) -> None:
    bridge = {"name": "br7", "network": "probe"}
    assert system.converge("linux_bridge", bridge)["changed"]
    link = system.link("br7")
    assert link is not None
    assert link["ifalias"] == "labspan.vmnet:probe"
    system.assert_rests("linux_bridge", bridge)
    system.converge("linux_bridge", {**bridge, "state": "absent"})
    assert system.link("br7") is None


def test_its_network_is_neither_the_machines_nor_the_tests(system: SystemHost) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert system.out("readlink", "/proc/self/ns/net").strip() != own
    assert os.readlink(f"/proc/{system.pid}/ns/net") != own


def test_forwarding_can_be_written_and_the_machine_does_not_notice(system: SystemHost) -> None:
    before = pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii")
    wanted = str(1 - int(before))
    system.run("sh", "-c", f"echo {wanted} > /proc/sys/net/ipv4/ip_forward")
    assert system.sysctl("net/ipv4/ip_forward") == wanted
    assert pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii") == before


def test_ansible_comes_in_by_ssh_and_without_a_network(system: SystemHost, lan: Host, ssh: Ssh) -> None:
    through_ssh = {**ssh.door("192.0.2.10", via=lan).variables, "ansible_python_interpreter": system.interpreter}
    inventory = {"all": {"hosts": {"inside": system.variables, "outside": through_ssh}}}
    path = system.directory / "inventory.json"
    path.write_text(json.dumps(inventory), encoding="utf-8")
    done = _ansible(path, "hostname; echo came by $SSH_CONNECTION.")
    lines = done.stdout.splitlines()
    assert lines.count("labhost") == 2, done
    assert "came by ." in lines
    assert any(line.startswith("came by 192.0.2.1 ") for line in lines)


def test_a_login_is_a_session_and_ends_where_the_nic_does(system: SystemHost, lan: Host, ssh: Ssh) -> None:
    door = ssh.door("192.0.2.10", via=lan)
    assert "session-" in door.run("cat", "/proc/self/cgroup").stdout
    system.run("ip", "link", "set", "eth0", "down")
    assert not door.open()
    system.run("networkctl", "up", "eth0")
    await_condition(door.open, "the way in, once the NIC is up again")


@pytest.mark.parametrize("end", [SystemHost.reboot, SystemHost.power_cut], ids=["reboot", "power cut"])
def test_a_restart_keeps_the_disk_and_nothing_else(system: SystemHost, end: t.Callable[[SystemHost], None]) -> None:
    def identity() -> tuple[object, ...]:
        link = system.link("eth0")
        return (link and link["address"], system.addresses("eth0"), system.out("cat", "/etc/machine-id"))

    before, boot_id, started = identity(), system.journal("--list-boots"), system.pid
    for path in ("/var/kept", "/run/lost"):
        system.write(path, "x")
    system.run("ip", "link", "add", "br8", "type", "bridge")
    system.run("nft", "add", "table", "ip", "lost")
    end(system)
    assert system.pid != started
    assert system.journal("--list-boots") != boot_id
    assert system.out("cat", "/var/kept") == "x"
    assert system.run("cat", "/run/lost", check=False).returncode
    assert system.link("br8") is None
    assert "lost" not in system.out("nft", "list", "tables")
    await_condition(lambda: identity() == before, "the NIC to be configured again")


def test_a_shutdown_ends_units_in_order_and_a_power_cut_does_not(system: SystemHost) -> None:
    unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=rm -f /var/ended\nExecStop=touch /var/ended\n"
    system.write("/etc/systemd/system/probe.service", unit + "[Install]\nWantedBy=multi-user.target\n")
    system.run("systemctl", "enable", "--now", "probe.service")
    system.power_cut(boot=False)
    assert system.run("test", "-e", "/var/ended", check=False).returncode == 1
    system.boot()
    system.reboot()
    # The start after it removed the file again; what it logged stayed.
    assert "Stopped probe.service" in system.journal("-b", "-1", "-u", "probe.service")
    assert "Stopped probe.service" not in system.journal("-b", "-2", "-u", "probe.service")


@pytest.mark.parametrize("manager", ["NetworkManager", "ifupdown"])
def test_each_manager_brings_the_nic_up_that_was_there_at_boot(
    python_path: pathlib.Path, wire: t.Callable[[SystemHost], None], system: SystemHost, manager: str
) -> None:
    """That of networkd is the other tests' host, which is off meanwhile: there is one port in the LAN."""
    unit, path, file = MANAGERS[manager]
    system.power_cut(boot=False)
    try:
        with SystemHost(python_path, files={path: file}, enable=[unit], wire=wire) as host:
            await_condition(lambda: host.addresses("eth0") == ["192.0.2.10/24"], f"{manager} to set the address")
    finally:
        system.boot()


def test_a_failed_unit_is_named_with_what_it_said(python_path: pathlib.Path) -> None:
    unit = "[Service]\nType=oneshot\nExecStart=sh -c 'echo it is broken; exit 1'\n"
    unit += "[Install]\nWantedBy=multi-user.target\n"
    files = {"/etc/systemd/system/broken.service": unit}
    with (
        pytest.raises(AssertionError, match=r"(?s)degraded.*broken\.service.*it is broken"),
        SystemHost(python_path, files=files, enable=["broken"]),
    ):
        pass


def test_nothing_is_left_of_it(python_path: pathlib.Path) -> None:
    with SystemHost(python_path) as host:
        name, directory, init = host.name, host.directory, host.pid
        assert _traces(name)
    assert not _traces(name)
    assert not directory.exists()
    assert not pathlib.Path(f"/proc/{init}").exists()


def test_it_ends_with_tests_that_are_killed(python_path: pathlib.Path) -> None:
    script = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from support.system_host import SystemHost
with SystemHost(pathlib.Path(sys.argv[2])) as host:
    print(host.name, host.directory, host.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, str(ROOT / "tests"), str(python_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    name, directory, init = printed.stdout.split()
    shutil.rmtree(directory)
    await_condition(lambda: not pathlib.Path(f"/proc/{init}").exists(), "the end of the host")
    subprocess.run([str(STEPS), "forget", name], check=True)
    await_condition(lambda: not _traces(name), "the end of all that belonged to it")


def _traces(name: str) -> list[str]:
    cgroups = [str(path) for path in pathlib.Path("/sys/fs/cgroup").glob(f"*/{name}*")]
    mounts = [line for line in pathlib.Path("/proc/mounts").read_text(encoding="utf-8").splitlines() if name in line]
    processes = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            processes.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [*cgroups, *mounts, *(line for line in processes if f"--machine={name}" in line)]


def test_a_lab_may_have_system_hosts_which_are_reached_by_ssh_from_its_lan(tmp_path: pathlib.Path) -> None:
    name = f"s{os.getpid()}"
    labctl = str(ROOT / "tests" / "lab" / "labctl")
    try:
        subprocess.run([labctl, "up", name, "h1", "h2", "--system"], check=True, capture_output=True)
        lab = t.cast("hosts.Lab", hosts.load(name))
        assert [host.run("cat", "/proc/1/comm").stdout for host in lab.hosts] == ["systemd\n", "systemd\n"]
        lab.hosts[0].run("ping", "-c", "1", "-W", "5", "192.0.2.11")
        assert hosts.up(name, ["h1", "h2"], kind=hosts.SYSTEM) == lab
        printed = subprocess.run([labctl, "inventory", name, "--ssh"], check=True, capture_output=True, text=True)
        inventory = tmp_path / "inventory.yml"
        inventory.write_text(printed.stdout, encoding="utf-8")
        done = _ansible(inventory, "hostname; echo came by $SSH_CONNECTION.")
        lines = done.stdout.splitlines()
        assert {"h1", "h2"} <= set(lines), done
        assert sum(line.startswith("came by 192.0.2.1 ") for line in lines) == 2
    finally:
        hosts.down(name)
    assert not _traces(f"labspan-{name}")


def _ansible(inventory: pathlib.Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(pathlib.Path(sys.executable).with_name("ansible")), "all", "--inventory", str(inventory)),
            *("--module-name", "ansible.builtin.shell", "--args", script),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build" / "collections"),
            "ANSIBLE_NOCOLOR": "true",
        },
    )
