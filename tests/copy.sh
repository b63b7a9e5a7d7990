#!/usr/bin/env bash
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Copies what git knows or would add, and nothing else, to an empty directory:
#
#   tests/copy.sh DIRECTORY

set -euo pipefail
destination=$(realpath --canonicalize-missing "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rm -rf "$destination"
mkdir -p "$destination"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file" # deleted, and not committed yet
done | xargs -0 cp --parents --no-dereference --target-directory="$destination"
