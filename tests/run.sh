#!/usr/bin/env bash
# Installs what is missing, Horovod included (two to ten minutes the first time), then runs the linters and the tests.
#
#   tests/run.sh [PYTEST ARGUMENT...]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/install.sh dev
launch/install_horovod.sh
bin=.venv/bin
$bin/ruff format --check .
$bin/ruff check .
$bin/mypy
$bin/shellcheck launch/*.sh launch/*.sbatch tests/*.sh .ci/run
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 $bin/mkdocs build --strict --site-dir "$site"
rm -rf "$site"
exec $bin/python -m pytest "$@"
