#!/usr/bin/env bash
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# vm_image.sh host|guest OUTPUT [SYSTEM]: a Debian as a disk for QEMU, made in OUTPUT/host or OUTPUT/guest: disk.qcow2, and
# vmlinuz and initrd.img, with which it boots without a boot loader.
#
#   host   a VM host: the tree of the system hosts, which system_tree.sh keeps in SYSTEM, and Debian's kernel for clouds
#   guest  what a distributor calls a cloud image: cloud-init, sshd, the guest agent, and that kernel. It boots by itself,
#          too, by BIOS and by UEFI; its root file system is partition 1, the last on the disk, so that it can grow
#
# It is made anew, beside the old one, when what it is made from has changed. Guests that run on the old one keep it until
# the next time. Needs root, mmdebstrap, qemu-img, busybox-static, and 1.5 GB.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here kind=$1 output=$2/$1 system=${3:-}
# shellcheck source=/dev/null
. /etc/os-release

readonly kernel=linux-image-cloud-amd64 label=labspan-root cmdline="rw console=ttyS0 no_timer_check net.ifnames=0 quiet"
packages=(
    systemd systemd-sysv libpam-systemd dbus udev kmod
    cloud-init cloud-guest-utils openssh-server qemu-guest-agent
    python3 iproute2 iputils-ping procps ethtool sudo socat
    # how it boots
    grub-common grub-pc-bin grub-efi-amd64-bin fdisk dosfstools mtools
)
masked=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-timesyncd.service systemd-networkd-wait-online.service getty@tty1.service grub-common.service
)

say() { printf '%s\n' "VM image: $*"; }

# sources: the machine's sources of its own release, in one form, however they are written down; others are left out.
sources() {
    apt-get indextargets --format "\$(ORIGIN)|\$(CODENAME)|\$(REPO_URI) \$(RELEASE) \$(COMPONENT)" "Created-By: Packages" |
        awk -F'|' -v origin="$ID" -v codename="$VERSION_CODENAME" \
            'tolower($1) == origin && ($2 == codename || index($2, codename "-") == 1) { print "deb " $3 }' | sort -u
}

# unpack PACKAGE: its files alone; what it wants to be done when it is installed is not done.
unpack() {
    (
        cd "$work"
        apt-get --quiet=2 download "$1"
        dpkg-deb --fsys-tarfile "$1"_*.deb | tar --extract --keep-directory-symlink --directory="$tree"
        rm -f "$1"_*.deb
    )
}

# inside COMMAND...: in the tree, with our directory at /mnt.
inside() {
    # shellcheck disable=SC2016  # the inner shell's
    unshare --mount -- sh -c 'mount --bind "$1" "$2/mnt" && shift && exec chroot "$@"' inside "$work" "$tree" "$@"
}

tree_of_guest() {
    local arguments=(--mode=root --variant=minbase --format=directory --include="${packages[*]}") directory option
    for directory in doc man locale info lintian; do
        arguments+=(--dpkgopt="path-exclude=/usr/share/$directory/*")
    done
    # As the machine gets through to its mirror, the tree's apt does.
    while read -r option; do
        arguments+=(--aptopt="$option")
    done < <(apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-)')
    sources | mmdebstrap "${arguments[@]}" "$VERSION_CODENAME" "$tree" -
    # As it comes, cloud-init asks every cloud there is; and what takes long without KVM and serves no test is left out.
    echo "datasource_list: [NoCloud, None]" >"$tree/etc/cloud/cloud.cfg.d/90_dpkg.cfg"
    cat >"$tree/etc/cloud/cloud.cfg.d/90_labspan.cfg" <<'END'
ssh_genkeytypes: [ed25519]
cloud_config_modules: [set-passwords, timezone, runcmd]
cloud_final_modules: [scripts-vendor, scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user, phone-home,
  final-message, power-state-change]
END
    systemctl --root="$tree" mask "${masked[@]}"
    systemctl --root="$tree" enable systemd-networkd ssh
}

tree_of_host() {
    cp --archive "$system/tree" "$tree"
    unpack kmod
    systemctl --root="$tree" mask getty@tty1.service
    systemctl --root="$tree" enable ssh
}

# What is a machine's own goes.
settle() {
    rm -f "$tree"/etc/hostname "$tree"/etc/resolv.conf "$tree"/var/lib/systemd/random-seed "$tree"/etc/ssh/ssh_host_*
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*
    : >"$tree/etc/machine-id"
    mkdir -p "$tree/var/log/journal"
    echo "LABEL=$label / ext4 defaults 0 0" >"$tree/etc/fstab"
}

