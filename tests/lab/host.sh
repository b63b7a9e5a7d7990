#!/bin/sh
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# host.sh NAME TINY_GUEST_CACHE COMMAND...: process 1 of a lab host, in namespaces made for it. Gives the host files of its
# own where the collection writes, and becomes COMMAND.

set -eu
name=$1 cache=$2
shift 2

# Copies of the names of other network namespaces would keep those alive after their end.
while umount --lazy --recursive /run/netns 2>/dev/null; do :; done

mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/labspan /run/lock /run/netns /run/upper
mount -t tmpfs -o mode=700 tmpfs /run/upper

# over LOWER DIRECTORY: what is written to DIRECTORY stays in memory, and LOWER shows through.
layers=0
over() {
    layers=$((layers + 1))
    mkdir "/run/upper/$layers" "/run/upper/$layers.work" "/run/upper/$layers.lower"
    # Overlayfs takes no commas and colons in paths; a bind mount has a plain one.
    mount --bind "$1" "/run/upper/$layers.lower"
    mount -t overlay -o "lowerdir=/run/upper/$layers.lower,upperdir=/run/upper/$layers,workdir=/run/upper/$layers.work" \
        overlay "$2"
}

over /etc /etc
over /var/lib /var/lib
mkdir -p /var/lib/labspan
mount -t tmpfs -o mode=755 tmpfs /var/lib/labspan
if [ -d "$cache" ]; then
    mkdir /var/lib/labspan/tiny_guest
    over "$cache" /var/lib/labspan/tiny_guest
fi
umount --lazy /run/upper
rmdir /run/upper

hostname "$name"
echo "$name" >/etc/hostname
rm -f /etc/resolv.conf /etc/machine-id
# Nobody serves DNS there; the machine's own servers must not be asked.
echo "nameserver 192.0.2.1" >/etc/resolv.conf
printf 'labspan lab host %s' "$name" | md5sum | cut -c 1-32 >/etc/machine-id
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$name" >/etc/hosts
ip link set lo up

# Ignoring SIGCHLD makes the kernel reap orphans by itself: this is all that an init must do.
[ "$1" != sleep ] || echo ready
exec env --ignore-signal=CHLD "$@"
