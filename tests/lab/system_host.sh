#!/bin/sh
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The steps of a system host's life: a Debian with systemd as its process 1, in a container of systemd-nspawn(1).
#
#   system_host.sh disk TREE                        in a mount namespace of the host's own: its disk, over TREE, at $root
#   system_host.sh boot NAME HOSTNAME OPTION...     there, in its network namespace: the container, on the disk
#   system_host.sh run TREE FILES NAME HOSTNAME UNIT...      in namespaces of its own: all of the above at once, for a lab;
#                                                            FILES is laid over its disk, the units are enabled
#   system_host.sh forget NAME                      anywhere, after its end: takes away what the container left

set -eu

# Everybody mounts at the same place, each in a mount namespace of its own.
here=/run/labspan-system
root=$here/root

# cgroups: the directories that hold the hierarchies which systemd sorts its processes in, whichever this machine has.
cgroups() {
    for directory in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ ! -e "$directory/cgroup.procs" ] || echo "$directory"
    done
}

# disk TREE
disk() {
    mkdir -p "$here" /run/systemd/nspawn
    mount -t tmpfs -o mode=755 tmpfs "$here"
    # The locks and mounts of nspawn are nobody else's.
    mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn
    # Overlayfs takes no commas and colons in paths; a bind mount has a plain one.
    mkdir "$here/tree" "$here/disk" "$here/work" "$root"
    mount --bind "$1" "$here/tree"
    mount -t overlay -o "lowerdir=$here/tree,upperdir=$here/disk,workdir=$here/work" overlay "$root"
}

# boot NAME HOSTNAME OPTION...
boot() {
    name=$1 hostname=$2
    shift 2
    set -- systemd-nspawn --quiet --boot --directory="$root" --machine="$name" --hostname="$hostname" \
        --network-namespace-path=/proc/self/ns/net --capability=CAP_NET_ADMIN,CAP_NET_RAW --bind=/dev/net/tun \
        --register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off --console=pipe "$@"
    # A container outlives its nspawn, but not a process 1 above it, which nspawn is made here.
    set -- unshare --pid --mount --fork --kill-child --mount-proc -- "$@"
    if [ -d /run/systemd/system ]; then
        set -- systemd-run --quiet --scope --collect --unit="$name" --property=Delegate=yes "$@"
    else
        # Nobody else gives it cgroups of its own, and two containers in the same ones would end each other's units.
        for directory in $(cgroups); do
            mkdir -p "$directory/$name"
            echo $$ >"$directory/$name/cgroup.procs"
        done
    fi
    # Without this, forwarding and all other settings of the network could only be read.
    export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
    exec "$@"
}

step=$1
shift
case $step in
    disk) disk "$@" ;;
    boot) boot "$@" ;;
    run)
        tree=$1 files=$2 name=$3 hostname=$4
        shift 4
        disk "$tree"
        cp -R --preserve=mode "$files/." "$root/"
        chroot "$root" systemctl --quiet enable "$@"
        echo ready
        boot "$name" "$hostname" >&2
        ;;
    forget)
        for directory in $(cgroups); do
            [ ! -d "$directory/$1" ] || find "$directory/$1" -depth -type d -exec rmdir {} +
        done
        ;;
    *) echo "system_host.sh: no step $step" >&2 && exit 2 ;;
esac
