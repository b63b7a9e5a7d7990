# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The units by which systemd runs guests, as text. Pure.

One template for all guests, one drop-in for each, and a script for what a unit cannot say. None of them needs Python,
so a guest comes back after a boot, and goes down properly, on a host where Ansible is never run again.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _tpm
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import STATE_ROOT
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec

UNITS = "/etc/systemd/system"
TEMPLATE_PATH = f"{UNITS}/labspan-guest@.service"
SCRIPT_PATH = "/usr/local/lib/labspan/guest"
#: What a start is told beside its unit; see START_VARIABLE. Not in the runtime directory, which systemd makes later.
START_FILE = "/run/labspan/guests/%s.start"
START_VARIABLE = "LABSPAN_START"

#: SIGTERM makes QEMU write back and close its images at once; a disk that hangs gets this many seconds.
TERM_PATIENCE = 30

TEMPLATE = f"""\
# A QEMU guest of labspan.vmnet. What is particular to a guest stands in labspan-guest@NAME.service.d/guest.conf.
# Written by the module qemu_guest, which never restarts a guest because this changes.
[Unit]
Description=QEMU guest %i
After=network.target
RequiresMountsFor=/var/lib/labspan/guests/%i
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=exec
RuntimeDirectory=labspan/guests/%i labspan/guests/%i/display
RuntimeDirectoryMode=0700
UMask=0077
EnvironmentFile=-{START_FILE % "%i"}
# The pipes of a second control channel, which a shell can write to.
ExecStartPre=mkfifo -m 0600 /run/labspan/guests/%i/power.in /run/labspan/guests/%i/power.out
# Presses the power button and waits. What still runs then gets SIGTERM, on which QEMU closes its images.
ExecStop={SCRIPT_PATH} stop %i
KillMode=mixed
Restart=on-failure
RestartSec=5

NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths=/var/lib/labspan/guests/%i
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
DeviceAllow=/dev/kvm rw
DeviceAllow=/dev/vhost-net rw

[Install]
WantedBy=multi-user.target
"""

SCRIPT = f"""\
#!/bin/sh
# Beside QEMU itself, what the unit of a guest does. Written by the module qemu_guest of labspan.vmnet.
#
#   guest prepare NAME         as root, before the start: a fresh file for the serial console; the last one is kept
#   guest unplug NAME NIC...   after the start: pull the cables of these NICs
#   guest stop NAME            press the power button, now and then again, and wait up to $LABSPAN_PATIENCE seconds

set -eu

command=$1 name=$2
shift 2
power=/run/labspan/guests/$name/power.in

# The first line may be an error from the second time on, which is as good.
greet='{{"execute": "qmp_capabilities"}}'

case $command in
    prepare)
        log={STATE_ROOT}/$name/console.log
        [ ! -e "$log" ] || mv -f "$log" "$log.1"
        umask 077
        : >"$log"
        chown "$LABSPAN_ACCOUNT" "$log"
        ;;
    unplug)
        for nic in "$@"; do
            printf '%s\\n{{"execute": "set_link", "arguments": {{"name": "%s", "up": false}}}}\\n' "$greet" "$nic"
        done >"$power"
        ;;
    stop)
        # Without a process there is nobody to ask.
        [ -n "${{MAINPID:-}}" ] || exit 0
        waited=0
        while kill -0 "$MAINPID" 2>/dev/null && [ "$waited" -lt "$LABSPAN_PATIENCE" ]; do
            # A guest that was still booting has not heard the first time. Open for both ways, a pipe never waits.
            if [ $((waited % 10)) -eq 0 ]; then
                printf '%s\\n{{"execute": "cont"}}\\n{{"execute": "system_powerdown"}}\\n' "$greet" 1<>"$power"
            fi
            sleep 1
            waited=$((waited + 1))
        done
        ;;
    *)
        echo "guest: no command $command" >&2
        exit 2
        ;;
esac
"""

