# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ports of the host that lead to a guest: from the LAN, from the host and from other guests."""

from __future__ import annotations

import pytest

from .conftest import GATEWAY4, GATEWAY6, GUEST4, GUEST6, HOST4, HOST6, LAN4, LAN6, Lab

pytestmark = pytest.mark.one_interpreter


def test_a_guests_port_is_reached_from_everywhere_and_nothing_else_is(lab: Lab, backend: str) -> None:
    lab.serve("guest")
    lab.serve("host")
    lab.route_to_guests()
    forwards = [
        {"host_port": "8080", "guest_address": GUEST4, "guest_port": "7000"},
        {"host_port": "8080", "guest_address": GUEST6, "guest_port": "7000", "host_address": HOST6},
        {"host_port": "7000-7001", "guest_address": GUEST4, "host_address": HOST4},
    ]
    assert lab.refused("lan", HOST4, 8080)
    lab.host.converge("nat_masquerade", lab.nat(backend=backend, port_forwards=forwards))
    assert lab.seen("lan", HOST4, 8080) == LAN4
    assert lab.seen("lan", HOST6, 8080) == LAN6
    assert lab.seen("host", HOST4, 8080) == HOST4
    assert lab.seen("host", HOST6, 8080) == HOST6
    # A guest that comes through the host is answered through the host.
    assert lab.seen("other", HOST4, 8080) == GATEWAY4
    assert lab.seen("other", HOST6, 8080) == GATEWAY6
    # With br_netfilter the bridge itself carries the answer: a guest that meets itself needs a port in hairpin mode.
    lab.host.run("bridge", "link", "set", "dev", "lsguest", "hairpin", "on")
    assert lab.seen("guest", HOST4, 8080) == GATEWAY4
    assert lab.seen("lan", HOST4, 7000) == LAN4
    assert lab.seen("host", "127.0.0.1", 7000) == "127.0.0.1"
    assert lab.refused("lan", GUEST4)
    assert not lab.host.converge("nat_masquerade", lab.nat(backend=backend, port_forwards=forwards))["changed"]

    lab.host.converge("nat_masquerade", lab.nat(backend=backend, port_forwards=[]))
    assert lab.refused("lan", HOST4, 8080)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"host_port": "0", "guest_address": GUEST4}, "host_port"),
        ({"host_port": "80-70", "guest_address": GUEST4}, "range"),
        ({"host_port": "80-81", "guest_port": "90", "guest_address": GUEST4}, "guest_port"),
        ({"host_port": "80", "guest_address": "guest"}, "guest_address"),
        ({"host_port": "80", "guest_address": GUEST4, "host_address": HOST6}, "IP version"),
    ],
)
def test_a_wrong_port_forward_is_refused(lab: Lab, entry: dict[str, str], words: str) -> None:
    assert words in lab.host.refuse("nat_masquerade", lab.nat(port_forwards=[entry]))
