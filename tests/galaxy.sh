#!/usr/bin/env bash
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Builds the collection's tarball and has galaxy-importer judge it as Galaxy would.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$PWD/.build/galaxy
mkdir -p .build
exec 9>.build/galaxy.lock
flock 9 # another run would take the directory away

rm -rf "$work"
tests/copy.sh "$work/source"

# The importer demands an address that the collection does not have yet.
grep -q '^repository:' "$work/source/galaxy.yml" || echo 'repository: https://example.invalid/' >>"$work/source/galaxy.yml"

cd "$work"
ansible-galaxy collection build --output-path . source >build.log
printf '%s\n' '[galaxy-importer]' 'RUN_ANSIBLE_TEST = false' 'RUN_ANSIBLE_LINT = false' >galaxy-importer.cfg
export GALAXY_IMPORTER_CONFIG=$work/galaxy-importer.cfg
python -m galaxy_importer.main "$work"/*.tar.gz >importer.log 2>&1 || { cat importer.log && exit 1; }
! grep -E '^(WARNING|ERROR)' importer.log
