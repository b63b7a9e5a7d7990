# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The argument spec of dhcp_server.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

_RANGE: Options = {"start": {"type": "str", "required": True}, "end": {"type": "str", "required": True}}

OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "bridge": {"type": "str"},
    "range": {"type": "dict", "options": _RANGE},
    "ranges": {"type": "list", "elements": "dict", "options": _RANGE},
    "lease_time": {"type": "str"},
    "leases": {
        "type": "list",
        "elements": "dict",
        "options": {"mac": {"type": "str", "required": True}, "address": {"type": "str"}, "name": {"type": "str"}},
    },
    "dns": {"type": "bool"},
    "dns_servers": {"type": "list", "elements": "str"},
    "domain": {"type": "str"},
    "gateway": {"type": "str"},
    "router_advertisements": {"type": "bool"},
    "ipv6_default_route": {"type": "bool"},
    "options": {"type": "list", "elements": "str"},
    "log_dhcp": {"type": "bool"},
    "log_queries": {"type": "bool"},
    "persistent": {"type": "str", "choices": ["auto", "true", "false"]},
    "service_manager": {"type": "str", "choices": ["auto", "systemd", "none"]},
}
