# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""DHCP servers as units of systemd: the template that they share, and what systemd has of each.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _systemd
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files

PROGRAM = "/usr/local/lib/labspan/dhcp"
TEMPLATE = f"{_systemd.UNITS}/labspan-dhcp@.service"

_CONFIGURATION = "dnsmasq.conf"
_PROPERTIES = ("ActiveState", "InvocationID", "MainPID", "UnitFileState")

SCRIPT = r"""#!/bin/sh
# Made by labspan.vmnet, for labspan-dhcp@.service; the next run writes it anew.
#
#   dhcp NETWORK    note what the DHCP server of the network is about to read, and on which bridge
#
# From the note a later run of the collection knows whether the server has to read anything again.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
network=${1:?usage: dhcp NETWORK}
configuration=/etc/labspan/networks/$network/dnsmasq.conf
texts=/var/lib/labspan/dhcp/$network
notes=/run/labspan/dhcp

bridge=$(sed -n 's/^interface=//p' "$configuration")
# A server that starts before its bridge is there would not be bound to it.
if ! read -r index 2>/dev/null <"/sys/class/net/$bridge/ifindex"; then
    echo "the bridge $bridge is not there yet" >&2
    exit 1
fi

digest() {
    sha256sum | cut -d ' ' -f 1
}

text() {
    [ ! -e "$1" ] || cat "$1"
}

umask 022
mkdir -p "$notes"
configured=$(digest <"$configuration")
informed=$({ text "$texts.static"; printf '\0'; text "$texts.names"; } | digest)
echo "${INVOCATION_ID-} unit $index $configured $informed" >"$notes/$network.loaded.new"
mv -f "$notes/$network.loaded.new" "$notes/$network.loaded"
"""

_UNIT = """\
# Made by labspan.vmnet; the next run writes it anew.
[Unit]
Description=DHCP and DNS of the network %i of virtual machines
Documentation=man:dnsmasq(8)
ConditionPathExists=/etc/labspan/networks/%i/{configuration}
# Not Requires=: whatever brings the bridge up, the server waits for it.
After=network.target labspan-network@%i.service labspan-rules.service
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStartPre={program} %i
ExecStart={dnsmasq} --conf-file=/etc/labspan/networks/%i/{configuration}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
UMask=0022
# It becomes an account of its own once it listens.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETUID CAP_SETGID CAP_CHOWN CAP_DAC_OVERRIDE
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/var/lib/labspan/dhcp -/run/labspan /run
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX AF_PACKET
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What systemd has of one network's server."""

    enabled: bool = False
    active: bool = False
    pid: int = 0
    run: str = ""
    """What tells one start from another."""


def instance(network: str) -> str:
    """The unit of one network's server."""
    return f"labspan-dhcp@{network}.service"


def configuration(network: str) -> str:
    """What the unit's dnsmasq is told."""
    return os.path.join(_files.NETWORKS, network, _CONFIGURATION)


def read(networks: t.Collection[str]) -> dict[str, Unit]:
    """What systemd has of the servers of these networks."""
    units = {instance(network): network for network in networks}
    if not units or not _systemd.is_running():
        return dict.fromkeys(networks, Unit())
    shown = _systemd.shows(list(units), *_PROPERTIES)
    return {units[unit]: _unit_of(properties) for unit, properties in shown.items()}


def _unit_of(shown: t.Mapping[str, str]) -> Unit:
    return Unit(
        enabled=shown["UnitFileState"] == "enabled",
        active=shown["ActiveState"] not in ("inactive", "failed"),
        pid=int(shown["MainPID"]),
        run=shown["InvocationID"],
    )


def texts(dnsmasq: str) -> dict[str, str]:
    """The files that all units share."""
    return {
        PROGRAM: SCRIPT,
        TEMPLATE: _UNIT.format(program=PROGRAM, dnsmasq=dnsmasq, configuration=_CONFIGURATION),
    }


def is_current(dnsmasq: str) -> bool:
    """Whether the shared files are as this version has them."""
    return all(_files.read(path) == text for path, text in texts(dnsmasq).items())


def install(dnsmasq: str) -> None:
    """Bring the shared files up to date. Servers that run go on as they are."""
    if not is_current(dnsmasq):
        for path, text in texts(dnsmasq).items():
            _files.put(path, text)
        _systemd.daemon_reload()


def start(network: str) -> None:
    """Have the server started now and at boot."""
    unit = instance(network)
    _systemd.enable(unit)
    _systemd.start(unit)


def stop(network: str) -> None:
    """End the server, which starts again at boot."""
    unit = instance(network)
    _systemd.stop(unit)
    _systemd.reset_failed(unit)


def forget(network: str) -> None:
    """Leave nothing of the server's unit; of what servers share nothing either when this was the last one."""
    _systemd.disable(instance(network))
    _files.put(configuration(network), None)
    if not glob.glob(configuration("*")):
        for path in (TEMPLATE, PROGRAM):
            _files.put(path, None)
        _systemd.daemon_reload()
