"""The compiled CPU backend: every dtype but float64, with float32 arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import cast, empty, run
from detr_fast.ops.point_sample.checks import range_error, result_dtype, rows


def forward(maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None) -> Tensor:
    """As `reference.forward`."""
    count = rows(maps.shape, map_index, point_index)
    out = empty((count, maps.shape[1], points.shape[1]), maps, result_dtype(maps.dtype))
    _run(extension.extension().point_sample_cpu_fwd, maps.shape, points, map_index, point_index, maps, out)
    return out


def backward(
    grad_out: Tensor,
    shape: torch.Size,
    points: Tensor,
    map_index: Tensor | None,
    point_index: Tensor | None,
    deterministic: bool = False,
) -> Tensor:
    """As `reference.backward`; each map's rows are summed in their order, by one thread."""
    grad_maps = empty(shape, grad_out)
    _run(
        extension.extension().point_sample_cpu_bwd, shape, points, map_index, point_index, grad_out, grad_maps
    )
    return grad_maps


def _run(
    function: Callable[..., int],
    shape: torch.Size,
    points: Tensor,
    map_index: Tensor | None,
    point_index: Tensor | None,
    *arguments: Tensor | int,
) -> None:
    sets, count, _ = points.shape
    total = rows(shape, map_index, point_index)
    bad = run(
        function,
        *shape,
        sets,
        count,
        total,
        cast(points, torch.float32),
        map_index,
        point_index,
        torch.get_num_threads(),
        *arguments,
    )
    if bad >= total and point_index is not None:
        raise range_error("point_index", point_index, sets, bad - total)
    if bad >= 0 and map_index is not None:
        raise range_error("map_index", map_index, shape[0], bad)
