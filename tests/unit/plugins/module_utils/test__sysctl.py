# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Settings that networks share: any of them may come and go in any order, and the last one leaves what it found."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _sysctl
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._sysctl import FORCE6_ALL, FORWARD6_ALL, Need, Record
from hypothesis import given
from hypothesis import strategies as st

NEEDS = {
    "lab": Need("br0", "eth0", "eth0", advertised=("eth0",)),
    "second": Need("br1", "eth0", "wlan0"),
    "third": Need("br2", "eth1", None, version6=False),
}
KEYS = [*(key for need in NEEDS.values() for key in _sysctl.keys_to_read(need)), *_sysctl.WHOLE_HOST]
FORWARD4_ALL, FORWARD6_DEFAULT = _sysctl.WHOLE_HOST[:2]

# With a whole host that is a router and interfaces that are not.
values = st.fixed_dictionaries(
    {key: st.sampled_from(["0", "1"]) for key in KEYS if key not in (FORWARD6_ALL, FORCE6_ALL)}
).flatmap(
    lambda settings: st.sampled_from([None, "0"]).map(
        lambda force: {
            **{key: (None if force is None and "force" in key else value) for key, value in settings.items()},
            FORWARD6_ALL: "0",
            FORCE6_ALL: force,
        }
    )
)


def step(
    state: t.Mapping[str, t.Optional[str]], record: Record, name: str, present: bool
) -> tuple[dict[str, t.Optional[str]], Record]:
    wanted = _sysctl.wanted(NEEDS[name], state, record) if present else None
    writes, after = _sysctl.plan(state, record, {name: wanted})
    new = {**state, **writes}
    again, unchanged = _sysctl.plan(new, after, {name: _sysctl.wanted(NEEDS[name], new, after) if present else None})
    assert again == {}
    assert unchanged == after
    if wanted:
        assert {key: new[key] for key in wanted if new[key] is not None} == {
            key: value for key, value in wanted.items() if new[key] is not None
        }
    return new, after


@given(values, st.lists(st.tuples(st.sampled_from(sorted(NEEDS)), st.booleans()), max_size=8))
def test_whoever_comes_and_goes_the_last_one_leaves_what_was_found(
    before: dict[str, t.Optional[str]], steps: list[tuple[str, bool]]
) -> None:
    state, record = dict(before), Record()
    for name, present in steps:
        state, record = step(state, record, name, present)
        assert Record.parse(record.text()) == record
    for name in sorted(NEEDS):
        state, record = step(state, record, name, False)
    assert state == before
    assert record == Record()
    assert record.text() is None


def test_accept_ra_goes_first_and_returns_last() -> None:
    state = dict.fromkeys(KEYS, "0")
    state["net/ipv6/conf/eth0/accept_ra"] = "1"
    wanted = _sysctl.wanted(NEEDS["lab"], state, Record())
    writes, record = _sysctl.plan(state, Record(), {"lab": wanted})
    assert next(iter(writes)) == "net/ipv6/conf/eth0/accept_ra"
    back, _record = _sysctl.plan({**state, **writes}, record, {"lab": None})
    assert list(back)[-1] == "net/ipv6/conf/eth0/accept_ra"


def test_somebody_elses_later_choice_stays() -> None:
    key = "net/ipv4/conf/br0/forwarding"
    record = Record({"lab": (key,)}, {key: "0"})
    assert _sysctl.plan({key: "7"}, record, {"lab": None}) == ({}, Record())


def router(state: t.Mapping[str, t.Optional[str]], version: int) -> dict[str, t.Optional[str]]:
    """The host once somebody has written the setting for all interfaces of an IP version, as the kernel does it."""
    every = [key for key in state if key.startswith(f"net/ipv{version}/") and key.endswith("/forwarding")]
    return {**state, **dict.fromkeys(every, "1")}


