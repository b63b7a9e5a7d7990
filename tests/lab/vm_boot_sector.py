# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_boot_sector.py BOOT CORE SECTOR DISK: put GRUB onto a disk with a GPT, as grub-install does it for a real one.

The boot sector goes in front of the partition table, and is told where the core begins; the core's first sector, which
reads the others, is told where they are (both have written there what is so on disks without a GPT).
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

SECTOR = 512
#: Of boot.img: the code before the disk's signature and partition table, and where it holds the first sector to read.
CODE, FIRST = 440, 0x5C
#: Of the core's first sector: where its list of sectors to read holds the first.
REST = SECTOR - 12


def main() -> int:
    """Write both."""
    boot, core = (bytearray(Path(path).read_bytes()) for path in sys.argv[1:3])
    first = int(sys.argv[3])
    struct.pack_into("<Q", boot, FIRST, first)
    struct.pack_into("<Q", core, REST, first + 1)
    with Path(sys.argv[4]).open("r+b") as disk:
        disk.write(boot[:CODE])
        disk.seek(first * SECTOR)
        disk.write(core)
    return 0


if __name__ == "__main__":
    sys.exit(main())
