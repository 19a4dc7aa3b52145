"""One forward and its adjoint, reached by an eager call and through the registered operators.

Sampling is linear in the maps, so each of the two is the other's derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.point_sample import cpu, reference, triton
from detr_fast.ops.point_sample.checks import check, result_dtype, rows

OPERATOR = Operator(
    "point_sample",
    Backend("triton", triton, triton.why_not),
    Backend("cpu", cpu, cpu.why_not),
    Backend("reference", reference, lambda device, dtype: None),
)

_PLAIN = (Tensor, torch.nn.Parameter)


def call(
    maps: Tensor,
    points: Tensor,
    map_index: Tensor | None,
    point_index: Tensor | None,
    backend: str | None,
    deterministic: bool | None,
) -> Tensor:
    """Checks, chooses the backend and the way to it."""
    check(maps, points, map_index, point_index)
    if type(maps) not in _PLAIN or torch.compiler.is_compiling():
        return _operator(maps, points, map_index, point_index, backend, deterministic)
    implementation = OPERATOR.select(maps.device, maps.dtype, backend)
    if not (maps.requires_grad and torch.is_grad_enabled()):
        return implementation.forward(maps, points, map_index, point_index)
    return _Sample.apply(maps, points, map_index, point_index, (implementation, deterministic))


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        points: Tensor,
        map_index: Tensor | None,
        point_index: Tensor | None,
        choices: tuple[Any, bool | None],
    ) -> Tensor:
        ctx.save_for_backward(points, map_index, point_index)
        ctx.shape, ctx.choices = maps.shape, choices
        return choices[0].forward(maps, points, map_index, point_index)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return _Spread.apply(grad_out, ctx.shape, *ctx.saved_tensors, ctx.choices), None, None, None, None


class _Spread(torch.autograd.Function):
    """The adjoint: what is at the points, added to the maps."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_out: Tensor,
        shape: torch.Size,
        points: Tensor,
        map_index: Tensor | None,
        point_index: Tensor | None,
        choices: tuple[Any, bool | None],
    ) -> Tensor:
        ctx.save_for_backward(points, map_index, point_index)
        ctx.choices = choices
        return _adjoint(choices, grad_out, shape, points, map_index, point_index)

    @staticmethod
    def backward(ctx: Any, grad_maps: Tensor) -> tuple[Tensor | None, ...]:
        return _Sample.apply(grad_maps, *ctx.saved_tensors, ctx.choices), None, None, None, None, None


def _adjoint(choices: tuple[Any, bool | None], *arguments: Any) -> Tensor:
    implementation, deterministic = choices
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return implementation.backward(*arguments, deterministic)


@torch.library.custom_op("detr_fast::point_sample", mutates_args=())
def _operator(
    maps: Tensor,
    points: Tensor,
    map_index: Tensor | None,
    point_index: Tensor | None,
    backend: str | None,
    deterministic: bool | None = None,
) -> Tensor:
    check(maps, points, map_index, point_index)
    implementation = OPERATOR.select(maps.device, maps.dtype, backend)
    return implementation.forward(maps, points, map_index, point_index)


@torch.library.custom_op("detr_fast::point_sample_backward", mutates_args=())
def _operator_backward(
    grad_out: Tensor,
    shape: Sequence[int],
    points: Tensor,
    map_index: Tensor | None,
    point_index: Tensor | None,
    backend: str | None,
    deterministic: bool | None = None,
) -> Tensor:
    """The gradient of maps [M, C, h, w] = shape."""
    choices = (OPERATOR.select(grad_out.device, grad_out.dtype, backend), deterministic)
    return _adjoint(choices, grad_out, torch.Size(shape), points, map_index, point_index)


@_operator.register_fake
def _(
    maps: Tensor, points: Tensor, map_index: Tensor | None, point_index: Tensor | None, *choices: object
) -> Tensor:
    shape = (rows(maps.shape, map_index, point_index), maps.shape[1], points.shape[1])
    return maps.new_empty(shape, dtype=result_dtype(maps.dtype))


@_operator_backward.register_fake
def _(grad_out: Tensor, shape: Sequence[int], *unused: object) -> Tensor:
    return grad_out.new_empty(shape)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, points, map_index, point_index, *ctx.choices = inputs
    ctx.save_for_backward(points, map_index, point_index)
    ctx.shape = maps.shape


def _differentiate_forward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad_maps = _operator_backward(grad_out, ctx.shape, *ctx.saved_tensors, *ctx.choices)
    return grad_maps, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, points, map_index, point_index, *ctx.choices = inputs
    ctx.save_for_backward(points, map_index, point_index)


def _differentiate_backward(ctx: Any, grad_maps: Tensor) -> tuple[Tensor | None, ...]:
    return _operator(grad_maps, *ctx.saved_tensors, *ctx.choices), None, None, None, None, None, None


_operator.register_autograd(_differentiate_forward, setup_context=_setup_forward)
_operator_backward.register_autograd(_differentiate_backward, setup_context=_setup_backward)
