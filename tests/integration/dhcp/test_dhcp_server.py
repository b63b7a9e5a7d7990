# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests get addresses and names from the network's server, nobody else hears it, and reruns leave it alone."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import textwrap
import typing as t

import pytest
from support.hosts import Host, await_condition

# The module needs no library on the managed host.
pytestmark = pytest.mark.one_interpreter

MODULE = "dhcp_server"
WEB = "52:54:00:00:0f:01"
OTHER = "52:54:00:00:0f:02"
SERVER = {
    "name": "lab",
    "bridge": "br0",
    "domain": "lab.example",
    "dns_servers": [],
    "leases": [{"mac": WEB, "address": "10.97.8.7", "name": "web"}],
}

# Answers udhcpc's questions: one line for each lease, with what the server said.
_UDHCPC_SCRIPT = """#!/bin/sh
[ $1 = bound ] && echo ip=$ip mask=$mask router=$router dns=$dns domain=$domain name=$hostname
exit 0
"""

# Asks for a name by TCP and prints the answer's bytes; nothing when nobody answers.
_ASK_BY_TCP = """
import socket, struct, sys
server, name, patience = sys.argv[1:]
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
query = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)
try:
    with socket.create_connection((server, 53), float(patience)) as connection:
        connection.sendall(struct.pack(">H", len(query)) + query)
        print(connection.recv(512).hex())
except OSError:
    pass
"""

# In the place of dnsmasq: does not start the configurations that /run/fail names; its syntax check always passes.
_FAILING_DNSMASQ = """#!/bin/sh
[ "$1" = --test ] && exit 0
grep -qs "${1##*/}" /run/fail || exec /run/dnsmasq.real "$@"
echo "dnsmasq: no luck today" >&2
grep -q once /run/fail && rm /run/fail
exit 2
"""


class Guest:
    """A network namespace on a port of the bridge."""

    def __init__(self, host: Host, name: str, mac: str, bridge: str = "br0") -> None:
        self.host, self.name = host, name
        host.run("ip", "netns", "add", name)
        self.run("sysctl", "-qw", "net.ipv6.conf.default.accept_ra=1")
        host.run("ip", "link", "add", f"{name}p", "type", "veth", "peer", "name", "eth0", "netns", name)
        self.run("ip", "link", "set", "eth0", "address", mac)
        host.run("ip", "link", "set", f"{name}p", "master", bridge, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "set", "eth0", "up")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run("ip", "netns", "exec", self.name, *command, check=check)

    def lease(self, *, tries: int = 5) -> t.Optional[dict[str, str]]:
        """What a DHCP server offers and confirms; None when none answers."""
        self.host.run("sh", "-c", "cat >/run/udhcpc && chmod +x /run/udhcpc", stdin=_UDHCPC_SCRIPT)
        done = self.run(
            "busybox", "udhcpc", "-i", "eth0", "-nqf", "-t", str(tries), "-T", "1", "-s", "/run/udhcpc", check=False
        )
        return dict(word.split("=", 1) for word in done.stdout.split()) if done.stdout.strip() else None

    def connect(self) -> dict[str, str]:
        """Take a lease and use it."""
        lease = self.lease()
        assert lease is not None
        self.run("ip", "addr", "replace", f"{lease['ip']}/{lease['mask']}", "dev", "eth0")
        return lease

    def answers_by_tcp(self, server: str, *, patience: int = 10) -> bool:
        """Whether a DNS server answers the guest; that the kernel takes the connection is no answer."""
        words = (server, "web.lab.example", str(patience))
        return bool(self.run("/usr/bin/python3", "-c", _ASK_BY_TCP, *words).stdout.strip())

    def resolve(self, name: str, server: str = "10.97.8.1", *, patience: int = 10) -> str:
        return self.run("timeout", str(patience), "busybox", "nslookup", name, server, check=False).stdout


@pytest.fixture
def lab(host: Host) -> Host:
    """A host with a bridge br0, 10.97.8.1/24 and fd97:8::1/64, where nothing is going to change by itself."""
    host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("sysctl", "-qw", "net.ipv6.conf.br0.accept_ra=0")
    host.run("ip", "addr", "add", "10.97.8.1/24", "dev", "br0")
    host.run("ip", "addr", "add", "fd97:8::1/64", "dev", "br0", "nodad")
    # A bridge without a port loses its carrier some time later.
    host.run("ip", "link", "add", "port", "up", "master", "br0", "type", "veth", "peer", "name", "far")
    for name in ("far", "br0"):
        host.run("ip", "link", "set", name, "up")
    await_condition(lambda: all((host.link(name) or {})["operstate"] == "UP" for name in ("port", "br0")), "carrier")
    return host


