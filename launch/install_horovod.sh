#!/usr/bin/env bash
# Builds Horovod 0.28.1 for the installed TensorFlow, installs it into .venv and tests it.
#
#   launch/install_horovod.sh              with Gloo, for CPUs and any network
#   launch/install_horovod.sh --cuda       adds NCCL, for GPUs (needs CUDA's nvcc and NCCL's headers)
#   launch/install_horovod.sh --mpi        adds MPI, to start runs with mpirun (needs mpicxx of Open MPI)
#   launch/install_horovod.sh --dry-run    prints the wheel that it would install
#
# Needs g++, make and patch (Debian: apt-get install g++ make patch); takes two to ten minutes on two
# cores. The wheel is cached in ~/.cache/distcnn/wheels, keyed by its versions and the patch, so the
# next installation takes seconds. VENV selects another environment than .venv;
# `distcnn install-horovod` sets it to its own.
set -euo pipefail

version=0.28.1
checksum=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
patch=$(dirname "${BASH_SOURCE[0]}")/horovod.patch
venv=${VENV:-$venv}
python=$venv/bin/python
if $in_clone; then first="run launch/install.sh first"; else first="install distcnn there first"; fi

fail() {
  echo "error: $1" >&2
  exit 1
}

variant=cpu dry_run=false
flags=(HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1)
mpi=HOROVOD_WITHOUT_MPI=1
for argument in "$@"; do
  case $argument in
    --cuda) variant+=-cuda flags+=(HOROVOD_GPU_OPERATIONS=NCCL) ;;
    --mpi) variant+=-mpi mpi=HOROVOD_WITH_MPI=1 ;;
    --dry-run) dry_run=true ;;
    *) fail "unknown argument $argument; expected --cuda, --mpi or --dry-run" ;;
  esac
done

if ! $dry_run && [[ -z ${VENV:-} ]]; then "$root/launch/install.sh"; fi
[[ -x $python ]] || fail "there is no $python; $first"
tag=$("$python" -c '
import hashlib, platform, sys
from importlib import metadata
patch = hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:12]
glibc = "".join(platform.libc_ver())
print("tf" + metadata.version("tensorflow"), "cp%d%d" % sys.version_info[:2], platform.machine(), glibc, patch, sep="-")
' "$patch") || fail "$python has no TensorFlow; $first"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/distcnn/wheels/horovod-$version-$variant-$tag

if $dry_run; then
  echo "wheel $cache/horovod-$version-*.whl"
  if compgen -G "$cache/*.whl" >/dev/null; then echo "is there"; else echo "is to be built"; fi
  exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
stamp=$venv/.installed-horovod
if [[ -e $stamp && $(<"$stamp") == "$cache" && -x $venv/bin/horovodrun ]]; then exit 0; fi
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip, which installs Horovod; run $python -m ensurepip"

build() {
  command -v g++ >/dev/null || fail "building Horovod needs g++; Debian: apt-get install g++ make"
  command -v make >/dev/null || fail "building Horovod needs make; Debian: apt-get install make"
  command -v patch >/dev/null || fail "building Horovod needs patch; Debian: apt-get install patch"
  if [[ $variant == *-cuda* ]]; then command -v nvcc >/dev/null || fail "--cuda needs nvcc on the PATH"; fi
  if [[ $variant == *-mpi ]]; then
    command -v mpicxx >/dev/null || fail "--mpi needs mpicxx on the PATH; Debian: apt-get install libopenmpi-dev"
  fi
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  echo "building Horovod $version ($variant): two to ten minutes on two cores ..." >&2
  "$python" -m pip install --quiet --disable-pip-version-check \
    'setuptools<81' wheel packaging cloudpickle psutil pyyaml 'cmake>=3.18' >&2
  echo "horovod==$version --hash=sha256:$checksum" >"$work/requirements.txt"
  HOROVOD_SKIP_COMPILE=1 "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation --no-binary horovod --require-hashes -r "$work/requirements.txt" -d "$work" >&2
  tar -xf "$work/horovod-$version.tar.gz" -C "$work"
  patch --quiet --strip=1 --directory="$work/horovod-$version" <"$patch"
  # Builds only the TensorFlow target (the stock build compiles Gloo twice), without debug symbols.
  cat >"$work/cmake" <<'CMAKE'
#!/bin/sh
if [ "$1" = --build ]; then
  shift 2
  exec "$DISTCNN_CMAKE" --build . --target tensorflow "$@"
fi
exec "$DISTCNN_CMAKE" -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -DNDEBUG -ffile-prefix-map=$1=." "$@"
CMAKE
  chmod +x "$work/cmake"
  (
    PATH=$venv/bin:$PATH env "${flags[@]}" "$mpi" DISTCNN_CMAKE="$venv/bin/cmake" \
      HOROVOD_CMAKE="$work/cmake" CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS="-j$(nproc)" \
      "$python" -m pip wheel --verbose --disable-pip-version-check --no-deps \
      --no-build-isolation --wheel-dir "$work/wheel" "$work/horovod-$version"
  ) >"$work/log" 2>&1 &
  local pid=$! progress=''
  while kill -0 $pid 2>/dev/null; do
    sleep 2
    local now
    now=$(grep -oE '^ *\[ *[0-9]+%\]' "$work/log" | tail -n 1 | tr -d ' []') || true
    if [[ $now != "$progress" ]]; then progress=$now && echo "  $progress" >&2; fi
  done
  if ! wait $pid; then
    grep -E 'error|Error' "$work/log" | head -n 5 >&2 || true
    cp "$work/log" "$cache/build.log"
    fail "building Horovod failed; see the full log in $cache/build.log"
  fi
  mv "$work"/wheel/horovod-*.whl "$cache/"
}

compgen -G "$cache/*.whl" >/dev/null || build
"$python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
  "$cache"/horovod-*.whl >&2
"$python" -m pip install --quiet --disable-pip-version-check cloudpickle psutil pyyaml packaging >&2

echo "testing Horovod with two processes ..." >&2
PATH=$venv/bin:$PATH "$venv/bin/horovodrun" -np 2 "$python" -c '
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = float(hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum))
assert total == 3.0, f"1 + 2 was reduced to {total}"
' >"$cache/selftest.log" 2>&1 ||
  fail "two processes could not reduce a sum; see $cache/selftest.log, or delete $cache to rebuild"
echo "$cache" >"$stamp"
echo "Horovod $version ($variant) is installed and reduces correctly" >&2
