# Sets `venv`, the environment of the launch scripts, and `in_clone`; sourced with `root` set.
#
# In a clone it is .venv, which install.sh creates. In an installed package it is the environment
# that the package is installed in (PREFIX/lib/pythonX.Y/site-packages/distcnn/launch), or VENV.
# shellcheck shell=bash disable=SC2034,SC2154
if [[ -e $root/pyproject.toml ]]; then
  in_clone=true venv=$root/.venv
else
  in_clone=false venv=${VENV:-${root%/*/*/*/*}}
fi
