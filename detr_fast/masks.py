"""Masks in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """[N, H, W] bool -> [N, h, w] bool, nearest neighbour."""
    if not masks.shape[0]:
        return masks.new_zeros(0, *size)
    # a conversion rather than a view as another dtype, which torch.jit.trace cannot record
    return F.interpolate(masks[:, None].to(torch.uint8), size=list(size))[:, 0].bool()
