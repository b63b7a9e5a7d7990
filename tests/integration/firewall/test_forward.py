# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where somebody else drops forwarded traffic: the accept goes there, or the task fails and says why."""

from __future__ import annotations

import pytest

from .conftest import BRIDGE, GUEST4, HOST4, HOST6, LAN4, LAN6, OTHER4, SUBNET4, UPLINK, Lab, rules

pytestmark = pytest.mark.one_interpreter


def drop_forwarded(lab: Lab, flavour: str) -> None:
    for program in ("iptables", "ip6tables"):
        lab.host.run(f"{program}-{flavour}", "-P", "FORWARD", "DROP")


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_traffic_passes_a_forward_policy_of_drop(lab: Lab, backend: str, flavour: str) -> None:
    lab.serve("lan")
    lab.serve("other")
    lab.serve("guest")
    lab.route_to_guests()
    drop_forwarded(lab, flavour)
    # The twin: without the accept nothing passes, not even from port to port of the bridge.
    own = {"nftables": None, "iptables": "nft", "iptables_legacy": "legacy"}[backend] == flavour
    without = lab.host.converge("nat_masquerade", lab.nat(backend=backend, forward=False))
    assert lab.refused("guest", LAN4, expected=not own) != own
    assert lab.refused("guest", OTHER4, expected=not own) != own

    made = lab.host.converge("nat_masquerade", lab.nat(backend=backend))
    assert made["changed"] != own
    assert without["forward_blockers"] == made["forward_blockers"] == []
    assert lab.seen("guest", LAN4) == HOST4
    assert lab.seen("guest", LAN6) == HOST6
    assert lab.seen("guest", OTHER4) == GUEST4
    assert lab.refused("lan", GUEST4)
    assert not lab.host.converge("nat_masquerade", lab.nat(backend=backend))["changed"]

    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert "LABSPAN" not in str(lab.dump())
    listed = lab.host.out(f"iptables-{flavour}", "-S", "FORWARD").splitlines()
    assert listed == ["-P FORWARD DROP"]


def docker(lab: Lab) -> None:
    """Docker's chains, as dockerd 26 makes them on a host that did not forward."""
    script = """*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""
    lab.host.run("iptables-nft-restore", "--noflush", stdin=script)


def test_beside_docker_the_accept_stands_in_its_chain_for_users(lab: Lab) -> None:
    lab.serve("lan")
    docker(lab)
    before = rules(lab.host.out("iptables-nft-save"))
    lab.host.converge("nat_masquerade", lab.nat())
    first = lab.host.out("iptables-nft", "-S", "DOCKER-USER").splitlines()[1]
    assert "LABSPAN-lab-ACC" in first
    assert "labspan.vmnet:lab" in first
    assert lab.seen("guest", LAN4) == HOST4
    assert not lab.host.converge("nat_masquerade", lab.nat())["changed"]
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert rules(lab.host.out("iptables-nft-save")) == before


_AHEAD_OF_DOCKER = {
    "drop": f"FORWARD -i {BRIDGE} -j DROP",
    "return": f"DOCKER-USER -i {UPLINK} -m conntrack --ctstate ESTABLISHED -j RETURN",
}


@pytest.mark.parametrize("rule", _AHEAD_OF_DOCKER.values(), ids=_AHEAD_OF_DOCKER)
def test_the_accept_gets_in_front_of_what_is_ahead_of_it_beside_docker(lab: Lab, rule: str) -> None:
    lab.serve("lan")
    docker(lab)
    chain, *match = rule.split()
    lab.host.converge("nat_masquerade", lab.nat())
    lab.host.run("iptables-nft", "-I", chain, "1", *match)
    assert lab.refused("guest", LAN4)
    moved = lab.host.converge("nat_masquerade", lab.nat())
    assert moved["changed"]
    assert moved["forward_blockers"] == []
    assert lab.seen("guest", LAN4) == HOST4
    assert not lab.host.converge("nat_masquerade", lab.nat())["changed"]
    # Without it the accept is back where Docker's chains may be made anew around it.
    lab.host.run("iptables-nft", "-D", chain, *match)
    lab.host.converge("nat_masquerade", lab.nat())
    assert "LABSPAN-lab-ACC" in lab.host.out("iptables-nft", "-S", "DOCKER-USER")
    assert lab.seen("guest", LAN4) == HOST4
    lab.host.converge("nat_masquerade", {"name": "lab", "state": "absent"})
    assert "LABSPAN" not in lab.host.out("iptables-nft-save")


def test_an_accept_that_somebody_got_in_front_of_is_moved(lab: Lab) -> None:
    lab.serve("lan")
    drop_forwarded(lab, "nft")
    lab.host.converge("nat_masquerade", lab.nat())
    lab.host.run("iptables-nft", "-I", "FORWARD", "-i", BRIDGE, "-j", "REJECT")
    assert lab.refused("guest", LAN4)
    assert lab.host.converge("nat_masquerade", lab.nat())["changed"]
    assert lab.seen("guest", LAN4) == HOST4
    lab.host.run("iptables-nft", "-I", "FORWARD", "-i", "docker0", "-j", "REJECT")
    assert not lab.host.converge("nat_masquerade", lab.nat())["changed"]


_OTHERS = {
    "mine": [
        "nft add table inet mine",
        "nft add chain inet mine fwd_ { type filter hook forward priority 0; policy drop; }",
    ],
    "firewalld": ["nft add table inet firewalld", "nft add chain inet firewalld filter_FORWARD"],
    "ufw": [
        "iptables-nft -P FORWARD DROP",
        "iptables-nft -N ufw-before-forward",
        "iptables-nft -A FORWARD -j ufw-before-forward",
    ],
}


@pytest.mark.parametrize(("word", "commands"), _OTHERS.items(), ids=_OTHERS)
def test_what_cannot_be_opened_is_named_and_nothing_is_written(lab: Lab, word: str, commands: list[str]) -> None:
    lab.serve("lan")
    for command in commands:
        lab.host.run(*command.split())
    before = lab.dump()
    result = lab.host.module("nat_masquerade", lab.nat())
    assert result["failed"]
    assert word in result["msg"]
    assert [sentence for sentence in result["forward_blockers"] if word in sentence]
    assert lab.dump() == before
    # Whoever opens it himself may have the rules all the same, and is still told.
    made = lab.host.converge("nat_masquerade", lab.nat(forward=False))
    assert [sentence for sentence in made["forward_blockers"] if word in sentence]


def test_host_services_pass_an_input_policy_of_drop(lab: Lab, current_backend: str) -> None:
    lab.serve("host", 53)
    lab.serve("host", 22)
    for flavour in ("nft", "legacy"):
        lab.host.run(f"iptables-{flavour}", "-P", "INPUT", "DROP")
    lab.host.converge("nat_masquerade", lab.nat(backend=current_backend, host_services=False))
    assert lab.refused("guest", "10.77.0.1", 53)
    lab.host.converge("nat_masquerade", lab.nat(backend=current_backend))
    assert lab.seen("guest", "10.77.0.1", 53) == GUEST4
    assert lab.refused("guest", "10.77.0.1", 22)
    assert not lab.host.converge("nat_masquerade", lab.nat(backend=current_backend))["changed"]


def test_looking_registers_no_table(lab: Lab) -> None:
    lab.host.converge("nat_masquerade", lab.nat(sources=[SUBNET4], out_interface=UPLINK))
    dump = lab.dump()
    assert dump["ip_tables_names"] == dump["ip6_tables_names"] == []
    tables = [entry["table"]["name"] for entry in dump["nft"] if "table" in entry]
    assert tables == ["labspan_lab"]
