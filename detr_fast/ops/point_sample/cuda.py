"""The CUDA backend: a launch each way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import device_and_stream, run
from detr_fast.ops.point_sample import reference
from detr_fast.ops.point_sample.arguments import Rows


class Cuda:
    """The operator through the launchers of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(self, maps: Tensor, rows: Rows) -> Tensor:
        """As `reference.forward`."""
        out, given = rows.empty_samples(maps), _given(maps.shape, rows)
        run(self._module().point_sample_cuda_fwd, *given, maps, out, *device_and_stream(maps))
        return out

    def backward(
        self, grad_out: Tensor, shape: torch.Size, rows: Rows, deterministic: bool = False
    ) -> Tensor:
        """As `reference.backward`, in whatever order unless `deterministic`, which sorts all samples."""
        if deterministic:
            return reference.backward(grad_out, shape, rows, deterministic)
        grad_maps = torch.zeros(shape, dtype=torch.float32, device=grad_out.device)
        given = _given(shape, rows)
        run(self._module().point_sample_cuda_bwd, *given, grad_out, grad_maps, *device_and_stream(grad_out))
        return grad_maps.to(grad_out.dtype)


def _given(shape: torch.Size, rows: Rows) -> tuple[Any, ...]:
    points, *indices = rows
    sets, count, _ = points.shape
    return *shape, sets, count, rows.count(shape), points.float(), *indices


BACKEND = Cuda(extension.extension)
