# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tiny guest boots on a bridge, takes its configuration from where it should, answers, and powers off."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t

import pytest
from lab import hosts
from lab.processes import wait_until

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAME = f"g{os.getpid()}"
CONSOLE = ROOT / "roles" / "tiny_guest" / "files" / "guest_console.py"
CMDLINE = "console=ttyS0 no_timer_check quiet panic=1"
PATIENCE = 90.0
RENEWED = "10.77.0.102"


def _load_console() -> t.Any:
    specification = importlib.util.spec_from_file_location("guest_console", CONSOLE)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["guest_console"] = module
    specification.loader.exec_module(module)
    return module


guest_console = _load_console()


@dataclasses.dataclass(frozen=True)
class Guest:
    """A running guest, and the ways to talk to it."""

    process: subprocess.Popen[bytes]
    directory: pathlib.Path

    @property
    def socket(self) -> pathlib.Path:
        return self.directory / "console.sock"

    def said(self) -> str:
        return (self.directory / "console.log").read_text(encoding="utf-8", errors="replace").replace("\r", "")

    def await_word(self, pattern: str) -> None:
        try:
            wait_until(lambda: re.search(pattern, self.said(), re.MULTILINE) is not None, PATIENCE, pattern)
        except (TimeoutError, FileNotFoundError):
            raise AssertionError(f"never said {pattern!r}: {self.said()}") from None

    def run(self, command: str) -> t.Any:
        return guest_console.run(self.socket, command, timeout=PATIENCE)

    def out(self, command: str) -> str:
        result = self.run(command)
        assert result.status == 0, result
        return str(result.text)

    def press_power_button(self, host: hosts.Host) -> None:
        commands = '{"execute": "qmp_capabilities"}\n{"execute": "system_powerdown"}\n'
        script = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
            "s.sendall(sys.argv[2].encode()); s.settimeout(30); b = b''\n"
            "while b'POWERDOWN' not in b: b += s.recv(4096)"
        )
        host.run("python3", "-c", script, str(self.directory / "qmp.sock"), commands)


def boot(host: hosts.Host, directory: pathlib.Path, cmdline: str, *arguments: str) -> Guest:
    directory.mkdir()
    images = pathlib.Path("/var/lib/labspan/tiny_guest")
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(images / "vmlinux"), "-initrd", str(images / "initrd.img")]
    command += ["-append", f"{CMDLINE} {cmdline}"]
    console = f"socket,id=console,path={directory}/console.sock,server=on,wait=off,logfile={directory}/console.log"
    command += ["-chardev", console, "-serial", "chardev:console"]
    command += ["-qmp", f"unix:{directory}/qmp.sock,server=on,wait=off", *arguments]
    guest = Guest(subprocess.Popen(host.argv(*command), stdin=subprocess.DEVNULL), directory)
    wait_until((directory / "console.log").exists, PATIENCE, "QEMU's start")
    return guest


def nic(number: int, *, model: str = "virtio-net-pci") -> list[str]:
    return [
        *("-netdev", f"tap,id=net{number},ifname=tap{number},script=no,downscript=no"),
        *("-device", f"{model},netdev=net{number},mac=52:54:00:77:00:{number:02x},romfile="),
    ]


@pytest.fixture(scope="module")
def host() -> t.Iterator[hosts.Host]:
    """A lab host with a bridge, taps, and a DHCP server with router advertisements."""
    host = hosts.up(NAME, ["h1"], tiny_guest=True).hosts[0]
    host.run("sh", "-euc", _NETWORK)
    yield host
    hosts.down(NAME)


_NETWORK = """
ip link add br0 type bridge mcast_snooping 0
ip address add 10.77.0.1/24 dev br0
# A bridge hears the router advertisements that its own host sends on it.
echo 0 >/proc/sys/net/ipv6/conf/br0/accept_ra
ip address add fd00:77::1/64 dev br0 nodad
ip link set br0 up
for number in 1 2 3 4; do
    ip tuntap add dev tap$number mode tap
    ip link set tap$number up master br0
done
dnsmasq --conf-file=/dev/null --interface=br0 --bind-dynamic --except-interface=lo --no-ping --no-hosts --no-resolv \
    --user=root --pid-file=/run/dnsmasq.pid --dhcp-leasefile=/run/dnsmasq.leases --domain=lab.example \
    --dhcp-range=10.77.0.100,10.77.0.150,255.255.255.0,5m --dhcp-host=52:54:00:77:00:02,vm2,10.77.0.102 \
    --enable-ra --dhcp-range=fd00:77::,ra-only,64 --dhcp-option=option:mtu,1400
"""


