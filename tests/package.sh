#!/bin/sh
# usage: package.sh PYTHON [FOLDER]
# Builds the sdist and, from it, the wheel, both where no torch is importable; then installs the wheel
# in a bare environment that borrows the dependencies of the given Python, imports it and runs it.
# Where nvcc is found the wheel holds CUDA code, for one architecture unless DETR_FAST_CUDA_ARCHS is set.
# A second wheel, without compiled code, does the same. The files stay in FOLDER where one is given.
set -eu
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=${2:-$work/dist}

export DETR_FAST_CUDA_ARCHS="${DETR_FAST_CUDA_ARCHS-90}"
start=$(date +%s)
"$python" -m build --outdir "$dist" .
seconds=$(($(date +%s) - start))

DETR_FAST_EXTENSION=OFF "$python" -m build --wheel --outdir "$work/plain" .

PYTHONPATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
export PYTHONPATH
cp tests/installed.py "$work"

try_wheel() { # NAME WHEEL BACKEND
  "$python" -m venv "$work/$1"
  "$work/$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$2"
  (cd "$work" && "$1/bin/python" installed.py "$3" && "$1/bin/detr-fast" doctor)
}
try_wheel compiled "$dist"/detr_fast-*.whl cpu
try_wheel plain "$work"/plain/detr_fast-*-py3-none-any.whl reference
ls -l "$dist"
echo "package: built in $seconds s; the wheel, and one without compiled code, import and run"
