# Sets `venv`, the environment of the launch scripts, and `in_clone`, and defines their functions;
# sourced with `root` set.
#
# In a clone it is .venv, which install.sh creates. In an installed package it is the environment
# that the package is installed in (PREFIX/lib/pythonX.Y/site-packages/distcnn/launch), or VENV.
# shellcheck shell=bash disable=SC2034,SC2154
if [[ -e $root/pyproject.toml ]]; then
  in_clone=true venv=$root/.venv
else
  in_clone=false venv=${VENV:-${root%/*/*/*/*}}
fi

# Prints the module that runs the given arguments: distcnn.run for a script (a .py file), else
# distcnn.train.
module_for() {
  local argument
  for argument in "$@"; do
    if [[ $argument == *.py ]]; then echo distcnn.run && return; fi
  done
  echo distcnn.train
}

# Sets `dry_run`, whether --dry-run is among the given arguments, and `arguments`, the other ones.
take_dry_run() {
  local argument
  dry_run=false arguments=()
  for argument in "$@"; do
    if [[ $argument == --dry-run ]]; then dry_run=true; else arguments+=("$argument"); fi
  done
}

# Sets `gpus`, the number of NVIDIA's GPUs on this machine.
count_gpus() {
  gpus=0
  if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true; fi
}

# Prints the given command and ends the script, if `dry_run` is true.
stop_if_dry_run() {
  if ! $dry_run; then return; fi
  printf '%q ' "$@"
  echo
  exit 0
}

# Installs what several workers need: for GPUs if there are any, and Horovod unless told `no`.
install_for_workers() {
  if ((gpus > 0)); then "$root/launch/install.sh" cuda; else "$root/launch/install.sh"; fi
  if [[ ${1:-} == no ]]; then return; fi
  if ((gpus > 0)); then "$root/launch/install_horovod.sh" --cuda; else "$root/launch/install_horovod.sh"; fi
}
