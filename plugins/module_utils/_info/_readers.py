# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The readers of a host's parts, each for itself: one that fails is a warning, and leaves its part empty.

Nothing here writes, and no program runs for a single guest or network.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import json
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _dhcp_unit, _dnsmasq, _process, _systemd, _tun
from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _files, _unit
from ansible_collections.labspan.vmnet.plugins.module_utils._info._seen import Files, Server
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Link, Netlink

Processes = t.Sequence[t.Tuple[_process.Process, t.List[str]]]

_SYSCTL = "/proc/sys/net"
_NETFILTER = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}


def network(wanted: t.Collection[str]) -> dict[str, t.Any]:
    """What netlink tells: links always, more by the names of Seen's attributes."""
    with Netlink() as netlink:
        found: dict[str, t.Any] = {"links": netlink.links()}
        if "addresses" in wanted:
            found["addresses"] = netlink.addresses()
        if "default_interfaces" in wanted:
            found["default_interfaces"] = netlink.default_interfaces()
        if "neighbours" in wanted:
            found["neighbours"] = netlink.neighbours()
        if "learnt" in wanted:
            found["learnt"] = netlink.learnt()
    return found


def servers(processes: t.Callable[[], Processes]) -> dict[str, Server]:
    """The DHCP servers of which there is anything; C(processes) is asked only if there is one."""
    state = _dnsmasq.Paths("").state
    names = {os.path.basename(path).rpartition(".")[0] for path in glob.glob(f"{glob.escape(state)}/*.*")}
    names |= {path.split("/")[-2] for path in glob.glob(_dhcp_unit.configuration("*"))}
    return {name: _server(name, processes) for name in sorted(names)}


def _server(name: str, processes: t.Callable[[], Processes]) -> Server:
    paths = _dnsmasq.Paths(name)
    lasting = _dhcp_unit.configuration(name)
    path = lasting if os.path.exists(lasting) else paths.configuration
    configuration = _text(path)
    words = {f"--conf-file={path}"}
    process = next((found for found, argv in processes() if words.intersection(argv)), None)
    return Server(
        network=name,
        configuration=configuration,
        configuration_file=path,
        reservations=_text(paths.reservations),
        leases=tuple(_current(_dnsmasq.parse_leases(_text(paths.leases)))),
        lease_file=paths.leases,
        process=process,
        unit=_dhcp_unit.instance(name) if path == lasting else None,
        bridge=_dnsmasq.bridge_of(configuration),
    )


def _current(leases: t.Iterable[_dnsmasq.Lease]) -> t.Iterator[_dnsmasq.Lease]:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    for lease in leases:
        if lease.expires is None or lease.expires > now:
            yield lease


def holders(links: t.Mapping[str, Link]) -> dict[str, _tun.Holder]:
    """Who holds which tap."""
    taps = {name: link.carrier for name, link in links.items() if link.tun is not None}
    return _tun.holders(taps, [name for name, held in taps.items() if held]) if taps else {}


def rules(warn: t.Callable[[str], None]) -> t.Any:
    """The rules of the firewall; None when they cannot be seen."""
    from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _counted

    return _counted.read(warn)


def boot_files() -> dict[str, Files]:
    """What brings each network back."""
    found = {}
    for path in sorted(glob.glob(f"{_files.NETWORKS}/*/")):
        name = path.rstrip("/").rpartition("/")[2]
        unit = _unit.instance(name)
        enabled = os.path.lexists(f"{_files.WANTS}/{unit}")
        files = tuple(sorted(file for file in glob.glob(f"{glob.escape(path)}*") if os.path.isfile(file)))
        found[name] = Files(files, unit if enabled else None)
    return found


def moved_uplinks() -> dict[str, str]:
    """Bridge -> card, of every uplink that was moved for good."""
    from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _record

    found = {}
    for path in glob.glob(f"{_record.DIRECTORY}/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(path, encoding="utf-8") as file:
                stored = json.load(file)
            found[str(stored["bridge"])] = str(stored["interface"])
    return found


def forwarding() -> dict[int, t.Any]:
    """IP version -> whether the whole host forwards, and on which interfaces it does."""
    found = {}
    for version, switch in ((4, "ipv4/ip_forward"), (6, "ipv6/conf/all/forwarding")):
        interfaces = []
        for path in glob.glob(f"{_SYSCTL}/ipv{version}/conf/*/*forwarding"):
            interface, setting = path.split("/")[-2:]
            if setting in ("forwarding", "force_forwarding") and interface not in ("all", "default", "lo"):
                interfaces += [interface] * _is_on(path)
        found[version] = _is_on(f"{_SYSCTL}/{switch}"), sorted(set(interfaces))
    return found


def bridge_netfilter() -> list[int]:
    """The IP versions whose rules see what passes from port to port; none where br_netfilter is not loaded."""
    return [version for version, setting in _NETFILTER.items() if _is_on(f"{_SYSCTL}/bridge/{setting}")]


def service_manager() -> bool:
    """Whether systemd runs the host."""
    return _systemd.is_running()


def _is_on(path: str) -> bool:
    return _text(path).strip() not in ("", "0")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
