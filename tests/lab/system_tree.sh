#!/usr/bin/env bash
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# system_tree.sh OUTPUT: the Debian tree that all system hosts lie over, at OUTPUT/tree. It is this machine's own release,
# from the machine's own apt sources. Every manager of networks is installed and none is enabled: a host says which it has.
# What guests need is there, too.
#
# It is made anew, beside the old one, when this file has changed. Hosts that run on the old one keep it until the next
# time. Needs root, mmdebstrap, and 800 MB.

set -euo pipefail

readonly output=$1
# shellcheck source=/dev/null
. /etc/os-release

packages=(
    # the system
    systemd systemd-sysv systemd-resolved libpam-systemd dbus udev
    python3 python3-pyroute2
    # managers of networks and their DHCP clients
    network-manager ifupdown netplan.io isc-dhcp-client dhcpcd-base
    # firewalls
    nftables iptables ufw firewalld
    # tools
    openssh-server dnsmasq-base conntrack iproute2 iputils-ping procps socat ethtool
    # guests
    qemu-system-x86 qemu-utils genisoimage ovmf swtpm swtpm-tools
)

disabled=(
    NetworkManager NetworkManager-dispatcher NetworkManager-wait-online
    systemd-networkd systemd-networkd.socket systemd-networkd-wait-online systemd-network-generator systemd-resolved
    networking nftables ufw firewalld ssh
)

# What waits for the world, asks it something, or wants a terminal.
masked=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-timesyncd.service console-getty.service getty.target
)

say() { printf '%s\n' "system tree: $*"; }

# sources: the machine's sources of its own release, in one form, however they are written down; others are left out.
sources() {
    apt-get indextargets --format "\$(ORIGIN)|\$(CODENAME)|\$(REPO_URI) \$(RELEASE) \$(COMPONENT)" "Created-By: Packages" |
        awk -F'|' -v origin="$ID" -v codename="$VERSION_CODENAME" \
            'tolower($1) == origin && ($2 == codename || index($2, codename "-") == 1) { print "deb " $3 }' | sort -u
}

mkdir -p "$output"
exec 9>"$output/lock"
flock 9

recipe="$VERSION_CODENAME $(sha256sum <"${BASH_SOURCE[0]}")"
if [ "$(cat "$output/made_from" 2>/dev/null)" = "$recipe" ]; then
    exit 0
fi

[ -n "$(sources)" ] || apt-get update --quiet=2
[ -n "$(sources)" ] || {
    say "apt has no source of $ID $VERSION_CODENAME here, which the tree would be made from" >&2
    exit 1
}

say "making $output/tree ($ID $VERSION_CODENAME), which takes a minute or two"
rm -rf "$output/new" "$output/old"

arguments=(--mode=root --variant=minbase --format=directory --include="${packages[*]}")
for directory in doc man locale info lintian; do
    arguments+=(--dpkgopt="path-exclude=/usr/share/$directory/*")
done
# As the machine gets through to its mirror, the tree's apt does.
while read -r option; do
    arguments+=(--aptopt="$option")
done < <(apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-)')

if ! sources | mmdebstrap "${arguments[@]}" "$VERSION_CODENAME" "$output/new" - >"$output/log" 2>&1; then
    tail --lines=20 "$output/log" >&2
    say "mmdebstrap failed; all that it said is in $output/log" >&2
    exit 1
fi

{
    systemctl --root="$output/new" disable "${disabled[@]}"
    systemctl --root="$output/new" mask "${masked[@]}"
} >>"$output/log" 2>&1
# The journal of every boot stays, so that a test can show what happened before a reboot.
mkdir -p "$output/new/var/log/journal"
# A host gets its own.
rm -f "$output/new/etc/hostname" "$output/new/etc/resolv.conf" "$output/new"/var/lib/systemd/random-seed
: >"$output/new/etc/machine-id"

rm -f "$output/made_from"
if [ -e "$output/tree" ]; then
    mv "$output/tree" "$output/old"
fi
mv "$output/new" "$output/tree"
printf '%s\n' "$recipe" >"$output/made_from"
