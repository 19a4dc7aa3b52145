"""The plainest solution that is right: scipy, one problem after another, in float64 on the host."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the reference cannot serve: scipy comes with the extra `train` alone."""
    return None if find_spec("scipy") else "scipy is not installed; `pip install scipy`"


def solve(costs: Tensor, num_targets: Sequence[int], check: bool) -> tuple[Tensor, Tensor | None]:
    """costs [..., sumT, Q] -> query [..., sumT] int64, status [..., B] int32 (1 = infeasible).

    With `check` an infeasible problem raises, and there is no status.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

    host = costs.detach().cpu().double().numpy()
    query = np.full(host.shape[:-1], -1, dtype=np.int64)
    status = np.zeros((*host.shape[:-2], len(num_targets)), dtype=np.int32)
    ends = np.cumsum(num_targets, dtype=np.int64)
    for number, problem in enumerate(np.ndindex(status.shape)):
        *layer, image = problem
        start, end = ends[image] - num_targets[image], ends[image]
        try:
            target, chosen = linear_sum_assignment(finite_penalties(host[(*layer, slice(start, end))]))
        except ValueError:
            status[problem] = 1
            if check:
                raise_infeasible(number, host.shape[:-2], len(num_targets))
        else:
            query[(*layer, start + target)] = chosen
    answer = torch.from_numpy(query).to(costs.device)
    return answer, None if check else torch.from_numpy(status).to(costs.device)


def finite_penalties(block: np.ndarray) -> np.ndarray:
    """[T, Q] with NaN and -inf replaced by more than any assignment of finite entries can cost."""
    finite = block[np.isfinite(block)]
    if finite.size and np.abs(finite).max() > 2.0**900:
        # sums and differences of such costs overflow; a power of two changes no order
        block, finite = block * 2.0**-200, finite * 2.0**-200
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    penalty = high + min(block.shape) * (high - low) + max(abs(high), abs(low), np.finfo(np.float64).tiny)
    return np.where(np.isnan(block) | (block == -np.inf), penalty, block)


def raise_infeasible(problem: int, leading: Sequence[int], images: int) -> NoReturn:
    """Says which problem, counted over the leading dimensions and images, has no finite solution."""
    *layer, image = (int(i) for i in np.unravel_index(problem, (*leading, images)))
    where = f"image {image}" + (f" of leading index {tuple(layer)}" if layer else "")
    raise ValueError(f"cost matrix is infeasible: {where} has no assignment that avoids all +inf costs")
