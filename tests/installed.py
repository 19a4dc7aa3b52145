"""usage: installed.py BACKEND. The installed package imports and assigns, and has the CUDA code it should."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

import detr_fast
from detr_fast.extension import extension
from detr_fast.ops import linear_assignment

assert sys.prefix in detr_fast.__file__, detr_fast.__file__
costs = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]])
backend = sys.argv[1]
assert linear_assignment(costs, [2], backend=backend).tolist() == [1, 0]
if backend == "cpu" and shutil.which("nvcc") and os.environ.get("DETR_FAST_CUDA", "AUTO").upper() != "OFF":
    assert extension().with_cuda, extension().why_not_cuda
assert (Path(detr_fast.__file__).parent / "serve/page/page.html").is_file()
print(f"{detr_fast.__file__}: {backend} assigns, torch {torch.__version__}")