add_kernel() {
    local version
    unpack "$(apt-cache depends --important "$kernel" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')"
    version=$(basename "$tree"/boot/vmlinuz-*)
    version=${version#vmlinuz-}
    chroot "$tree" depmod "$version"
    python3 "$here/vm_initrd.py" "$tree" >"$tree/boot/initrd.img-$version"
    cp "$tree/boot/vmlinuz-$version" "$output/new/vmlinuz"
    cp "$tree/boot/initrd.img-$version" "$output/new/initrd.img"
    mkdir -p "$tree/boot/grub"
    printf '%s\n' "linux /boot/vmlinuz-$version root=LABEL=$label $cmdline" "initrd /boot/initrd.img-$version" boot \
        >"$tree/boot/grub/grub.cfg"
}

# grub FORMAT OUTPUT MODULE...: a GRUB that finds its configuration by the label of the file system.
grub() {
    local format=$1 target=$2
    shift 2
    # shellcheck disable=SC2016  # GRUB's variable
    printf 'search.fs_label %s root\nset prefix=($root)/boot/grub\nconfigfile /boot/grub/grub.cfg\n' "$label" >"$work/early.cfg"
    inside grub-mkimage --format="$format" --prefix=/boot/grub --config=/mnt/early.cfg --output="/mnt/$target" \
        part_gpt ext2 search search_label normal configfile linux serial terminal "$@"
}

disk_of_guest() {
    local sectors=$((2 * 1024 * 1024 * 2)) root=18432
    truncate --size="$((sectors * 512))" "$work/disk"
    # For GRUB, for UEFI, and the root file system.
    printf '%s\n' "label: gpt" "first-lba: 34" \
        "14: start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649" \
        "15: start=2048, size=16384, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B" \
        "1: start=$root, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4" | inside sfdisk --quiet /mnt/disk
    grub i386-pc core.img biosdisk
    grub x86_64-efi bootx64.efi
    python3 "$here/vm_boot_sector.py" "$tree/usr/lib/grub/i386-pc/boot.img" "$work/core.img" 34 "$work/disk"
    truncate --size=8M "$work/esp"
    inside mkfs.vfat /mnt/esp
    inside mmd -i /mnt/esp ::EFI ::EFI/BOOT
    inside mcopy -i /mnt/esp /mnt/bootx64.efi ::EFI/BOOT/BOOTX64.EFI
    dd if="$work/esp" of="$work/disk" bs=512 seek=2048 conv=notrunc status=none
    # The other half of the partition table is at the end of the disk.
    mke2fs -q -t ext4 -L "$label" -d "$tree" -E "offset=$((root * 512))" "$work/disk" "$(((sectors - root - 2048) / 2))k"
}

disk_of_host() {
    truncate --size=8G "$work/disk"
    mke2fs -q -t ext4 -L "$label" -d "$tree" "$work/disk"
}

make() {
    "tree_of_$kind"
    settle
    add_kernel
    "disk_of_$kind"
    qemu-img convert -f raw -O qcow2 "$work/disk" "$output/new/disk.qcow2"
}

mkdir -p "$output"
exec 9>"$output/lock"
flock 9

recipe="$VERSION_CODENAME $(cat "$here/vm_image.sh" "$here/vm_initrd.py" "$here/vm_boot_sector.py" | sha256sum)"
if [ "$kind" = host ]; then
    "$here/system_tree.sh" "$system"
    recipe="$recipe $(cat "$system/made_from")"
fi
if [ "$(cat "$output/made_from" 2>/dev/null)" = "$recipe" ]; then
    exit 0
fi

[ -n "$(sources)" ] || apt-get update --quiet=2
[ -n "$(sources)" ] || {
    say "apt has no source of $ID $VERSION_CODENAME here, which the image would be made from" >&2
    exit 1
}

say "making $output ($ID $VERSION_CODENAME), which takes about a minute"
rm -rf "$output/new" "$output/old" "$output/work"
mkdir -p "$output/new" "$output/work"
work=$output/work
tree=$work/tree
set +e # a condition would switch it off inside, too
(set -e && make) >"$output/log" 2>&1
status=$?
set -e
if [ "$status" -ne 0 ]; then
    tail --lines=20 "$output/log" >&2
    say "it failed; all that was said is in $output/log" >&2
    exit 1
fi
rm -rf "$work" "$output/made_from"
mkdir "$output/old"
for file in vmlinuz initrd.img disk.qcow2; do
    [ ! -e "$output/$file" ] || mv "$output/$file" "$output/old/$file"
    mv "$output/new/$file" "$output/$file"
done
rmdir "$output/new"
printf '%s\n' "$recipe" >"$output/made_from"
