# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A removal that is killed anywhere, by kill -9, is ended by the next run: nothing of the guest is left on the host."""

from __future__ import annotations

import itertools
import pathlib
import typing as t

import pytest
from support.dying import dies
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.slow]

#: A guest of one bridge that systemd starts at boot, without a disk that would tell of it when it has gone.
GUEST: dict[str, t.Any] = {"name": "lhkilled", "memory": "32", "accelerator": "tcg", "shutdown_timeout": 0}
STAYS: dict[str, t.Any] = {"name": "lhstays", "scenario": "private"}
LAB = {"networks": [{**STAYS, "guests": [GUEST]}], "persistent": "true"}
WITHOUT = {"networks": [STAYS], "persistent": "true"}
GONE: dict[str, dict[str, t.Any]] = {
    "listed as absent": {**WITHOUT, "guests": [{"name": "lhkilled", "state": "absent"}]},
    "not listed": {**WITHOUT, "exclusive": True},
}


def left(host: SystemHost) -> list[str]:
    """What there is of guests: interfaces, files, units, accounts."""
    return [
        *sorted(link["ifname"] for link in host.json("ip", "-j", "link", "show")),
        *host.out("find", "/etc/systemd/system", "/var/lib/labspan", "/usr/local/lib/labspan").splitlines(),
        *host.run("grep", "-r", "^tuntap", "/etc/labspan", check=False).stdout.splitlines(),
        host.out("getent", "passwd"),
    ]


@pytest.fixture(scope="module")
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with SystemHost(python_path) as made:
        yield made


# Between them, the two are killed before every step.
@pytest.mark.parametrize(("first", "gone"), list(enumerate(GONE.values(), 1)), ids=GONE)
def test_killed_anywhere_in_a_removal_the_next_run_ends_it(
    host: SystemHost, first: int, gone: dict[str, t.Any]
) -> None:
    host.converge("lab_host", LAB)
    host.converge("lab_host", gone)
    before = left(host)
    unfinished = 0
    for step in itertools.count(first, 2):
        host.converge("lab_host", LAB)
        if not dies(host, "lab_host", gone, step):
            break
        unfinished += left(host) != before
        host.converge("lab_host", gone)
        assert left(host) == before, step
        assert not host.converge("lab_host", gone)["changed"]
    assert left(host) == before
    assert unfinished > 5
