#!/usr/bin/env bash
# Shows runs in TensorBoard, on this machine only: http://localhost:6006
#
#   launch/tensorboard.sh RUN...       run directories, or folders of them; default: runs
#   PORT=6007 launch/tensorboard.sh    another port
#
# From elsewhere, forward the port: ssh -L 6006:localhost:6006 HOST
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# == 0)); then set -- runs; fi
for run in "$@"; do
  if [[ ! -d $run ]]; then
    echo "error: $run is not a folder; expected a run directory, such as runs/quickstart" >&2
    exit 2
  fi
done
"$root/launch/install.sh"
if (($# == 1)); then
  where=(--logdir "$1")
else
  spec=$(printf ',%s:%s' $(for run in "$@"; do echo; done))
fi
exec "$root/.venv/bin/python" -m tensorboard.main "${where[@]}" --host localhost --port "${PORT:-6006}"
