"""The CUDA backend: a launch each way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import device_and_stream, empty, run
from detr_fast.ops.point_sample import reference
from detr_fast.ops.point_sample.checks import result_dtype, rows


class Cuda:
    """The operator through the launchers of `module()`. Nothing here waits for the device.

    A module that executes the kernels on the host serves tensors on the CPU.
    """

    def __init__(self, module: Callable[[], ModuleType]) -> None:
        self._module = module

    def forward(
        self, maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None
    ) -> Tensor:
        """As `reference.forward`."""
        count = rows(maps.shape, map_index, point_index)
        out = empty((count, maps.shape[1], points.shape[1]), maps, result_dtype(maps.dtype))
        given = _given(maps.shape, points, map_index, point_index)
        run(self._module().point_sample_cuda_fwd, *given, maps, out, *device_and_stream(maps))
        return out

    def backward(
        self,
        grad_out: Tensor,
        shape: torch.Size,
        points: Tensor,
        map_index: Tensor | None,
        point_index: Tensor | None,
        deterministic: bool = False,
    ) -> Tensor:
        """As `reference.backward`, in whatever order unless `deterministic`, which sorts all samples."""
        if deterministic:
            return reference.backward(grad_out, shape, points, map_index, point_index, deterministic)
        grad_maps = torch.zeros(shape, dtype=torch.float32, device=grad_out.device)
        given = _given(shape, points, map_index, point_index)
        run(self._module().point_sample_cuda_bwd, *given, grad_out, grad_maps, *device_and_stream(grad_out))
        return grad_maps.to(grad_out.dtype)


def _given(
    shape: torch.Size, points: Tensor, map_index: Tensor | None, point_index: Tensor | None
) -> tuple[Any, ...]:
    sets, count, _ = points.shape
    total = rows(shape, map_index, point_index)
    return *shape, sets, count, total, points.float(), map_index, point_index


BACKEND = Cuda(extension.extension)
