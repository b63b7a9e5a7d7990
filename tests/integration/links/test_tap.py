# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""tap_device against the kernel; what became of it is seen through ip, bridge and /proc."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import typing as t

import pytest
from support.hosts import Host, Result

#: Holds a tap open until it is killed, as a guest does.
_HOLD = """
import fcntl, struct, sys, time
tap = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x0002 | 0x1000))  # TUNSETIFF, TAP, NO_PI
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def bridged(host: Host) -> Host:
    """A host with two bridges made by others; each has a port, so that no tap is the first to bring it a carrier."""
    for number, name in enumerate(("br0", "br1")):
        address = f"02:00:00:00:00:f{number}"
        host.run("ip", "link", "add", name, "address", address, "type", "bridge", "mcast_snooping", "0")
        host.run("ip", "link", "add", f"p{number}", "master", name, "type", "veth", "peer", "name", f"q{number}")
        for each in (f"q{number}", f"p{number}", name):
            host.run("ip", "link", "set", each, "up")
    return host


def without_macs(result: Result) -> Result:
    """The result but for the taps' own MAC addresses, which the kernel makes up when it makes them."""
    return t.cast("Result", json.loads(re.sub(r'"mac_address": [^,}]*', '"mac_address": 0', json.dumps(result))))


def tap(host: Host, **options: t.Any) -> Result:
    return host.converge("tap_device", {"name": "t0", "bridge": "br0", **options})


def link(host: Host, name: str = "t0") -> dict[str, t.Any]:
    found = host.link(name)
    assert found is not None
    return found


def tun(host: Host, name: str = "t0") -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", link(host, name)["linkinfo"]["info_data"])


def port(host: Host, name: str = "t0") -> dict[str, t.Any]:
    (found,) = [each for each in host.json("bridge", "-d", "-j", "link", "show") if each["ifname"] == name]
    return t.cast("dict[str, t.Any]", found)


def assert_rests(host: Host, options: dict[str, t.Any]) -> None:
    host.assert_rests("tap_device", options)


