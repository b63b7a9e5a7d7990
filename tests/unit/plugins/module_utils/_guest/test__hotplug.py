# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _hotplug


@pytest.mark.parametrize(
    ("words", "head", "expected"),
    [
        ("user,id=net0", "type", {"type": "user", "id": "net0"}),
        (
            "virtio-net-pci,netdev=net1,mac=52:54:00:00:00:01,mq=on,vectors=6,romfile=",
            "driver",
            {
                "driver": "virtio-net-pci",
                "netdev": "net1",
                "mac": "52:54:00:00:00:01",
                "mq": True,
                "vectors": 6,
                "romfile": "",
            },
        ),
        (
            "driver=raw,node-name=image1,read-only=off,discard=unmap,file.driver=file,file.filename=/a,,b,,,,c",
            "driver",
            {
                "driver": "raw",
                "node-name": "image1",
                "read-only": False,
                "discard": "unmap",
                "file": {"driver": "file", "filename": "/a,b,,c"},
            },
        ),
    ],
)
def test_words_of_the_command_line_become_what_qemu_wants_in_json(
    words: str, head: str, expected: dict[str, t.Any]
) -> None:
    assert _hotplug.arguments(words, head=head) == expected
