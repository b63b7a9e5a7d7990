# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The argument spec of tap_device.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

_VLANS: Options = {
    "id": {"type": "str", "required": True},
    "pvid": {"type": "bool"},
    "untagged": {"type": "bool"},
}

OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "network": {"type": "str"},
    "bridge": {"type": "str"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "multi_queue": {"type": "bool"},
    "vnet_hdr": {"type": "bool"},
    "enabled": {"type": "bool"},
    "mtu": {"type": "int"},
    "mac_address": {"type": "str"},
    "isolated": {"type": "bool"},
    "learning": {"type": "bool"},
    "flooding": {"type": "bool"},
    "hairpin": {"type": "bool"},
    "bpdu_guard": {"type": "bool"},
    "vlans": {"type": "list", "elements": "dict", "options": _VLANS},
    "alias": {"type": "str"},
    "recreate": {"type": "str", "choices": ["never", "if_needed", "always"]},
    "adopt": {"type": "bool"},
    "force": {"type": "bool"},
    "persistent": {"type": "str", "choices": ["auto", "true", "false"]},
}
