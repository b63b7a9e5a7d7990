# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VM host for all tests of this directory, which each of them finds as it was when it had booted."""

from __future__ import annotations

import typing as t

import pytest
from support.vm_host import VmHost


@pytest.fixture(scope="session")
def _booted() -> t.Iterator[VmHost]:
    with VmHost(memory=1536) as made:
        # The first module that runs has Python compile all of them, which takes longer than they take.
        made.converge("linux_bridge", {"name": "br-none", "network": "none", "state": "absent"})
        made.keep()
        yield made


@pytest.fixture
def vm_host(_booted: VmHost) -> VmHost:
    """A host that nothing has been done to."""
    _booted.revert()
    return _booted