@pytest.fixture(scope="module")
def guests(host: hosts.Host, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[dict[str, Guest]]:
    """One guest configured by its command line, one by DHCP and SLAAC, one on old hardware without configuration."""
    directory = tmp_path_factory.mktemp("guests")
    by_cmdline = (
        "labspan.hostname=vm1 labspan.ignore_powerdown "
        "labspan.address=10.77.0.11/24 labspan.address=fd00:77::11/64 labspan.address=eth1,10.78.0.1/24 "
        "labspan.gateway=10.77.0.1 labspan.gateway=fd00:77::1 "
        "labspan.route=192.168.1.1/32,10.77.0.7 labspan.dns=10.77.0.1"
    )
    disk = directory / "disk.img"
    disk.write_bytes(b"on the disk\n".ljust(1 << 20, b"\0"))
    started = {
        "vm1": boot(host, directory / "vm1", by_cmdline, "-machine", "q35", *nic(1), *nic(4)),
        "vm2": boot(host, directory / "vm2", "labspan.wait_for=inet6", "-machine", "q35", *nic(2)),
        "vm3": boot(
            host,
            directory / "vm3",
            "labspan.dhcp=no",
            *("-machine", "pc", *nic(3, model="e1000")),
            *("-drive", f"file={disk},format=raw,if=ide"),
        ),
    }
    yield started
    for guest in started.values():
        guest.process.kill()
        guest.process.wait()


def test_all_say_their_addresses_and_that_they_are_ready(guests: dict[str, Guest]) -> None:
    for name, guest in guests.items():
        guest.await_word(rf"^labspan: {name.replace('vm3', 'guest-770003')} ready$")
    assert "labspan: vm1 address eth0 10.77.0.11/24\n" in guests["vm1"].said()
    assert "labspan: vm1 address eth0 fd00:77::11/64\n" in guests["vm1"].said()
    assert "labspan: vm1 address eth1 10.78.0.1/24\n" in guests["vm1"].said()
    # On a busy machine these may come after the half minute that the guest waits with its word.
    guests["vm2"].await_word("^labspan: vm2 address eth0 10.77.0.102/24$")
    # SLAAC with EUI-64 of 52:54:00:77:00:02, which may be there before DHCP has told the guest its name.
    guests["vm2"].await_word(r"^labspan: \S+ address eth0 fd00:77::5054:ff:fe77:2/64$")
    # Only router advertisements were left to it.
    assert " address eth0 10." not in guests["vm3"].said()


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("10.77.0.11", "vm1 sees 10.77.0.1\n"),
        ("fd00:77::11", "vm1 sees fd00:77::1\n"),
        (RENEWED, "vm2 sees 10.77.0.1\n"),
        ("fd00:77::5054:ff:fe77:2", "vm2 sees fd00:77::1\n"),
    ],
)
def test_the_host_reaches_them_by_ping_and_http(
    host: hosts.Host, guests: dict[str, Guest], address: str, answer: str
) -> None:
    host.run("ping", "-c", "1", "-W", "10", address)
    url = f"http://[{address}]/" if ":" in address else f"http://{address}/"
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read().decode(), end='')"
    assert host.run("python3", "-c", script, url).stdout == answer


def test_they_reach_each_other_and_keep_their_addresses(guests: dict[str, Guest]) -> None:
    assert guests["vm1"].out(f"ping -c 1 -W 10 {RENEWED} >/dev/null && timeout 20 wget -q -O- http://{RENEWED}/") == (
        "vm2 sees 10.77.0.11\n"
    )
    assert guests["vm2"].out("timeout 20 wget -q -O- 'http://[fd00:77::11]/'") == "vm1 sees fd00:77::5054:ff:fe77:2\n"


def test_the_command_line_sets_routes_and_name_servers(guests: dict[str, Guest]) -> None:
    routes = guests["vm1"].out("ip route").splitlines()
    assert "default via 10.77.0.1 dev eth0 " in routes
    assert "192.168.1.1 via 10.77.0.7 dev eth0 " in routes
    assert "default via fd00:77::1 dev eth0" in guests["vm1"].out("ip -6 route")
    assert guests["vm1"].out("cat /etc/resolv.conf") == "nameserver 10.77.0.1\n"
    assert "127.0.0.1 localhost vm1\n" in guests["vm1"].out("cat /etc/hosts")


