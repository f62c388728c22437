# Sets `venv`, the environment of the launch scripts, and `in_clone`, and defines `module_for`;
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
