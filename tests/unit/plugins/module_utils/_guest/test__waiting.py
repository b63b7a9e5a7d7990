# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ipaddress
import socket
import threading
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _values
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _addresses, _waiting
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Link, Neighbour

TAP = Nic("52:54:00:00:00:01", "virtio-net-pci", tap="t0")
USER = Nic("52:54:00:00:00:02", "virtio-net-pci")

# As Debian 12's cloud-init 22.4.2 writes on a serial console, with what systemd says about the stages.
GOOD = """\
[\x1b[0;32m  OK  \x1b[0m] Finished \x1b[0;1;39mcloud-config.servi\u2026settings specified in cloud-config.\r
         Starting \x1b[0;1;39mcloud-final.service\x1b[0m\u2026 Execute cloud user/final scripts...\r
[   18.641208] cloud-init[421]: Cloud-init v. 22.4.2 running 'modules:final' at Sat, 21 Nov 2026 10:00:00 +0000. \
Up 18.52 seconds.\r
[   18.714502] cloud-init[421]: Cloud-init v. 22.4.2 finished at Sat, 21 Nov 2026 10:00:00 +0000. \
Datasource DataSourceNoCloud [seed=/dev/vdb][dsmode=net].  Up 18.70 seconds\r
"""
MODULE_FAILED = (
    "[   17.12] cloud-init[398]: 2026-11-21 10:00:00,000 - util.py[WARNING]: Running module locale "
    "(<module 'cloudinit.config.cc_locale' from '/usr/lib/python3/dist-packages/cloudinit/config/cc_locale.py'>) "
    "failed\r\n"
)
UNIT_FAILED = (
    "[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39mcloud-final.service\x1b[0m"
    " - Execute cloud user/final scripts.\r\n"
)
OLD_UNIT_FAILED = "[FAILED] Failed to start Apply the settings specified in cloud-config.\r\n"
OTHER_UNIT_FAILED = "[FAILED] Failed to start ssh.service - OpenBSD Secure Shell server.\r\n"


@pytest.mark.parametrize(
    ("console", "errors"),
    [
        ("", None),
        (GOOD.rpartition("[   18.71")[0], None),
        (MODULE_FAILED, None),
        (GOOD, []),
        (GOOD.replace("22.4.2", "24.1.3-0ubuntu3.3"), []),
        (OTHER_UNIT_FAILED + GOOD, []),
        (MODULE_FAILED + GOOD, ["locale failed"]),
        (GOOD + UNIT_FAILED, ["cloud-final.service - Execute cloud user/final scripts. failed"]),
        (OLD_UNIT_FAILED + GOOD, ["Apply the settings specified in cloud-config. failed"]),
        (
            GOOD.replace("DataSourceNoCloud [seed=/dev/vdb][dsmode=net]", "DataSourceNone"),
            ["it found no data source, so that nothing of what it was given is in force"],
        ),
    ],
)
def test_cloud_init_is_heard_to_finish_well_or_badly(console: str, errors: t.Optional[list[str]]) -> None:
    assert _waiting.cloud_init_errors(console) == errors


@pytest.mark.parametrize(
    ("spec", "goal", "possible"),
    [
        (GuestSpec("vm1", nics=(TAP,)), "address", True),
        (GuestSpec("vm1", nics=(USER,)), "ssh", False),
        (GuestSpec("vm1", nics=(USER,), guest_agent=True), "ssh", True),
        (GuestSpec("vm1"), "address", False),
        (GuestSpec("vm1"), "cloud_init", True),
        (GuestSpec("vm1", console=False), "cloud_init", False),
        (GuestSpec("vm1", console=False, guest_agent=True), "cloud_init", True),
    ],
)
def test_what_can_never_be_seen_is_refused(spec: GuestSpec, goal: str, possible: bool) -> None:
    assert (not _waiting.problems(spec, goal)) is possible


