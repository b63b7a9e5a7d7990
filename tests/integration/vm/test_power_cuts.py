# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A provisioning that a power cut interrupts, anywhere, is finished by the next run: the host is then as any other.

Half of the cuts are by the kernel (sysrq b), and lose what it had not written to the disk. The others end QEMU at once,
and lose what QEMU had not written to its image, too.

LABSPAN_POWER_CUTS is how often the power goes, each a minute or two on a quiet machine; LABSPAN_SEED has it go at the
same moments again.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from support.provisioning import LAB, Run, Whole, differences, dump, provision, whole
from support.vm_host import VmHost, needs_vm_host

pytestmark = [needs_vm_host, pytest.mark.slow, pytest.mark.one_interpreter]

CUTS = int(os.environ.get("LABSPAN_POWER_CUTS", "3"))
SEED = os.environ["LABSPAN_SEED"]
_SHARES = random.Random(SEED)

_WHOLE: list[Whole] = []


@pytest.fixture
def uninterrupted(vm_host: VmHost) -> Whole:
    """Of the host, which is then as it was before."""
    if not _WHOLE:
        _WHOLE.append(whole(vm_host, LAB))
        vm_host.revert()
    return _WHOLE[0]


def interrupted(host: VmHost, seconds: float, *, by_kernel: bool) -> None:
    """Begin to provision, and lose the power so long after; the host is off then."""
    if by_kernel:
        run = Run(host, LAB, power=seconds)
        host.await_end()
    else:
        run = Run(host, LAB)
        time.sleep(seconds)
        host.power_cut(boot=False)
    run.end()


@pytest.mark.parametrize("share", [_SHARES.random() for _cut in range(CUTS)], ids="{:.3f}".format)
def test_the_next_run_finishes_what_a_power_cut_interrupted(
    vm_host: VmHost, uninterrupted: Whole, share: float
) -> None:
    moment, by_kernel = share * uninterrupted.seconds, int(share * 1000) % 2 == 0
    how = "sysrq b" if by_kernel else "the end of QEMU"
    print(f"LABSPAN_SEED={SEED}: {how} after {moment:.1f} of {uninterrupted.seconds:.1f} seconds")
    interrupted(vm_host, moment, by_kernel=by_kernel)
    vm_host.boot(degraded=True)

    mended, left = provision(vm_host, LAB, times=2)

    print(f"the rerun changed: {', '.join(mended) or 'nothing'}")
    assert left == []
    vm_host.wait(lambda: vm_host.state() == "running", "the units to be as they are to be")
    assert differences(dump(vm_host), uninterrupted.dump) == []
