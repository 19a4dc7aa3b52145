"""What the checks of several operators share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_num_targets(num_targets: Sequence[int], images: int, targets: int) -> None:
    """Raises unless `num_targets` are the B target counts of a packed batch."""
    if isinstance(num_targets, Tensor):
        raise TypeError("num_targets: expected a sequence of B ints on the host; got a Tensor")
    if len(num_targets) != images:
        raise ValueError(
            f"num_targets: expected one target count for each of B = {images} images; got {len(num_targets)}"
        )
    if sum(num_targets) != targets or (num_targets and min(num_targets) < 0):
        raise ValueError(
            f"num_targets: expected counts >= 0 that add up to sumT = {targets}; got {list(num_targets)}"
        )


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


def check_labels(name: str, labels: Tensor, classes: int) -> None:
    """Raises where a label is outside [0, classes); looks at the values, so for the CPU only."""
    outside = torch.nonzero((labels < 0) | (labels >= classes))
    if outside.numel():
        raise label_error(name, labels, int(outside[0]), classes)


def label_error(name: str, labels: Tensor, index: int, classes: int) -> ValueError:
    """The error for the label of packed target `index`."""
    return ValueError(
        f"{name}: expected labels in [0, K) with K = {classes}; "
        f"got {int(labels[index])} at packed target {index}"
    )
