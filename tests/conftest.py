# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every test: hypothesis keeps no clock, and the machine's own network stays as it is."""

from __future__ import annotations

import os
import typing as t

import hypothesis
import pytest
from support.machine import own_network

# How long it takes to find an example says something of the machine, and of the strategy, and nothing of the code.
_UNHURRIED = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much]
hypothesis.settings.register_profile("labspan", deadline=None, print_blob=True, suppress_health_check=_UNHURRIED)
hypothesis.settings.load_profile("labspan")


@pytest.fixture(scope="session", autouse=True)
def _the_machines_own_network_is_not_touched() -> t.Iterator[None]:
    if os.geteuid() != 0:  # then the kernel sees to it
        yield
        return
    before = own_network()
    yield
    assert own_network() == before, "the machine's own network changed while the tests ran"
