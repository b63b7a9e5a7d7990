# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The unit of systemd that runs the script for each network.

There is nothing to run when it stops: a stop of the unit must not cut off guests. Those who need a network say Wants=
and After=, never Requires=, or a restart of the host's firewall (PartOf=) would stop the guests.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_script, _script

NAME = "labspan-network@.service"

#: Those whose restart or reload is ours, too; what they flush, a restart of the unit brings back.
_FIREWALLS = "nftables.service ufw.service firewalld.service"

UNIT = f"""\
# Made by labspan.vmnet.
[Unit]
Description=Network %i of virtual machines
ConditionPathIsDirectory=/etc/labspan/networks/%i
After=network-pre.target systemd-modules-load.service systemd-sysctl.service {_rules_script.MANAGERS}
Before=docker.service network-online.target
PartOf={_FIREWALLS}
ReloadPropagatedFrom={_FIREWALLS}
# However often the firewall is restarted, this follows.
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={_script.PATH} up %i
ExecReload={_script.PATH} reload %i
TimeoutStartSec=300

[Install]
WantedBy=multi-user.target
"""


def instance(network: str) -> str:
    """The unit of one network."""
    return f"labspan-network@{network}.service"
