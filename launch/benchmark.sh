#!/usr/bin/env bash
# Measures throughput by number of workers on this machine, and shows where the time goes.
#
#   launch/benchmark.sh                            1, 2, 4 ... workers, up to the GPUs or cores
#   launch/benchmark.sh --workers 1,2,4 ARG...     passes the arguments to distcnn.benchmark
#   launch/benchmark.sh --compare plain            compares with the plain Keras script too
#   launch/benchmark.sh --compare plain,torch,jax  and with other frameworks, if they are installed
#   launch/benchmark.sh --floor --budget 300       times the convolutions and products alone
#   launch/benchmark.sh --dry-run ARG...           prints the command without running it
#
# The first run installs distcnn, its dependencies and Horovod into .venv (two to ten minutes).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
take_dry_run "$@"
count_gpus
if [[ " ${arguments[*]%%=*} " != *' --workers '* ]]; then
  most=$((gpus > 0 ? gpus : $(nproc)))
  counts=1
  for ((count = 2; count <= most; count *= 2)); do counts+=,$count; done
  arguments+=(--workers "$counts")
fi
command=("$venv/bin/python" -m distcnn.benchmark "${arguments[@]}")

stop_if_dry_run "${command[@]}"
install_for_workers
exec "${command[@]}"
