#!/usr/bin/env bash
# Installs distcnn and its dependencies into .venv; returns at once if nothing has changed.
#
#   launch/install.sh [EXTRA...]   extras of pyproject.toml: cuda, dev
#
# PYTHON: the interpreter to create .venv with, 3.11 or newer (default: python3).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
extras=$(IFS=,; echo "$*")
stamp=$venv/.installed-${extras:-base}

if ! $in_clone; then # the package is already installed, with its dependencies
  [[ -x $venv/bin/python ]] && exit 0
  echo "error: there is no $venv/bin/python; VENV must be the environment that distcnn is installed in" >&2
  exit 1
fi

if [[ -e $stamp && $stamp -nt $root/pyproject.toml ]]; then exit 0; fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is $("$python" --version 2>&1); expected Python 3.11 or newer; set PYTHON" >&2
  exit 1
fi
exec 9>"$root/.venv.lock"
flock 9
if [[ -e $stamp && $stamp -nt $root/pyproject.toml ]]; then exit 0; fi
# pip is installed last; if it is missing, creation failed earlier (Debian without python3-venv).
[[ -x $venv/bin/pip ]] || "$python" -m venv "$venv"
echo "installing distcnn${extras:+ with $extras} into $venv ..." >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --editable "$root${extras:+[$extras]}" >&2
touch "$stamp" "$venv/.installed-base"
