# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a task with C(exclusive) adds to what goes, and what it leaves with a warning."""

from __future__ import annotations

import types
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _exclusive
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._scenarios import Lab
from ansible_collections.labspan.vmnet.plugins.module_utils._lab._traces import Traces
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import BridgeInfo, Link, TunInfo

NOTHING = Lab([], [], [], [], [], [], [], {})
BRIDGE = BridgeInfo(**dict.fromkeys(BridgeInfo.__dataclass_fields__, 0))
TAP = TunInfo("tap", None, None, packet_info=False, vnet_hdr=False, persistent=True, multi_queue=False)


def link(name: str, owner: str = "", master: t.Optional[str] = None, **info: t.Any) -> Link:
    alias = f"labspan.vmnet:{owner}" if owner else ""
    return Link(1, name, None, True, False, 1500, "02:00:00:00:00:01", alias, master, 0, **info)


@pytest.fixture(autouse=True)
def no_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exclusive, "defined_guests", list)
    monkeypatch.setattr(_exclusive, "former_guests", list)


def traces(*links: Link, sections: t.Iterable[tuple[str, str]] = ()) -> Traces:
    """A host with these interfaces; C(sections) are kinds and names of those of the network gone that last."""
    found = types.SimpleNamespace(
        links={each.name: each for each in links},
        sections=dict.fromkeys(sections, "gone"),
        tables=set(),
        directories={},
        forwarded=set(),
        served=set(),
        adopted=set(),
    )
    return t.cast(Traces, found)


@pytest.mark.parametrize("sections", [[], [("bridge", "gone0")]], ids=["until the next boot", "lasting"])
@pytest.mark.parametrize("info", [{}, {"tun": TAP}], ids=["a port", "a tap"])
def test_a_bridge_that_has_what_another_program_put_there_stays(info: t.Any, sections: t.Any) -> None:
    links = [link("gone0", "gone", bridge=BRIDGE), link("vnet0", master="gone0", **info)]
    lab, remarks = _exclusive.with_leftovers(NOTHING, traces(*links, sections=sections))
    assert lab.bridges == []
    assert len(remarks) == 1
    assert "the bridge gone0 of the network gone is not listed, and stays" in remarks[0]
    assert "this collection did not make: vnet0" in remarks[0]


@pytest.mark.parametrize("owner", ["gone", "other"])
def test_a_bridge_that_has_only_taps_of_ours_goes(owner: str) -> None:
    links = [link("gone0", "gone", bridge=BRIDGE), link("tap0", owner, "gone0", tun=TAP)]
    lab, remarks = _exclusive.with_leftovers(NOTHING, traces(*links, sections=[("bridge", "gone0")]))
    assert [(each["name"], each["state"]) for each in lab.bridges] == [("gone0", "absent")]
    assert [each["name"] for each in lab.taps] == ["tap0"]
    assert remarks == []
