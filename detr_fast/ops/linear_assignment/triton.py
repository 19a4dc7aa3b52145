"""The Triton backend, for installs without a compiler: exact, every problem of a call in one launch.

Simpler than the CUDA solver: no bidding first, and each search scans all columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.memory import empty, ready
from detr_fast.ops.triton_launch import launch, power_of_two, target_starts


def solve(costs: Tensor, num_targets: Sequence[int], check: bool) -> tuple[Tensor, Tensor | None]:
    """costs [..., sumT, Q] float32 or float64 -> query [..., sumT] int64, status [..., B] int32 or None.

    `check` raises nothing, for that would wait for the device: an infeasible problem has -1 everywhere.
    """
    costs = ready(costs, contiguous=False)
    *leading, targets, queries = costs.shape
    query = empty(costs.shape[:-1], costs, torch.int64)
    status = empty((*leading, len(num_targets)), costs, torch.int32)
    if status.numel():
        from detr_fast.ops.linear_assignment.triton_kernels import assignment_kernel

        if costs.ndim != 3:
            costs = costs.reshape(-1, targets, queries)
        block = power_of_two(max(queries, *num_targets, 1))
        # up to four columns a lane: what is known of a column takes eight registers
        num_warps = min(16, max(1, block // 128))
        launch(
            assignment_kernel,
            status.numel(),
            num_warps,
            (
                *(costs, query, status, target_starts(num_targets, costs.device)),
                *(*costs.stride(), len(num_targets), queries, targets, block),
            ),
        )
    return query, None if check else status
