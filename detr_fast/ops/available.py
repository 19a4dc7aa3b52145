"""Why a backend cannot run on a device and dtype, or None where it can: the `why_not` of `Backend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from detr_fast import extension

WhyNot: TypeAlias = Callable[[torch.device, torch.dtype], str | None]

KERNEL_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What most kernels take; all compute in float32."""


def on_cpu(*, also: Sequence[torch.dtype] = ()) -> WhyNot:
    """Of compiled CPU code for `KERNEL_FLOATS` and further dtypes."""

    def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"runs on the CPU, not on {device.type}"
        return _too_coarse(dtype, also) or extension.why_not()

    return why_not


def on_cuda(*, also: Sequence[torch.dtype] = ()) -> WhyNot:
    """Of compiled CUDA kernels for `KERNEL_FLOATS` and further dtypes."""

    def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"runs on a CUDA device, not on {device.type}"
        return _too_coarse(dtype, also) or extension.why_not_cuda(device)

    return why_not


def on_triton(*, also: Sequence[torch.dtype] = ()) -> WhyNot:
    """Of Triton kernels for `KERNEL_FLOATS` and further dtypes."""

    def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"runs on a CUDA device, not on {device.type}"
        if reason := _too_coarse(dtype, also):
            return reason
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; `pip install triton`, or a CUDA build of torch, which brings it"
        if torch.version.hip is not None:
            return "was never tested on ROCm"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "Triton needs compute capability 8.0 or more"
        return None

    return why_not


def _too_coarse(dtype: torch.dtype, also: Sequence[torch.dtype]) -> str | None:
    return None if dtype in KERNEL_FLOATS or dtype in also else f"computes in float32, too coarse for {dtype}"
