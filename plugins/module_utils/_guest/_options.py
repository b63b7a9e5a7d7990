# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The argument spec of qemu_guest.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _firmware, _seed, _spec, _vhost
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

DISK: Options = {
    "path": {"type": "str"},
    "size": {"type": "str"},
    "base_image": {"type": "str"},
    "base_format": {"type": "str", "choices": list(_spec.BASE_FORMATS)},
    "checksum": {"type": "str"},
    "format": {"type": "str", "choices": list(_spec.FORMATS)},
    "bus": {"type": "str", "choices": list(_spec.BUSES)},
    "read_only": {"type": "bool"},
    "media": {"type": "str", "choices": list(_spec.MEDIA)},
}

NIC: Options = {
    "tap": {"type": "str"},
    "bridge": {"type": "str"},
    "network": {"type": "str"},
    "user": {"type": "bool"},
    "mac": {"type": "str"},
    "model": {"type": "str", "choices": list(_spec.MODELS)},
    "queues": {"type": "int"},
    "vhost": {"type": "str", "choices": list(_vhost.CHOICES)},
    "link": {"type": "bool"},
}

CLOUD_INIT: Options = {
    "delivery": {"type": "str", "choices": list(_seed.DELIVERIES)},
    "user_data": {"type": "raw"},
    "meta_data": {"type": "raw"},
    "network_config": {"type": "raw"},
    "vendor_data": {"type": "raw"},
    "new_instance_on_change": {"type": "bool"},
    "seed_url": {"type": "str"},
    "datasource": {"type": "str", "choices": list(_seed.DATASOURCES)},
}

LIMITS: Options = {
    "cpu_quota": {"type": "int"},
    "cpu_weight": {"type": "int"},
    "memory_max": {"type": "str"},
    "io_weight": {"type": "int"},
    "cpu_affinity": {"type": "list", "elements": "int"},
}

#: The whole of it.
OPTIONS: Options = {
    "name": {"type": "str"},
    "state": {
        "type": "str",
        "choices": ["running", "stopped", "paused", "restarted", "absent"],
        "default": "running",
    },
    "memory": {"type": "str"},
    "cpus": {"type": "int"},
    "cpu_model": {"type": "str"},
    "machine": {"type": "str"},
    "architecture": {"type": "str"},
    "accelerator": {"type": "str", "choices": ["auto", "kvm", "tcg"]},
    "disks": {"type": "list", "elements": "dict", "options": DISK},
    "nics": {"type": "list", "elements": "dict", "options": NIC},
    "firmware": {"type": "str", "choices": list(_firmware.CHOICES)},
    "secure_boot": {"type": "bool"},
    "firmware_code": {"type": "str"},
    "firmware_variables": {"type": "str"},
    "cloud_init": {"type": "dict", "options": CLOUD_INIT},
    "tpm": {"type": "bool"},
    "limits": {"type": "dict", "options": LIMITS},
    "hugepages": {"type": "bool"},
    "labels": {"type": "dict"},
    "kernel": {"type": "str"},
    "initrd": {"type": "str"},
    "cmdline": {"type": "str"},
    "boot_order": {"type": "list", "elements": "str", "choices": ["disk", "cdrom", "network"]},
    "console": {"type": "bool"},
    "guest_agent": {"type": "bool"},
    "balloon": {"type": "bool"},
    "display": {"type": "str", "choices": ["none", "vnc"]},
    "user": {"type": "str"},
    "sandbox": {"type": "bool"},
    "service_manager": {"type": "str", "choices": ["auto", "systemd", "none"]},
    "autostart": {"type": "bool"},
    "network": {"type": "str"},
    "extra_args": {"type": "list", "elements": "str"},
    "restart": {"type": "str", "choices": ["never", "if_needed"], "default": "never"},
    "shutdown_timeout": {"type": "float"},
    "live_timeout": {"type": "float", "default": 20.0},
    "force": {"type": "bool", "default": False},
    "remove_disks": {"type": "bool", "default": False},
    "wait_for": {"type": "str", "choices": list(_spec.WAIT_FOR), "default": "qmp"},
    "console_pattern": {"type": "str"},
    "wait_timeout": {"type": "float", "default": 120.0},
}
