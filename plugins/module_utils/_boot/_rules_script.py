# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program and the units that load the networks' rules at boot, and again when somebody has flushed them. Text only.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

PROGRAM = "/usr/local/lib/labspan/rules"
SERVICE = "labspan-rules.service"
CHECK = "labspan-rules-check.service"

SCRIPT = r"""#!/bin/sh
# The firewall rules of the networks: loads what is missing of them. Made by labspan.vmnet; the next run writes it anew.
#
#   rules load             load what is missing, now
#   rules guard NETWORK    the same for the chains that guard one network, before its interfaces are made
#   rules check            load, once no task of labspan.vmnet is under way
#   rules watch            check now, and whenever the firewall changes
#
# What there is to load stands in /etc/labspan/networks/NETWORK/:
#   *.nft              tables of nftables, each as three lines: table, delete table, and what it holds
#   rules.PROGRAM      chains of iptables, where PROGRAM (iptables-legacy, ip6tables-nft, ...) holds the network's rules
#   accept.PROGRAM     chains that are needed only where somebody else has the chain that they are called from
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

networks=/etc/labspan/networks
failed=0

say() {
    echo "$*" >&2
}

# The tables that a file declares, as FAMILY NAME.
declared() {
    sed -n 's/^table \([^ {]*\) \([^ {]*\)$/\1 \2/p' "$1"
}

# What a file holds of one table.
section() {
    awk -v key="table $2" '/^table [^ {]+ [^ {]+$/ { on = ($0 == key) } on' "$1"
}

# Whether a table that is there has lost its rules; looked at only when something was heard that hints at it.
emptied() {
    case $heard in
        all | *"delete rule $1 "* | *"delete chain $1 "*) ;;
        *) return 1 ;;
    esac
    # shellcheck disable=SC2086 # two words
    ! nft list table $1 2>/dev/null | grep -qF '"labspan.vmnet:'
}

load_tables() {
    live=$(nft list tables) || { failed=1; return; }
    for file in "$networks"/*/*.nft; do
        [ -f "$file" ] || continue
        lost=
        while read -r key; do
            [ -n "$key" ] || continue
            if ! printf '%s\n' "$live" | grep -qxF "table $key" || emptied "$key"; then
                lost="$lost
$key"
            fi
        done <<END
$(declared "$file")
END
        [ -n "$lost" ] || continue
        if printf '%s\n' "$lost" | while read -r key; do
            [ -z "$key" ] || section "$file" "$key"
        done | nft -f -; then
            say "loaded from $file:$(echo "$lost" | tr '\n' ';')"
        else
            say "could not load from $file:$(echo "$lost" | tr '\n' ';')"
            failed=1
        fi
    done
}

# The program that is asked for, by its own name or as the host's default.
find_program() {
    command -v "$1" && return
    case $1 in
        *-restore) plain=${1%%-*}-restore ;;
        *) plain=${1%%-*} ;;
    esac
    case $("$plain" --version 2>/dev/null) in
        *legacy*) default=legacy ;;
        *nf_tables*) default=nft ;;
        *) return ;;
    esac
    case $1 in
        *-"$default" | *-"$default"-restore) echo "$plain" ;;
    esac
}

# Whether somebody has the chain; asked in a way that makes nothing.
has_chain() {
    case $name in
        iptables-nft) nft list chain ip "$table" "$1" ;;
        ip6tables-nft) nft list chain ip6 "$table" "$1" ;;
        iptables-legacy) grep -xF "$table" /proc/net/ip_tables_names && "$program" -w -t "$table" -n -L "$1" ;;
        ip6tables-legacy) grep -xF "$table" /proc/net/ip6_tables_names && "$program" -w -t "$table" -n -L "$1" ;;
    esac >/dev/null 2>&1
}

# Puts one file of iptables in force, unless all jumps to its chains are where they belong.
load_chains() {
    file=$1
    name=${file##*/}
    kind=${name%%.*}
    name=${name#*.}
    program=$(find_program "$name")
    restore=$(find_program "$name-restore")
    if [ -z "$program" ] || [ -z "$restore" ]; then
        say "$file: this host has no $name"
        failed=1
        return
    fi
    table='' there='' skip='' missing=''
    while read -r word rest; do
        case $word in
            \**) table=${word#?} ;;
            -I)
                chain=${rest%% *}
                if ! has_chain "$chain"; then
                    case $kind in
                        accept) skip="$skip $table" ;;
                        *) missing=yes ;;
                    esac
                    continue
                fi
                # shellcheck disable=SC2086 # words without spaces
                if "$program" -w -t "$table" -C "$chain" ${rest#* 1 } >/dev/null 2>&1; then
                    there="$there
$word $rest"
                else
                    missing=yes
                fi
                ;;
        esac
    done <"$file"
    [ -n "$missing" ] || return
    if awk -v skip=" $skip " -v there="$there" '
        BEGIN { n = split(there, lines, "\n"); for (i = 1; i <= n; i++) known[lines[i]] = 1 }
        /^\*/ { off = index(skip, " " substr($0, 2) " ") }
        !off && !/^#/ && !($0 in known)
    ' "$file" | "$restore" -w --noflush; then
        say "loaded $file"
    else
        say "could not load $file"
        failed=1
    fi
}

# Loads what is missing. What is heard of the firewall tells which tables that are there may be empty.
# One at a time: at boot the networks' own units do it, too, and two would both find the same chain missing.
load() (
    flock 8
    heard=$1
    if command -v nft >/dev/null; then
        load_tables
    fi
    for file in "$networks"/*/rules.ip*tables-* "$networks"/*/accept.ip*tables-*; do
        [ ! -f "$file" ] || load_chains "$file"
    done
    exit "$failed"
) 8<"$0"

# Loads the chains without which a network is open. Those that accept for it elsewhere can come later.
guard() (
    flock 8
    for file in "$networks/$1"/rules.ip*tables-*; do
        [ ! -f "$file" ] || load_chains "$file"
    done
    exit "$failed"
) 8<"$0"

# Tasks of labspan.vmnet hold this lock. Whoever removes a network removes first the file, then the table.
check() (
    flock -w 300 9 || say "a task of labspan.vmnet takes very long; looking all the same"
    load "$1"
) 9</proc/self/ns/net

# Waits until the monitor, which has this number, is told of changes.
await_monitor() {
    tries=0
    until awk -v pid="$1" '$2 == 12 && $3 == pid && $4 !~ /^0*$/ { ok = 1 } END { exit !ok }' /proc/net/netlink; do
        tries=$((tries + 1))
        if [ "$tries" -ge 600 ] || ! kill -0 "$1" 2>/dev/null; then break; fi
        sleep 0.1
    done
}

watch() {
    if ! command -v nft >/dev/null; then
        say "this host has no nft, whose monitor tells of changes; nothing is watched"
        check all
        exec sleep infinity
    fi
    pipe=${RUNTIME_DIRECTORY:?is given by the unit}/events
    rm -f "$pipe"
    mkfifo -m 0600 "$pipe"
    nft monitor >"$pipe" &
    monitor=$!
    # What was added in tables of ours is nobody's concern; a chain or table of others may be one that wants an accept.
    grep --line-buffered -E '^(delete (table|chain|rule)|add (table|chain)|# ERROR)' <"$pipe" | {
        await_monitor "$monitor"
        check all
        # One read takes all that has come meanwhile, and after each one there is a look: nothing is missed.
        while heard=$(dd bs=65536 count=1 2>/dev/null) && [ -n "$heard" ]; do
            sleep 0.2
            case $heard in
                *"# ERROR"*) heard=all ;;
            esac
            check "$heard"
        done
    }
    say "nft monitor has ended"
    exit 1
}

case ${1-} in
    load) load all ;;
    guard) guard "${2:?names the network}" ;;
    check) check all ;;
    watch) watch ;;
    *) say "usage: rules load|guard NETWORK|check|watch"; exit 2 ;;
esac
"""

