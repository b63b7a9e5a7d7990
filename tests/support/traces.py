# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that the collection may leave on a lab host, looked at with other programs, to be compared."""

from __future__ import annotations

import concurrent.futures
import difflib
import pathlib
import re
import typing as t

from lab import hosts
from support.hosts import settle

#: What time and traffic alone change.
_CLOCKS = re.compile(r'"(valid_life_time|preferred_life_time|\w+_timer|packets|bytes)": ?[0-9.]+,? ?')


def dump(host: hosts.Host) -> dict[str, str]:
    """Links, addresses, routes, rules, firewall, settings, files and running programs, when they have settled."""
    commands = {
        "links": "ip -d -j address",
        "routes": "ip -j route show table all",
        "routes6": "ip -6 -j route show table all",
        "rules": "ip -j rule",
        "ports": "bridge -d -j link",
        "firewall": "nft -j list ruleset",
        "settings": "sysctl -a -r net.ipv[46].conf",
        "programs": "ps -e -o args=",
        "files": "find /etc /run/labspan /var/lib/labspan -path /var/lib/labspan/tiny_guest -prune -o -type f -print",
    }
    settle(host.run)
    elsewhere = _of_this_machine()
    found = {name: host.run(*command.split(), check=False).stdout for name, command in commands.items()}
    found = {name: _CLOCKS.sub("", text) for name, text in found.items()}
    # What looks at the host is there while it looks; the account of the guests, what is known of KVM, and how
    # the uplink's last move ended stay.
    found["programs"] = "\n".join(line for line in found["programs"].splitlines() if not line.startswith("ps "))
    stays = re.compile(
        r"/etc/(passwd|group|g?shadow|sub[ug]id)-?|/etc/\.pwd\.lock|/run/labspan/accelerator.json|/run/labspan/uplink/.*"
    )
    found["files"] = "\n".join(sorted(line for line in found["files"].splitlines() if not stays.fullmatch(line)))
    # This machine's /etc shows through, and other tests that run now may write there what theirs is called.
    elsewhere |= _of_this_machine()
    found["files"] = "\n".join(line for line in found["files"].splitlines() if line not in elsewhere)
    return found


def dumps(some: t.Sequence[hosts.Host]) -> dict[str, dict[str, str]]:
    """Those of many hosts by their names, taken at once."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip((host.name for host in some), pool.map(dump, some)))


def _of_this_machine() -> set[str]:
    return {str(path) for path in pathlib.Path("/etc").glob("*/*labspan*")}


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """What differs between dumps of hosts, in lines that a person can read."""
    found: list[str] = []
    for host in sorted({*before, *after}):
        for part, text in before.get(host, {}).items():
            lines = (_lines(text), _lines(after.get(host, {}).get(part, "")))
            found += [f"{host} {part}: {line}" for line in difflib.ndiff(*lines) if line[0] in "+-"]
    return found


def _lines(text: str) -> list[str]:
    return text.replace("},{", "},\n{").splitlines()
