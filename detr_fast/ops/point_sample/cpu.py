"""The compiled CPU backend: every dtype but float64, with float32 arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.memory import cast, empty, run
from detr_fast.ops.point_sample.arguments import Rows
from detr_fast.ops.point_sample.checks import range_error


def forward(maps: Tensor, rows: Rows) -> Tensor:
    """As `reference.forward`."""
    out = rows.empty_samples(maps)
    _run(extension.extension().point_sample_cpu_fwd, maps.shape, rows, maps, out)
    return out


def backward(grad_out: Tensor, shape: torch.Size, rows: Rows, deterministic: bool = False) -> Tensor:
    """As `reference.backward`; each map's rows are summed in their order, by one thread."""
    grad_maps = empty(shape, grad_out)
    _run(extension.extension().point_sample_cpu_bwd, shape, rows, grad_out, grad_maps)
    return grad_maps


def uncertain_points(
    points: Tensor,
    maps: Tensor,
    map_index: Tensor | None,
    candidates: Tensor | None,
    offered: int,
    chosen: int,
    draws_uniform: bool,
    seed: int,
) -> None:
    """Chooses the candidates at which each row's map is nearest to zero; any number of threads alike.

    Args:
        points: [R, P, 2] float32, which are written.
        maps: [M, 1, h, w], logits. NaN is nearest of all.
        map_index: [R] int64, or None.
        candidates: [R, offered, 2], or None: uniform ones, from top to bottom.
        offered: candidates of a row.
        chosen: how many of them `points[:, :chosen]` become, in their order; of equal ones the first.
        draws_uniform: whether `points[:, chosen:]` become uniform points, too; else they stay.
        seed: of all that is drawn.
    """
    rows = len(points)
    bad = run(
        extension.extension().uncertain_points_cpu,
        *maps.shape,
        rows,
        offered,
        rows,
        None if candidates is None else cast(candidates, torch.float32),
        map_index,
        None,
        torch.get_num_threads(),
        maps,
        chosen,
        points.shape[1] - chosen,
        draws_uniform,
        seed,
        points,
    )
    if bad >= 0 and map_index is not None:
        raise range_error("map_index", map_index, maps.shape[0], bad)


def _run(function: Callable[..., int], shape: torch.Size, rows: Rows, *arguments: Tensor) -> None:
    points, map_index, point_index = rows
    sets, count, _ = points.shape
    total = rows.count(shape)
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
