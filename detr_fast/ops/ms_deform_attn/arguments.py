"""The arguments of the operator, plain and fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from detr_fast.ops.memory import empty

Key = TypeVar("Key")
Value = TypeVar("Value")
LevelShapes = tuple[tuple[int, int], ...]


class DeformAttn(NamedTuple):
    """What the registered operator takes, in its order; with `reference_points` it is the fused one.

    value: [B, S, H, D].
    coordinates: [B, Q, H, N, P, 2], sampling locations, or offsets where fused; [B, Q, H, sum of P, 2] with
        `points_per_level`.
    weights: [B, Q, H, N, P] or [B, Q, H, sum of P], attention weights, or logits where fused.
    reference_points: None, [B, Q, N, 2] or [B, Q, N, 4].
    spatial_shapes: [N, 2], where the numbers are not known yet; None in what a backend gets.
    sides: height and width of each level, one after the other.
    points_per_level: P of each level; None where all have the same.
    deterministic: whether the gradient of value is summed in a fixed order; None: as torch's setting says.
    """

    value: Tensor
    coordinates: Tensor
    weights: Tensor
    reference_points: Tensor | None
    spatial_shapes: Tensor | None
    sides: Sequence[int]
    points_per_level: Sequence[int] | None
    deterministic: bool | None

    @property
    def level_shapes(self) -> LevelShapes:
        """(height, width) of each of the N levels."""
        return _pairs(tuple(self.sides))

    @property
    def points(self) -> tuple[int, ...]:
        """P of each of the N levels."""
        if self.points_per_level is not None:
            return tuple(self.points_per_level)
        return (self.coordinates.shape[4],) * (len(self.sides) // 2)

    @property
    def reference_dims(self) -> int:
        """2 or 4; 0 where there are no reference points."""
        return 0 if self.reference_points is None else self.reference_points.shape[-1]

    @property
    def in_order(self) -> bool:
        """`deterministic`, or torch's setting."""
        if self.deterministic is None:
            return torch.are_deterministic_algorithms_enabled()
        return self.deterministic

    def reference_parts(self) -> Tensor:
        """Room for each head's gradient by reference points: [B, Q, H, N, reference_dims] float32."""
        shape = (*self.weights.shape[:3], len(self.points), self.reference_dims)
        return empty(shape, self.value, torch.float32)

    def zeros(self, needs: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of a call without samples or outputs."""
        return [
            t.new_zeros(t.shape) if need and t is not None else None
            for t, need in zip(self[:4], needs, strict=True)
        ]

    def in_input_dtypes(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Each gradient in its input's dtype."""
        return [
            gradient if gradient is None or t is None or gradient.dtype == t.dtype else gradient.to(t.dtype)
            for gradient, t in zip(gradients, self[:4], strict=True)
        ]


def remembered(function: Callable[[Key], Value]) -> Callable[[Key], Value]:
    """The function with its last results kept, but for symbolic integers, which have no hash."""
    kept = lru_cache(maxsize=256)(function)

    def call(key: Key) -> Value:
        try:
            return kept(key)
        except TypeError:
            return function(key)

    return call


@remembered
def _pairs(sides: tuple[int, ...]) -> LevelShapes:
    return tuple(zip(sides[::2], sides[1::2], strict=True))
