# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tiny guests as the hosts of a lab have them (C(lab.hosts.up(tiny_guest=True)))."""

from __future__ import annotations

import typing as t


def tiny_guest(name: str, *words: str) -> dict[str, t.Any]:
    """The options of one, which waits until it runs; the C(words) of its command line say what it does there."""
    cmdline = ["console=ttyS0", "no_timer_check", "quiet", "panic=1", f"labspan.hostname={name}", *words]
    return {
        "name": name,
        "memory": 128,
        "kernel": "/var/lib/labspan/tiny_guest/vmlinux",
        "initrd": "/var/lib/labspan/tiny_guest/initrd.img",
        "cmdline": " ".join(cmdline),
        "wait_for": "console",
        "console_pattern": "labspan: .* ready",
    }
