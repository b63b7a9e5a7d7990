# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges and taps after a reboot, brought back without Python; the managers of the host's network keep off them."""

from __future__ import annotations

import pathlib
import re
import subprocess
import typing as t

import pytest
from support.hosts import await_condition
from support.system_host import SystemHost, needs_system_host

pytestmark = needs_system_host

NIC = "52:54:00:00:00:10"
BRIDGES: dict[str, t.Any] = {
    "network": "lab",
    "persistent": "true",
    "bridges": [
        {"name": "lab0", "addresses": ["10.9.9.1/24", "10.9.9.2/24", "fd09::1/64"], "mtu": 1400, "ageing_time": 60},
        {"name": "lab1", "host_access": False, "stp": True, "forward_delay": 4, "priority": 4096},
    ],
}
TAPS: dict[str, t.Any] = {
    "network": "lab",
    "bridge": "lab0",
    "persistent": "auto",
    "taps": [
        {"name": "tap0", "owner": "1234", "alias": "it's the first"},
        {"name": "tap1", "owner": "0", "group": "4321", "multi_queue": True, "isolated": True, "learning": False},
        {"name": "tap2", "bridge": "lab1", "mtu": 1300, "mac_address": "02:00:00:00:00:77", "hairpin": True},
        {"name": "tap3", "bridge": "", "enabled": False},
    ],
}
#: What the kernel counts and finds out for itself.
VOLATILE = ("timer", "ifindex", "stats", "operstate", "flags", "_topology_change", "bridge_id", "root", "state")
GREEDY_NETWORKD = "[Match]\nType=ether\n[Network]\nAddress=198.51.100.1/24\n"


def wire(host: SystemHost) -> None:
    """A NIC of the host's own."""
    inside = ["nsenter", f"--net=/proc/{host.pid}/ns/net", "ip", "link", "add", "eth0", "address", NIC]
    subprocess.run([*inside, "type", "veth", "peer", "name", "far0"], check=True)
    subprocess.run([*inside[:3], "link", "set", "far0", "up"], check=True)


def links(host: SystemHost) -> dict[str, t.Any]:
    """The lab's interfaces as ip shows them, with whether they are up."""
    found = {}
    for link in host.json("ip", "-d", "-j", "addr", "show"):
        if link["ifname"].startswith(("lab", "tap")):
            addresses = [
                {key: each.get(key) for key in ("local", "prefixlen", "scope", "broadcast", "nodad")}
                for each in link["addr_info"]
                if each["scope"] == "global"
            ]
            found[link["ifname"]] = {**_steady(link), "up": "UP" in link["flags"], "addr_info": addresses}
    return found


def _steady(found: t.Any) -> t.Any:
    if isinstance(found, dict):
        return {key: _steady(value) for key, value in found.items() if not any(word in key for word in VOLATILE)}
    if isinstance(found, list):
        return [_steady(value) for value in found]
    return found


def files(host: SystemHost) -> list[str]:
    """Every file of the host that the collection could have left."""
    roots = ("/etc", "/usr/local", "/var/lib/labspan", "/run/labspan", "/run/systemd/system")
    return sorted(host.run("find", *roots, check=False).stdout.splitlines())


def unit(host: SystemHost, *properties: str) -> str:
    return host.out("systemctl", "show", "--value", f"--property={','.join(properties)}", "labspan-network@lab").strip()


def masters(host: SystemHost) -> dict[str, t.Optional[str]]:
    return {link["ifname"]: link.get("master") for link in host.json("ip", "-j", "link", "show")}


@pytest.fixture(scope="module")
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with SystemHost(python_path, wire=wire) as made:
        yield made


def test_what_was_made_is_there_after_a_reboot_without_python(host: SystemHost) -> None:
    empty = files(host)
    assert host.converge("linux_bridge", BRIDGES, check=True)["changed"]
    assert files(host) == empty, "check mode wrote"
    made = host.converge("linux_bridge", BRIDGES)
    assert "Write /etc/labspan/networks/lab/links" in made["actions"]
    assert "Start labspan-network@lab.service" in made["actions"]
    assert any(item["name"].endswith("/links") for item in made["boot_files"])
    host.converge("tap_device", TAPS)
    for name, params in (("linux_bridge", BRIDGES), ("tap_device", TAPS)):
        host.assert_rests(name, params)
    before = links(host)
    tables = host.out("nft", "-s", "list", "ruleset")
    assert "lab1" in tables

    host.run("sh", "-c", "mkdir /python && mv /usr/bin/python3* /python")
    host.reboot()
    assert host.run("python3", "-V", check=False).returncode != 0
    assert links(host) == before
    assert host.out("nft", "-s", "list", "ruleset") == tables
    assert host.sysctl("net/ipv6/conf/lab1/disable_ipv6") == "1"
    assert host.sysctl("net/ipv6/conf/lab0/accept_ra") == "0"
    assert unit(host, "ActiveState", "Result") == "success\nactive"
    host.run("sh", "-c", "mv /python/* /usr/bin && rmdir /python")

    for name, params in (("linux_bridge", BRIDGES), ("tap_device", TAPS)):
        host.assert_rests(name, params)
    for name, params in (("tap_device", TAPS), ("linux_bridge", BRIDGES)):
        host.converge(name, {**params, "state": "absent"})
    assert links(host) == {}
    assert files(host) == empty


