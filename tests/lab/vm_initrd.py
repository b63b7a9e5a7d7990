# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_initrd.py TREE: write the initramfs for the kernel in a Debian tree to the standard output.

It loads the drivers of disks, mounts the file system that C(root=) names, and goes over to it. Debian's own is twenty
times its size, and takes minutes to make. Files that another archive behind this one brings at /files are put onto the
disk when it boots for the first time.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles" / "tiny_guest" / "files"))

import build_tiny_guest as tiny

#: In the order in which disks are looked for.
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "sd_mod", "ext4")
#: Parts of the kernel that hold these modules and what they depend on.
DIRECTORIES = ("arch/", "block/", "crypto/", "drivers/", "fs/", "lib/")

INIT = r"""#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /root
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
read -r cmdline </proc/cmdline
root= mode=ro
for word in $cmdline; do
    case $word in
        root=*) root=${word#root=} ;;
        rw) mode=rw ;;
    esac
done
while read -r module; do
    insmod "/modules/$module.ko"
done </modules/order
tries=0
while :; do
    case $root in
        LABEL=* | UUID=*) device=$(findfs "$root" 2>/dev/null) ;;
        *) device=$root ;;
    esac
    [ -n "$device" ] && [ -b "$device" ] && break
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ]; then
        echo "there is no $root among the disks:" && cat /proc/partitions
        poweroff -f
    fi
    usleep 100000
done
mount -t ext4 -o "$mode" "$device" /root || { echo "cannot mount $device" && poweroff -f; }
if [ -d /files ] && [ ! -e /root/var/lib/labspan-vm ]; then
    cp -a /files/. /root/ && touch /root/var/lib/labspan-vm && sync
fi
mount -o move /dev /root/dev
mount -o move /sys /root/sys
mount -o move /proc /root/proc
exec switch_root /root /sbin/init
"""


def main() -> int:
    """Build the archive."""
    tiny.MODULE_DIRECTORIES = DIRECTORIES
    kernel = tiny.kernel_from_tree(Path(sys.argv[1]))
    order = dict.fromkeys(
        module for driver in DRIVERS if driver in kernel.modules for module in tiny.load_order(driver, kernel.modules)
    )
    archive = tiny.Cpio()
    for path in ("bin", "dev", "modules"):
        archive.directory(path)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.file("init", INIT, 0o755)
    archive.file("bin/busybox", tiny.static_busybox(Path("/nonexistent")).image, 0o755)
    archive.file("modules/order", "".join(f"{name}\n" for name in order))
    for name in order:
        archive.file(f"modules/{name}.ko", kernel.modules[name].image)
    sys.stdout.buffer.write(archive.bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