def processes(host: Host) -> dict[str, str]:
    """The dnsmasq processes of the host: number to command line."""
    words = (line.split(None, 2) for line in host.out("ps", "-eo", "pid=,stat=,args=").splitlines())
    return {pid: argv for pid, state, argv in words if "dnsmasq" in argv.split()[0] and not state.startswith("Z")}


def test_guests_get_dynamic_and_static_leases_and_names(lab: Host) -> None:
    result = lab.converge(MODULE, SERVER)
    assert result["changed"]
    assert list(processes(lab)) == [str(result["server"]["pid"])]

    web, other = Guest(lab, "web", WEB), Guest(lab, "other", OTHER)
    lease = web.connect()
    assert lease == {
        "ip": "10.97.8.7",
        "mask": "24",
        "router": "10.97.8.1",
        "dns": "10.97.8.1",
        "domain": "lab.example",
        "name": "web",
    }
    dynamic = other.connect()["ip"]
    assert dynamic.startswith("10.97.8.")
    assert dynamic not in ("10.97.8.1", "10.97.8.7")
    for name in ("web.lab.example", "web"):
        assert "10.97.8.7" in other.resolve(name).split("Name:")[-1]
    assert "NXDOMAIN" in other.resolve("nobody.lab.example")

    rerun = lab.converge(MODULE, SERVER)
    assert not rerun["changed"]
    leases = {lease["mac"]: lease for lease in rerun["leases"]}
    assert leases[WEB]["address"] == "10.97.8.7"
    assert leases[WEB]["name"] == "web"
    assert leases[OTHER]["address"] == dynamic
    assert leases[OTHER]["name"] is None
    assert leases[WEB]["network"] == "lab"
    expiry = lab.out("sh", "-c", f"grep {WEB} /var/lib/labspan/dhcp/lab.leases").split()[0]
    assert leases[WEB]["expires"] == lab.out("date", "-u", "-d", f"@{expiry}", "+%Y-%m-%dT%H:%M:%SZ").strip()


def test_the_hosts_own_names_are_not_told(lab: Host) -> None:
    names = "127.0.0.1 localhost\n192.0.2.9 hostsecret hostsecret.lab.example\n"
    lab.run("sh", "-c", "cat >/run/hosts && mount --bind /run/hosts /etc/hosts", stdin=names)
    lab.converge(MODULE, SERVER)
    guest = Guest(lab, "web", WEB)
    guest.connect()
    assert "192.0.2.9" not in guest.resolve("hostsecret.lab.example")
    assert "192.0.2.9" not in guest.resolve("hostsecret")
    # The twin: a dnsmasq that is not told otherwise answers them.
    lab.converge(MODULE, {"name": "lab", "state": "absent"})
    with plain_dnsmasq(lab, "--no-resolv"):
        assert "192.0.2.9" in guest.resolve("hostsecret")


def test_it_runs_without_root_and_reads_no_other_configuration(lab: Host) -> None:
    pid = str(lab.converge(MODULE, SERVER)["server"]["pid"])
    status = dict(line.split(":", 1) for line in lab.out("cat", f"/proc/{pid}/status").splitlines())
    assert "0" not in status["Uid"].split()
    arguments = lab.out("cat", f"/proc/{pid}/cmdline").split("\0")[1:-1]
    assert arguments == ["--conf-file=/var/lib/labspan/dhcp/lab.conf"]
    assert lab.run("pgrep", "-P", pid, check=False).stdout == ""


def test_ipv6_guests_configure_themselves_and_get_a_default_route_only_when_asked(lab: Host) -> None:
    lab.converge(MODULE, {**SERVER, "router_advertisements": True})
    guest = Guest(lab, "web", WEB)

    def address() -> bool:
        found = lab.json("ip", "-n", "web", "-6", "-j", "addr", "show", "dev", "eth0", "scope", "global")
        return any(entry["local"].startswith("fd97:8::") for link in found for entry in link["addr_info"])

    def default_route() -> bool:
        return bool(lab.json("ip", "-n", "web", "-6", "-j", "route", "show", "default"))

    await_condition(address, "an address by router advertisement")
    assert not default_route()
    lab.converge(MODULE, {**SERVER, "router_advertisements": True, "ipv6_default_route": True})
    for state in ("down", "up"):  # the guest asks at once
        guest.run("ip", "link", "set", "eth0", state)
    await_condition(default_route, "a default route by router advertisement")
    assert lab.addresses("br0") == ["10.97.8.1/24", "fd97:8::1/64"]


