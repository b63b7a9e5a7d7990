# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a cloud-init seed holds is found nowhere but in the seed, whatever the verbosity and whatever goes wrong.

Everything is searched for two words: the secret, which must be nowhere, and one that stands in an option which is not
secret, which must be found in the same places, or the search would prove nothing.
"""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from support.hosts import TIMEOUT
from support.system_host import SystemHost, needs_system_host
from support.users import User

pytestmark = [needs_system_host, pytest.mark.one_interpreter]

SECRET = "xyzzy-5ecret"
TWIN = "plugh-public"
SEED = "/var/lib/labspan/guests/vm1/seed.iso"

#: While the image is made, everything that others can see of it is written down.
_WATCHED_MAKER = """#!/bin/sh
{ ps -ewwwo args; cat /proc/[0-9]*/environ | tr '\\0' '\\n'; find /run/labspan -printf '%m %u %p\\n'; } >> /root/seen
exec /usr/bin/genisoimage "$@"
"""

_READABLE = (
    "find / -xdev \\( -path /proc -o -path /sys -o -path /opt \\) -prune -o"
    " -type f -perm /044 -newer /root/begin -print0"
)

CLOUD_INIT = {
    "user_data": {"hostname": "vm1", "chpasswd": {"list": [f"root:{SECRET}"]}},
    "meta_data": {"note": SECRET},
    "network_config": {"version": 2, "wifis": {"wlan0": {"access-points": {"lab": {"password": SECRET}}}}},
    "vendor_data": f"#!/bin/sh\nexport TOKEN={SECRET}\n",
}
GUEST = {"name": "vm1", "memory": "32", "accelerator": "tcg", "shutdown_timeout": 0, "network": TWIN}
BROKEN = ["-device", f"{TWIN}-device"]

#: What can go wrong with a seed in a task: the module's own errors, Ansible's, and QEMU's.
FAILURES: dict[str, dict[str, t.Any]] = {
    "misspelt": {"cloud_init": {"userdata": SECRET}},
    "misplaced": {"user_data": SECRET},
    "a text": {"cloud_init": SECRET},
    "no network": {"cloud_init": {"network_config": {"ethernets": SECRET}}},
    "a password in the URL": {"cloud_init": {"delivery": "smbios", "seed_url": f"http://lab:{SECRET}@h/"}},
    "undone": {"cloud_init": {"user_data": f"#!{SECRET}\n"}, "extra_args": BROKEN, "restart": "if_needed"},
    "text": {"guests": json.dumps([{**GUEST, "cloud_init": CLOUD_INIT}, SECRET]), "name": None},
}


@pytest.fixture(scope="module")
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with SystemHost(python_path) as made:
        made.write("/usr/local/bin/genisoimage", _WATCHED_MAKER, 0o755)
        made.run("useradd", "--system", "labspan-qemu")
        made.write("/root/begin", "")
        yield made


class Seen(t.NamedTuple):
    """What a run of a playbook has shown, by the place where it was seen."""

    status: int
    output: str
    journal: str
    processes: str

    def places(self, word: str) -> set[str]:
        found = {"output": self.output, "journal": self.journal, "processes": self.processes}
        return {place for place, text in found.items() if word in text}


def play(host: SystemHost, path: pathlib.Path, variables: dict[str, t.Any], *tasks: dict[str, t.Any]) -> Seen:
    """Run tasks with everything that makes Ansible talk."""
    user = User(path)
    user.write("variables.json", variables)
    user.write("hosts.json", {"all": {"hosts": {"labhost": host.variables}}})
    host.run("sh", "-c", "rm -f /root/seen; journalctl --sync; journalctl --rotate --vacuum-time=1s")
    played = user.play(
        [{"hosts": "all", "gather_facts": False, "vars_files": ["variables.json"], "tasks": list(tasks)}],
        *("-vvv", "--diff", "-i", "hosts.json"),
        code=None,
        timeout=3 * TIMEOUT,
        ANSIBLE_INJECT_INVOCATION="true",  # from 2.21 on it is left out otherwise
    )
    host.run("journalctl", "--sync")
    seen = host.run("sh", "-c", "cat /root/seen; ps -ewwwo args", check=False).stdout
    return Seen(played.code, played.output, host.journal("-o", "verbose"), seen)


def readable(host: SystemHost, word: str) -> list[str]:
    """The files of the host that others can read, and that have the word."""
    return host.run("sh", "-c", f"{_READABLE} | xargs -0 grep -l -- {word}", check=False).stdout.splitlines()


def test_a_seed_is_secret_in_a_role_that_succeeds(host: SystemHost, tmp_path: pathlib.Path) -> None:
    guest = {**GUEST, "cloud_init": CLOUD_INIT}
    include = {"ansible.builtin.include_role": {"name": "labspan.vmnet.guests"}}
    show = {"ansible.builtin.debug": {"var": "guests_result"}}
    seen = play(host, tmp_path, {"guests_list": [guest], "guests_user": "labspan-qemu"}, include, show, include)
    assert seen.status == 0, seen.output
    assert "Make the cloud-init seed of guest vm1" in seen.output
    assert SECRET in host.out("isoinfo", "-R", "-x", "/user-data", "-i", SEED)
    assert host.out("stat", "-c", "%a %U", SEED).strip() == "600 labspan-qemu"

    assert seen.places(SECRET) == set()
    assert {"output", "journal"} <= seen.places(TWIN)
    assert "-quiet -o /run/labspan/seeds/vm1/seed.iso" in seen.processes
    modes = dict(line.split(" ", 1)[::-1] for line in seen.processes.splitlines() if "/run/labspan/seeds" in line[:30])
    assert modes.get("root /run/labspan/seeds/vm1") == "700"

    assert readable(host, SECRET) == []
    host.write("/var/tmp/forgotten", SECRET)
    assert readable(host, SECRET) == ["/var/tmp/forgotten"]
    host.run("rm", "/var/tmp/forgotten")


def test_a_seed_is_secret_in_tasks_that_fail(host: SystemHost, tmp_path: pathlib.Path) -> None:
    tasks = []
    for name, options in FAILURES.items():
        guest = {option: value for option, value in {**GUEST, **options}.items() if value is not None}
        variables = {f"value_{option}": value for option, value in guest.items()}
        arguments = {option: f"{{{{ value_{option} }}}}" for option in guest}
        tasks.append({"name": name, "labspan.vmnet.qemu_guest": arguments, "vars": variables, "ignore_errors": True})
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    seen = play(host, tmp_path, {}, {"ansible.builtin.include_tasks": str(tmp_path / "tasks.json")})
    assert seen.status == 0, seen.output
    assert f"ignored={len(FAILURES)}" in seen.output, seen.output
    assert "Unsupported parameters" in seen.output
    assert seen.places(SECRET) == set()
    assert {"output", "journal"} <= seen.places(TWIN)
    assert readable(host, SECRET) == []
