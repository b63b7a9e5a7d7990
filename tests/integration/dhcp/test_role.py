# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role dhcp brings a server up, lists its leases and takes it down, each time without a change the second time."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import typing as t

import pytest
from support.hosts import Host

pytestmark = pytest.mark.one_interpreter

COLLECTIONS = pathlib.Path(__file__).resolve().parents[3] / ".build" / "collections"
WEB = "52:54:00:00:0f:01"


def play(host: Host, tmp_path: pathlib.Path, variables: dict[str, t.Any], tasks_from: str = "main") -> dict[str, t.Any]:
    """Run the role on the host; what the play said of each task, and the counts."""
    include = {"ansible.builtin.include_role": {"name": "labspan.vmnet.dhcp", "tasks_from": tasks_from}}
    book = tmp_path / "play.json"
    book.write_text(
        json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [{**include, "vars": variables}]}])
    )
    environment = [
        f"ANSIBLE_COLLECTIONS_PATH={COLLECTIONS}",
        f"ANSIBLE_HOME={tmp_path}",
        f"PATH={pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR=1",
        "LC_ALL=C.UTF-8",
    ]
    words = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={host.interpreter}", str(book)]
    output = host.out("env", *environment, "ansible-playbook", *words)
    counts = dict(word.split("=") for word in output.splitlines()[-2].split() if "=" in word)
    return {"output": output, **counts}


def test_the_role_from_nothing_to_nothing(host: Host, tmp_path: pathlib.Path) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "addr", "add", "10.97.8.1/24", "dev", "br0")
    host.run("ip", "link", "set", "br0", "up")
    variables = {
        "dhcp_name": "lab",
        "dhcp_bridge": "br0",
        "dhcp_domain": "lab.example",
        "dhcp_range": {"start": "10.97.8.100", "end": "10.97.8.199"},
        "dhcp_leases": [{"mac": WEB, "address": "10.97.8.7", "name": "web"}],
    }
    assert play(host, tmp_path, variables)["changed"] == "1"
    assert play(host, tmp_path, variables)["changed"] == "0"
    host.run("sh", "-c", f"echo 1900000000 {WEB} 10.97.8.7 web '*' >>/var/lib/labspan/dhcp/lab.leases")
    listing = play(host, tmp_path, {"dhcp_name": "lab"}, "leases")
    assert listing["changed"] == "0"
    assert '"expires": "2030-03-17T17:46:40Z"' in listing["output"]
    assert play(host, tmp_path, {"dhcp_name": "lab", "dhcp_state": "absent"})["changed"] == "1"
    assert play(host, tmp_path, {"dhcp_name": "lab", "dhcp_state": "absent"})["changed"] == "0"
    assert '"dhcp_current_leases": []' in play(host, tmp_path, {"dhcp_name": "lab"}, "leases")["output"]
