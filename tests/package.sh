#!/bin/sh
# Builds the sdist and, from it, the wheel, both where no torch is importable; then installs the wheel
# in a bare environment that borrows the dependencies of the given Python, imports it and runs it.
set -eu
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

DETR_FAST_CUDA=${DETR_FAST_CUDA:-OFF} "$python" -m build --outdir "$work" .
ls -l "$work"

"$python" -m venv "$work/bare"
"$work/bare/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$work"/detr_fast-*.whl
PYTHONPATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
export PYTHONPATH
cd "$work"
bare/bin/python - <<'PROGRAM'
import detr_fast, torch
from detr_fast.ops import linear_assignment

assert "bare" in detr_fast.__file__, detr_fast.__file__
costs = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]])
assert linear_assignment(costs, [2], backend="native").tolist() == [1, 0]
PROGRAM
bare/bin/detr-fast doctor
echo "package: the wheel imports and runs"