def test_dhcp_sets_all_that_the_server_sends(guests: dict[str, Guest]) -> None:
    guest = guests["vm2"]
    assert "default via 10.77.0.1 dev eth0" in guest.out("ip route")
    assert guest.out("cat /etc/resolv.conf") == "search lab.example\nnameserver 10.77.0.1\n"
    assert guest.out("hostname") == "vm2\n"
    assert guest.out("cat /sys/class/net/eth0/mtu") == "1400\n"


def test_old_hardware_works(guests: dict[str, Guest]) -> None:
    guest = guests["vm3"]
    assert guest.out("readlink /sys/class/net/eth0/device/driver").endswith("/e1000\n")
    assert guest.out("until [ -b /dev/sda ]; do usleep 100000; done; head -n 1 /dev/sda") == "on the disk\n"
    assert "inet " not in guest.out("ip address show dev eth0")


def test_the_console_gives_status_and_both_outputs_exactly(guests: dict[str, Guest]) -> None:
    result = guests["vm1"].run("printf 'a\\r\\n\\tb'; echo wrong >&2; exit 7")
    assert (result.status, result.stdout, result.stderr) == (7, b"a\r\n\tb", b"wrong\n")
    command = [sys.executable, str(CONSOLE), str(guests["vm1"].socket), "--", "printf", "%s|", "a b", "it's", "$HOME"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "a b|it's|$HOME|"
    # Longer than the line editor takes in one line.
    assert guests["vm1"].out(f"echo {'x' * 5000}") == "x" * 5000 + "\n"


def test_the_console_is_exact_whatever_else_the_line_carries(guests: dict[str, Guest]) -> None:
    guest = guests["vm1"]
    guest.out("sh -c 'while :; do echo noise >/dev/console; usleep 200000; done' & echo $! >/tmp/noise")
    try:
        for _turn in range(3):
            found = guest.out(
                "head -c 1000 /dev/urandom | base64 >/tmp/random; sha256sum </tmp/random; cat /tmp/random"
            )
            checksum, _newline, content = found.partition("\n")
            assert guest.out(f"printf %s '{content}' | sha256sum") == f"{checksum}\n"
    finally:
        guest.out("kill $(cat /tmp/noise)")
    assert "noise" in guest.said()


def test_clients_of_one_console_wait_for_each_other(guests: dict[str, Guest]) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: guests["vm1"].out(f"usleep 200000; echo {number}"), range(4)))
    assert answers == [f"{number}\n" for number in range(4)]


def test_a_command_that_does_not_end_is_ended(guests: dict[str, Guest]) -> None:
    with pytest.raises(guest_console.ConsoleError, match="did not answer within"):
        guest_console.run(guests["vm1"].socket, "echo $$ >/tmp/stuck; exec sleep 1000", timeout=5)
    assert guests["vm1"].run("kill -0 $(cat /tmp/stuck)").status != 0


def test_a_guest_that_is_not_there_is_a_clear_error(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(CONSOLE), str(tmp_path / "console.sock"), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert "does the guest run?" in done.stderr


def test_the_power_button_powers_off_unless_told_to_ignore_it(host: hosts.Host, guests: dict[str, Guest]) -> None:
    guests["vm1"].press_power_button(host)
    guests["vm2"].press_power_button(host)
    assert guests["vm2"].process.wait(timeout=PATIENCE) == 0
    guests["vm2"].await_word("^labspan: vm2 power button pressed, powering off$")
    # Its twin, asked first, runs on.
    assert guests["vm1"].out("echo here") == "here\n"
    assert guests["vm1"].process.poll() is None


def test_the_builder_is_idempotent_and_sees_what_is_damaged(host: hosts.Host, tmp_path: pathlib.Path) -> None:
    images = tmp_path / "images"

    def build(*options: str) -> dict[str, t.Any]:
        command = [sys.executable, str(hosts.TINY_GUEST_BUILDER), "--output", str(images), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))

    assert build("--check")["changed"]
    assert not images.exists()
    # The host's images have just been built, which takes a download.
    shutil.copytree(hosts.TINY_GUEST, images)
    built = build()
    assert not built["changed"]
    assert pathlib.Path(built["kernel"]).read_bytes()[:4] == b"\x7fELF"
    assert pathlib.Path(built["kernel"]).stat().st_mode & 0o777 == 0o644
    os.truncate(built["initrd"], 1000)
    assert build("--check")["changed"]
