# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which DHCP client a command line is, what can follow its interface, and what a lease file is for another one."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _process
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _dhcp_clients
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._dhcp_clients import Client, Clients, Lease, parse
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._plain import PlainHost
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import (
    EndProgram,
    KeepDaemon,
    RunProgram,
    WriteFile,
)

MOVE = Move("br0", "eth0", "02:00:00:00:00:15", 1500, "move")
OF_IFUPDOWN = (
    "dhclient -4 -v -i -pf /run/dhclient.eth0.pid -lf /var/lib/dhcp/dhclient.eth0.leases "
    "-I -df /var/lib/dhcp/dhclient6.eth0.leases eth0"
)
IDENTITY = 'default-duid "\\000\\001\\000\\0012\\224\\002\\252";\n'


def lease(interface: str, address: str, seconds: int = 120) -> str:
    return (
        f'lease {{\n  interface "{interface}";\n  fixed-address {address};\n  option subnet-mask 255.255.255.0;\n'
        f"  option dhcp-lease-time {seconds};\n  renew 6 2026/11/21 07:41:56;\n}}\n"
    )


@pytest.mark.parametrize(
    ("line", "program", "interfaces"),
    [
        (OF_IFUPDOWN, "dhclient", ("eth0",)),
        ("/sbin/dhclient eth0 -e IF_METRIC=100", "dhclient", ("eth0",)),
        ("/sbin/dhclient", "dhclient", ()),
        ("dhclient -nw eth0 eth1", "dhclient", ("eth0", "eth1")),
        ("udhcpc -n -p /run/udhcpc.eth3.pid -i eth3", "udhcpc", ("eth3",)),
        ("busybox udhcpc --interface=eth3", "udhcpc", ("eth3",)),
        ("udhcpc -ieth3", "udhcpc", ("eth3",)),
        ("udhcpc -b", "udhcpc", ("eth0",)),
        ("dhcpcd -q -b", "dhcpcd", ()),
        ("dhcpcd -h name eth0", "dhcpcd", ("eth0",)),
    ],
)
def test_a_client_is_known_by_its_command_line(line: str, program: str, interfaces: tuple[str, ...]) -> None:
    client = parse(line.split())
    assert client is not None
    assert (client.program, client.interfaces) == (program, interfaces)


@pytest.mark.parametrize(
    ("title", "interfaces"), [("dhcpcd: eth0 [ip4]", ("eth0",)), ("dhcpcd: [manager] [ip4] [ip6]", ())]
)
def test_dhcpcd_calls_itself_by_its_interface(title: str, interfaces: tuple[str, ...]) -> None:
    client = parse([title])
    assert client is not None
    assert client.interfaces == interfaces


@pytest.mark.parametrize("line", ["dnsmasq", "dhclient -r eth0", "dhclient -x -pf /run/x eth0", "busybox httpd"])
def test_nothing_else_is_a_client(line: str) -> None:
    assert parse(line.split()) is None


def test_the_same_client_on_another_interface_keeps_all_but_its_files() -> None:
    client = parse(["dhclient", "-nw", "-q", *OF_IFUPDOWN.split()[1:], "-e", "IF_METRIC=7"])
    assert client is not None
    assert " ".join(_dhcp_clients.command(client, "br0")).partition(" ")[2] == (
        "-4 -v -i -I -df /var/lib/dhcp/dhclient6.eth0.leases -e IF_METRIC=7 "
        "-pf /run/dhclient.br0.pid -lf /run/dhclient.br0.leases br0"
    )


def test_a_lease_file_is_carried_over_with_the_identity_and_nothing_of_others() -> None:
    text = IDENTITY + lease("eth0", "10.0.0.7") + lease("eth1", "10.1.0.7") + lease("eth0", "10.0.0.8")
    carried = _dhcp_clients.carry(text, "eth0", "br0")
    assert carried == IDENTITY + lease("br0", "10.0.0.7") + lease("br0", "10.0.0.8")
    assert _dhcp_clients.carry(carried, "br0", "eth0") == text.replace(lease("eth1", "10.1.0.7"), "")
    assert _dhcp_clients.identity(text) is not None
    assert _dhcp_clients.identity(carried) == _dhcp_clients.identity(text)


