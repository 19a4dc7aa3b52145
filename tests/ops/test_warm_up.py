"""Kernels that are loaded before a CUDA graph is captured."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from detr_fast.ops import OPERATORS, triton_launch, warm_up
from tests.ops import interpreter
from tests.ops.simulated import simulated
from tests.paths import ROOT

SMALL = {"queries": 4, "classes": 3, "heads": 1, "channels": 4, "levels": 2, "points": 2}
MODULE = sys.modules[warm_up.__module__]


@pytest.mark.skipif(interpreter.why_not() is not None, reason=str(interpreter.why_not()))
def test_every_triton_kernel_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = set()
    launch = triton_launch.launch

    def noted(kernel: Any, programs: int, num_warps: int, arguments: tuple[Any, ...]) -> None:
        launched.add(f"{kernel.fn.__module__}.{kernel.fn.__name__}")
        launch(kernel, programs, num_warps, arguments)

    sources = {path: path.read_text() for path in (ROOT / "detr_fast" / "ops").rglob("triton*.py")}
    kernels = set()
    for path, source in sources.items():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        kernels |= {f"{module}.{name}" for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
        if "launch(" in source:
            monkeypatch.setattr(importlib.import_module(module), "launch", noted)
    monkeypatch.setattr(MODULE, "_ROWS", (1,))
    with ExitStack() as stack:
        for operator in OPERATORS:
            stack.enter_context(simulated(operator, "triton"))
        warm_up("cpu", **SMALL)
    assert launched == kernels


def test_it_runs_on_any_device_and_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        warm_up("cpu", dtype=dtype, **SMALL)