def hold(host: Host, name: str = "t0") -> subprocess.Popen[str]:
    process = host.start("python3", "-c", _HOLD, name, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_tap_is_made_owned_marked_attached_and_up(bridged: Host) -> None:
    result = tap(bridged, owner="nobody", alias="web server")
    assert result["changed"]
    assert (tun(bridged)["type"], tun(bridged)["persist"], tun(bridged)["pi"]) == ("tap", True, False)
    assert str(tun(bridged)["user"]) in ("nobody", bridged.out("id", "-u", "nobody").strip())
    assert (link(bridged)["master"], "UP" in link(bridged)["flags"]) == ("br0", True)
    assert link(bridged)["ifalias"].startswith("labspan.vmnet:br0")
    assert "web server" in link(bridged)["ifalias"]
    assert result["tap"]["owner"] == "nobody"
    assert_rests(bridged, {"name": "t0", "bridge": "br0", "owner": "nobody", "alias": "web server"})


def test_nobody_but_the_owner_may_open_it(bridged: Host) -> None:
    tap(bridged)
    # The same program, as an account that may open the device node but does not own the tap, and as the owner.
    bridged.run("chmod", "666", "/dev/net/tun")
    stranger = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    attempt = [*stranger, "/usr/bin/python3", "-c", _HOLD.replace("600", "0"), "t0"]
    assert "held" not in bridged.run(*attempt, check=False).stdout
    tap(bridged, owner="65534")
    assert "held" in bridged.run(*attempt, check=False).stdout


@pytest.mark.parametrize(
    ("option", "shown"),
    [("isolated", "isolated"), ("hairpin", "hairpin"), ("bpdu_guard", "guard")],
)
def test_port_flags_are_set_and_taken_back(bridged: Host, option: str, shown: str) -> None:
    tap(bridged, **{option: True})
    assert port(bridged)[shown] is True
    assert_rests(bridged, {"name": "t0", "bridge": "br0", option: True})
    assert len(tap(bridged, **{option: False})["actions"]) == 1
    assert port(bridged)[shown] is False


@pytest.mark.parametrize(("option", "shown"), [("learning", "learning"), ("flooding", "flood")])
def test_port_flags_that_are_on_are_switched_off(bridged: Host, option: str, shown: str) -> None:
    tap(bridged)
    assert port(bridged)[shown] is True
    tap(bridged, **{option: False})
    assert port(bridged)[shown] is False
    assert_rests(bridged, {"name": "t0", "bridge": "br0", option: False})


def test_a_tap_moves_between_bridges_and_off_them(bridged: Host) -> None:
    tap(bridged, mtu=1400, mac_address="02:00:00:00:00:07")
    assert (link(bridged)["mtu"], link(bridged)["address"]) == (1400, "02:00:00:00:00:07")
    tap(bridged, bridge="br1", network="br0")
    assert link(bridged)["master"] == "br1"
    tap(bridged, bridge="", network="br0", enabled=False)
    assert "master" not in link(bridged)
    assert "UP" not in link(bridged)["flags"]
    assert_rests(bridged, {"name": "t0", "bridge": "", "network": "br0", "enabled": False})


def test_owner_group_and_queues_change_by_replacing_a_tap_that_nobody_holds(bridged: Host) -> None:
    tap(bridged)
    index = link(bridged)["ifindex"]
    options = {"name": "t0", "bridge": "br0", "owner": "nobody", "group": "nogroup", "multi_queue": True}
    assert "owner is" in bridged.refuse("tap_device", {**options, "recreate": "never"})
    bridged.converge("tap_device", options)
    assert link(bridged)["ifindex"] != index
    assert tun(bridged)["multi_queue"] is True
    assert link(bridged)["master"] == "br0"
    assert_rests(bridged, options)


def test_a_held_tap_is_neither_replaced_nor_removed_and_its_holder_is_named(bridged: Host) -> None:
    tap(bridged)
    holder = hold(bridged)
    try:
        for options in ({"owner": "nobody"}, {"recreate": "always"}, {"state": "absent"}):
            message = bridged.refuse("tap_device", {"name": "t0", "bridge": "br0", **options})
            assert "python3" in message
        # What can change on a living tap does.
        tap(bridged, mtu=1400)
        assert link(bridged)["mtu"] == 1400
    finally:
        os.kill(bridged.child(holder), signal.SIGKILL)
        holder.wait()
    tap(bridged, owner="nobody")
    assert str(tun(bridged)["user"]) in ("nobody", bridged.out("id", "-u", "nobody").strip())
    tap(bridged, state="absent")
    assert bridged.link("t0") is None


def test_a_tap_made_by_others_is_adopted_and_put_back(bridged: Host) -> None:
    bridged.run("ip", "tuntap", "add", "dev", "t0", "mode", "tap", "user", "nobody")
    before = bridged.dump()
    result = tap(bridged, owner="nobody")
    assert result["tap"]["adopted"]
    assert link(bridged)["master"] == "br0"
    tap(bridged, state="absent")
    assert bridged.dump() == before


def test_check_mode_writes_nothing_and_predicts_what_happens(bridged: Host) -> None:
    options = {"bridge": "br0", "owner": "nobody", "taps": [{"name": f"t{n}", "isolated": n == 1} for n in range(3)]}
    before = bridged.dump()
    with bridged.monitored() as heard:
        predicted = bridged.converge("tap_device", options, check=True)
    assert (bridged.dump(), heard) == (before, [])
    with bridged.monitored() as heard:
        done = bridged.converge("tap_device", options)
    assert any("t2" in line for line in heard), "the monitor hears what a run does"
    assert without_macs(predicted) == without_macs(done)
    gone = {**options, "state": "absent"}
    assert bridged.converge("tap_device", gone, check=True) == bridged.converge("tap_device", gone)
    assert bridged.dump() == before


REFUSALS: list[tuple[dict[str, t.Any], str]] = [
    ({"name": "a-name-of-sixteen"}, "characters long"),
    ({"name": "t%d"}, "not a usable interface name"),
    ({"name": "t+"}, "not a usable interface name"),
    ({"mac_address": "01:00:5e:00:00:01"}, "multicast"),
    ({"owner": "nobody-has-this-name"}, "not known"),
    ({"group": "nobody-has-this-name"}, "not known"),
    ({"bridge": "missing"}, "does not exist"),
    ({"bridge": "veth0"}, "not a bridge"),
    ({"name": "veth0"}, "veth"),
    ({"name": "theirs"}, "belongs to the network 'somebody'"),
    ({"mac_address": "02:00:00:00:00:99"}, "02:00:00:00:00:99"),
]


def test_what_cannot_be_right_is_refused_with_a_sentence_before_anything_is_written(bridged: Host) -> None:
    bridged.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    bridged.run("ip", "link", "set", "veth1", "address", "02:00:00:00:00:99", "master", "br0")
    bridged.run("ip", "tuntap", "add", "dev", "theirs", "mode", "tap")
    bridged.run("ip", "link", "set", "theirs", "alias", "labspan.vmnet:somebody")
    wrong = []
    for options, words in REFUSALS:
        # In a list behind a good entry: the whole list is checked first.
        entries = [{"name": "good"}, {"name": "t0", **options}]
        message = bridged.refuse("tap_device", {"bridge": "br0", "taps": entries})
        if words not in message:
            wrong.append((options, words, message))
    assert wrong == []
    twice = [{"name": "t0"}, {"name": "t0"}]
    assert "listed twice" in bridged.refuse("tap_device", {"bridge": "br0", "taps": twice})
    same_mac = [{"name": name, "mac_address": "02:00:00:00:00:01"} for name in ("t0", "t1")]
    assert "02:00:00:00:00:01" in bridged.refuse("tap_device", {"bridge": "br0", "taps": same_mac})
    assert bridged.link("good") is None


def test_a_bridge_takes_no_more_ports_than_the_kernel_has(bridged: Host) -> None:
    taps = [{"name": f"t{number}"} for number in range(1024)]
    assert "1023" in bridged.refuse("tap_device", {"bridge": "br0", "taps": taps})


@pytest.mark.one_interpreter
def test_a_reruns_requests_to_the_kernel_do_not_grow_with_the_taps(bridged: Host) -> None:
    if shutil.which("strace") is None:
        pytest.skip("the program strace is missing")

    def requests(count: int) -> int:
        options = {"bridge": "br0", "taps": [{"name": f"t{number}"} for number in range(count)]}
        bridged.converge("tap_device", options)
        traced = bridged.strace("tap_device", options, "sendto,sendmsg,send")
        assert traced.result["changed"] is False
        return len(re.findall("NLM_F_REQUEST", traced.log))

    few, many = requests(2), requests(40)
    assert few > 0
    assert few == many


@pytest.mark.one_interpreter
def test_many_taps_are_deleted_with_one_request(bridged: Host) -> None:
    if shutil.which("strace") is None:
        pytest.skip("the program strace is missing")
    options = {"bridge": "br0", "taps": [{"name": f"t{number}"} for number in range(40)]}
    bridged.run("ip", "tuntap", "add", "dev", "foreign", "mode", "tap")
    before = bridged.dump()
    bridged.converge("tap_device", options)
    traced = bridged.strace("tap_device", {**options, "state": "absent"}, "sendto,sendmsg,send")
    assert len(traced.result["actions"]) == 40
    assert traced.log.count("RTM_DELLINK") == 1
    assert bridged.dump() == before


def test_a_tap_that_is_to_go_needs_no_account(host: Host) -> None:
    host.run("ip", "tuntap", "add", "tap9", "mode", "tap")
    result = host.converge("tap_device", {"name": "tap9", "owner": "nobody-there", "state": "absent", "force": True})
    assert result["changed"]
    assert host.link("tap9") is None
    assert "nobody-there" in host.refuse("tap_device", {"name": "tap9", "owner": "nobody-there"})
