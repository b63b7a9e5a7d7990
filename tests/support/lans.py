# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A LAN for hosts of DHCP and router advertisements, which counts what it gives, and what comes through."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import typing as t

from support.hosts import AnyHost, Host, await_condition, cable

GATEWAY, GATEWAY6 = "10.77.0.1", "fd77::1"
#: Leases that are renewed every other second.
SHORT = ("dhcp-option=option:T1,3", "dhcp-option=option:T2,90")


class Lan:
    """A gateway, router advertisements, and leases of two minutes; C(more) are further options of dnsmasq."""

    def __init__(self, host: Host, mac: str, *more: str) -> None:
        self.host = host
        self.mac = mac
        self.log = pathlib.Path(host.out("mktemp", "-d", "-p", "/run").strip(), "dnsmasq.log")
        host.run("ip", "link", "add", "lan0", "type", "bridge", "mcast_snooping", "0")
        host.run("ip", "link", "set", "lan0", "up")
        host.run("ip", "address", "add", f"{GATEWAY}/24", "dev", "lan0")
        host.run("ip", "address", "add", f"{GATEWAY6}/64", "dev", "lan0", "nodad")
        options = [
            "conf-file=/dev/null", "no-resolv", "no-hosts", "port=0", "no-ping", "interface=lan0", "bind-interfaces",
            "dhcp-range=10.77.0.100,10.77.0.200,255.255.255.0,120", "dhcp-option=option:router,10.77.0.1",
            "dhcp-authoritative", "enable-ra", "dhcp-range=fd77::,ra-only",
            f"dhcp-leasefile={self.log}.leases", f"log-facility={self.log}", *more,
        ]  # fmt: skip
        host.run("dnsmasq", *(f"--{option}" for option in options))

    def wire(self, host: AnyHost) -> None:
        """Lay a cable from the host's eth0."""
        cable(self.host, "port0", host, "eth0", mac=self.mac)
        self.host.run("ip", "link", "set", "port0", "master", "lan0")

    @property
    def given(self) -> list[str]:
        """The address of each acknowledgement so far."""
        return re.findall(r"DHCPACK\(lan0\) (\S+)", self.host.out("cat", str(self.log)))

    @property
    def returned(self) -> list[str]:
        """The addresses that were given back."""
        return re.findall(r"DHCPRELEASE\(lan0\) (\S+)", self.host.out("cat", str(self.log)))

    def await_renewals(self, count: int) -> None:
        """Wait until so many leases more were given."""
        wanted = len(self.given) + count
        await_condition(lambda: len(self.given) >= wanted, f"{count} renewals")

    @contextlib.contextmanager
    def without_dhcp(self) -> t.Iterator[None]:
        """Nobody hears what DHCP clients ask, as if the server were down."""
        deaf = "table bridge deaf { chain input { type filter hook input priority 0; udp dport 67 drop; }; }"
        self.host.run("nft", deaf)
        try:
            yield
        finally:
            self.host.run("nft", "delete", "table", "bridge", "deaf")

    @contextlib.contextmanager
    def pinging(self, address: str, lose: int) -> t.Iterator[None]:
        """Pings a hundred times a second, of which this many may be lost."""
        process = self.host.start("ping", "-i", "0.01", "-q", address, stdout=subprocess.PIPE)
        try:
            yield
        finally:
            os.kill(self.host.child(process), signal.SIGINT)
            output, _errors = process.communicate()
        found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        assert found is not None, output
        sent, received = map(int, found.groups())
        assert sent > 0
        assert sent - received <= lose, output
