# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vmnet_info tells is what ip, bridge, nft and iptables show, and telling it leaves nothing behind."""

from __future__ import annotations

import json
import re
import subprocess
import typing as t

import pytest
from support.hosts import Host, ModuleFailed, Result, await_condition, finish_module

pytestmark = pytest.mark.one_interpreter
slow = pytest.mark.slow

WEB = {"name": "br-web", "network": "web", "addresses": ["192.168.6.1/24", "fd00:6::1/64"]}
QUIET = {"name": "br-quiet", "network": "quiet", "host_access": False}
OFFICE = {"name": "br-office", "network": "office", "addresses": ["10.20.0.1/24"]}
MAC = "52:54:00:00:06:32"

_UPLINK = """
ip link add up0 type veth peer name peer0
ip addr add 198.51.100.1/24 dev up0
ip link set peer0 up
ip link set up0 up
ip route add default via 198.51.100.9
"""
_DOCKER = """
iptables-nft -P FORWARD DROP
iptables-nft -N DOCKER-USER
iptables-nft -A DOCKER-USER -j RETURN
iptables-nft -N DOCKER
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -o docker0 -j DOCKER
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
"""
_NEIGHBOUR = f"""
ip netns add n
ip link add n0 type veth peer name eth0 address {MAC} netns n
ip link set n0 master br-web up
echo 1 | ip netns exec n tee /proc/sys/net/ipv6/conf/eth0/disable_ipv6 >/dev/null
ip -n n addr add 192.168.6.50/24 dev eth0
ip -n n link set eth0 up
"""
_EVERYTHING = {
    "links": "ip -d -j link show",
    "addresses": "ip -d -j addr show",
    "routes": "ip -d -j route show table all",
    "routes6": "ip -d -6 -j route show table all",
    "rules": "ip -d -j rule show; ip -d -6 -j rule show",
    "neighbours": "ip -j neigh show",
    "learnt": "bridge -d -j fdb show",
    "nft": "nft -j list ruleset",
    "nft without counters": "nft -s -j list ruleset",
    "legacy tables": "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names /proc/net/arp_tables_names",
    "modules": "cat /proc/modules; ls /sys/module",
    "settings": "grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 /proc/sys/net/bridge | grep -v stable_secret | sort",
    "mounts": "cat /proc/[0-9]*/mounts | sort -u",
    "files": (
        "find /run /var/lib/labspan /etc/labspan /etc/sysctl.d /etc/systemd -printf '%p %T@ %s %m %U %G %l\\n' | sort"
    ),
}
#: What a kernel counts down by itself.
_CLOCKS = re.compile(r'"(\w+_life_time|\w+_timer|state|used|updated|confirmed)": ?(\[[^]]*\]|[0-9.]+),?')


def info(host: Host, **params: t.Any) -> Result:
    return host.converge("vmnet_info", params)


def everything(host: Host) -> dict[str, str]:
    """All that reading could change; with counters, so that nothing was sent either."""
    found = {name: host.run("sh", "-c", command, check=False).stdout for name, command in _EVERYTHING.items()}
    return {name: _CLOCKS.sub("", text) for name, text in found.items()}


def named(entries: t.Iterable[dict[str, t.Any]], name: str) -> dict[str, t.Any]:
    (found,) = (entry for entry in entries if entry["name"] == name)
    return found


def make_links(host: Host) -> None:
    host.converge("linux_bridge", {"bridges": [WEB, QUIET, OFFICE]})
    taps = [("tap-a", "web"), ("tap-b", "web"), ("tap-q", "quiet")]
    entries = [{"name": name, "network": network, "bridge": f"br-{network}"} for name, network in taps]
    host.converge("tap_device", {"taps": entries, "owner": "nobody"})


