"""Masks in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """[N, H, W] bool -> [N, h, w] bool, nearest neighbour."""
    if not masks.shape[0]:
        return masks.new_zeros(0, *size)
    # a conversion rather than a view as another dtype, which torch.jit.trace cannot record
    return F.interpolate(masks[:, None].to(torch.uint8), size=list(size))[:, 0].bool()


def chunks(rows: int, step: int) -> Iterable[slice]:
    """Slices of at most `step` rows; where all fit, the one of all, so that traced calls fix no number."""
    if 0 < rows <= step:
        return (slice(0, rows),)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))
