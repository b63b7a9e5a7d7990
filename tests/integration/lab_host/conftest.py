# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from support.hosts import Host


@pytest.fixture
def connected(host: Host) -> Host:
    """A host with a way out."""
    host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
    host.run("ip", "address", "add", "192.0.2.2/24", "dev", "up0")
    for name in ("up0", "far0"):
        host.run("ip", "link", "set", name, "up")
    host.run("ip", "route", "add", "default", "via", "192.0.2.1")
    return host