def test_a_host_that_would_hear_its_own_advertisements_is_warned(lab: Host) -> None:
    assert not lab.converge(MODULE, {**SERVER, "router_advertisements": True}).get("warnings")
    lab.run("sysctl", "-qw", "net.ipv6.conf.br0.accept_ra=1")
    assert "own advertisements" in str(lab.converge(MODULE, {**SERVER, "router_advertisements": True})["warnings"])


@contextlib.contextmanager
def plain_dnsmasq(host: Host, *options: str) -> t.Iterator[None]:
    """A dnsmasq as somebody would start it by hand, to show that a test can fail."""
    files = ["--conf-file=/dev/null", "--pid-file=/run/plain.pid", "--dhcp-leasefile=/run/plain.leases"]
    host.run("dnsmasq", "--no-ping", *files, *options)
    try:
        yield
    finally:
        pid = host.out("cat", "/run/plain.pid").strip()
        host.run("kill", "-9", pid)
        await_condition(lambda: pid not in processes(host), "the end of the other dnsmasq")


@pytest.fixture
def lan(lab: Host) -> Guest:
    """A LAN neighbour on the host's other side, with a route to the lab through the host."""
    lab.run("ip", "link", "add", "lan", "type", "bridge")
    lab.run("ip", "addr", "add", "10.97.9.1/24", "dev", "lan")
    lab.run("ip", "link", "set", "lan", "up")
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    neighbour = Guest(lab, "neighbour", "52:54:00:00:0f:99", "lan")
    neighbour.run("ip", "addr", "add", "10.97.9.2/24", "dev", "eth0")
    neighbour.run("ip", "route", "add", "10.97.8.0/24", "via", "10.97.9.1")
    return neighbour


def test_the_lan_hears_nothing(lab: Host, lan: Guest) -> None:
    Guest(lab, "web", WEB)
    lab.converge(MODULE, SERVER)
    assert lan.run("ping", "-c", "1", "-W", "2", "10.97.8.1").returncode == 0
    for address in ("10.97.8.1", "10.97.9.1"):
        assert "10.97.8.7" not in lan.resolve("web.lab.example", address, patience=1)
        assert not lan.answers_by_tcp(address, patience=1)
    assert lan.lease(tries=1) is None


def test_the_twin_a_plain_dnsmasq_answers_the_lan(lab: Host, lan: Guest) -> None:
    Guest(lab, "web", WEB)
    options = ["--dhcp-range=10.97.9.10,10.97.9.20", "--no-hosts", "--address=/web.lab.example/10.97.8.7"]
    with plain_dnsmasq(lab, *options):
        for address in ("10.97.8.1", "10.97.9.1"):
            assert "10.97.8.7" in lan.resolve("web.lab.example", address)
            assert lan.answers_by_tcp(address)
        assert lan.lease() is not None


def test_a_rerun_starts_nothing_and_says_nothing(lab: Host) -> None:
    pid = lab.converge(MODULE, SERVER)["server"]["pid"]
    before, files = processes(lab), lab.out("stat", "-c", "%n %i %Y %Z", *state_files(lab))
    script = textwrap.dedent(
        """
        import os, runpy, sys
        def watch(event, arguments):
            if event in ("subprocess.Popen", "os.fork", "os.kill", "os.exec", "os.rename", "os.mkdir", "os.remove",
                         "signal.pidfd_send_signal", "os.posix_spawn"):
                raise SystemError("a rerun did " + event)
        sys.addaudithook(watch)
        """
    )
    lab.run("sh", "-c", "mkdir -p /run/audit && cat >/run/audit/sitecustomize.py", stdin=script)
    audited = {"PYTHONPATH": f"/run/audit:{lab.python_path}"}
    with lab.monitored() as heard:
        result = lab.converge(MODULE, SERVER, environment=audited)
    assert heard == []
    assert not result["changed"]
    assert result["actions"] == []
    assert result["diff"]["before"] == result["diff"]["after"]
    assert result["server"]["pid"] == pid
    assert processes(lab) == before
    assert lab.out("stat", "-c", "%n %i %Y %Z", *state_files(lab)) == files
    # The twin: the watch does see a run that has something to do.
    changed = lab.start_module(MODULE, {**SERVER, "lease_time": "1h"}, environment=audited)
    output, errors = changed.communicate(timeout=60)
    assert "a rerun did" in output + errors


