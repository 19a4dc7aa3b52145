"""Host C++ (csrc/linear_assignment)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.linear_assignment.reference import raise_infeasible
from detr_fast.ops.memory import empty, run


def solve(costs: Tensor, num_targets: Sequence[int], check: bool) -> tuple[Tensor, Tensor | None]:
    """costs [..., sumT, Q] float32 or float64 -> query [..., sumT] int64, status [..., B] int32 or None."""
    *leading, targets, _ = costs.shape
    query = empty((*leading, targets), costs, torch.int64)
    status = None if check else empty((*leading, len(num_targets)), costs, torch.int32)
    if len(leading) > 1:
        costs = costs.flatten(0, -3)
    native = extension.extension().linear_assignment_cpu
    infeasible = run(native, num_targets, costs, query, status, torch.get_num_threads())
    if infeasible >= 0 and check:
        raise_infeasible(infeasible, leading, len(num_targets))
    return query, status


def solve_matrix(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`scipy.optimize.linear_sum_assignment` of a float32 or float64 matrix."""
    native = extension.extension().linear_sum_assignment_cpu
    pairs: tuple[np.ndarray, np.ndarray]
    try:
        pairs = native(costs)
    except extension.NotReady:
        pairs = native(costs.copy())
    return pairs
