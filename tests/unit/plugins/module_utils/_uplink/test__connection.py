# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's connection is found in what sshd leaves, and connections at risk in what the kernel lists."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _connection
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._connection import Connection, Established

HERE = Connection("192.0.2.7", 50022, "192.0.2.10", 22)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("192.0.2.7 50022 192.0.2.10 22", HERE),
        ("::ffff:192.0.2.7 50022 ::ffff:192.0.2.10 22", HERE),
        ("2001:DB8::7 50022 2001:db8:0::10 22", Connection("2001:db8::7", 50022, "2001:db8::10", 22)),
        ("fe80::7%eth0 50022 fe80::10%eth0 22", Connection("fe80::7", 50022, "fe80::10", 22)),
        ("", None),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("192.0.2.7 50022 22", None),
        ("192.0.2.7 port 192.0.2.10 22", None),
    ],
)
def test_what_sshd_leaves_is_a_connection_or_nothing(value: str, found: object) -> None:
    assert _connection.parse_ssh_connection(value) == found


def test_the_environment_of_this_process_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50022 192.0.2.10 22")
    assert _connection.ssh_peer() == HERE


# What this prints is a module's view two processes below the one that has the variable, as under sudo.
_BELOW = """
import os, subprocess, sys
own = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
if sys.argv[1:] == ["inner"]:
    from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _connection
    print(_connection.ssh_peer())
else:
    code = open(f"/proc/{os.getpid()}/cmdline", "rb").read().split(b"\\0")[2].decode()
    sys.exit(subprocess.run([sys.executable, "-c", code, "inner"], env=own).returncode)
"""


def test_the_variable_is_found_above_a_program_that_strips_it() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["SSH_CONNECTION"] = "192.0.2.7 50022 192.0.2.10 22"
    done = subprocess.run([sys.executable, "-c", _BELOW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "192.0.2.7:50022 to 192.0.2.10:22"


def test_a_variable_is_not_mistaken_for_one_whose_name_ends_alike() -> None:
    environment = b"MY_SSH_CONNECTION=x\0SSH_CONNECTION=a b c d\0SSH_CONNECTION_2=y\0"
    assert _connection.variable_of(environment, "SSH_CONNECTION") == "a b c d"
    assert _connection.variable_of(b"", "SSH_CONNECTION") == ""


def test_connections_are_written_as_one_reads_them() -> None:
    assert str(HERE) == "192.0.2.7:50022 to 192.0.2.10:22"
    assert str(Connection("fe80::7", 1, "fe80::10", 22)) == "[fe80::7]:1 to [fe80::10]:22"


def test_two_connections_of_one_client_are_two() -> None:
    again = _connection.parse_ssh_connection("192.0.2.7 50023 192.0.2.10 22")
    assert again != HERE


@pytest.mark.parametrize(
    ("addresses", "so"),
    [(["192.0.2.10/24"], True), (["192.0.2.10"], True), (["192.0.2.11/24", "fe80::1/64"], False), ([], False)],
)
def test_a_connection_runs_over_the_interface_that_has_its_servers_address(addresses: list[str], so: bool) -> None:
    assert _connection.runs_over(HERE, addresses) is so


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0A0200C0:0016 070200C0:C366 01 00000000:00000000 02:000A5F 00000000     0        0 2 4 0 20 4 30 10 -1
   2: 0A0200C0:0016 070200C0:C367 06 00000000:00000000 03:000A5F 00000000     0        0 0 3 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: B80D0120000000000000000010000000:0016 B80D0120000000000000000007000000:C366 01 00000000:00000000
   1: 0000000000000000FFFF00000A0200C0:0016 0000000000000000FFFF0000070200C0:C368 01 00000000:00000000
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the example is from a little-endian machine")
def test_only_established_connections_are_listed() -> None:
    assert list(_connection.parse_tcp(TCP)) == [Established("192.0.2.10", 22, "192.0.2.7", 50022)]
    assert list(_connection.parse_tcp(TCP6)) == [
        Established("2001:db8::10", 22, "2001:db8::7", 50022),
        Established("192.0.2.10", 22, "192.0.2.7", 50024),
    ]
    assert list(_connection.parse_tcp("")) == []


def test_a_real_connection_is_seen_and_is_at_risk_with_its_address_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            found = _connection.established()
            mine = Established("127.0.0.1", client.getsockname()[1], "127.0.0.1", port)
            assert mine in found
            assert mine in _connection.at_risk(found, ["127.0.0.1/8"])
            assert mine not in _connection.at_risk(found, ["127.0.0.2/8"])
