#!/usr/bin/env bash
# Trains on all GPUs of this machine, with one worker per GPU.
#
#   launch/multi_gpu.sh ARG...                     passes the arguments to distcnn.train
#   launch/multi_gpu.sh script.py ARG...           runs a Keras script of your own by distcnn.run
#   STRATEGY=mirrored launch/multi_gpu.sh ARG...   uses one process with all GPUs instead of one
#                                                  Horovod process per GPU
#   WORKERS=2 launch/multi_gpu.sh ARG...           sets the number of workers; without a GPU, they
#                                                  run on the CPU
#   CUDA_VISIBLE_DEVICES=0,2 launch/multi_gpu.sh   uses only these GPUs
#   RESTARTS=0 launch/multi_gpu.sh ARG...          ends when a worker is lost; by default, Horovod's
#                                                  are started again, up to 3 times without progress
#   launch/multi_gpu.sh --dry-run ARG...           prints the command without running it
#
# The first run installs distcnn, its dependencies and Horovod into .venv (two to ten minutes).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
take_dry_run "$@"

count_gpus
if ((gpus > 0)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  gpus=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .) || true
fi
workers=${WORKERS:-$gpus}
strategy=${STRATEGY:-horovod}
if ! [[ $workers =~ ^[1-9][0-9]*$ ]]; then
  if [[ -n ${WORKERS:-} ]]; then
    echo "error: WORKERS is $workers; expected a number of at least 1" >&2
  else
    echo "error: nvidia-smi finds no GPU; WORKERS=2 trains with two workers on the CPU" >&2
  fi
  exit 1
fi
if ((gpus > 0 && workers > gpus)); then
  echo "error: WORKERS is $workers; expected at most $gpus, the number of GPUs" >&2
  exit 1
fi

python=$venv/bin/python
module=$(module_for "${arguments[@]}")
case $strategy in
  horovod)
    command=("$python" -m distcnn.launch --workers "$workers" ${RESTARTS:+--restarts "$RESTARTS"}
      "${module#distcnn.}" --distribute.strategy horovod)
    ;;
  mirrored) command=("$python" -m "$module" --distribute.strategy mirrored --distribute.devices "$workers") ;;
  *)
    echo "error: STRATEGY is $strategy; expected horovod or mirrored" >&2
    exit 2
    ;;
esac
command+=("${arguments[@]}")

stop_if_dry_run "${command[@]}"
install_for_workers "$([[ $strategy == horovod ]] || echo no)"
PATH=$venv/bin:$PATH exec "${command[@]}"