#: Every file that all guests share, by its path.
SHARED: t.Mapping[str, str] = {
    TEMPLATE_PATH: TEMPLATE,
    SCRIPT_PATH: SCRIPT,
    _tpm.TEMPLATE_PATH: _tpm.TEMPLATE,
}

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+\Z")
_HIDDEN_BY_DEFAULT = re.compile(r"(?:^|[=,:])/(?:home|root|run/user)(?:/|$)")
_PRIVATE_BY_DEFAULT = re.compile(r"(?:^|[=,:])/(?:var/)?tmp(?:/|$)")


def unit(name: str) -> str:
    """The unit of a guest; names of guests need no escaping."""
    return f"labspan-guest@{name}.service"


def drop_in_path(name: str) -> str:
    return f"{UNITS}/{unit(name)}.d/guest.conf"


def drop_in(
    spec: GuestSpec,
    argv: t.Sequence[str],
    *,
    networks: t.Sequence[str] = (),
    groups: t.Sequence[str] = (),
    directives: t.Sequence[str] = (),
) -> str:
    """What is particular to a guest. C(networks) are those it comes after, C(directives) more lines for [Service]."""
    patience = max(int(spec.shutdown_timeout), 1)
    lines = [
        f"# The guest {spec.name} of labspan.vmnet. Written by the module qemu_guest; its next run undoes changes."
    ]
    unit_lines = []
    if networks:
        units = " ".join(f"labspan-network@{network}.service" for network in networks)
        unit_lines += [f"Wants={units}", f"After={units}"]
    unit_lines += _tpm.unit_lines(spec)
    directories = sorted({os.path.dirname(disk.path) for disk in spec.disks if not disk.is_empty})
    unit_lines += [f"RequiresMountsFor={_quote(directory)}" for directory in directories if directory != "/dev"]
    if unit_lines:
        lines += ["[Unit]", *unit_lines, ""]
    lines += ["[Service]", f"User={spec.user}"]
    if groups:
        lines.append(f"SupplementaryGroups={' '.join(groups)}")
    lines += [
        f"Environment=LABSPAN_ACCOUNT={spec.user} LABSPAN_PATIENCE={patience}",
        f"TimeoutStopSec={patience + TERM_PATIENCE}",
    ]
    lines += _openings(spec, argv)
    lines += directives
    if spec.console:
        lines.append(f"ExecStartPre=+{SCRIPT_PATH} prepare %i")
    lines += ["ExecStart=\\", *_command(argv)]
    unplugged = [f"nic{index}" for index, nic in enumerate(spec.nics) if not nic.link]
    if unplugged:
        lines.append(f"ExecStartPost={SCRIPT_PATH} unplug %i {' '.join(unplugged)}")
    return "\n".join(lines) + "\n"


def _openings(spec: GuestSpec, argv: t.Sequence[str]) -> t.Iterator[str]:
    """What this guest needs of the places that the template closes."""
    for disk in spec.disks:
        if disk.path.startswith("/dev/"):
            yield f"DeviceAllow={_quote(disk.path)} {'r' if disk.read_only else 'rw'}"
        elif disk.path and not disk.read_only and os.path.dirname(disk.path) != os.path.join(STATE_ROOT, spec.name):
            yield f"ReadWritePaths=-{_quote(disk.path)}"
    if any(_HIDDEN_BY_DEFAULT.search(word) for word in argv):
        yield "ProtectHome=read-only"
    if any(_PRIVATE_BY_DEFAULT.search(word) for word in argv):
        yield "PrivateTmp=no"


def _command(argv: t.Sequence[str]) -> t.Iterator[str]:
    """The command line, one option with its value on each line."""
    lines: list[list[str]] = []
    for word in argv:
        if not lines or word.startswith("-"):
            lines.append([])
        lines[-1].append(_quote(word))
    for line in lines:
        yield f"    {' '.join(line)} \\"
    yield f"    ${START_VARIABLE}"


def _quote(word: str) -> str:
    """One word for systemd: specifiers and variables are doubled, the rest is put in quotes where it has to be."""
    word = word.replace("%", "%%").replace("$", "$$")
    if _PLAIN.match(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