def test_the_unit_is_one_that_systemd_understands(host: SystemHost) -> None:
    host.converge("linux_bridge", {"name": "lab0", "network": "lab", "persistent": "true"})
    done = host.run("systemd-analyze", "verify", "labspan-network@lab.service", check=False)
    assert "labspan" not in done.stderr
    broken = "/etc/systemd/system/labspan-broken.service"
    host.write(broken, "[Unit]\nBeforehand=x\n[Service]\nExecStart=true\n")
    assert "labspan-broken" in host.run("systemd-analyze", "verify", broken, check=False).stderr
    host.run("rm", broken)
    order = host.out("systemctl", "show", "--property=After,Before", "labspan-network@lab.service")
    after, before = sorted(order.splitlines())
    for name in (
        "nftables.service",
        "ufw.service",
        "firewalld.service",
        "netfilter-persistent.service",
        "network-pre.target",
        "systemd-sysctl.service",
    ):
        assert name in after
    assert {"docker.service", "network-online.target"} <= set(before.partition("=")[2].split())
    assert host.out("systemctl", "is-enabled", "labspan-network@lab.service").strip() == "enabled"
    host.converge("linux_bridge", {"name": "lab0", "network": "lab", "state": "absent"})


def test_what_lasts_no_longer_leaves_no_file_and_goes_on_running(host: SystemHost) -> None:
    empty = files(host)
    bridge = {"name": "lab0", "network": "lab", "addresses": ["10.9.9.1/24"]}
    taps = {"network": "lab", "bridge": "lab0", "taps": [{"name": "tap0"}, {"name": "tap1"}]}
    host.converge("linux_bridge", {**bridge, "persistent": "true"})
    host.converge("tap_device", {**taps, "persistent": "true"})

    # Left out, it stays as it is, and follows.
    host.converge("tap_device", {**taps, "taps": [{"name": "tap1", "isolated": True}]})
    text = host.out("cat", "/etc/labspan/networks/lab/links")
    assert "link set dev tap1 type bridge_slave isolated on\n" in text
    host.assert_rests("linux_bridge", bridge)

    host.converge("tap_device", {**taps, "taps": [{"name": "tap0"}], "state": "absent"})
    text = host.out("cat", "/etc/labspan/networks/lab/links")
    assert ("tap0" in text, "tap1" in text, "# bridge lab0\n" in text) == (False, True, True)

    host.converge("tap_device", {**taps, "taps": [{"name": "tap1"}], "persistent": "false"})
    host.converge("linux_bridge", {**bridge, "persistent": "false"})
    assert files(host) == empty
    assert masters(host)["tap1"] == "lab0"
    assert unit(host, "ActiveState") == "inactive"
    host.converge("tap_device", {**taps, "taps": [{"name": "tap1"}], "state": "absent"})
    host.converge("linux_bridge", {**bridge, "state": "absent"})


def test_a_restart_of_the_unit_repairs_and_disturbs_nobody(host: SystemHost) -> None:
    """Two namespaces ping each other over the bridge, 200 times a second, while the unit restarts again and again."""
    bridge = {"name": "lab0", "network": "lab", "addresses": ["10.9.9.1/24"], "persistent": "true"}
    host.converge("linux_bridge", bridge)
    host.converge("tap_device", {"name": "tap0", "bridge": "lab0", "network": "lab", "persistent": "true"})
    for number in (1, 2):
        host.run("sh", "-c", _PEER, "sh", str(number))
    host.run("sh", "-c", "ip netns exec peer1 ping -c 1 -W 5 10.9.9.12")
    ping = host.start(
        "ip", "netns", "exec", "peer1", "ping", "-i", "0.005", "-c", "400", "10.9.9.12", stdout=subprocess.PIPE
    )
    host.run("ip", "link", "set", "tap0", "nomaster")
    for _again in range(3):
        host.run("systemctl", "restart", "labspan-network@lab")
        host.run("systemctl", "reload", "labspan-network@lab")
    assert masters(host)["tap0"] == "lab0"
    output = ping.communicate()[0]
    # The last answer is waited for as long as the slowest one took, which may be too short.
    assert set(range(1, 400)) <= set(map(int, re.findall(r"icmp_seq=(\d+)", output)))
    assert masters(host)["peer1"] == "lab0", "a port that is not ours was taken off"
    host.run("systemctl", "stop", "labspan-network@lab")
    host.run("ip", "netns", "exec", "peer1", "ping", "-c", "1", "-W", "5", "10.9.9.12")
    for number in (1, 2):
        host.run("ip", "link", "del", f"peer{number}")
        host.run("ip", "netns", "del", f"peer{number}")
    host.converge("tap_device", {"name": "tap0", "network": "lab", "state": "absent"})
    host.converge("linux_bridge", {**bridge, "state": "absent"})