#: Who may have the host's rules, and flush what is there when they start.
MANAGERS = "nftables.service ufw.service firewalld.service iptables.service netfilter-persistent.service"

UNITS = {
    SERVICE: f"""\
# Made by labspan.vmnet; the next run writes it anew.
[Unit]
Description=Firewall rules of the networks of labspan.vmnet
Documentation=file://{PROGRAM}
After=network-pre.target systemd-modules-load.service {MANAGERS}
Before=docker.service network-online.target
# A manager that restarts may flush what is not its own; the watch sees that. It must not go down with the manager.
ReloadPropagatedFrom={MANAGERS}
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStartPre={PROGRAM} load
ExecStart={PROGRAM} watch
ExecReload={PROGRAM} check
Restart=always
RestartSec=1
RuntimeDirectory=labspan-rules
RuntimeDirectoryMode=0700
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_MODULE
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_NETLINK AF_INET AF_INET6 AF_UNIX

[Install]
WantedBy=multi-user.target
""",
    CHECK: f"""\
# Made by labspan.vmnet; the next run writes it anew.
# Runs whenever Docker has started: the legacy tables of iptables tell nobody of their changes.
[Unit]
Description=Look after the rules of the networks of labspan.vmnet
After={SERVICE} docker.service

[Service]
Type=oneshot
ExecStart={PROGRAM} check
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_MODULE
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=docker.service
""",
}
