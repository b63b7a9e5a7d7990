# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of rules: what a person finds in them, who owns which, and when the service is there that loads them."""

from __future__ import annotations

import shutil
import subprocess
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _dhcp_unit
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_files, _rules_script, _rules_service
from ansible_collections.labspan.vmnet.plugins.module_utils._boot._rules_files import Entry, RulesFiles
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _lasting, _nft_text, _parts, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._forward import Survey
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._parts import Plan
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._rules import Network
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Place, World

NETWORK = Network("lab", "br0", ("10.97.0.0/24",), "eth0", None)
SCRIPTS = {"rules": _rules_script.SCRIPT, "dhcp": _dhcp_unit.SCRIPT}
DOCKER = "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="the program shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_programs_are_clean(name: str) -> None:
    done = subprocess.run(
        ["shellcheck", "-s", "sh", "-"], input=SCRIPTS[name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_network_of_nftables_has_its_table_and_its_settings() -> None:
    table = _nft_text.table(NETWORK)
    settings = {"net/ipv6/conf/eth0/accept_ra": "2", "net/ipv4/conf/br0/forwarding": "1"}
    files = _lasting.files(Plan(NETWORK, "nft", True), {_parts.table_key("lab"): table}, settings)
    assert list(files) == ["rules.nft", "forwarding"]
    assert files["rules.nft"].endswith(f"\ntable inet labspan_lab\ndelete table inet labspan_lab\n{table}")
    # Forwarding with accept_ra at 1 would lose the default route.
    assert files["forwarding"].splitlines()[1:] == [
        "net/ipv6/conf/eth0/accept_ra = 2",
        "net/ipv4/conf/br0/forwarding = 1",
    ]


def test_what_stands_in_chains_of_others_is_told_apart_from_the_networks_own_rules() -> None:
    world = World("nft", 4)
    survey = Survey((), {world: _xtables.parse(DOCKER)})
    plan = Plan(NETWORK, "nft", True)
    accepts = _lasting.files(plan, t.cast(t.Any, _parts.wanted_places(plan, survey)), {})
    assert list(accepts) == ["accept.iptables-nft"]
    lines = accepts["accept.iptables-nft"].splitlines()
    assert "-I DOCKER-USER 1 -m comment --comment labspan.vmnet:lab -j LABSPAN-lab-ACC" in lines
    assert lines[2:4] == ["*filter", ":LABSPAN-lab-ACC - [0:0]"]

    legacy = Plan(NETWORK, "iptables:legacy", True)
    rules = _lasting.files(legacy, t.cast(t.Any, _parts.wanted_places(legacy, Survey((), {}))), {})
    assert sorted(rules) == ["rules.ip6tables-legacy", "rules.iptables-legacy"]
    assert [line for line in rules["rules.iptables-legacy"].splitlines() if line[:1] == "*"] == ["*filter", "*nat"]


def test_what_is_read_back_of_a_file_is_what_was_to_be_there() -> None:
    plan = Plan(NETWORK, "iptables:nft", True)
    places = _parts.wanted_places(plan, Survey((), {}))
    text = _lasting.files(plan, t.cast(t.Any, places), {})["rules.iptables-nft"]
    for table in ("nat", "filter"):
        section = text[text.index(f"*{table}") :].partition("COMMIT")[0].replace("-I ", "-A ").replace(" 1 -m", " -m")
        own = _xtables.own(_xtables.parse(section), "lab", lambda _chain, _position: True)
        assert own == places[Place(World("nft", 4), table, "lab")]


def files_of(entries: t.Sequence[Entry], texts: t.Mapping[str, t.Mapping[str, str]]) -> RulesFiles:
    return RulesFiles(entries, lambda _state: texts, _rules_files.is_of_networks)


HAVE = {"lab": {"links": "l", "closed.nft": "c", "ports.nft": "p", "rules.nft": "old", "accept.iptables-nft": "a"}}


def test_files_of_other_modules_stay_and_those_that_are_not_wanted_any_more_go() -> None:
    files = files_of([Entry("lab", True, True)], {"lab": {"rules.nft": "new", "forwarding": "f"}})
    assert files.contribute(HAVE, {"networks": None}) == {
        "lab": {"links": "l", "closed.nft": "c", "ports.nft": "p", "rules.nft": "new", "forwarding": "f"}
    }


@pytest.mark.parametrize("entry", [Entry("lab", False, True), Entry("lab", True, False), Entry("lab", False, False)])
def test_absent_and_not_persistent_take_the_files_away(entry: Entry) -> None:
    files = files_of([entry], {"lab": {"rules.nft": "new"}})
    assert files.contribute(HAVE, {"networks": None}) == {
        "lab": {"links": "l", "closed.nft": "c", "ports.nft": "p"},
    }


def test_where_systemd_does_not_run_the_host_files_stay_as_they_are() -> None:
    files = files_of([Entry("lab", True, None)], {"lab": {"rules.nft": "new"}})
    assert files.contribute(HAVE, {"networks": None}) == HAVE


def test_what_goes_leaves_the_files_before_the_firewall() -> None:
    rules = t.cast(t.Any, object())
    gone, some = [Entry("lab", False, True)], [Entry("lab", False, True), Entry("new", True, True)]
    files = files_of(gone, {})
    assert _rules_files.around(rules, files, gone) == [files, rules]
    assert _rules_files.around(rules, files, some) == [rules, files]


@pytest.mark.parametrize(
    ("files", "needed"),
    [({}, False), ({"links": ""}, False), ({"closed.nft": ""}, True), ({"accept.iptables-nft": ""}, True)],
)
def test_the_service_is_there_as_long_as_there_are_rules(files: dict[str, str], needed: bool) -> None:
    beside = _rules_service.surroundings({"lab": files})
    assert set(beside) == set(_rules_service.FILES)
    assert {text is not None for text in beside.values()} == {needed}
    assert _rules_service.services({"lab": files}) == {"labspan-rules.service": needed}
