"""What the checks of several operators share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_sizes(sizes: Sequence[int], images: int, targets: int) -> None:
    """Raises unless `sizes` are the B target counts of a packed batch."""
    if isinstance(sizes, Tensor):
        raise TypeError("sizes: expected a sequence of B ints on the host; got a Tensor")
    if len(sizes) != images:
        raise ValueError(
            f"sizes: expected one target count for each of B = {images} images; got {len(sizes)}"
        )
    if sum(sizes) != targets or (sizes and min(sizes) < 0):
        raise ValueError(f"sizes: expected counts >= 0 that add up to sumT = {targets}; got {list(sizes)}")


def check_floats(tensors: Mapping[str, Tensor]) -> None:
    """Raises unless all are of a dtype of FLOATS."""
    for name, value in tensors.items():
        if value.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64; got {value.dtype}")


def check_devices(name: str, first: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Raises unless all are where `first`, the argument `name`, is."""
    for other, value in tensors.items():
        if value.device != first.device:
            raise ValueError(f"{other}: expected a tensor on {first.device}, as {name}; got {value.device}")
