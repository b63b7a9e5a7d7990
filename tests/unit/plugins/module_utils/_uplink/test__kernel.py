# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is read from the kernel, from answers written out by hand."""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._kernel import (
    Kernel,
    Snapshot,
    snapshot_from_json,
    snapshot_to_json,
)
from ansible_collections.labspan.vmnet.plugins.module_utils._wire import Wire

from .test__entries import neighbour, route, rule
from .test__moves import HOST


class AnsweringWire(Wire):
    """Answers every question of a kind with the same, as a kernel does that has no IPv6 (ipv6.disable=1)."""

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        answers = {"routes": [route(via="192.0.2.1").body], "rules": [rule(iif="eth0").body]}
        return [bytes(16) + answer for answer in answers.get(what, [])]


def test_a_kernel_without_ipv6_has_every_route_and_rule_once() -> None:
    kernel = Kernel()
    kernel.wire = AnsweringWire()
    found = kernel.layer3({5})
    assert found.routes == (route(via="192.0.2.1"),)
    assert found.rules == (rule(iif="eth0"),)


def test_a_snapshot_is_stored_whole_and_ages() -> None:
    lasting = neighbour("192.0.2.77")
    assert lasting is not None
    snapshot = Snapshot({}, HOST, {"eth0": {"ipv4/conf/forwarding": "1"}}, 5.0)
    assert snapshot_from_json(snapshot_to_json(snapshot)) == snapshot
    assert snapshot.aged(100.0).routes == HOST.routes
