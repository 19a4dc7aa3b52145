"""The Triton backend, for GPUs. Triton is imported by the first call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.memory import empty, ready
from detr_fast.ops.point_sample import reference
from detr_fast.ops.point_sample.checks import result_dtype, rows
from detr_fast.ops.triton_launch import launch

_BLOCK = 256  # two points a lane of four warps


def forward(maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None) -> Tensor:
    """As `reference.forward`."""
    count = rows(maps.shape, map_index, point_index)
    shape = (count, maps.shape[1], points.shape[1])
    out = empty(shape, maps, result_dtype(maps.dtype))
    if out.numel() == 0:
        return out
    from detr_fast.ops.point_sample.triton_kernels import sample_kernel

    if maps.dtype == torch.bool:
        maps = maps.view(torch.uint8)
    given, sizes, constants = _arguments(maps.shape, points, map_index, point_index)
    programs = count * -(-points.shape[1] // _BLOCK)
    launch(sample_kernel, programs, 4, (out, maps, *given, *sizes, *maps.stride(), *constants))
    return out


def backward(
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
    if grad_out.numel():
        from detr_fast.ops.point_sample.triton_kernels import spread_kernel

        given, sizes, constants = _arguments(shape, points, map_index, point_index)
        programs = grad_out.shape[0] * -(-points.shape[1] // _BLOCK)
        arguments = (grad_maps, ready(grad_out), *given, *sizes, *constants)
        launch(spread_kernel, programs, 4, arguments)
    return grad_maps.to(grad_out.dtype)


def _arguments(
    shape: torch.Size, points: Tensor, map_index: Tensor | None, point_index: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...], tuple[Any, ...]]:
    """Points and indices, points standing in for a missing index; sizes; constants."""
    points = ready(points, torch.float32)
    indices = [points if index is None else ready(index) for index in (map_index, point_index)]
    sizes = (shape[0], points.shape[0], *shape[1:], points.shape[1])
    return (points, *indices), sizes, (map_index is not None, point_index is not None, _BLOCK)
