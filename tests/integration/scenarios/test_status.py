# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""playbooks/status.yml on hosts of the test's own: what it shows is what is there, and it changes nothing there."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t
import xml.etree.ElementTree as ET

import pytest
from lab import hosts
from lab.processes import wait_until
from support.users import Played, User, entered, inventory

SVG = "{http://www.w3.org/2000/svg}"
MAC = "52:54:00:00:0a:01"


class Play:
    """Runs playbooks on a lab's hosts, and on one that is not there if asked to."""

    def __init__(self, lab: hosts.Lab, path: pathlib.Path) -> None:
        self.lab = lab
        self.path = path
        self.user = User(path)

    def __call__(self, playbook: str, *options: str, gone: bool = False, code: int = 0, **variables: t.Any) -> Played:
        found = inventory(self.lab, variables)
        if gone:
            found["lab_hosts"]["hosts"] = {"ash": entered(self.path / "nobody.pid"), **found["lab_hosts"]["hosts"]}
        self.user.write("inventory.json", found)
        return self.user.play(playbook, "-i", "inventory.json", *options, code=code)


def table(done: Played) -> list[str]:
    """The lines that the debug task showed, of Ansible's own output."""
    shown = done.output.partition("TASK [Show it]")[2]
    assert shown, done.output
    return list(json.loads("{" + shown.partition("{")[2].partition("\n}")[0] + "}")["msg"])


def dump(lab: hosts.Lab) -> list[str]:
    commands = (
        "ip -j link",
        "ip -4 -j address",
        "bridge -j fdb",
        "ip -j neighbour show nud permanent",
        "nft --stateless list ruleset",
        "find /etc /run/labspan /var/lib/labspan -type f -printf %p|%s|%T@\\n",
    )
    return [host.run(*command.split(), check=False).stdout for host in lab.hosts for command in commands]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Play]:
    """Two lab hosts: a NAT network with a stand-in for a guest, and a private network with a tap."""
    name = f"status-{os.getpid()}"
    lab = hosts.up(name, ["oak", "elm"])
    try:
        made = Play(lab, tmp_path_factory.mktemp("status"))
        nat = {"nat_name": "shop", "nat_bridge": "shop0", "nat_subnet": "10.97.0.0/24", "nat_dhcp_enabled": False}
        private = {"private_name": "range", "private_bridge": "range0", "private_taps": [{"name": "red0"}]}
        made("nat", "--limit", "oak", **nat)
        made("private", "--limit", "elm", **private)
        for words in (
            "ip link add web0 type veth peer name guest0",
            "ip link set web0 master shop0 up",
            f"ip link set guest0 address {MAC} up",
            f"ip neighbour replace 10.97.0.11 lladdr {MAC} dev shop0 nud permanent",
            f"bridge fdb replace {MAC} dev web0 master static",
        ):
            lab.member("oak").run(*words.split())
        # The kernel collects what it has to say of carriers for a second.
        shown = "ip", "-j", "link", "show", "range0"
        wait_until(lambda: '"DOWN"' in lab.member("elm").run(*shown).stdout, 10, "range0 to be without a carrier")
        yield made
    finally:
        hosts.down(name)


def test_the_table_shows_what_is_there_and_nothing_changes(play: Play) -> None:
    before = dump(play.lab)
    done = play("status")
    assert done.reached
    assert done.changed == []
    lines = table(done)
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")] == ["oak", "elm", "2"]
    (shop,) = (line for line in lines if line.startswith("  shop"))
    assert shop.split() == ["shop", "nat", "shop0", "10.97.0.1/24", "out", "by", hosts.UPLINK]
    (web,) = (line for line in lines if line.startswith("    web0"))
    assert web.split() == ["web0", MAC, "10.97.0.11", "up"]
    assert any(line.split() == ["range", "private", "range0"] for line in lines)
    (red,) = (line for line in lines if line.startswith("    red0"))
    assert red.split() == ["red0", "free"]
    assert dump(play.lab) == before


def test_a_host_that_is_gone_is_shown_and_noticed_in_check_mode_too(play: Play, tmp_path: pathlib.Path) -> None:
    done = play("status", "--check", "-e", f"vmnet_drawing={tmp_path}/drawings", gone=True, code=2)
    lines = table(done)
    assert lines[0] == "ash  unreachable"
    assert "is the host up?" in " ".join(" ".join(lines[1:4]).split())
    assert any(line.startswith("oak  ") for line in lines)
    assert lines[-1].endswith("1 host without an answer")
    assert not (tmp_path / "drawings").exists()


def test_drawings_are_kept_and_written_only_if_they_changed(play: Play, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "drawings"
    drawing = f"vmnet_drawing={directory}"
    play("status", "-e", drawing, gone=True, code=2)
    names = ["ash.mmd", "ash.svg", "elm.mmd", "elm.svg", "fleet.mmd", "fleet.svg", "oak.mmd", "oak.svg"]
    assert sorted(file.name for file in directory.iterdir()) == names
    texts = {text.text for text in ET.parse(directory / "fleet.svg").iter(f"{SVG}text")}
    assert {"oak", "shop", "nat", "10.97.0.11", "elm", "range", "red0", "ash", "unreachable"} <= texts

    good = (directory / "oak.svg").read_bytes()
    (directory / "oak.svg").write_text("something else")
    kept = {name: (directory / name).stat().st_mtime_ns for name in names}
    assert len(play("status", "-e", drawing, gone=True, code=2).changed) == 1
    assert play("status", "-e", drawing, gone=True, code=2).changed == []
    written = [name for name in names if (directory / name).stat().st_mtime_ns != kept[name]]
    assert written == ["oak.svg"]
    assert (directory / "oak.svg").read_bytes() == good
