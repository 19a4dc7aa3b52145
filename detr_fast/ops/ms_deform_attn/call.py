"""The operator behind the public functions, plain and fused: checks, choice of backend, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.ms_deform_attn import cpu, cuda, reference, triton
from detr_fast.ops.ms_deform_attn.arguments import DeformAttn
from detr_fast.ops.ms_deform_attn.checks import check, sides_of
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import differentiable, watched

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
    points_per_level: Sequence[int] | None,
    backend: str | None,
    deterministic: bool | None,
) -> Tensor:
    """Calls the operator, with level shapes as integers where nothing records the call."""
    unread: Tensor | None = None
    sides: tuple[int, ...] = ()
    if isinstance(spatial_shapes, Tensor) and (type(spatial_shapes) is not Tensor or watched(value)):
        unread = spatial_shapes
    else:
        sides = sides_of(spatial_shapes)
    call = DeformAttn(
        value, coordinates, weights, reference_points, unread, sides, points_per_level, deterministic
    )
    return _CALL(call, backend)


def _forward(implementation: Any, call: DeformAttn) -> Tensor:
    return implementation.forward(_with_sides(call))


def _backward(implementation: Any, grad_out: Tensor, call: DeformAttn, needs: Sequence[bool]) -> Any:
    return implementation.backward(grad_out, _with_sides(call), needs)


def _with_sides(call: DeformAttn) -> DeformAttn:
    """The call as a backend takes it: level shapes as integers, and all arguments checked."""
    if call.spatial_shapes is None:
        return call
    call = call._replace(spatial_shapes=None, sides=sides_of(call.spatial_shapes))
    check(call)
    return call


def _levels(arguments: Sequence[Any]) -> int:
    coordinates, points_per_level = arguments[1], arguments[6]
    return coordinates.shape[3] if points_per_level is None else len(points_per_level)


_CALL = differentiable(
    OPERATOR,
    "(Tensor value, Tensor coordinates, Tensor weights, Tensor? reference_points, Tensor? spatial_shapes, "
    "SymInt[] sides, SymInt[]? points_per_level, bool? deterministic) -> Tensor",
    lambda value, coordinates, *_: value.new_empty(
        value.shape[0], coordinates.shape[1], value.shape[2] * value.shape[3]
    ),
    _forward,
    _backward,
    check=check,
    pack=DeformAttn._make,
    by=(0, 1, 2, 3),
    shape_key=lambda arguments: (len(arguments[5]) // 2 or _levels(arguments)) > cuda.MOST_LEVELS,
    fold=(0, 0, 0, 0, None),
    fold_ndim=4,
)
