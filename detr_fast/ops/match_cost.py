"""What the matching costs of boxes and of masks share: packed targets, labels, costs that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.checks import check_num_targets, widened


def check_packing(logits: Tensor, target_labels: Tensor, num_targets: Sequence[int]) -> None:
    """Raises unless logits [..., B, Q, K], target_labels [sumT] and the B target counts fit together."""
    shape = logits.shape
    if len(shape) not in (3, 4) or shape[-1] < 1:
        raise ValueError(f"logits: expected [L, B, Q, K] or [B, Q, K] with K >= 1; got {list(shape)}")
    if target_labels.ndim != 1:
        raise ValueError(f"target_labels: expected [sumT]; got {list(target_labels.shape)}")
    check_num_targets(num_targets, shape[-3], target_labels.shape[0])
    if target_labels.dtype != torch.int64:
        raise TypeError(f"target_labels: expected int64; got {target_labels.dtype}")


def fake_costs(logits: Tensor, values: Tensor, target_labels: Tensor, *unused: object) -> Tensor:
    """[..., sumT, Q] costs without data."""
    shape = (*logits.shape[:-3], target_labels.shape[0], logits.shape[-2])
    return logits.new_empty(shape, dtype=widened(logits.dtype))


def of_labels(cost_of_class: Tensor, labels: Tensor) -> Tensor:
    """[..., T, Q]: the rows `labels` [T] of the transposed [..., Q, K]; NaN for a label outside [0, K)."""
    known = (labels >= 0) & (labels < cost_of_class.shape[-1])
    return cost_of_class.mT[..., labels.where(known, 0), :].masked_fill(~known[:, None], torch.nan)


def penalise_non_finite(cost: Tensor) -> Tensor:
    """Replaces the non-finite entries of each [T, Q] block as the public functions promise."""
    if cost.numel() == 0:
        return cost
    finite = cost.isfinite()
    low = cost.where(finite, torch.inf).amin((-2, -1), keepdim=True)
    high = cost.where(finite, -torch.inf).amax((-2, -1), keepdim=True)
    # above T * high - (T - 1) * low, by a margin that rounding cannot swallow
    penalty = high + cost.shape[-2] * (high - low) + high.abs().clamp(min=1)
    penalty = penalty.clamp(max=torch.finfo(cost.dtype).max).where(high.isfinite(), 0)
    return cost.where(finite, penalty)