def left_over(host: Host) -> str:
    """Files and directories of ours."""
    return host.out("find", "/var/lib/labspan", "/run", "-mindepth", "1", "-path", "*labspan*")


def state_files(host: Host) -> list[str]:
    return host.out("find", "/var/lib/labspan/dhcp", "/run/labspan/dhcp", "-type", "f").splitlines()


def test_a_killed_server_is_started_again_with_its_leases(lab: Host) -> None:
    pid = lab.converge(MODULE, SERVER)["server"]["pid"]
    guest = Guest(lab, "other", OTHER)
    lease = guest.connect()["ip"]
    lab.run("kill", "-9", str(pid))
    await_condition(lambda: str(pid) not in processes(lab), "the server's end")
    result = lab.converge(MODULE, SERVER)
    assert result["changed"]
    assert result["actions"] == ["Start the DHCP server of network lab with its configuration"]
    assert [entry["address"] for entry in result["leases"]] == [lease]
    assert list(processes(lab)) == [str(result["server"]["pid"])]
    assert guest.connect()["ip"] == lease
    assert not lab.converge(MODULE, SERVER)["changed"]


def test_a_lost_pid_file_does_not_make_a_second_server(lab: Host) -> None:
    first = lab.converge(MODULE, SERVER)["server"]["pid"]
    lab.run("rm", "-r", "/run/labspan/dhcp")
    result = lab.converge(MODULE, SERVER)
    assert str(first) not in processes(lab)
    assert list(processes(lab)) == [str(result["server"]["pid"])]


def test_changed_static_leases_are_read_without_a_restart(lab: Host) -> None:
    pid = lab.converge(MODULE, SERVER)["server"]["pid"]
    guest = Guest(lab, "web", WEB)
    assert guest.connect()["ip"] == "10.97.8.7"
    moved = {**SERVER, "leases": [{"mac": WEB, "address": "10.97.8.70", "name": "mail"}]}
    result = lab.converge(MODULE, moved)
    assert result["actions"] == ["Let the DHCP server of network lab read its changed static leases"]
    assert result["server"]["pid"] == pid
    await_condition(lambda: "10.97.8.70" in guest.resolve("mail.lab.example"), "the new name")
    lease = guest.lease()
    assert lease is not None
    assert (lease["ip"], lease["name"]) == ("10.97.8.70", "mail")
    assert "10.97.8.7\n" not in guest.resolve("web.lab.example").split("Name:")[-1]
    assert not lab.converge(MODULE, moved)["changed"]


def test_a_run_killed_between_file_and_signal_is_made_good(lab: Host) -> None:
    pid = lab.converge(MODULE, SERVER)["server"]["pid"]
    guest = Guest(lab, "web", WEB)
    lab.run("sh", "-c", f"echo {WEB},10.97.8.71,web >/var/lib/labspan/dhcp/lab.static")
    lab.run("sh", "-c", "echo 10.97.8.71 web >/var/lib/labspan/dhcp/lab.names")
    wanted = {**SERVER, "leases": [{"mac": WEB, "address": "10.97.8.71", "name": "web"}]}
    result = lab.converge(MODULE, wanted)
    assert result["changed"]
    assert result["server"]["pid"] == pid
    await_condition(lambda: (guest.lease() or {}).get("ip") == "10.97.8.71", "the new lease")


def test_another_configuration_restarts_it_and_keeps_the_leases(lab: Host) -> None:
    first = lab.converge(MODULE, SERVER)["server"]["pid"]
    guest = Guest(lab, "other", OTHER)
    lease = guest.connect()["ip"]
    narrow = {**SERVER, "gateway": "none", "lease_time": "1h", "options": ["option:ntp-server,10.97.8.1"]}
    result = lab.converge(MODULE, narrow)
    assert result["actions"] == ["Restart the DHCP server of network lab with its changed configuration"]
    assert result["server"]["pid"] != first
    assert [entry["address"] for entry in result["leases"]] == [lease]
    assert guest.connect()["router"] == ""
    before, after = (result["diff"][when]["servers"]["lab"]["configuration"] for when in ("before", "after"))
    assert "dhcp-option=option:router,10.97.8.1" in before
    assert "dhcp-option=option:router" in after


