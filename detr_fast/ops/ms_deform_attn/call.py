"""The operator behind the public functions, plain and fused: checks, choice of backend, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.ms_deform_attn import cpu, cuda, reference, triton
from detr_fast.ops.ms_deform_attn.checks import check, level_shapes_of
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import differentiable, watched

LevelShapes = Sequence[tuple[int, int]]

OPERATOR = Operator(
    "ms_deform_attn",
    Backend("cuda", cuda.BACKEND, on_cuda(), cuda.why_not_levels),
    Backend("triton", triton, on_triton()),
    Backend("cpu", cpu, on_cpu()),
    Backend("reference", reference),
)


def call(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    backend: str | None,
    deterministic: bool | None,
) -> Tensor:
    """Checks the arguments and calls the operator."""
    shapes: Tensor | None = None
    sides: tuple[int, ...] = ()
    tensors = (value, coordinates, weights, reference_points)
    if isinstance(spatial_shapes, Tensor) and (type(spatial_shapes) is not Tensor or watched(value)):
        shapes = spatial_shapes  # what records the call must not fix the numbers
    else:
        level_shapes = level_shapes_of(spatial_shapes)
        check(value, level_shapes, coordinates, weights, reference_points)
        sides = _sides(level_shapes)
    return _CALL((*tensors, shapes, sides, deterministic), backend)


@lru_cache(maxsize=256)
def _sides(level_shapes: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return tuple(side for shape in level_shapes for side in shape)


@lru_cache(maxsize=256)
def _pairs(sides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(sides[::2], sides[1::2], strict=True))


def _forward(implementation: Any, call: tuple[Any, ...]) -> Tensor:
    value, coordinates, weights, reference_points, shapes, sides, _ = call
    level_shapes = _level_shapes(shapes, sides)
    if shapes is not None:
        check(value, level_shapes, coordinates, weights, reference_points)
    return implementation.forward(value, level_shapes, coordinates, weights, reference_points)


def _level_shapes(shapes: Tensor | None, sides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return _pairs(tuple(sides)) if shapes is None else level_shapes_of(shapes)


def _backward(
    implementation: Any, grad_out: Tensor, call: tuple[Any, ...], needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    value, *others, shapes, sides, deterministic = call
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    level_shapes = _level_shapes(shapes, sides)
    return implementation.backward(grad_out, value, level_shapes, *others, needs, deterministic)


_CALL = differentiable(
    OPERATOR,
    "(Tensor value, Tensor coordinates, Tensor weights, Tensor? reference_points, Tensor? spatial_shapes, "
    "SymInt[] sides, bool? deterministic) -> Tensor",
    lambda value, coordinates, *_: value.new_empty(
        value.shape[0], coordinates.shape[1], value.shape[2] * value.shape[3]
    ),
    _forward,
    _backward,
    by=(0, 1, 2, 3),
    shape_key=lambda arguments: arguments[1].shape[3] > cuda.MOST_LEVELS,
    fold=(0, 0, 0, 0, None),
    fold_ndim=4,
)