def test_addresses_are_found_wherever_they_stand_in_a_network_configuration() -> None:
    text = """
    version: 2
    ethernets:
      nic0:
        match: {macaddress: "52:54:00:00:00:01"}
        addresses: [10.9.0.11/24, "fd00:9::11/64", fe80::7/64]
        routes: [{to: default, via: 10.9.0.1}]
    """
    assert _addresses.declared(text) == ("10.9.0.11", "fd00:9::11", "10.9.0.1")
    data = {
        "version": 1,
        "config": [{"type": "physical", "subnets": [{"address": "10.9.0.12", "netmask": "255.0.0.0"}]}],
    }
    assert "10.9.0.12" in _addresses.declared(data)
    assert _addresses.declared(None) == ()


def test_what_is_known_is_of_the_nics_own_network() -> None:
    link = Link(1, "t0", "tun", True, True, 1500, "", "", "br0", 0)
    knowledge = _addresses.Knowledge(
        {"t0": link},
        (),
        [
            Neighbour("br0", "10.9.0.5", TAP.mac),
            Neighbour("br0", "fe80::5", TAP.mac),
            Neighbour("br1", "10.8.0.5", TAP.mac),
            Neighbour("br0", "10.9.0.6", USER.mac),
        ],
        [
            _addresses.Lease("br0", TAP.mac, "10.9.0.4"),
            _addresses.Lease("br0", TAP.mac, "10.9.0.5"),
            _addresses.Lease("br1", TAP.mac, "10.8.0.4"),
            _addresses.Lease(None, TAP.mac, "10.7.0.4"),
        ],
    )
    assert knowledge.of(TAP) == ["10.9.0.4", "10.9.0.5", "10.7.0.4"]
    assert knowledge.of(USER) == []
    assert _values.in_order(["fd00::1", "10.9.0.10", "10.9.0.9", "10.9.0.9"]) == ("10.9.0.9", "10.9.0.10", "fd00::1")


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "SSH-2.0-OpenSSH_9.2p1 Debian-2"),
        (b"Welcome\r\nSSH-2.0-dropbear\r\n", "SSH-2.0-dropbear"),
        (b"HTTP/1.0 400 Bad Request\r\n", "is open and does not speak SSH"),
        (b"", "is open and does not speak SSH"),
        (None, "does not answer yet"),
    ],
)
def test_an_ssh_server_is_known_by_its_first_line(
    monkeypatch: pytest.MonkeyPatch, said: t.Optional[bytes], heard: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(_waiting, "SSH_PORT", server.getsockname()[1])

        def serve() -> None:
            client, _address = server.accept()
            with client:
                if said is not None:
                    client.sendall(said)
                    return
                client.recv(1)  # silent until the other side goes

        thread = threading.Thread(target=serve)
        thread.start()
        timeout = 20.0 if said is not None else 0.3
        with _waiting.Doors() as doors:
            assert doors.listen(["127.0.0.1"], timeout=timeout) == {"127.0.0.1": heard}
        thread.join()


def test_a_closed_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf, _waiting.Doors() as doors:
        deaf.bind(("127.0.0.1", 0))  # nobody else can listen there
        monkeypatch.setattr(_waiting, "SSH_PORT", deaf.getsockname()[1])
        for _round in range(2):
            said = doors.listen(["127.0.0.1"], timeout=20)
            assert said == {"127.0.0.1": "cannot be reached (Connection refused)"}


def test_a_slow_server_is_listened_to_over_one_connection_for_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, _waiting.Doors() as doors:
        monkeypatch.setattr(_waiting, "SSH_PORT", server.getsockname()[1])
        for _round in range(3):
            assert doors.listen(["127.0.0.1"], timeout=0.05) == {"127.0.0.1": "does not answer yet"}
        client, _address = server.accept()
        with client:
            client.sendall(b"SSH-2.0-")
            assert doors.listen(["127.0.0.1"], timeout=0.05) == {"127.0.0.1": "does not answer yet"}
            client.sendall(b"Slow\r\n")
            assert doors.listen(["127.0.0.1"], timeout=20) == {"127.0.0.1": "SSH-2.0-Slow"}


def test_an_address_is_asked_by_one_that_it_can_answer() -> None:
    own = [ipaddress.ip_interface(text) for text in ("10.9.0.1/24", "192.0.2.1/24", "fe80::1/64")]
    sources = _addresses.choose_sources(["10.9.0.7", "10.8.0.7", "fd00::7"], own)
    assert sources == {"10.9.0.7": "10.9.0.1", "fd00::7": "fe80::1"}
