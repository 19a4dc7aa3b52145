"""Host C++ (csrc/linear_assignment)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.linear_assignment.reference import raise_infeasible
from detr_fast.ops.memory import ready


def solve(costs: Tensor, num_targets: Sequence[int], check: bool) -> tuple[Tensor, Tensor | None]:
    """costs [..., sumT, Q] float32 or float64 -> query [..., sumT] int64, status [..., B] int32 or None."""
    costs = ready(costs, contiguous=False)
    shape = costs.shape
    query = torch.empty(*shape[:-1], dtype=torch.int64)  # twice as fast as with a tuple
    status = None if check else torch.empty((*shape[:-2], len(num_targets)), dtype=torch.int32)
    if costs.ndim == 2:
        layers, strides = 1, (0, *costs.stride())
    else:
        if costs.ndim > 3:
            costs = costs.flatten(0, -3)
        layers, strides = costs.shape[0], costs.stride()
    infeasible = extension.extension().linear_assignment_cpu(
        num_targets, layers, shape[-1], costs, *strides, query, status, torch.get_num_threads()
    )
    if check and infeasible >= 0:
        raise_infeasible(infeasible, shape[:-2], len(num_targets))
    return query, status
