"""The gradient of value, summed in one order: what the GPU backends share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detr_fast.ops.memory import empty, is_aligned, ready
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn

_SORTED_AT_ONCE = 2**24  # samples or cells: working memory of a deterministic backward stays below 0.8 GB


def grad_value_in_order(
    gather: Callable[[Tensor, DeformAttn, Tensor], None], grad_out: Tensor, call: DeformAttn
) -> Tensor:
    """The gradient of value, some images at a time; `gather(grad_out, call, grad_value)` fills theirs."""
    grad_value = empty(call.value.shape, call.value)
    cells = call.value.shape[2] * (
        sum([(height + 1) * (width + 1) for height, width in call.level_shapes]) + 1
    )
    images = max(1, _SORTED_AT_ONCE // max(call.weights[0].numel(), cells))
    for first in range(0, len(grad_value), images):
        some = slice(first, first + images)
        coordinates, weights = ready(call.coordinates[some]), ready(call.weights[some])
        references = None if call.reference_points is None else ready(call.reference_points[some])
        into = grad_value[some]
        aligned = into if is_aligned(into) else empty(into.shape, into)
        part = DeformAttn(aligned, coordinates, weights, references, *call[4:])
        gather(ready(grad_out[some]), part, aligned)
        if aligned is not into:
            into.copy_(aligned)
    return grad_value


def check_countable(samples: int, cells: int) -> None:
    """Raises `ValueError` where the samples, or the cells that they are sorted by, overflow int32."""
    if max(samples, cells + 1) >= 2**31:
        raise ValueError(
            f"deterministic: expected fewer than 2**31 samples and cells an image; got Q * H * sum of P = "
            f"{samples}, and {cells} cells, H * sum of (height + 1) * (width + 1)"
        )


def sort_by_cell(cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The order of the samples by cell, stable, and where in it each cell starts, with the end."""
    cell, order = torch.sort(cell, stable=True)
    numbers = torch.arange(cells + 1, dtype=torch.int32, device=cell.device)
    return order, torch.searchsorted(cell, numbers, out_int32=True)
