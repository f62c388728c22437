#!/usr/bin/env bash
# Installs what is missing, Horovod included (two to ten minutes the first time), then runs the linters and the tests.
#
#   tests/run.sh [PYTEST ARGUMENT...]
#
# Most tests wait for processes of theirs, so that two processes of pytest share the time: one runs
# the tests that are named here, the other one all that are not. With arguments there is one.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/install.sh dev
launch/install_horovod.sh
bin=.venv/bin
$bin/ruff format --check .
$bin/ruff check .
$bin/mypy
$bin/shellcheck launch/*.sh launch/*.sbatch tests/*.sh tests/gpu/*.sh .ci/run
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 $bin/mkdocs build --strict --site-dir "$site"
rm -rf "$site"
if (($# > 0)); then
  exec $bin/python -m pytest "$@"
fi

part=(benchmarking distribute faults hosts launching lockstep proving)
others=()
for folder in "${part[@]}"; do
  others+=("--ignore=tests/$folder")
done
said=$(mktemp)
trap 'rm -f "$said"; kill %% 2>/dev/null || true' EXIT
(
  trap - INT # bash lets what runs in the background ignore it, and tests send it
  exec $bin/python -m pytest -o cache_dir=.pytest_cache/part "${part[@]/#/tests/}"
) >"$said" 2>&1 &
code=0
$bin/python -m pytest "${others[@]}" || code=$?
wait $! || code=$?
cat "$said"
exit "$code"