@pytest.mark.parametrize("force", [None, "0"])
def test_who_makes_the_whole_host_a_router_meanwhile_keeps_it(force: t.Optional[str]) -> None:
    state: dict[str, t.Optional[str]] = {key: force if "force" in key else "0" for key in KEYS}
    state["net/ipv6/conf/eth0/accept_ra"] = "1"
    ours, record = step(state, Record(), "lab", True)
    assert ours[FORWARD4_ALL] == "0"
    for version in (4, 6):
        theirs = router(ours, version)
        after, left = step(theirs, record, "lab", False)
        assert left == Record()
        changed = {key for key in after if after[key] != theirs[key]}
        # The other version's settings come back. What forces, forces nothing where all interfaces forward.
        assert {key for key in changed if "force" not in key} == {
            key for key in record.found if f"/ipv{10 - version}/" in key and "force" not in key
        }
    assert after["net/ipv6/conf/eth0/accept_ra"] == "2"
    assert after[FORWARD6_ALL] == "1"


def test_who_makes_the_whole_host_a_router_keeps_an_uplink_that_a_network_leaves() -> None:
    ours, record = step(dict.fromkeys(KEYS, "0"), Record(), "third", True)
    moved = _sysctl.wanted(Need("br2", "eth0", None, version6=False), ours, record)
    assert "net/ipv4/conf/eth1/forwarding" in _sysctl.plan(ours, record, {"third": moved})[0]
    writes, after = _sysctl.plan(router(ours, 4), record, {"third": moved})
    assert writes == {}
    assert set(after.found) == {"net/ipv4/conf/br2/forwarding"}


def test_every_interface_may_be_forced_by_somebody_else() -> None:
    ours, record = step(dict.fromkeys(KEYS, "0"), Record(), "lab", True)
    forced = {key: "1" if "force" in key else value for key, value in ours.items()}
    after, _record = step(forced, record, "lab", False)
    assert after["net/ipv6/conf/eth0/force_forwarding"] == "1"
    assert after["net/ipv6/conf/br0/forwarding"] == "0"


def test_an_interface_that_did_not_forward_on_a_router_does_not_afterwards() -> None:
    uplink = "net/ipv4/conf/eth1/forwarding"
    state = {**router(dict.fromkeys(KEYS, "0"), 4), uplink: "0"}
    ours, record = step(state, Record(), "third", True)
    assert record.exceptions == (uplink,)
    assert Record.parse(record.text()) == record
    assert step(ours, record, "third", False) == (state, Record())


def test_what_a_plain_program_sets_at_boot_leaves_interfaces_that_come_later_alone() -> None:
    keys = {FORWARD6_ALL: "1", "net/ipv6/conf/br0/forwarding": "1"}
    assert _sysctl.at_boot(keys, {FORWARD6_DEFAULT: "0"}) == {**keys, FORWARD6_DEFAULT: "0"}
    forced = {"net/ipv6/conf/br0/force_forwarding": "1"}
    assert _sysctl.at_boot(forced, {FORWARD6_DEFAULT: "0"}) == forced


def test_before_linux_617_the_setting_for_all_is_used_and_no_other_interface_changes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: dict[str, t.Optional[str]] = {key: None if "force" in key else "0" for key in KEYS}
    assert FORWARD6_ALL in _sysctl.wanted(NEEDS["lab"], state, Record())
    monkeypatch.setattr(_sysctl, "SETTINGS", str(tmp_path))
    interfaces = {"all": "0", "default": "0", "eth0": "0", "docker0": "1"}
    for interface, value in interfaces.items():
        path = tmp_path / "net/ipv6/conf" / interface
        path.mkdir(parents=True)
        (path / "forwarding").write_text(value)
    _sysctl.write(FORWARD6_ALL, "1")
    found = {name: (tmp_path / "net/ipv6/conf" / name / "forwarding").read_text() for name in interfaces}
    assert found == {**interfaces, "all": "1"}


def test_a_record_that_cannot_be_read_is_refused() -> None:
    for text in ("{", "[]", '{"networks": 1, "found": {}}'):
        with pytest.raises(Refused, match=r"forwarding\.json"):
            Record.parse(text)


def test_a_file_of_somebody_else_is_refused() -> None:
    _sysctl.check_owner("lab", _sysctl.boot_text("lab", {"net/ipv4/conf/br0/forwarding": "1"}))
    with pytest.raises(Refused, match="60-labspan-lab"):
        _sysctl.check_owner("lab", "net.ipv4.ip_forward = 1\n")
