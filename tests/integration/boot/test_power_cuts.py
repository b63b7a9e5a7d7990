# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A provisioning that ends anywhere, with the host, is finished by the next run: the host is then as any other.

No write is lost here, as nothing but a VM host can; see the test of this name there.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import sys
import time
import typing as t

import pytest
from support.hosts import Host, await_condition, cable
from support.provisioning import WITHOUT_VLANS, Run, Whole, differences, dump, provision, whole
from support.system_host import SystemHost, needs_system_host

pytestmark = [needs_system_host, pytest.mark.slow, pytest.mark.one_interpreter]

CUTS = int(os.environ.get("LABSPAN_POWER_CUTS", "6"))
SEED = os.environ["LABSPAN_SEED"]
_SHARES = random.Random(SEED)

_NETWORK = "[Match]\nName=uplink0\n[Network]\nAddress=192.0.2.10/24\nGateway=192.0.2.1\n"
FILES = {
    # What MAC addresses are derived from.
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/etc/systemd/network/uplink0.network": _NETWORK,
}


@contextlib.contextmanager
def fresh(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    """A host that nothing has been done to."""
    with Host(python_path, sys.executable) as lan:

        def wire(host: SystemHost) -> None:
            cable(lan, "lan0", host, "uplink0", mac="52:54:00:00:02:0a")
            lan.run("ip", "addr", "add", "192.0.2.1/24", "dev", "lan0")

        with SystemHost(python_path, files=FILES, enable=["systemd-networkd"], wire=wire) as made:
            await_uplink(made)
            yield made


def await_uplink(host: SystemHost) -> None:
    await_condition(lambda: "default" in host.out("ip", "route"), "the uplink")


@pytest.fixture(scope="module")
def uninterrupted(python_path: pathlib.Path) -> Whole:
    with fresh(python_path) as host:
        return whole(host, WITHOUT_VLANS)


@pytest.fixture
def host(python_path: pathlib.Path) -> t.Iterator[SystemHost]:
    with fresh(python_path) as made:
        yield made


@pytest.mark.parametrize("share", [_SHARES.random() for _cut in range(CUTS)], ids="{:.3f}".format)
def test_the_next_run_finishes_what_the_hosts_end_interrupted(
    host: SystemHost, uninterrupted: Whole, share: float
) -> None:
    moment = share * uninterrupted.seconds
    print(f"LABSPAN_SEED={SEED}: after {moment:.1f} of {uninterrupted.seconds:.1f} seconds")
    run = Run(host, WITHOUT_VLANS)
    time.sleep(moment)
    host.power_cut(boot=False)
    run.end()
    host.boot(degraded=True)
    await_uplink(host)

    mended, left = provision(host, WITHOUT_VLANS, times=2)

    print(f"the rerun changed: {', '.join(mended) or 'nothing'}")
    assert left == []
    await_condition(lambda: host.state() == "running", "the units to be as they are to be")
    assert differences(dump(host), uninterrupted.dump) == []
