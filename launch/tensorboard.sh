#!/usr/bin/env bash
# Shows runs in TensorBoard at http://localhost:6006, on this machine only.
#
#   launch/tensorboard.sh RUN...       shows run directories, or folders of them; default: runs
#   PORT=6007 launch/tensorboard.sh    uses another port
#
# From another machine, forward the port: ssh -L 6006:localhost:6006 HOST
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
if (($# == 0)); then set -- runs; fi
specs=()
for run in "$@"; do
  if [[ ! -d $run ]]; then
    echo "error: $run is not a folder; expected a run directory, such as runs/quickstart" >&2
    exit 2
  fi
  if (($# > 1)) && [[ $run == *[:,]* ]]; then
    echo "error: $run contains a colon or a comma, so it can only be shown on its own" >&2
    exit 2
  fi
  # NAME:PATH, with the whole path as the name, because runs in two folders may have the same name.
  if [[ $run == /* ]]; then specs+=("$run"); else specs+=("$run:$run"); fi
done
"$root/launch/install.sh"
if (($# == 1)); then
  where=(--logdir "$1")
else
  where=(--logdir_spec "$(IFS=,; echo "${specs[*]}")")
fi
exec "$venv/bin/python" -m tensorboard.main "${where[@]}" --host localhost --port "${PORT:-6006}"
