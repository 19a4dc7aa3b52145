"""Argument validation."""

from __future__ import annotations

import torch
from torch import Tensor

MAP_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8))
LARGEST_SIDE = 2**24  # pixel coordinates are float32


def check(maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None) -> None:
    """Raises `ValueError` or `TypeError` where the arguments do not fit each other."""
    tensors = {"maps": maps, "points": points}
    if map_index is not None:
        tensors["map_index"] = map_index
    if point_index is not None:
        tensors["point_index"] = point_index
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor; got {type(tensor).__name__}")
        if tensor.device != maps.device:
            raise ValueError(f"{name}: expected a tensor on {maps.device}, as maps; got {tensor.device}")
    shape = maps.shape
    if len(shape) != 4 or not (0 < shape[2] <= LARGEST_SIDE and 0 < shape[3] <= LARGEST_SIDE):
        raise ValueError(
            f"maps: expected [M, C, h, w] with h and w from 1 to {LARGEST_SIDE}; got {list(maps.shape)}"
        )
    if shape[2] * shape[3] >= 2**31:
        raise ValueError(f"maps: expected fewer than 2**31 pixels a map; got {list(maps.shape)}")
    if maps.dtype not in MAP_DTYPES:
        raise TypeError(
            f"maps: expected float32, bfloat16, float16, float64, bool or uint8; got {maps.dtype}"
        )
    if points.ndim != 3 or points.shape[2] != 2:
        raise ValueError(f"points: expected [G, P, 2]; got {list(points.shape)}")
    if not points.is_floating_point():
        raise TypeError(f"points: expected floating point; got {points.dtype}")
    if points.requires_grad and torch.is_grad_enabled():
        raise ValueError("points: no gradient is computed for points; pass points.detach()")
    counts = {}
    for name, index, of, source in (
        ("map_index", map_index, "M", maps),
        ("point_index", point_index, "G", points),
    ):
        if index is None:
            counts[of] = source.shape[0]
            continue
        if index.dtype != torch.int64:
            raise TypeError(f"{name}: expected int64; got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"{name}: expected [R]; got {list(index.shape)}")
        if index.shape[0] and not source.shape[0]:
            raise ValueError(f"{name}: expected numbers below {of} = 0; got R = {index.shape[0]} of them")
        counts[name] = index.shape[0]
    (first, r), (second, other) = counts.items()
    if r != other:
        raise ValueError(f"{second}: expected R = {r} rows, as {first} has; got {other}")


def range_error(name: str, index: Tensor, count: int, row: int) -> ValueError:
    """What is wrong with a row's number outside [0, count)."""
    of = "M" if name == "map_index" else "G"
    return ValueError(
        f"{name}: expected numbers in [0, {of}) with {of} = {count}; got {int(index[row])} at row {row}"
    )
