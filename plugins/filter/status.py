# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lab hosts as a table, and as drawings."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _mermaid, _svg, _table
from ansible_collections.labspan.vmnet.plugins.plugin_utils._view import Host, read_hosts


def vmnet_table(hosts: t.Any, width: int = 120, now: str = "") -> list[str]:
    """What the hosts hold, as lines of text."""
    return _answer("vmnet_table", hosts, lambda read: _table.table(read, int(width), str(now)))


def vmnet_mermaid(hosts: t.Any) -> str:
    """The topology of the hosts in the language of Mermaid."""
    return _answer("vmnet_mermaid", hosts, _mermaid.draw)


def vmnet_svg(hosts: t.Any, title: str = "") -> str:
    """The topology of the hosts as SVG."""
    return _answer("vmnet_svg", hosts, lambda read: _svg.draw(read, str(title)))


Shown = t.TypeVar("Shown")


def _answer(name: str, hosts: t.Any, show: t.Callable[[list[Host]], Shown]) -> Shown:
    try:
        return show(read_hosts(hosts))
    except ValueError as error:
        raise AnsibleFilterError(f"{name}: {error}") from error


class FilterModule:
    """Filters of labspan.vmnet."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"vmnet_mermaid": vmnet_mermaid, "vmnet_svg": vmnet_svg, "vmnet_table": vmnet_table}
