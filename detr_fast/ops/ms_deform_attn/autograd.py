"""One forward and one backward, reached by an eager call and through the registered operator.

An eager call goes through `torch.autograd.Function`, which costs a third of a registered operator's
dispatch; the compiler and fake tensors see `torch.ops.detr_fast.ms_deform_attn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.ms_deform_attn import cpu, cuda, reference, triton
from detr_fast.ops.ms_deform_attn.checks import check, level_sizes
from detr_fast.ops.operator import Backend, Operator

LevelSizes = Sequence[tuple[int, int]]

OPERATOR = Operator(
    "ms_deform_attn",
    Backend("cuda", cuda.BACKEND, cuda.BACKEND.why_not),
    Backend("triton", triton, triton.why_not),
    Backend("cpu", cpu, cpu.why_not),
    Backend("reference", reference, lambda device, dtype: None),
)


_PLAIN = (Tensor, torch.nn.Parameter)


def call(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    backend: str | None,
    deterministic: bool | None,
) -> Tensor:
    """Checks, chooses the backend and the way to it."""
    special = isinstance(value, Tensor) and type(value) not in _PLAIN
    if special or torch.compiler.is_compiling():
        choices = (backend, deterministic)
        if isinstance(spatial_shapes, Tensor):
            return _operator(value, spatial_shapes, (), coordinates, weights, reference_points, *choices)
        sides = [side for size in spatial_shapes for side in size]
        return _operator(value, None, sides, coordinates, weights, reference_points, *choices)
    sizes = level_sizes(spatial_shapes)
    check(value, sizes, coordinates, weights, reference_points)
    implementation = OPERATOR.select(value.device, value.dtype, backend)
    # nothing to differentiate: half of the call's overhead is saved
    differentiable = torch.is_grad_enabled() and (
        value.requires_grad
        or coordinates.requires_grad
        or weights.requires_grad
        or (reference_points is not None and reference_points.requires_grad)
    )
    if not differentiable or implementation is reference:
        return implementation.forward(value, sizes, coordinates, weights, reference_points)
    choices = (implementation, deterministic)
    apply = _Function.apply if torch._C._are_functorch_transforms_active() else _apply
    return apply(choices, sizes, value, coordinates, weights, reference_points)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        choices: tuple[Any, bool | None],
        sizes: LevelSizes,
        value: Tensor,
        coordinates: Tensor,
        weights: Tensor,
        reference_points: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(value, coordinates, weights, reference_points)
        ctx.choices, ctx.sizes = choices, sizes
        return choices[0].forward(value, sizes, coordinates, weights, reference_points)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (ctx.choices, ctx.sizes, ctx.needs_input_grad[2:], grad_out, *ctx.saved_tensors)
        # gradients are recorded only where a second derivative is wanted (create_graph): that one raises
        gradients = _Gradients.apply(*arguments) if torch.is_grad_enabled() else _gradients(*arguments)
        return None, None, *gradients


# `Function.apply` without its preparation for `torch.func`: a tenth of the call
_apply = super(torch.autograd.Function, _Function).apply


def _gradients(
    choices: tuple[Any, bool | None],
    sizes: LevelSizes,
    needs: Sequence[bool],
    grad_out: Tensor,
    value: Tensor,
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
) -> tuple[Tensor | None, ...]:
    implementation, deterministic = choices
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    inputs = (value, sizes, coordinates, weights, reference_points)
    return tuple(implementation.backward(grad_out, *inputs, needs, deterministic))


def _refuse(ctx: Any, *gradients: Tensor | None) -> None:
    raise RuntimeError(
        "ms_deform_attn cannot be differentiated twice by this backend; backend='reference' can"
    )


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        return _gradients(*arguments)

    backward = staticmethod(_refuse)


@torch.library.custom_op("detr_fast::ms_deform_attn", mutates_args=())
def _operator(
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: Sequence[int],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    backend: str | None,
    deterministic: bool | None = None,
) -> Tensor:
    """Level sizes come as a tensor or, flattened, as integers."""
    pairs = _pairs(spatial_shapes, sizes)
    check(value, pairs, coordinates, weights, reference_points)
    implementation = OPERATOR.select(value.device, value.dtype, backend)
    return implementation.forward(value, pairs, coordinates, weights, reference_points)


@torch.library.custom_op("detr_fast::ms_deform_attn_backward", mutates_args=())
def _operator_backward(
    grad_out: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: Sequence[int],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    backend: str | None,
    needs: Sequence[bool],
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, coordinates, weights and reference points; empty where not needed."""
    pairs = _pairs(spatial_shapes, sizes)
    inputs = (value, coordinates, weights, reference_points)
    implementation = OPERATOR.select(value.device, value.dtype, backend)
    if implementation is reference:
        gradients = _reference_backward(grad_out, pairs, inputs, needs)
    else:
        gradients = _gradients((implementation, deterministic), pairs, needs, grad_out, *inputs)
    a, b, c, d = (value.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return a, b, c, d


def _reference_backward(
    grad_out: Tensor, sizes: LevelSizes, inputs: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    wanted = [i for i, need in enumerate(needs) if need]

    def forward(*leaves: Tensor) -> Tensor:
        tensors = list(inputs)
        for i, leaf in zip(wanted, leaves, strict=True):
            tensors[i] = leaf
        value, coordinates, weights, reference_points = tensors
        return reference.forward(value, sizes, coordinates, weights, reference_points)

    # autograd itself is off inside a registered operator; `torch.func` is not
    differentiate = torch.func.vjp(forward, *(inputs[i] for i in wanted))[1]
    found = iter(differentiate(grad_out))
    return tuple(next(found).contiguous() if need else None for need in needs)


def _pairs(spatial_shapes: Tensor | None, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if spatial_shapes is not None:
        return level_sizes(spatial_shapes)
    return level_sizes(list(zip(sizes[::2], sizes[1::2], strict=True)))


@_operator.register_fake
def _(
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: Sequence[int],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    backend: str | None,
    deterministic: bool | None = None,
) -> Tensor:
    return value.new_empty(value.shape[0], coordinates.shape[1], value.shape[2] * value.shape[3])


@_operator_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    spatial_shapes: Tensor | None,
    sizes: Sequence[int],
    coordinates: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    backend: str | None,
    needs: Sequence[bool],
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (value, coordinates, weights, reference_points)
    a, b, c, d = (
        t.new_empty(t.shape) if need and t is not None else value.new_empty(0)
        for t, need in zip(inputs, needs, strict=True)
    )
    return a, b, c, d


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, spatial_shapes, sizes, coordinates, weights, reference_points, *choices = inputs
    ctx.save_for_backward(value, spatial_shapes, coordinates, weights, reference_points)
    ctx.sizes, ctx.choices = sizes, choices


def _registered_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, spatial_shapes, coordinates, weights, reference_points = ctx.saved_tensors
    needed = ctx.needs_input_grad
    needs = [needed[0], needed[3], needed[4], needed[5]]
    backend, deterministic = ctx.choices
    inputs = (value, spatial_shapes, ctx.sizes, coordinates, weights, reference_points)
    gradients = _operator_backward(grad_out, *inputs, backend, needs, deterministic)
    a, b, c, d = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return a, None, None, b, c, d, None, None


_operator.register_autograd(_registered_backward, setup_context=_setup_context)
_operator_backward.register_autograd(_refuse)
