#!/usr/bin/env bash
# Checks on the GPUs of this machine what distcnn says about GPUs, and writes a report to paste.
#
#   tests/gpu/run.sh                    all checks
#   tests/gpu/run.sh --only xla,policy  some of them; --list shows their names
#   tests/gpu/run.sh --data DIR         with CIFAR-10 in this folder, for the recipes' accuracy
#   tests/gpu/run.sh --out DIR          writes report.md and results.json there (default: gpu-report)
#
# Without a GPU, every check is skipped. The first run installs distcnn with CUDA's libraries into
# .venv, and with several GPUs Horovod with NCCL.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"

count_gpus
if ((gpus > 0)); then
  "$root/launch/install.sh" cuda
  if ((gpus > 1)) && ! "$root/launch/install_horovod.sh" --cuda; then
    echo "warning: Horovod with NCCL could not be built; the checks that need it will fail" >&2
  fi
  python=$venv/bin/python
else
  python=${PYTHON:-python3}
fi
PYTHONPATH=$root exec "$python" -m tests.gpu.kit "$@"
