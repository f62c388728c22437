# Sets `venv`, the environment that the script beside this one uses; sourced with `root` set.
#
# In a clone that is .venv, which install.sh makes. The scripts of an installed package use the
# environment that it was installed into, PREFIX/lib/pythonX.Y/site-packages/distcnn/launch, or the
# one that VENV names.
# shellcheck shell=bash disable=SC2034,SC2154
if [[ -e $root/pyproject.toml ]]; then
  in_clone=true venv=$root/.venv
else
  in_clone=false venv=${VENV:-${root%/*/*/*/*}}
fi
