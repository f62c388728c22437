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
exec $bin/python -m pytest "$@"