def test_the_range_is_kept_to(lab: Host) -> None:
    lab.converge(MODULE, {**SERVER, "range": {"start": "10.97.8.50", "end": "10.97.8.50"}})
    assert Guest(lab, "other", OTHER).connect()["ip"] == "10.97.8.50"
    assert Guest(lab, "third", "52:54:00:00:0f:03").lease(tries=1) is None
    assert Guest(lab, "web", WEB).connect()["ip"] == "10.97.8.7"


def test_no_range_serves_static_leases_only(lab: Host) -> None:
    lab.converge(MODULE, {**SERVER, "ranges": []})
    assert Guest(lab, "web", WEB).connect()["ip"] == "10.97.8.7"
    assert Guest(lab, "other", OTHER).lease(tries=1) is None


def test_a_static_lease_inside_the_range_is_given_to_nobody_else(lab: Host) -> None:
    lab.converge(MODULE, {**SERVER, "range": {"start": "10.97.8.7", "end": "10.97.8.8"}})
    assert Guest(lab, "other", OTHER).connect()["ip"] == "10.97.8.8"
    assert Guest(lab, "third", "52:54:00:00:0f:03").lease(tries=1) is None


def test_dns_can_be_left_out(lab: Host) -> None:
    lab.converge(MODULE, {**SERVER, "dns": False, "dns_servers": ["192.0.2.53"]})
    guest = Guest(lab, "web", WEB)
    assert guest.connect()["dns"] == "192.0.2.53"
    assert not guest.answers_by_tcp("10.97.8.1", patience=1)


@pytest.mark.parametrize("params", [SERVER, {**SERVER, "lease_time": "2h"}, {"name": "lab", "state": "absent"}])
@pytest.mark.parametrize("there", [False, True])
def test_check_mode_writes_nothing_and_predicts(lab: Host, there: bool, params: t.Mapping[str, t.Any]) -> None:
    if there:
        lab.converge(MODULE, SERVER)
    before, running = lab.dump(), processes(lab)
    with lab.monitored() as heard:
        predicted = lab.converge(MODULE, params, check=True)
    assert heard == []
    assert lab.dump() == before
    assert processes(lab) == running
    done = lab.converge(MODULE, params)
    for key in ("changed", "actions"):
        assert predicted[key] == done[key]
    for server in (predicted["server"], done["server"]):
        (server or {}).pop("pid", None)
    assert predicted["server"] == done["server"]
    assert not lab.converge(MODULE, params)["changed"]


def test_check_mode_passes_a_bridge_that_a_task_before_may_make(lab: Host) -> None:
    result = lab.converge(MODULE, {**SERVER, "bridge": "br9"}, check=True)
    assert result["changed"]
    assert "there is no bridge br9" in str(result["warnings"])
    assert "there is no bridge br9" in lab.refuse(MODULE, {**SERVER, "bridge": "br9"})


def test_absent_leaves_nothing(lab: Host) -> None:
    before = lab.dump()
    lab.converge(MODULE, SERVER)
    Guest(lab, "web", WEB).connect()
    assert lab.dump()["files"] != before["files"]
    result = lab.converge(MODULE, {"name": "lab", "state": "absent"})
    assert "lease file" in result["actions"][0]
    assert result["server"] is None
    assert result["leases"] == []
    assert processes(lab) == {}
    assert left_over(lab) == ""
    assert lab.out("ss", "-Hlun", "sport = :67 or sport = :53") == ""
    assert not lab.converge(MODULE, {"name": "lab", "state": "absent"})["changed"]


def test_absent_needs_neither_bridge_nor_process(lab: Host) -> None:
    pid = lab.converge(MODULE, SERVER)["server"]["pid"]
    lab.run("kill", "-9", str(pid))
    lab.run("ip", "link", "del", "br0")
    assert lab.converge(MODULE, {"name": "lab", "state": "absent"})["changed"]
    assert left_over(lab) == ""


def test_it_serves_a_bridge_that_was_made_again(lab: Host) -> None:
    lab.converge(MODULE, SERVER)
    lab.run("ip", "link", "del", "br0")
    lab.run("ip", "link", "add", "br0", "type", "bridge")
    lab.run("ip", "addr", "add", "10.97.8.1/24", "dev", "br0")
    lab.run("ip", "link", "set", "br0", "up")
    again = lab.converge(MODULE, SERVER)
    assert again["actions"] == ["Restart the DHCP server of network lab for its bridge made again"]
    assert not lab.converge(MODULE, SERVER)["changed"]
    assert Guest(lab, "web", WEB).connect()["ip"] == "10.97.8.7"


