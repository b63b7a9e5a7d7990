# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""An interface in a container is on the card when both the number and the namespace are the card's."""

from __future__ import annotations

import json

from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _namespaces

LISTED = json.dumps(
    [
        {"ifname": "lo", "ifindex": 1},
        {"ifname": "mv0", "link_index": 5, "link_netnsid": 0, "linkinfo": {"info_kind": "macvlan"}},
        {"ifname": "mv1", "link_index": 5, "link_netnsid": 1, "linkinfo": {"info_kind": "macvlan"}},
        {"ifname": "mv2", "link_index": 6, "link_netnsid": 0, "linkinfo": {"info_kind": "macvlan"}},
        {"ifname": "mv3", "link": "v0", "linkinfo": {"info_kind": "macvlan"}},
    ]
)


def test_only_what_is_on_this_very_card_is_found() -> None:
    assert _namespaces.parse(LISTED, 5, 0) == [("mv0", "macvlan")]
    assert _namespaces.parse(LISTED, 5, 1) == [("mv1", "macvlan")]


def test_a_namespace_that_does_not_know_ours_has_nothing_of_it() -> None:
    assert _namespaces.parse(LISTED, 5, None) == []
    assert _namespaces.parse("", 5, 0) == []