def make_lab(host: Host, *, backend: str = "nftables") -> None:
    host.run("sh", "-ec", _UPLINK)
    make_links(host)
    networks = [
        {"name": "web", "bridge": "br-web", "masquerade": True},
        {"name": "office", "bridge": "br-office", "masquerade": False},
    ]
    host.converge("nat_masquerade", {"networks": networks, "forward": True, "forwarding": True, "backend": backend})
    lease = {"mac": MAC, "address": "192.168.6.50", "name": "kept"}
    host.converge("dhcp_server", {"name": "web", "bridge": "br-web", "domain": "web.lab", "leases": [lease]})


# Reading is nothing but reading


_LEGACY = "iptables-legacy -t nat -L -n; ip6tables-legacy -L -n"


@pytest.mark.parametrize(
    "surroundings", ["", f"{_LEGACY}\n{_DOCKER}", pytest.param(_LEGACY, marks=slow), pytest.param(_DOCKER, marks=slow)]
)
def test_reading_leaves_everything_as_it_is(host: Host, surroundings: str) -> None:
    host.run("sh", "-ec", surroundings or "true")
    make_lab(host)
    host.run("sh", "-ec", _NEIGHBOUR)
    host.run("ip", "netns", "exec", "n", "ping", "-c", "1", "-W", "5", "192.168.6.1")
    host.settle()
    before = everything(host)
    first = info(host)
    after = everything(host)
    assert {name: after[name] for name in after if after[name] != before[name]} == {}
    assert host.converge("vmnet_info", {}, check=True) == first
    assert everything(host) == before
    assert not first["changed"]
    assert "warnings" not in first
    assert bool(before["legacy tables"]) == ("legacy" in surroundings)
    assert ("docker" in first["host"]["firewalls"]) == ("DOCKER" in surroundings)


def test_a_plain_look_by_iptables_legacy_leaves_a_table_and_ours_does_not(host: Host) -> None:
    names = ("cat", "/proc/net/ip_tables_names")
    if host.run(*names, check=False).returncode:
        pytest.skip("the kernel has no legacy tables")
    info(host)
    assert host.out(*names) == ""
    host.run("iptables-legacy", "-L")
    assert host.out(*names) == "filter\n"
    info(host)
    assert host.out(*names) == "filter\n"


