# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VM host for all tests of this directory: it takes longer to boot than most of them take."""

from __future__ import annotations

import typing as t

import pytest
from support.vm_host import VmHost


@pytest.fixture(scope="session")
def vm_host() -> t.Iterator[VmHost]:
    """Everybody's: leave it as it was."""
    with VmHost() as made:
        yield made
