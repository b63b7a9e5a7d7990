# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that brings a network up at boot, as a POSIX shell script: what needs neither Python nor Ansible.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

from ansible_collections.labspan.vmnet.plugins.module_utils._boot import _rules_script

PATH = "/usr/local/lib/labspan/network"

SCRIPT = r"""#!/bin/sh
# Made by labspan.vmnet, for labspan-network@.service. It needs ip, and where the files ask for them nft, bridge and
# iptables.
#
#   network up NAME      bring up what /etc/labspan/networks/NAME describes
#   network reload NAME  load its rules again
#   network down NAME    do nothing, since guests may be running on it
#
# What is there already is set to what the files say and not made again, so that guests do not notice.

set -u
action=${1-}
network=${2-}
directory=/etc/labspan/networks/$network
links=$directory/links
making=/run/labspan-network.$network.making
rules_program=@RULES_PROGRAM@
failed=0
patience=300

fail() {
    echo "labspan: network $network: $*" >&2
    failed=1
}

exists() {
    [ -d "/proc/sys/net/ipv4/conf/$1" ]
}

# ---- Rules of the firewall. They match interfaces by name, so that they can be there first.

load_rules() {
    for rules in "$directory"/*.nft; do
        [ -e "$rules" ] || continue
        nft -f "$rules" || { fail "the rules of $rules were not loaded"; return 1; }
    done
    for rules in "$directory"/rules.ip*tables-*; do
        [ -e "$rules" ] || continue
        "$rules_program" guard "$network" || { fail "its rules of iptables were not loaded"; return 1; }
        break
    done
}

# ---- Interfaces. Each line of the file links has the interface as its fourth word.

# The interfaces in what ip shows that have this in their line.
named() {
    sed -n "s/^[0-9]*: \([^:@]*\)[:@].*$1.*/\1/p" | tr '\n' ' '
}

# What has to be made, and what has the name of ours and is not ours.
look_around() {
    missing=" "
    halves=" "
    strangers=" "
    shown=$(ip -o link show)
    ours=" $(printf '%s\n' "$shown" | named ' alias labspan\.vmnet:')"
    marked=" $(printf '%s\n' "$shown" | named ' alias ')"
    # What a start that was ended in the middle was about to make.
    begun=" $(cat "$making" 2>/dev/null) "
    [ -e "$links" ] || return 0
    while IFS= read -r line; do
        case $line in
            "link add name "* | "tuntap add name "*) ;;
            *) continue ;;
        esac
        device=${line#* * * }
        device=${device%% *}
        if ! exists "$device"; then
            missing="$missing$device "
            continue
        fi
        case $ours in
            *" $device "*) continue ;;
        esac
        case $marked:$begun in
            *" $device "*:*) ;;
            *:*" $device "*)
                halves="$halves$device "
                continue
                ;;
        esac
        strangers="$strangers$device "
        echo "labspan: network $network: $device is there and not ours, and is left alone" >&2
    done < "$links"
}

# The lines of the file for one step: make, set or enable.
lines() {
    while IFS= read -r line; do
        case $line in
            "" | "#"*) continue ;;
        esac
        device=${line#* * * }
        device=${device%% *}
        case $strangers in
            *" $device "*) continue ;;
        esac
        case $line in
            "link add "* | "tuntap add "*) step="make" ;;
            "link set dev $device up") step="enable" ;;
            *) step="set" ;;
        esac
        [ "$step" = "$1" ] || continue
        if [ "$step" = make ]; then
            case $missing in
                *" $device "*) ;;
                *) continue ;;
            esac
        fi
        printf '%s\n' "$line"
    done < "$2"
}

run_lines() {
    lines "$1" "$links" | ip -force -batch - || fail "not everything could be done to $1 its interfaces"
}

# Bridges of the host's own, and ports that are not ours, may take their time to appear.
await() {
    while ! exists "$1"; do
        if [ "$patience" -le 0 ]; then
            fail "$1 is not there"
            return
        fi
        patience=$((patience - 1))
        sleep 0.1
    done
}

await_others() {
    while IFS= read -r line; do
        case $line in
            "link set dev "*" master "*) ;;
            *) continue ;;
        esac
        device=${line#* * * }
        await "${device%% *}"
        await "${line##* master }"
    done < "$links"
}

# Settings of the kernel, one "key = value" a line; with "made", only those of interfaces that were made just now.
write_settings() {
    [ -e "$2" ] || return 0
    while read -r key _ value; do
        key=${key#-}
        case $key in
            "" | "#"* | ";"*) continue ;;
        esac
        if [ "$1" = made ]; then
            device=${key#net/*/conf/}
            case $missing$halves in
                *" ${device%/*} "*) ;;
                *) continue ;;
            esac
        fi
        [ -e "/proc/sys/$key" ] || continue
        read -r have < "/proc/sys/$key"
        [ "$have" != "$value" ] || continue
        # Forwarding for all interfaces would become each one's own setting, and that of those that come later.
        others=
        if [ "$key" = net/ipv6/conf/all/forwarding ]; then
            others=$(grep -H . /proc/sys/net/ipv6/conf/*/forwarding | grep -v '/conf/all/')
        fi
        echo "$value" > "/proc/sys/$key" || fail "$key was not set to $value"
        for other in $others; do
            echo "${other##*:}" > "${other%:*}" || fail "${other%:*} was not put back"
        done
    done < "$2"
}

bring_up_links() {
    [ -e "$links" ] || return 0
    look_around
    [ "$missing$halves" = "  " ] || echo "$missing$halves" > "$making"
    run_lines make
    write_settings made "$directory/sysctl"
    await_others
    run_lines set
    if [ -e "$directory/vlans" ]; then
        lines set "$directory/vlans" | bridge -force -batch - || fail "not every VLAN could be set"
    fi
    run_lines enable
    rm -f "$making"
}

case $action in
    up)
        # Nothing is made that the rules would not guard.
        load_rules || exit 1
        bring_up_links
        write_settings all "$directory/forwarding"
        ;;
    reload)
        load_rules
        ;;
    down) ;;
    *)
        echo "usage: network up|reload|down NAME" >&2
        exit 2
        ;;
esac
exit "$failed"
""".replace("@RULES_PROGRAM@", _rules_script.PROGRAM)
