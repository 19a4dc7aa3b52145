"""Host C++ (csrc/linear_assignment)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
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


def solve_matrix(matrix: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`scipy.optimize.linear_sum_assignment`."""
    pairs: tuple[np.ndarray, np.ndarray]
    try:
        pairs = extension.extension().linear_sum_assignment_cpu(matrix)
    except extension.NotReady:
        pairs = solve_matrix(real(matrix).copy())
    return pairs


def real(matrix: ArrayLike) -> np.ndarray:
    """As an array of float32 or float64."""
    costs = np.asarray(matrix)
    if costs.dtype in (np.float32, np.float64):
        return costs
    if costs.dtype.kind not in "biuf":
        raise TypeError(f"costs: expected real numbers; got {costs.dtype}")
    return costs.astype(np.float64)
