# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes to guests that run: NICs and disks that come and go, memory, and what has to wait for a restart."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from support.hosts import await_condition

from .conftest import RUNTIME, Guests
from .test_guest_nics import add_tap, answers, bridge

__all__ = ["bridge"]
pytestmark = pytest.mark.one_interpreter

MAC = "52:54:00:00:00:77"
CONSOLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "tiny_guest" / "files" / "guest_console.py"


def inside(guests: Guests, name: str, command: str) -> str:
    """What a command prints in the guest."""
    return guests.host.out(guests.host.interpreter, str(CONSOLE), f"{RUNTIME}/{name}/console.sock", command)


def tell(guests: Guests, name: str, command: str, **arguments: t.Any) -> t.Any:
    """One command to QEMU, by the test's own connection."""
    said = [{"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}]
    words = "".join(json.dumps(word) + "\n" for word in said)
    answer = guests.host.run("socat", "-t", "2", "-", f"UNIX-CONNECT:{RUNTIME}/{name}/qmp.sock", stdin=words).stdout
    messages = [
        message for message in map(json.loads, answer.splitlines()) if "return" in message or "error" in message
    ]
    return messages[1].get("return", messages[1].get("error"))


def hardware(guests: Guests, name: str) -> list[str]:
    """What QEMU has of NICs and disks, as it says itself."""
    found = [child["name"] for child in tell(guests, name, "qom-list", path="/machine/peripheral")]
    return sorted(device for device in found if device.startswith(("nic", "disk")))


def test_a_nic_comes_and_goes_while_the_guest_runs(guests: Guests, tiny: dict[str, t.Any], bridge: str) -> None:
    add_tap(guests, "cgtap0")  # elsewhere, so that only one NIC answers on the bridge
    first = {"tap": "cgtap0", "mac": "52:54:00:00:00:70"}
    late = {"bridge": bridge, "mac": MAC}
    options = {**tiny, "nics": [first]}
    guests.converge("cg-n", **options)
    pid = guests.pid("cg-n")

    before = guests.host.dump()
    foretold = guests.check("cg-n", **{**options, "nics": [late, first]})
    assert guests.host.dump() == before
    result = guests.converge("cg-n", **{**options, "nics": [late, first]})
    tap = result["guest"]["nics"][0]["tap"]
    assert result["actions"] == foretold["actions"]
    assert f"Plug NIC {MAC} on tap {tap} into guest cg-n" in result["actions"]
    assert result["guest"]["pending_restart"] == []
    assert guests.pid("cg-n") == pid
    assert not guests.converge("cg-n", **{**options, "nics": [late, first]})["changed"]

    await_condition(lambda: MAC in inside(guests, "cg-n", "cat /sys/class/net/*/address"), "the guest to see its NIC")
    inside(
        guests,
        "cg-n",
        f"n=$(grep -l {MAC} /sys/class/net/*/address); n=${{n%/address}}; n=${{n##*/}}; "
        "ip link set $n up; ip addr add 10.99.0.70/24 dev $n",
    )
    await_condition(lambda: answers(guests, "10.99.0.70"), "the guest to answer on its new NIC")
    seen = guests.host.json("ip", "-j", "neigh", "show", "10.99.0.70", "dev", bridge)
    assert seen[0]["lladdr"] == MAC

    pulled = guests.converge("cg-n", **{**options, "nics": [{**late, "link": False}, first]})
    assert "Set the link of NIC 0 of guest cg-n down" in pulled["actions"]
    assert not answers(guests, "10.99.0.70")
    gone = guests.converge("cg-n", **{**options, "nics": [late]})
    assert "Unplug NIC 52:54:00:00:00:70 on tap cgtap0 from guest cg-n" in gone["actions"]
    assert hardware(guests, "cg-n") == ["nic1"]
    await_condition(lambda: answers(guests, "10.99.0.70"), "the guest to answer again")
    gone = guests.converge("cg-n", **{**options, "nics": []})
    assert hardware(guests, "cg-n") == []
    assert guests.host.link(tap) is None  # was made for the NIC
    assert not answers(guests, "10.99.0.70")
    assert guests.pid("cg-n") == pid
    assert not guests.converge("cg-n", **{**options, "nics": []})["changed"]