_PEER = """\
set -e
ip netns add peer$1
ip link add peer$1 type veth peer name eth0 netns peer$1
ip link set peer$1 master lab0 up
ip -n peer$1 addr add 10.9.9.1$1/24 dev eth0
ip -n peer$1 link set eth0 up
"""


def test_an_interface_of_somebody_elses_is_left_alone_by_the_script(host: SystemHost) -> None:
    host.converge(
        "linux_bridge", {"name": "lab0", "network": "lab", "addresses": ["10.9.9.1/24"], "persistent": "true"}
    )
    host.run("ip", "link", "del", "lab0")
    host.run("ip", "link", "add", "lab0", "type", "bridge")
    mine = links(host)
    host.run("systemctl", "restart", "labspan-network@lab")
    assert links(host) == mine
    assert "left alone" in host.journal("-b", "-u", "labspan-network@lab")

    # Unless it is what a start that was ended in the middle had made, and had not marked yet.
    host.write("/run/labspan-network.lab.making", " lab0 \n")
    host.run("systemctl", "restart", "labspan-network@lab")
    assert (host.link("lab0") or {})["ifalias"] == "labspan.vmnet:lab"
    assert host.addresses("lab0") == ["10.9.9.1/24"]
    assert host.run("test", "-e", "/run/labspan-network.lab.making", check=False).returncode == 1

    host.run("ip", "link", "del", "lab0")
    host.run("systemctl", "restart", "labspan-network@lab")
    assert host.addresses("lab0") == ["10.9.9.1/24"]
    host.converge("linux_bridge", {"name": "lab0", "network": "lab", "state": "absent"})


def test_a_greedy_profile_of_networkd_takes_no_tap(python_path: pathlib.Path) -> None:
    """With its twin: a tap that networkd was not told of is taken off its bridge, or given the profile's address."""
    network = {"/etc/systemd/network/90-greedy.network": GREEDY_NETWORKD}
    with SystemHost(python_path, files=network, enable=["systemd-networkd"], wire=wire) as host:
        await_condition(lambda: bool(host.addresses("eth0")), "networkd to see to the NIC")
        nic = host.addresses("eth0")
        host.converge("linux_bridge", {"name": "lab0", "network": "lab", "persistent": "true"})
        taps = [{"name": "tap0", "persistent": "true"}, {"name": "twin0", "persistent": "false"}]
        host.converge("tap_device", {"taps": taps, "bridge": "lab0", "network": "lab"})
        host.run("systemctl", "restart", "systemd-networkd")

        def lost() -> bool:
            return masters(host)["twin0"] is None or bool(host.addresses("twin0"))

        await_condition(lost, "networkd to take the twin")
        assert masters(host)["tap0"] == "lab0"
        assert host.addresses("tap0") == []
        assert host.addresses("lab0") == []
        assert host.addresses("eth0") == nic
        host.reboot()
        await_condition(lambda: bool(host.addresses("eth0")), "networkd to see to the NIC")
        assert masters(host)["tap0"] == "lab0"
        assert host.addresses("tap0") == []


def test_network_manager_takes_no_tap(python_path: pathlib.Path) -> None:
    """With its twin: NetworkManager counts a tap that it was not told of among what it looks after."""
    with SystemHost(python_path, enable=["NetworkManager"], wire=wire) as host:
        host.converge("linux_bridge", {"name": "lab0", "network": "lab", "persistent": "true"})
        taps = [{"name": "tap0", "persistent": "true"}, {"name": "twin0", "persistent": "false"}]
        host.converge("tap_device", {"taps": taps, "bridge": "lab0", "network": "lab"})

        def states() -> dict[str, str]:
            shown = host.out("nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines()
            return dict(line.split(":", 1) for line in shown)

        await_condition(
            lambda: "twin0" in states() and states()["twin0"] != "unmanaged", "NetworkManager to see the twin"
        )
        assert states()["tap0"] == states()["lab0"] == "unmanaged"
        host.run("systemctl", "restart", "NetworkManager")
        await_condition(
            lambda: states().get("eth0", "unmanaged") != "unmanaged", "NetworkManager to have its card again"
        )
        assert states()["tap0"] == states()["lab0"] == "unmanaged"
        assert masters(host)["tap0"] == "lab0"
