"""Host C++ (csrc/linear_assignment)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.linear_assignment.reference import infeasible


def why_not() -> str | None:
    """Why this backend cannot run, or None."""
    return extension.why_not()


def solve(costs: Tensor, sizes: Sequence[int], check: bool) -> tuple[Tensor, Tensor]:
    """costs [..., sumT, Q] float32 or float64 -> query [..., sumT] int64, status [..., B] int32."""
    *leading, targets, queries = costs.shape
    stacked = costs[None] if costs.ndim == 2 else costs.flatten(0, -3)
    query = torch.empty((*leading, targets), dtype=torch.int64)
    status = torch.empty((*leading, len(sizes)), dtype=torch.int32)
    solved = extension.extension().linear_assignment(
        stacked.data_ptr(),
        costs.dtype == torch.float64,
        stacked.stride(),
        stacked.shape[0],
        queries,
        sizes,
        query.data_ptr(),
        status.data_ptr(),
        torch.get_num_threads(),
    )
    if check and not solved:
        *layer, image = torch.nonzero(status)[0].tolist()
        raise ValueError(infeasible(tuple(layer), image))
    return query, status
