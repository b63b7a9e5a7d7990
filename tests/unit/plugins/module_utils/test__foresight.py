# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The world of a run of many kinds: what was read once, with what the plans so far will change."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change
from ansible_collections.labspan.vmnet.plugins.module_utils._rtnetlink import Address, Link, Route
from ansible_collections.labspan.vmnet.plugins.module_utils._runner import Outcome, Resource, converge


def link(name: str, index: int = 0) -> Link:
    return Link(index, name, "bridge", True, True, 1500, "02:00:00:00:00:01", "", None, 0)


def address(interface: str, text: str) -> Address:
    return Address(interface, ipaddress.ip_interface(text))


def route(interface: str, destination: t.Optional[str], protocol: int) -> Route:
    return Route(2, 254, ipaddress.ip_network(destination) if destination else None, None, interface, 0, protocol, 253)


def test_what_goes_takes_its_addresses_and_routes_and_what_comes_brings_them() -> None:
    reads: list[str] = []

    def read(what: str, found: t.Any) -> t.Callable[[], t.Any]:
        return lambda: reads.append(what) or found

    links = read("links", {"br0": link("br0", 1), "eth0": link("eth0", 2)})
    addresses = read("addresses", [address("br0", "10.1.0.1/24"), address("eth0", "192.0.2.1/24")])
    routes = read("routes", [route("br0", "10.1.0.0/24", 2), route("br0", "10.9.0.0/16", 4), route("eth0", None, 4)])
    with _foresight.planning() as world:
        assert set(world.links(links)) == {"br0", "eth0"}
        world.set_link("br0", None)
        assert set(world.links(links)) == {"eth0"}
        assert [each.interface for each in world.addresses(addresses)] == ["eth0"]
        assert [each.interface for each in world.routes(routes)] == ["eth0"]
        assert world.is_gone("br0")
        world.set_link("br0", link("br0"))
        world.set_addresses("br0", [address("br0", "10.1.0.1/24")])
        assert world.made == {"br0"}
        assert [str(each.address) for each in world.addresses(addresses)] == ["192.0.2.1/24", "10.1.0.1/24"]
        assert [str(each.destination) for each in world.routes(routes)] == ["None", "10.1.0.0/24"]
    assert reads == ["links", "addresses", "routes"]
    assert _foresight.world() is None


class Shelf(Resource[t.List[str]]):
    """Says through which world it is looked at and filled."""

    plural = "jars"
    singular = "jar"

    def __init__(self) -> None:
        super().__init__()
        self.jars: list[str] = []
        self.worlds: list[t.Any] = []

    def read(self) -> list[str]:
        self.worlds.append(_foresight.world())
        return list(self.jars)

    def plan(self, have: list[str], ahead: t.Mapping[str, t.Any]) -> t.Sequence[Change]:
        return [] if have else [Change("jar", "Add a jar", None, "jar")]

    def predict(self, have: list[str], changes: t.Sequence[Change]) -> list[str]:
        return have + [change.after for change in changes]

    def foresee(self, world: _foresight.World, changes: t.Sequence[Change], then: list[str]) -> None:
        world.texts["jar"] = "there" if changes else "as it was"

    def apply(self, changes: t.Sequence[Change], done: list[Change]) -> None:
        if _foresight.world() is not None:
            raise LabspanError("a world while something is changed")
        self.jars += [change.after for change in changes]
        done += changes

    def render(self, state: list[str]) -> dict[str, dict[str, t.Any]]:
        return {name: {} for name in state}


def present(outcome: Outcome) -> dict[str, t.Any]:
    return {"actions": outcome.actions}


def test_a_run_of_many_kinds_plans_in_one_world_and_verifies_in_another() -> None:
    shelf = Shelf()
    result = converge(lambda: [shelf], check_mode=False, warnings=[], present=present, foresight=True)
    assert result == {"actions": ["Add a jar"]}
    planned, verified = shelf.worlds
    assert planned.texts == {"jar": "there"}
    assert verified.texts == {"jar": "as it was"}


def test_a_run_of_one_kind_looks_at_the_host_as_it_is() -> None:
    shelf = Shelf()
    converge(lambda: [shelf], check_mode=False, warnings=[])
    assert shelf.worlds == [None, None]
