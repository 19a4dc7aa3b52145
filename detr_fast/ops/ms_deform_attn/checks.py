"""Argument validation."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.ms_deform_attn.arguments import DeformAttn, remembered

VALUE_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
LARGEST_SIDE = 2**24  # pixel coordinates are float32


def sides_of(spatial_shapes: Tensor | Sequence[Sequence[int]]) -> tuple[int, ...]:
    """`spatial_shapes` [N, 2] as 2 N Python integers in one row; a tensor on a GPU is read back."""
    rows = spatial_shapes
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"spatial_shapes: expected int64; got {spatial_shapes.dtype}")
        rows = spatial_shapes.tolist()
    sides: list[Any] = []
    try:
        for height, width in rows:
            sides += height, width
        integers = torch.Size(sides)  # of any kind, symbolic ones too; refuses all else
    except (TypeError, ValueError):
        raise ValueError(f"spatial_shapes: expected [N, 2] (height, width) integers; got {rows}") from None
    return _checked_sides(integers)


@remembered
def _checked_sides(sides: torch.Size) -> tuple[int, ...]:
    if not sides:
        raise ValueError("spatial_shapes: expected at least one level; got none")
    if not all(0 < side <= LARGEST_SIDE for side in sides):
        level_shapes = list(zip(sides[::2], sides[1::2], strict=True))
        raise ValueError(f"spatial_shapes: expected sides from 1 to {LARGEST_SIDE}; got {level_shapes}")
    return tuple(map(_side, sides))


def _side(side: Any) -> Any:
    """An integer of any kind as a Python integer; a symbolic one as it is, which `index` would fix."""
    return side if type(side) is int or isinstance(side, torch.SymInt) else index(side)


def points_of(points_per_level: Sequence[int] | None) -> tuple[int, ...] | None:
    """`points_per_level` as Python integers."""
    if points_per_level is None:
        return None
    try:
        points = tuple([index(count) for count in points_per_level])
    except TypeError:
        raise TypeError(
            f"points_per_level: expected a sequence of integers; got {points_per_level!r}"
        ) from None
    if any(count < 0 for count in points):
        raise ValueError(f"points_per_level: expected numbers of at least 0; got {list(points)}")
    return points


@remembered
def _pixels(sides: tuple[int, ...]) -> int:
    return sum(height * width for height, width in zip(sides[::2], sides[1::2], strict=True))


def check(call: DeformAttn) -> None:
    """Raises `ValueError` or `TypeError` where the arguments do not fit each other."""
    value, coordinates, weights, reference_points, spatial_shapes, sides, points, _ = call
    if spatial_shapes is not None:  # whose numbers are not known yet
        return
    try:
        batch, pixels, heads, _ = value.shape
        shape, levels = coordinates.shape, len(sides) // 2
        queries, device = shape[1], value.device
        samples = (levels, shape[4]) if points is None else (sum(points),)
        good = (
            value.dtype in VALUE_DTYPES
            and (points is None or len(points) == levels)
            and shape == (batch, queries, heads, *samples, 2)
            and weights.shape == (batch, queries, heads, *samples)
            and pixels == _pixels(tuple(sides))
            and pixels < 2**31
            and coordinates.device == device == weights.device
            and coordinates.is_floating_point()
            and weights.is_floating_point()
        )
        if good and reference_points is not None:
            good = (
                reference_points.shape in ((batch, queries, levels, 2), (batch, queries, levels, 4))
                and reference_points.device == device
                and reference_points.is_floating_point()
            )
    except (AttributeError, IndexError, TypeError, ValueError):
        good = False
    if not good:
        _explain(call)


def _explain(call: DeformAttn) -> None:
    """The first thing wrong, as an error that names the argument."""
    value, coordinates, weights, reference_points, *_ = call
    level_shapes = call.level_shapes
    coordinates_name = "sampling_locations" if reference_points is None else "sampling_offsets"
    weights_name = "attention_weights" if reference_points is None else "attention_logits"
    tensors = {"value": value, coordinates_name: coordinates, weights_name: weights}
    if reference_points is not None:
        tensors["reference_points"] = reference_points
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor; got {type(tensor).__name__}")
        if not tensor.is_floating_point() or (name == "value" and tensor.dtype not in VALUE_DTYPES):
            raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64; got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name}: expected value's device {value.device}; got {tensor.device}")
    if value.ndim != 4:
        raise ValueError(f"value: expected [B, S, H, D]; got {list(value.shape)}")
    pixels = sum(height * width for height, width in level_shapes)
    if value.shape[1] != pixels:
        raise ValueError(
            f"value: expected [B, S, H, D] with S = {pixels}, the pixels of spatial_shapes "
            f"{list(level_shapes)}; got {list(value.shape)}"
        )
    if pixels >= 2**31:
        raise ValueError(f"spatial_shapes: expected fewer than 2**31 pixels; got {pixels}")
    batch, heads, levels = value.shape[0], value.shape[2], len(level_shapes)
    samples: tuple[int, ...]
    if call.points_per_level is None:
        letters, hint, samples = "N, P", f"N = {levels}", (levels, *coordinates.shape[4:5])
        if coordinates.ndim == 5:
            hint += " (or points_per_level for [B, Q, H, sum of P, 2])"
    else:
        if len(call.points) != levels:
            raise ValueError(
                f"points_per_level: expected {levels} numbers, one for each level; got {list(call.points)}"
            )
        letters, samples = "sum of P", (sum(call.points),)
        hint = f"points_per_level = {list(call.points)}"
    queries = coordinates.shape[1:2]
    expected = (batch, *queries, heads, *samples, 2)
    if len(expected) != 4 + len(letters.split(",")) or tuple(coordinates.shape) != expected:
        raise ValueError(
            f"{coordinates_name}: expected [B, Q, H, {letters}, 2] with B = {batch}, H = {heads}, {hint}; "
            f"got {list(coordinates.shape)}"
        )
    if tuple(weights.shape) != expected[:-1]:
        raise ValueError(
            f"{weights_name}: expected [B, Q, H, {letters}] = {list(expected[:-1])}; "
            f"got {list(weights.shape)}"
        )
    if reference_points is not None:
        raise ValueError(
            f"reference_points: expected [B, Q, N, 2] or [B, Q, N, 4] with B = {batch}, Q = {queries[0]}, "
            f"N = {levels} or 1; got {list(reference_points.shape)}"
        )
    raise AssertionError("unreachable: every refusal has its words")


def check_level_start_index(
    level_start_index: Tensor | Sequence[int], spatial_shapes: Tensor | Sequence[Sequence[int]]
) -> None:
    """The classic signature's redundant argument must agree with the level shapes."""
    expected, start, sides = [], 0, sides_of(spatial_shapes)
    for height, width in zip(sides[::2], sides[1::2], strict=True):
        expected.append(start)
        start += height * width
    got = level_start_index.tolist() if isinstance(level_start_index, Tensor) else list(level_start_index)
    if got != expected:
        raise ValueError(f"level_start_index: expected [N] = {expected}; got {got}")
