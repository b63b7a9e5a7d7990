#!/usr/bin/env bash
# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs a part of `ansible-test sanity` on a copy of the checkout: pylint, imports (with compilation, on the Python
# VERSION alone where one is given), rest, or all. Parts may run side by side.
# ansible-test wants a real path that ends in ansible_collections/labspan/vmnet, and keeps its environments in HOME;
# both are in .build, one for each part, so that nothing else on this machine is touched.
#
#   [LABSPAN_CORE=.venv/core-2.19] tests/sanity.sh [PART [VERSION]]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

part=${1:-all} version=${2:-}
case $part in
all) arguments=() ;;
pylint) arguments=(--test pylint) ;;
imports) arguments=(--test import --test compile ${version:+--python "$version"}) ;;
rest) arguments=(--skip-test pylint --skip-test import --skip-test compile) ;;
*) echo "sanity.sh: $part is no part. Parts are pylint, imports, rest and all." >&2 && exit 2 ;;
esac

root=$PWD
copy=$root/.build/sanity/$part$version/ansible_collections/labspan/vmnet
controller=$(realpath "${LABSPAN_CORE:-.venv/newest}")/bin

mkdir -p ".build/sanity/$part$version"
exec 9>".build/sanity/$part$version/lock"
flock 9 # another run would take the copy away

tests/copy.sh "$copy"
git init --quiet "$copy" # else ansible-test asks the outer repository, which ignores .build

export HOME=$root/.build/home/$part$version PATH=$root/.build/pythons:$controller:$PATH
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH ANSIBLE_COLLECTIONS_PATH ANSIBLE_CONFIG ANSIBLE_HOME

# ansible-test looks for the script under the name of the pip that it wants.
requirements=$("$controller/python" -c 'from ansible_test._internal import python_requirements as module; print(module.__file__)')
pip_version=$(sed -n "s/^ *pip='\([0-9.]*\)',$/\1/p" "$requirements" | head -n 1)
mkdir -p "$HOME/.ansible/test/cache"
cp tests/get_pip.py "$HOME/.ansible/test/cache/get_pip_${pip_version//./_}.py"

cd "$copy"
exec "$controller/ansible-test" sanity --color no --requirements --venv "${arguments[@]}"