def test_many_servers_are_one_task(lab: Host) -> None:
    for number in (1, 2, 3):
        lab.run("ip", "link", "add", f"n{number}", "type", "bridge")
        lab.run("ip", "addr", "add", f"10.97.{10 + number}.1/24", "dev", f"n{number}")
        lab.run("ip", "link", "set", f"n{number}", "up")
    entries = [{"name": f"n{number}"} for number in (1, 2, 3)]
    result = lab.converge(MODULE, {"servers": entries, "lease_time": "1h", "dns_servers": []})
    assert [server["bridge"] for server in result["servers"]] == ["n1", "n2", "n3"]
    assert len(processes(lab)) == 3
    assert Guest(lab, "web", WEB, "n2").connect()["ip"].startswith("10.97.12.")
    swapped = [{"name": "n1", "state": "absent"}, {"name": "n2"}, {"name": "n3"}, {"name": "n4", "bridge": "n1"}]
    result = lab.converge(MODULE, {"servers": swapped[::-1], "lease_time": "1h", "dns_servers": []})
    assert result["actions"] == [
        "Stop the DHCP server of network n1 and remove its configuration and its lease file",
        "Start the DHCP server of network n4 on bridge n1",
    ]
    assert Guest(lab, "other", OTHER, "n1").connect()["ip"].startswith("10.97.11.")


def test_another_dhcp_server_on_the_bridge_is_named(lab: Host) -> None:
    with plain_dnsmasq(lab, "--interface=br0", "--bind-dynamic", "--port=0", "--dhcp-range=10.97.8.20,10.97.8.30"):
        other = next(iter(processes(lab)))
        for check in (True, False):
            message = lab.refuse(MODULE, SERVER, check=check)
            assert "already has a DHCP server" in message
            assert f"(pid {other})" in message
    lab.converge(MODULE, SERVER)


def test_a_dhcp_server_on_another_bridge_is_no_obstacle(lab: Host, lan: Guest) -> None:
    with plain_dnsmasq(lab, "--interface=lan", "--bind-dynamic", "--dhcp-range=10.97.9.20,10.97.9.30"):
        lab.converge(MODULE, SERVER)
        assert Guest(lab, "web", WEB).connect()["ip"] == "10.97.8.7"
        lease = lan.lease()
        assert lease is not None
        assert lease["ip"].startswith("10.97.9.")


def test_a_holder_of_port_53_is_named(lab: Host) -> None:
    holder = lab.start("socat", "UDP4-RECVFROM:53,bind=10.97.8.1,fork", "-")
    try:
        await_condition(lambda: "10.97.8.1:53" in lab.out("ss", "-Hlun"), "the other DNS server")
        message = lab.refuse(MODULE, SERVER)
        assert "10.97.8.1 port 53/udp is held by socat" in message
        lab.converge(MODULE, {**SERVER, "dns": False})
        # With the server running the other way, the same holder is met when it starts: what was there comes back.
        assert "held by socat" in lab.refuse(MODULE, SERVER)
    finally:
        holder.kill()
        holder.wait()


def dnsmasq_fails(host: Host, when: str) -> None:
    """Put a program in the place of dnsmasq that does not start the named configurations."""
    script = "cp /usr/sbin/dnsmasq /run/dnsmasq.real; cat >/run/fake; chmod +x /run/fake; echo $0 >/run/fail"
    host.run("sh", "-c", script, when, stdin=_FAILING_DNSMASQ)
    host.run("mount", "--bind", "/run/fake", "/usr/sbin/dnsmasq")


def test_a_failed_start_puts_everything_back(lab: Host) -> None:
    first = lab.converge(MODULE, SERVER)
    dnsmasq_fails(lab, "once lab.conf")
    before = {path: lab.out("cat", path) for path in state_files(lab) if path.startswith("/var")}
    result = lab.module(MODULE, {**SERVER, "lease_time": "3h"})
    assert result["failed"]
    assert "no luck today" in result["msg"]
    assert {path: lab.out("cat", path) for path in state_files(lab) if path.startswith("/var")} == before
    assert len(processes(lab)) == 1
    assert str(first["server"]["pid"]) not in processes(lab)
    assert not lab.converge(MODULE, SERVER)["changed"]
    assert Guest(lab, "web", WEB).connect()["ip"] == "10.97.8.7"


