#!/usr/bin/env bash
# Trains on this machine, on one GPU if there is one, else on the CPU.
#
#   launch/local.sh                          trains the recipe quickstart
#   launch/local.sh --recipe article ARG...  passes the arguments to distcnn.train
#   launch/local.sh script.py ARG...         runs a Keras script of your own by distcnn.run
#   GPU=1 launch/local.sh ARG...             uses the second GPU; GPU= (empty) uses the CPU
#   launch/local.sh --dry-run ARG...         prints the command without running it
#
# The first run installs distcnn and its dependencies into .venv. PYTHON: the interpreter to create
# it with, 3.11 or newer (default: python3).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
take_dry_run "$@"
if ((${#arguments[@]} == 0)); then arguments=(--recipe quickstart); fi
module=$(module_for "${arguments[@]}")

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  extra=cuda gpu=${GPU-${CUDA_VISIBLE_DEVICES-0}}
else
  extra='' gpu=''
  if [[ -n ${GPU:-} ]]; then
    echo "error: GPU is $GPU, but nvidia-smi finds no GPU; unset GPU to train on the CPU" >&2
    exit 1
  fi
fi
export CUDA_VISIBLE_DEVICES=$gpu

if $dry_run; then
  printf 'CUDA_VISIBLE_DEVICES=%s %q -m %s' "$gpu" "$venv/bin/python" "$module"
  printf ' %q' "${arguments[@]}"
  printf '\n'
  exit 0
fi
"$root/launch/install.sh" $extra
exec "$venv/bin/python" -m "$module" "${arguments[@]}"
