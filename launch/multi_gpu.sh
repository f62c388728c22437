#!/usr/bin/env bash
# Trains on all GPUs of this machine, one worker a GPU.
#
#   launch/multi_gpu.sh ARG...                     passes its arguments to distcnn.train
#   STRATEGY=mirrored launch/multi_gpu.sh ARG...   one process with all GPUs, instead of Horovod's
#                                                  process a GPU
#   WORKERS=2 launch/multi_gpu.sh ARG...           so many workers; without a GPU, on the CPU
#   CUDA_VISIBLE_DEVICES=0,2 launch/multi_gpu.sh   only these GPUs
#   launch/multi_gpu.sh --dry-run ARG...           prints the command, runs nothing
#
# The first run installs what it needs into .venv, Horovod included (about three minutes).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
dry_run=false
arguments=()
for argument in "$@"; do
  if [[ $argument == --dry-run ]]; then dry_run=true; else arguments+=("$argument"); fi
done

gpus=0
if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true; fi
if ((gpus > 0)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  gpus=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .) || true
fi
workers=${WORKERS:-$gpus}
strategy=${STRATEGY:-horovod}
if ! [[ $workers =~ ^[1-9][0-9]*$ ]]; then
  echo "error: there are ${workers} workers: nvidia-smi finds no GPU; WORKERS=2 trains on two CPU workers" >&2
  exit 1
fi
if ((gpus > 0 && workers > gpus)); then
  echo "error: WORKERS=$workers was asked for, but there are $gpus GPUs" >&2
  exit 1
fi

python=$venv/bin/python
train=("$python" -m distcnn.train --distribute.strategy "$strategy")
case $strategy in
  horovod) command=("$venv/bin/horovodrun" --gloo -np "$workers" "${train[@]}") ;;
  mirrored) command=("${train[@]}" --distribute.devices "$workers") ;;
  *)
    echo "error: STRATEGY is $strategy; expected horovod or mirrored" >&2
    exit 2
    ;;
esac
command+=("${arguments[@]}")

if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
if ((gpus > 0)); then "$root/launch/install.sh" cuda; else "$root/launch/install.sh"; fi
if [[ $strategy == horovod ]]; then
  if ((gpus > 0)); then "$root/launch/install_horovod.sh" --cuda; else "$root/launch/install_horovod.sh"; fi
fi
PATH=$venv/bin:$PATH exec "${command[@]}"