def test_no_request_and_no_file_is_a_write(host: Host) -> None:
    make_lab(host)
    info(host)  # and Python has compiled what it compiles
    calls = (
        "sendto,sendmsg,openat,open,creat,mkdir,unlink,rename,chmod,fchmod,link,symlink,mount,ioctl,mkdirat,unlinkat"
    )
    traced = host.strace("vmnet_info", {}, calls)
    # The first message on a socket strace does not name: RTM_GETLINK and NFT_MSG_GETGEN.
    sent = ["GET" if kind in ("0x12", "0xa10") else kind for kind in re.findall(r"nlmsg_type=(\w\S*[\w])", traced.log)]
    assert {"GET", "RTM_GETNEIGH", "NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETRULE"} <= set(sent)
    assert [kind for kind in sent if "GET" not in kind] == []
    assert len(re.findall(r"nlmsg_type=(?:0x12|RTM_GETLINK)\b", traced.log)) == 1
    opened = [line for line in traced.log.splitlines() if re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", line)]
    assert [line for line in opened if "/dev/null" not in line and " ENOENT" not in line] == []
    done = re.findall(r"\b(creat|mkdir|unlink|rename|f?chmod|link|symlink|mount|mkdirat|unlinkat)\(", traced.log)
    assert done == []
    assert [line for line in traced.log.splitlines() if "TUNSET" in line] == []


def test_looking_waits_for_nobody(host: Host) -> None:
    waiting = host.start("flock", "/proc/self/ns/net", "sleep", "60", stdin=subprocess.DEVNULL)
    await_condition(lambda: "FLOCK" in host.out("cat", "/proc/locks"), "the lock on the host")
    assert info(host)["networks"] == []
    waiting.kill()
    waiting.wait()


# What is told


def test_an_empty_host_has_nothing_to_tell_and_to_warn_of(host: Host) -> None:
    for program in ("nft", "iptables-nft-save", "iptables-save", "qemu-img", "qemu-system-x86_64", "systemctl"):
        hide(host, program)
    found = info(host)
    assert "warnings" not in found
    assert {key: value for key, value in found.items() if value and key not in ("host", "invocation")} == {}


def hide(host: Host, program: str) -> None:
    """Let the host have no such program."""
    for directory in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        path = f"{directory}/{program}"
        script = f"[ ! -e {path} ] || [ ! -x {path} ] || mount --bind /dev/null $(readlink -f {path})"
        host.run("sh", "-c", script)


def test_networks_bridges_and_taps_are_as_the_kernel_has_them(host: Host) -> None:
    host.run("sh", "-ec", _DOCKER)
    make_lab(host)
    found = info(host)
    networks = {network["name"]: network for network in found["networks"]}
    assert {name: network["scenario"] for name, network in networks.items()} == {
        "office": "routed",
        "quiet": "private",
        "web": "nat",
    }
    assert networks["web"]["uplinks"] == ["up0"]
    assert networks["web"]["taps"] == ["tap-a", "tap-b"]
    assert networks["web"]["dhcp"]["running"]
    assert networks["web"]["dhcp"]["pid"] in [int(pid) for pid in host.out("pgrep", "dnsmasq").split()]
    for bridge in found["bridges"]:
        link = host.link(bridge["name"])
        assert link is not None
        assert (bridge["mac"], bridge["mtu"]) == (link["address"], link["mtu"])
        assert sorted(bridge["addresses"]) == sorted(host.addresses(bridge["name"], link_local=True))
        ports = [port["ifname"] for port in host.json("bridge", "-j", "link") if port.get("master") == bridge["name"]]
        assert sorted(port["name"] for port in bridge["ports"]) == sorted(ports)
    assert [bridge["name"] for bridge in found["foreign_bridges"]] == ["docker0"]
    assert {tap["name"]: (tap["owner"], tap["network"]) for tap in found["taps"]} == {
        "tap-a": ("nobody", "web"),
        "tap-b": ("nobody", "web"),
        "tap-q": ("nobody", "quiet"),
    }
    assert found["host"]["uplinks"] == {"ipv4": "up0", "ipv6": None}
    assert set(found["host"]["forwarding"]["ipv4_interfaces"]) == {"br-web", "br-office", "up0"}


def test_who_speaks_on_a_port_is_told_with_address_and_lease(host: Host) -> None:
    make_lab(host)
    host.run("sh", "-ec", _NEIGHBOUR)
    host.run("ip", "netns", "exec", "n", "ping", "-c", "1", "-W", "5", "192.168.6.1")
    expiry = 4102444800
    host.run("sh", "-c", "kill -STOP $(cut -d' ' -f1 /run/labspan/dhcp/web.pid)")  # writes when it likes
    host.run("sh", "-c", f"echo '{expiry} {MAC} 192.168.6.50 visitor *' >> /var/lib/labspan/dhcp/web.leases")
    host.run("sh", "-c", "echo '1000 52:54:00:00:06:33 192.168.6.51 late *' >> /var/lib/labspan/dhcp/web.leases")
    found = info(host, gather=["bridges", "leases"])
    port = named(named(found["bridges"], "br-web")["ports"], "n0")
    assert port["kind"] == "other"
    assert port["neighbours"] == [
        {
            "mac": MAC,
            "heard": True,
            "guest": None,
            "name": "visitor",
            "addresses": ["192.168.6.50"],
            "lease": {"address": "192.168.6.50", "expires": "2100-01-01T00:00:00Z"},
        }
    ]
    assert [(lease["mac"], lease["name"]) for lease in found["leases"]] == [(MAC, "visitor")]


def test_who_holds_a_tap_is_told(host: Host) -> None:
    make_links(host)
    holder = host.start(
        "python3",
        "-c",
        "import fcntl, os, struct, sys\n"
        "tap = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(tap, 0x400454CA, struct.pack('16sH22x', b'tap-a', 0x1002))\n"
        "print('held', flush=True); sys.stdin.read()",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    (held,) = named(info(host, gather=["taps"])["taps"], "tap-a")["holders"]
    assert held["program"] == "python3"
    assert host.out("cat", f"/proc/{held['pid']}/comm") == "python3\n"
    assert named(info(host, gather=["taps"])["taps"], "tap-b")["holders"] == []
    holder.communicate("")


# Rules


def test_rules_of_nftables_have_the_places_handles_and_counters_that_nft_shows(host: Host) -> None:
    make_lab(host)
    host.run("sh", "-ec", _NEIGHBOUR)
    host.run("ip", "netns", "exec", "n", "ping", "-c", "3", "-i", "0.1", "-W", "5", "192.168.6.1")
    host.settle()
    found = [rule for rule in info(host, gather=["rules"])["rules"] if rule["table"] == "labspan_web"]
    entries = host.json("nft", "-j", "list", "table", "inet", "labspan_web")["nftables"]
    shown = [entry["rule"] for entry in entries if "rule" in entry]
    assert [(rule["chain"], rule["handle"], rule["packets"], rule["bytes"]) for rule in found] == [
        (rule["chain"], rule["handle"], counter["packets"], counter["bytes"])
        for rule in shown
        for counter in [next(part["counter"] for part in rule["expr"] if "counter" in part)]
    ]
    assert [rule["position"] for rule in found if rule["chain"] == "forward"] == list(range(1, 9))
    (asked,) = (rule for rule in found if "icmp type echo-request" in rule["text"])
    assert asked["packets"] >= 3
    assert "counter" not in asked["text"]


@pytest.mark.parametrize(("backend", "program"), [("iptables", "iptables-nft"), ("iptables_legacy", "iptables-legacy")])
def test_rules_of_iptables_have_the_line_numbers_and_counters_that_it_shows(
    host: Host, backend: str, program: str
) -> None:
    if backend == "iptables_legacy":
        host.interpreter = "/usr/bin/python3"
        if host.run(host.interpreter, "-c", "import iptc", check=False).returncode:
            pytest.skip("python-iptables is not there")
    make_lab(host, backend=backend)
    host.run("sh", "-ec", _NEIGHBOUR)
    host.run("ip", "netns", "exec", "n", "ping", "-c", "3", "-i", "0.1", "-W", "5", "192.168.6.1")
    host.settle()
    found = [
        rule for rule in info(host, gather=["rules"])["rules"] if rule["family"] == "ip" and rule["world"] == program
    ]
    assert found
    for chain in {(rule["table"], rule["chain"]) for rule in found}:
        listed = host.out(program, "-t", chain[0], "-L", chain[1], "-v", "-x", "-n", "--line-numbers").splitlines()[2:]
        shown = {int(line.split()[0]): (int(line.split()[1]), int(line.split()[2])) for line in listed}
        told = {
            rule["position"]: (rule["packets"], rule["bytes"])
            for rule in found
            if (rule["table"], rule["chain"]) == chain
        }
        assert told.items() <= shown.items()
    assert any(rule["packets"] for rule in found)
    assert {rule["handle"] is None for rule in found} == {backend == "iptables_legacy"}
    by_name = {network["name"]: network for network in info(host, gather=["networks"])["networks"]}
    assert (by_name["web"]["scenario"], by_name["office"]["scenario"]) == ("nat", "routed")
    assert by_name["web"]["backend"] == program


def test_what_blocks_is_told_and_what_is_opened_is_not(host: Host) -> None:
    host.run("sh", "-ec", _DOCKER)
    make_lab(host)
    # Nothing of the private network forwards, but br_netfilter shows its frames to the same chain.
    expected = {"quiet"} if host.run("test", "-e", "/proc/sys/net/bridge", check=False).returncode == 0 else set()
    assert {one["network"] for one in info(host, gather=["forward_blockers"])["forward_blockers"]} == expected
    words = ("-m", "comment", "--comment", "labspan.vmnet:office", "-j", "LABSPAN-office-ACC")
    host.run("iptables-nft", "-D", "DOCKER-USER", *words)
    host.run(
        "sh",
        "-ec",
        "nft 'add table inet evil; add chain inet evil f { type filter hook forward priority 5; policy drop; }'",
    )
    found = info(host, gather=["forward_blockers"])["forward_blockers"]
    office = [(one["world"], one["table"], one["chain"], one["by"]) for one in found if one["network"] == "office"]
    assert office == [("iptables-nft", "filter", "FORWARD", "docker"), ("nftables", "evil", "f", None)]
    assert [one["table"] for one in found if one["network"] == "web"] == ["evil"]


@slow
def test_the_number_of_programs_does_not_depend_on_rules_and_networks(host: Host) -> None:
    make_lab(host)
    few = host.strace("vmnet_info", {}, "execve").log.count("execve(")
    rules = "".join(
        f"add rule inet theirs f ip saddr 10.{n // 250}.{n % 250}.0/24 counter accept\n" for n in range(1000)
    )
    script = f"add table inet theirs\nadd chain inet theirs f {{ type filter hook forward priority 0; }}\n{rules}"
    host.run("nft", "-f", "-", stdin=script)
    more = [{"name": f"net{n}", "bridge": f"br-{n}", "sources": [f"10.99.{n}.0/24"]} for n in range(5)]
    host.converge("nat_masquerade", {"networks": more, "out_interface": "up0"})
    traced = host.strace("vmnet_info", {}, "execve")
    assert traced.log.count("execve(") == few
    assert len(traced.result["networks"]) == 8


# What cannot be seen


def test_without_root_it_says_what_it_does_not_see_and_tells_the_rest(host: Host) -> None:
    make_links(host)
    # Python as every account can have it: this one's is below /root, as a rule.
    ours = "ansible_collections/labspan/vmnet/plugins"
    host.run("mkdir", "-p", "/run/python/ansible", f"/run/python/{ours}")
    for part in (
        "ansible/module_utils",
        f"{ours}/module_utils",
        f"{ours}/modules",
    ):
        host.run("cp", "-rL", f"{host.python_path}/{part}", f"/run/python/{part}")
    host.run("touch", "/run/python/ansible/__init__.py")
    host.interpreter = "/usr/bin/python3"
    wrapper = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    environment = {"PYTHONPATH": "/run/python", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/run"}
    found = finish_module(host.start_module("vmnet_info", {}, wrapper=wrapper, environment=environment))
    if found.get("failed"):
        raise ModuleFailed(str(found))
    assert any("root" in str(warning) for warning in found["warnings"])
    assert [bridge["name"] for bridge in found["bridges"]] == ["br-office", "br-quiet", "br-web"]
    assert found["rules"] == []
    assert found["host"]["firewalls"] is None


def test_without_nft_the_rest_is_told(host: Host) -> None:
    make_links(host)
    hide(host, "nft")
    found = info(host)
    assert any("nft" in str(warning) for warning in found["warnings"])
    assert len(found["bridges"]) == 3


def test_no_library_is_needed(host: Host) -> None:
    make_links(host)
    host.run("sh", "-c", "mkdir /run/nothing && echo 'raise ImportError(\"gone\")' > /run/nothing/pyroute2.py")
    environment = {"PYTHONPATH": f"/run/nothing:{host.python_path}"}
    found = host.converge("vmnet_info", {}, environment=environment)
    assert json.dumps(found["bridges"])
    assert len(found["networks"]) == 3
