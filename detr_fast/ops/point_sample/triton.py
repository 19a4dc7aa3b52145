"""The Triton backend, for GPUs. Triton is imported by the first call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.memory import ready
from detr_fast.ops.point_sample import reference
from detr_fast.ops.point_sample.arguments import Rows
from detr_fast.ops.triton_launch import launch

_BLOCK = 256  # two points a lane of four warps


def forward(maps: Tensor, rows: Rows) -> Tensor:
    """As `reference.forward`."""
    out = rows.empty_samples(maps)
    if out.numel() == 0:
        return out
    from detr_fast.ops.point_sample.triton_kernels import sample_kernel

    if maps.dtype == torch.bool:
        maps = maps.view(torch.uint8)
    given, sizes, constants = _arguments(maps.shape, rows)
    programs = len(out) * -(-out.shape[2] // _BLOCK)
    launch(sample_kernel, programs, 4, (out, maps, *given, *sizes, *maps.stride(), *constants))
    return out


def backward(grad_out: Tensor, shape: torch.Size, rows: Rows, deterministic: bool = False) -> Tensor:
    """As `reference.backward`, in whatever order unless `deterministic`, which sorts all samples."""
    if deterministic:
        return reference.backward(grad_out, shape, rows, deterministic)
    grad_maps = torch.zeros(shape, dtype=torch.float32, device=grad_out.device)
    if grad_out.numel():
        from detr_fast.ops.point_sample.triton_kernels import spread_kernel

        given, sizes, constants = _arguments(shape, rows)
        programs = len(grad_out) * -(-grad_out.shape[2] // _BLOCK)
        arguments = (grad_maps, ready(grad_out), *given, *sizes, *constants)
        launch(spread_kernel, programs, 4, arguments)
    return grad_maps.to(grad_out.dtype)


def _arguments(shape: torch.Size, rows: Rows) -> tuple[tuple[Tensor, ...], tuple[int, ...], tuple[Any, ...]]:
    """Points and indices, points standing in for a missing index; sizes; constants."""
    points = ready(rows.points, torch.float32)
    indices = [points if index is None else ready(index) for index in rows[1:]]
    sizes = (shape[0], points.shape[0], *shape[1:], points.shape[1])
    return (points, *indices), sizes, (rows.map_index is not None, rows.point_index is not None, _BLOCK)
