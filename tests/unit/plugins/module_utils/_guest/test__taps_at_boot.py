# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _links
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._resource import BootState
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec, Nic
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._state import Definition, GuestState, Unit
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._taps_at_boot import TapsAtBoot

ALIASES = {"mine": "labspan.vmnet:blue", "others": "somebody's"}
LINKS = "# tap t0\ntuntap add name t0 mode tap\n"


@pytest.fixture(autouse=True)
def aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_links, "read_alias", ALIASES.get)


def guest(*taps: str, enabled: bool = True) -> GuestState:
    nics = tuple(Nic(f"52:54:00:00:00:0{number}", "e1000", tap=tap) for number, tap in enumerate(taps))
    spec = dataclasses.replace(GuestSpec("vm1"), nics=(*nics, Nic("52:54:00:00:00:09", "e1000")))
    return GuestState(Definition(spec, "tcg", ("qemu",)), unit=Unit("text", enabled))


def told(links: str = "", **guests: GuestState) -> list[str]:
    files: dict[str, dict[str, str]] = {"blue": {"links": links}} if links else {}
    ahead: dict[str, t.Any] = {"guests": guests, "boot_files": BootState(files, {}, {}, True)}
    resource = TapsAtBoot()
    assert resource.plan(None, ahead) == []
    return resource.warnings


def test_guests_whose_taps_do_not_last_are_told_of_in_one_sentence() -> None:
    (sentence,) = told(LINKS, vm1=guest("t0", "mine"), vm2=guest("t1"), vm3=guest("t0"))
    assert "will fail" in sentence
    assert ": vm1 (mine), vm2 (t1). " in sentence


@pytest.mark.parametrize("some", [guest("t0"), guest("t1", enabled=False), guest("others"), guest(), GuestState()])
def test_nothing_is_told_of_what_is_right_or_not_ours(some: GuestState) -> None:
    assert told(LINKS, vm1=some) == []
