#!/usr/bin/env bash
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes a checkout ready to run: Debian packages that are missing, one virtual environment for each controller, the
# collection's place in a collections tree, and the Debian of the tests' system hosts. Does only what is not done yet, so
# it may run before every command.
#
#   tests/setup.sh quickstart   what `make quickstart` needs
#   tests/setup.sh              that, and what the tests and linters need

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly requirements=tests/requirements
readonly environments=.venv

say() { printf '%s\n' "setup: $*"; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        say "this needs root, and there is no sudo: $*" >&2
        return 1
    fi
}

# lines FILE...: what the files list, without comments.
lines() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$@"; }

# packages FILE...: install the Debian packages of the lists that are missing.
packages() {
    local package missing=()
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system; make sure that you have what these packages carry: $(lines "$@" | xargs)"
        return
    fi
    for package in $(lines "$@"); do
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing the Debian packages ${missing[*]}"
    if [[ " ${missing[*]} " = *" openssh-server "* && -d /run/systemd/system ]]; then
        say "of openssh-server the tests need the program alone: its service is masked (systemctl unmask ssh)"
        as_root systemctl --quiet mask ssh.service ssh.socket
    fi
    as_root apt-get update --quiet=2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# runs VERSION COMMAND: the real path of the interpreter, if COMMAND runs (a version manager's shim may not) and is VERSION.
runs() {
    "$2" -c '
import sys, ensurepip, venv
if "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))' "$1" 2>/dev/null
}

# find_pythons: link every Python that runs here as .build/pythons/python3.N, where ansible-test finds it too.
find_pythons() {
    local version candidate path
    mkdir -p .build/pythons
    for version in 3.9 3.10 3.11 3.12 3.13; do
        [ ! -x ".build/pythons/python$version" ] || continue
        for candidate in "python$version" "/usr/bin/python$version" python3 \
            "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            if path=$(runs "$version" "$candidate"); then
                ln -sfn "$path" ".build/pythons/python$version"
                break
            fi
        done
    done
}

# environment NAME "VERSION..." FILE...: a virtual environment on the first of the Pythons that is there, with the
# requirements of the files. Each file that was installed leaves its checksum. Returns 1 when none of the Pythons is
# there; every other failure ends the script.
environment() {
    local directory=$environments/$1 version file stamp checksum
    local name=$1 versions=$2
    shift 2
    if [ ! -x "$directory/bin/pip" ]; then
        for version in $versions; do
            if [ -x ".build/pythons/python$version" ]; then
                say "making $directory on Python $version"
                ".build/pythons/python$version" -m venv --clear "$directory" || exit
                break
            fi
        done
    fi
    [ -x "$directory/bin/pip" ] || return 1
    for file in "$@"; do
        stamp=$directory/installed-$file.sha256
        checksum=$(sha256sum "$requirements/$file.txt")
        [ "$(cat "$stamp" 2>/dev/null)" != "$checksum" ] || continue
        say "installing $requirements/$file.txt into $directory"
        "$directory/bin/pip" --quiet --disable-pip-version-check install --requirement "$requirements/$file.txt" || exit
        printf '%s\n' "$checksum" >"$stamp"
    done
    ready+=("$name")
}

core_219() { environment core-2.19 "3.11 3.12 3.13" core-2.19 "$@"; }
core_221() { environment core-2.21 "3.12 3.13" core-2.21 "$@"; }

# newest CORE: make .venv/newest mean this environment.
newest() { [ "$(readlink "$environments/newest")" = "$1" ] || ln -sfn "$1" "$environments/newest"; }

# newest_controller FILE...: the newest ansible-core that a Python here can run, and .venv/newest for it.
newest_controller() {
    if core_221 "$@"; then
        newest core-2.21
    elif core_219 "$@"; then
        newest core-2.19
        say "no Python 3.12 or 3.13 here, so ansible-core 2.21 is left out and everything runs on 2.19 alone"
    else
        say "no Python from 3.11 to 3.13 here: ansible-core has nothing to run on" >&2
        return 1
    fi
}

ready=()
case "${1:-all}" in
    quickstart) packages "$requirements/system.txt" ;;
    all) packages "$requirements/system.txt" "$requirements/system-test.txt" ;;
    *) say "unknown argument '$1'; give quickstart or nothing" >&2 && exit 2 ;;
esac

mkdir -p .build/collections/ansible_collections/labspan
[ -e .build/collections/ansible_collections/labspan/vmnet ] ||
    ln -sfn ../../../.. .build/collections/ansible_collections/labspan/vmnet

find_pythons
if [ "${1:-all}" = quickstart ]; then
    newest_controller
else
    newest_controller test lint
    core_219 test || say "no Python from 3.11 to 3.13 here, so ansible-core 2.19 is left out"
    environment oldest "3.9 3.10 3.11 3.12 3.13" oldest
    if command -v mmdebstrap >/dev/null && command -v systemd-nspawn >/dev/null; then
        as_root tests/lab/system_tree.sh .build/system_host
    else
        say "no mmdebstrap or no systemd-nspawn here, so the tests on hosts with systemd are left out"
    fi
fi
say "ready: $(printf '%s\n' "${ready[@]}" | sort -u | xargs)"