def test_half_a_lease_at_the_end_is_left_out() -> None:
    text = lease("eth0", "10.0.0.7") + lease("eth0", "10.0.0.8")[:40]
    assert _dhcp_clients.carry(text, "eth0", "br0") == lease("br0", "10.0.0.7")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (lease("br0", "10.0.0.7") + lease("br0", "10.0.0.8"), Lease("10.0.0.8/24", 120)),
        (lease("br0", "10.0.0.8") + lease("br1", "10.0.0.9"), Lease("10.0.0.8/24", 120)),
        (lease("br0", "10.0.0.8", 2**32 - 1), None),
        (lease("eth0", "10.0.0.8"), None),
        ("", None),
    ],
)
def test_the_newest_lease_of_the_interface_counts(text: str, wanted: t.Optional[Lease]) -> None:
    assert _dhcp_clients.read_lease(text, "br0") == wanted


def test_a_client_that_is_about_to_start_its_script_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("dhclient", "eth0")
    # 700 has forked twice: one is about to start the script, the other one has been it.
    listed = [(_process.Process(pid, 1), list(line)) for pid in (700, 711, 712, 800)]
    parents = {700: 1, 711: 700, 712: 0, 800: 1}
    monkeypatch.setattr(_process, "here", lambda: iter(listed))
    monkeypatch.setattr(_process, "parent_of", parents.__getitem__)
    monkeypatch.setattr(_process, "identify", lambda pid: None if pid == 712 else _process.Process(pid, 1))
    # The twin: one that somebody else has started is a second client.
    assert [client.pid for client in _dhcp_clients.running("eth0")] == [700, 800]


