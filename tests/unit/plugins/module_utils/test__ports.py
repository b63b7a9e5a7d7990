# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses of sockets are read as the kernel prints them, and processes are called by their command line."""

from __future__ import annotations

import os
import sys

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils import _ports


@pytest.mark.skipif(sys.byteorder != "little", reason="the words below are in the byte order of little endian machines")
@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("00000000", "0.0.0.0"),
        ("0108610A", "10.97.8.1"),
        ("00000000000000000000000000000000", "::"),
        ("000009FD000000000000000001000000", "fd09::1"),
    ],
)
def test_addresses_are_words_in_the_byte_order_of_the_machine(words: str, address: str) -> None:
    assert str(_ports._decode(words)) == address


def test_a_process_is_named_by_its_command_line() -> None:
    process = _ports.identify(os.getpid())
    assert process is not None
    assert _ports.name_process(process).endswith(f"(pid {os.getpid()})")
    assert _ports.name_process(type(process)(2**22 + 1, 1)).startswith("a process that just ended")
