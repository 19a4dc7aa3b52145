#!/bin/sh
# usage: package.sh PYTHON [FOLDER]
# Builds the sdist and, from it, the wheel, both where no torch is importable; then installs the wheel
# in a bare environment that borrows the dependencies of the given Python, imports it and runs it.
# Where nvcc is found the wheel holds CUDA code, for one architecture unless DETR_FAST_CUDA_ARCHS is set.
# The files stay in FOLDER where one is given.
set -eu
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=${2:-$work/dist}

export DETR_FAST_CUDA_ARCHS="${DETR_FAST_CUDA_ARCHS-90}"
start=$(date +%s)
"$python" -m build --outdir "$dist" .
seconds=$(($(date +%s) - start))

"$python" -m venv "$work/bare"
"$work/bare/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$dist"/detr_fast-*.whl
PYTHONPATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
export PYTHONPATH
(
  cd "$work"
  bare/bin/python - <<'PROGRAM'
import os, shutil

import detr_fast, torch
from detr_fast.extension import extension
from detr_fast.ops import linear_assignment

assert "bare" in detr_fast.__file__, detr_fast.__file__
costs = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]])
assert linear_assignment(costs, [2], backend="native").tolist() == [1, 0]
if shutil.which("nvcc") and os.environ.get("DETR_FAST_CUDA", "AUTO").upper() != "OFF":
    assert extension().with_cuda, extension().why_not_cuda
PROGRAM
  bare/bin/detr-fast doctor
)
ls -l "$dist"
echo "package: built in $seconds s; the wheel imports and runs"