class Host:
    """Processes and files as a test wants them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clients: list[Client] = []
        self.files: dict[str, str] = {"/sys/class/net/eth0/address": f"{MOVE.mac}\n"}
        monkeypatch.setattr(_dhcp_clients, "running", self._running)
        monkeypatch.setattr(_dhcp_clients, "read", lambda path: self.files.get(path, ""))
        monkeypatch.setattr(_dhcp_clients, "_which", lambda program: f"/sbin/{program.rpartition('/')[2]}")
        monkeypatch.setattr(_dhcp_clients._guard, "runs_systemd", lambda: False)

    def _running(self, interface: str) -> list[Client]:
        return [client for client in self.clients if interface in client.interfaces or not client.interfaces]

    def start(self, line: str, pid: int = 700) -> None:
        client = parse(line.split(), pid)
        assert client is not None
        self.clients.append(client)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_a_client_is_ended_without_a_word_and_started_on_the_other_interface(host: Host) -> None:
    host.start(OF_IFUPDOWN)
    host.files["/run/dhclient.eth0.pid"] = "700\n"
    host.files["/var/lib/dhcp/dhclient.eth0.leases"] = IDENTITY + lease("eth0", "10.0.0.7")
    clients = Clients()
    ending, forgetting = clients.before(MOVE)
    assert ending.action == EndProgram(tuple(OF_IFUPDOWN.split()), "KILL")
    again = ("/sbin/dhclient", "-nw", *OF_IFUPDOWN.split()[1:])
    assert ending.undo == (KeepDaemon(again, "dhclient", "eth0"),)
    assert forgetting.action == WriteFile("/run/dhclient.eth0.pid", None)
    host.clients.clear()  # as it is when the others are asked for
    carrying, lasting, starting = clients.after(MOVE)
    assert carrying.action == WriteFile("/run/dhclient.br0.leases", IDENTITY + lease("br0", "10.0.0.7"))
    assert carrying.undo == (WriteFile("/run/dhclient.br0.leases", None),)
    assert isinstance(lasting.action, RunProgram)
    assert lasting.action.argv[1:6] == ("address", "change", "10.0.0.7/24", "dev", "br0")
    assert isinstance(starting.action, RunProgram)
    assert starting.action.argv[-1] == "br0"
    assert starting.undo[0] == EndProgram(starting.action.argv, "KILL")


def test_on_the_way_back_the_client_goes_on_to_ask_a_silent_server(host: Host) -> None:
    host.start("dhclient -1 -q -nw eth0")
    (ending,) = Clients().before(MOVE)
    assert ending.undo == (KeepDaemon(("/sbin/dhclient", "-nw", "eth0"), "dhclient", "eth0"),)


def test_under_systemd_the_client_gets_a_unit_of_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dhcp_clients._guard, "runs_systemd", lambda: True)
    host.start(OF_IFUPDOWN)
    (again,) = Clients().before(MOVE)[0].undo
    assert isinstance(again, KeepDaemon)
    assert again.argv[:6] == ("/sbin/systemd-run", "--scope", "--quiet", "--collect", "/sbin/dhclient", "-nw")
    starting = Clients().after(MOVE)[-1]
    assert isinstance(starting.action, RunProgram)
    assert starting.action.argv[:5] == ("/sbin/systemd-run", "--scope", "--quiet", "--collect", "/sbin/dhclient")
    assert isinstance(starting.undo[0], EndProgram)
    assert starting.undo[0].argv == starting.action.argv[4:]


@pytest.mark.parametrize("mode", ["static", "none"])
def test_an_address_by_hand_needs_no_client(host: Host, mode: str) -> None:
    host.start(OF_IFUPDOWN)
    move = dataclasses.replace(MOVE, mode=mode)
    assert len(Clients().before(move)) == 1
    assert Clients().after(move) == []


@pytest.mark.parametrize("mode", ["move", "dhcp", "static", "none"])
def test_the_way_back_takes_the_client_along_in_every_mode(host: Host, mode: str) -> None:
    host.start("dhclient -lf /run/dhclient.br0.leases br0")
    host.files["/run/dhclient.br0.leases"] = IDENTITY + lease("br0", "10.0.0.7")
    host.files["/sys/class/net/br0/address"] = f"{MOVE.mac}\n"
    clients, move = Clients(), dataclasses.replace(MOVE, mode=mode, back=True)
    assert clients.refusal(move) is None
    assert len(clients.before(move)) == 1
    carrying, _lasting, starting = clients.after(move)
    assert carrying.action == WriteFile("/run/dhclient.eth0.leases", IDENTITY + lease("eth0", "10.0.0.7"))
    assert isinstance(starting.action, RunProgram)
    assert starting.action.argv[-1] == "eth0"


def test_the_way_back_of_a_bridge_without_a_client_needs_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dhcp_clients, "_which", lambda program: None)
    move = dataclasses.replace(MOVE, mode="dhcp")
    assert "Install isc-dhcp-client" in str(Clients().refusal(move))
    back = dataclasses.replace(move, back=True)
    assert (Clients().refusal(back), Clients().after(back)) == (None, [])


def test_the_mode_dhcp_starts_a_client_where_there_was_none(host: Host) -> None:
    (starting,) = Clients().after(dataclasses.replace(MOVE, mode="dhcp"))
    assert isinstance(starting.action, RunProgram)
    assert starting.action.argv[0] == "/sbin/dhclient"
    assert Clients().after(MOVE) == []


@pytest.mark.parametrize(
    ("line", "because"),
    [
        ("udhcpc -i eth0", "cannot carry the lease"),
        ("dhcpcd eth0", "cannot carry the lease"),
        ("dhclient -6 eth0", "DHCPv6"),
        ("dhclient eth0 eth1", "one client per interface"),
        ("dhclient", "all interfaces that it finds"),
        ("dhclient -d eth0", "in the foreground"),
        ("dhclient --new-option eth0", "--new-option"),
    ],
)
def test_a_client_that_cannot_follow_is_refused(host: Host, line: str, because: str) -> None:
    host.start(line)
    assert because in str(Clients().refusal(MOVE))
    assert not Clients().leases("eth0")


def test_a_client_that_can_follow_is_not_refused(host: Host) -> None:
    host.start(OF_IFUPDOWN)
    assert Clients().refusal(MOVE) is None
    assert Clients().leases("eth0")
    assert not Clients().leases("eth1")


def test_two_clients_are_one_too_many(host: Host) -> None:
    host.start(OF_IFUPDOWN)
    host.start("dhclient eth0", 701)
    assert "2 DHCP clients" in str(Clients().refusal(MOVE))


def test_what_changes_the_identity_is_refused(host: Host) -> None:
    host.start("dhclient -cf /etc/my.conf eth0")
    assert "is not the MAC" in str(Clients().refusal(dataclasses.replace(MOVE, mac="02:00:00:00:00:99")))
    host.files["/etc/my.conf"] = 'interface "eth0" {\n  send dhcp-client-identifier "x";\n}\n'
    assert "section for eth0" in str(Clients().refusal(MOVE))
    host.files["/etc/my.conf"] += 'interface "br0" { }\n'
    assert Clients().refusal(MOVE) is None


def test_a_host_without_manager_has_nowhere_to_write(host: Host) -> None:
    manager = PlainHost()
    assert "set persistent: false" in str(manager.refusal(MOVE, persistent=True))
    assert manager.refusal(MOVE, persistent=False) is None
    assert list(manager.files(MOVE)) == []
    host.start(OF_IFUPDOWN)
    assert [type(step.action) for step in manager.before(MOVE)] == [EndProgram]
    assert len(manager.after(MOVE)) == 2
    assert manager.leases("eth0")