def test_a_failure_in_the_middle_undoes_the_servers_before(lab: Host) -> None:
    lab.run("ip", "link", "add", "n1", "type", "bridge")
    lab.run("ip", "addr", "add", "10.97.11.1/24", "dev", "n1")
    lab.run("ip", "link", "set", "n1", "up")
    dnsmasq_fails(lab, "n1.conf")
    result = lab.module(MODULE, {"servers": [SERVER, {"name": "n1"}]})
    assert result["failed"]
    assert result["undone"] == ["Start the DHCP server of network lab on bridge br0"]
    assert processes(lab) == {}
    assert left_over(lab) == ""


def test_a_missing_dnsmasq_is_named(lab: Host) -> None:
    # The twin is every other test.
    lab.run("sh", "-c", "touch /run/nothing && mount --bind /run/nothing /usr/sbin/dnsmasq")
    assert "dnsmasq-base" in lab.refuse(MODULE, SERVER)
    assert "dnsmasq-base" in str(lab.converge(MODULE, SERVER, check=True)["warnings"])


@pytest.mark.parametrize(
    ("setup", "complaint"),
    [
        (["ip addr flush dev br0 scope global"], "has no IPv4 address"),
        (["ip route add default via 10.97.8.2"], "the host's default route leaves through br0"),
        (["ip link del br0", "ip link add br0 type veth peer name x"], "br0 is not a bridge (veth)"),
        (["ip link del br0"], "there is no bridge br0"),
    ],
)
def test_a_bridge_that_cannot_be_served_is_refused(lab: Host, setup: list[str], complaint: str) -> None:
    for command in setup:
        lab.run(*command.split())
    assert complaint in lab.refuse(MODULE, SERVER)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"range": {"start": "10.97.9.1", "end": "10.97.9.9"}}, "range.start: '10.97.9.1' is outside of the subnet"),
        ({"leases": [{"mac": WEB, "address": "10.97.8.1"}]}, "own address"),
        ({"leases": [{"mac": WEB, "name": "a"}, {"mac": WEB.upper(), "name": "b"}]}, "leases[1].mac"),
        ({"options": ["nonsense"]}, "dhcp-option=nonsense"),
        ({"options": ["26,1400\nenable-tftp"]}, "is not a DHCP option"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_touched(
    lab: Host, changes: dict[str, t.Any], complaint: str
) -> None:
    lab.converge(MODULE, SERVER)
    running = processes(lab)
    assert complaint in lab.refuse(MODULE, {**SERVER, **changes})
    assert processes(lab) == running


def test_a_server_of_the_same_name_in_another_namespace_is_not_taken_for_ours(lab: Host) -> None:
    lab.converge(MODULE, SERVER)
    lab.run("ip", "netns", "add", "elsewhere")
    pid = lab.out("cat", "/run/labspan/dhcp/lab.pid").split()[0]
    stranger = lab.start("ip", "netns", "exec", "elsewhere", "sleep", "600")
    try:
        sleeper = lab.out("sh", "-c", "until pgrep -x sleep; do :; done").split()[0]
        started = lab.out("cat", f"/proc/{sleeper}/stat").split()[21]
        lab.run("sh", "-c", f"echo {sleeper} {started} >/run/labspan/dhcp/lab.pid")
        assert "another network namespace" in lab.refuse(MODULE, {"name": "lab", "state": "absent"})
    finally:
        stranger.kill()
        stranger.wait()
    assert pid in processes(lab)


def test_two_runs_at_once_make_one_server(lab: Host) -> None:
    started = [lab.start_module(MODULE, SERVER) for _number in range(2)]
    results = [process.communicate(timeout=60)[0] for process in started]
    assert len(processes(lab)) == 1
    assert sum('"changed": true' in result for result in results) == 1
    assert not lab.converge(MODULE, SERVER)["changed"]


def test_its_files_are_nobody_elses_to_write(lab: Host) -> None:
    lab.converge(MODULE, SERVER)
    modes = {pathlib.Path(path).name: lab.out("stat", "-c", "%a", path).strip() for path in state_files(lab)}
    assert not any(int(mode, 8) & 0o022 for mode in modes.values()), modes
