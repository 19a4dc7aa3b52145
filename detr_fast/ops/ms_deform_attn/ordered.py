"""What the GPU backends share in backward: above all the gradient of value, summed in one order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detr_fast.ops.memory import is_aligned, ready

LevelShapes = Sequence[tuple[int, int]]
Gather = Callable[[LevelShapes, Tensor, Tensor, Tensor, Tensor, "Tensor | None"], None]

_SORTED_AT_ONCE = 2**24  # samples or cells: working memory of a deterministic backward stays below 0.8 GB


def grad_value_in_order(
    gather: Gather,
    level_shapes: LevelShapes,
    grad_out: Tensor,
    value: Tensor,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
) -> Tensor:
    """The gradient of value, some images at a time.

    `gather(level_shapes, grad_value, grad_out, coordinates, weights, reference_points)` fills grad_value.
    """
    grad_value = torch.empty_like(value)
    cells = value.shape[2] * (sum([(height + 1) * (width + 1) for height, width in level_shapes]) + 1)
    images = max(1, _SORTED_AT_ONCE // max(weights[0].numel(), cells))
    for first in range(0, len(value), images):
        some = slice(first, first + images)
        inputs = ready(grad_out[some]), ready(coordinates[some]), ready(weights[some])
        references = None if reference_points is None else ready(reference_points[some])
        into = grad_value[some]
        aligned = into if is_aligned(into) else torch.empty_like(into)
        gather(level_shapes, aligned, *inputs, references)
        if aligned is not into:
            into.copy_(aligned)
    return grad_value


def check_countable(samples: int, cells: int) -> None:
    """Raises `ValueError` where the samples, or the cells that they are sorted by, overflow int32."""
    if max(samples, cells + 1) >= 2**31:
        raise ValueError(
            f"deterministic: expected fewer than 2**31 samples and cells an image; got Q * H * N * P = "
            f"{samples}, and {cells} cells, H * sum of (height + 1) * (width + 1)"
        )


def sort_by_cell(cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The order of the samples by cell, stable, and where in it each cell starts, with the end."""
    cell, order = torch.sort(cell, stable=True)
    numbers = torch.arange(cells + 1, dtype=torch.int32, device=cell.device)
    return order, torch.searchsorted(cell, numbers, out_int32=True)


def in_input_dtypes(
    gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Each gradient in its input's dtype."""
    return [
        gradient if gradient is None or t is None or gradient.dtype == t.dtype else gradient.to(t.dtype)
        for gradient, t in zip(gradients, inputs, strict=True)
    ]


def zeros_where(needs: Sequence[bool], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of a call without samples or outputs."""
    return [
        t.new_zeros(t.shape) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
