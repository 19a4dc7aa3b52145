"""L1 and GIoU losses of matched boxes, of all decoder layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.box_loss import cpu, reference, triton
from detr_fast.ops.checks import check_devices, check_floats
from detr_fast.ops.matched import check_matched
from detr_fast.ops.operator import Backend, Operator

OPERATOR = Operator(
    "box_loss",
    Backend("triton", triton, triton.why_not),
    Backend("cpu", cpu, cpu.why_not),
    Backend("reference", reference, lambda device, dtype: None),
)


def box_loss(
    boxes: Tensor,
    target_boxes: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    *,
    backend: str | None = None,
) -> Tensor:
    """L1 distance and 1 - GIoU of each matched pair, summed over the pairs of each decoder layer.

    The box losses of DETR (arXiv:2005.12872, eq. 9) before their normalisation; GIoU is that of
    arXiv:1902.09630. A negative width or height counts as an empty box, and 0 / 0 as zero. Differentiable
    with respect to the boxes, once; where corners of both boxes meet, the slope is the mean of both sides'.
    Same bits in every run. Half inputs are widened before any arithmetic.

    Args:
        boxes: [L, B, Q, 4] (cx, cy, w, h); float32, bfloat16, float16 or float64.
        target_boxes: [sumT, 4] (cx, cy, w, h), image after image, in the boxes' unit.
        query: [L, sumT] int64, as `linear_assignment` gives: each target's query in its own image, or -1.
        sizes: how many targets each image has, B ints that add up to sumT.
        backend: pins a backend by name.

    Returns:
        [2, L]: the sums of L1, and of 1 - GIoU; float64 where boxes are, else float32.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device or, on the CPU, a query out of range (on a GPU
            it counts as none).
    """
    _check(boxes, target_boxes, query, sizes)
    plain = type(boxes) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if plain and OPERATOR.select(boxes.device, boxes.dtype, backend) is reference:
        return reference.forward(boxes, target_boxes, query, sizes)
    return _op(boxes, target_boxes.detach(), query, sizes, backend)


@torch.library.custom_op("detr_fast::box_loss", mutates_args=())
def _op(
    boxes: Tensor, target_boxes: Tensor, query: Tensor, sizes: Sequence[int], backend: str | None = None
) -> Tensor:
    return OPERATOR.select(boxes.device, boxes.dtype, backend).forward(boxes, target_boxes, query, sizes)


@torch.library.custom_op("detr_fast::box_loss_backward", mutates_args=())
def _op_backward(
    grad_losses: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    backend: str | None,
) -> Tensor:
    implementation = OPERATOR.select(boxes.device, boxes.dtype, backend)
    return implementation.backward(grad_losses, boxes, target_boxes, query, sizes)


@_op.register_fake
def _(boxes: Tensor, *unused: object) -> Tensor:
    return boxes.new_empty(2, boxes.shape[0], dtype=torch.promote_types(boxes.dtype, torch.float32))


@_op_backward.register_fake
def _(grad_losses: Tensor, boxes: Tensor, *unused: object) -> Tensor:
    return boxes.new_empty(boxes.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes, target_boxes, query, *ctx.rest = inputs
    ctx.save_for_backward(boxes, target_boxes, query)


def _backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    return _op_backward(grad_losses, *ctx.saved_tensors, *ctx.rest), None, None, None, None


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("box_loss cannot be differentiated twice by this backend; backend='reference' can")


_op.register_autograd(_backward, setup_context=_setup_context)
_op_backward.register_autograd(_refuse)


def _check(boxes: Tensor, target_boxes: Tensor, query: Tensor, sizes: Sequence[int]) -> None:
    if target_boxes.ndim != 2 or target_boxes.shape[1] != 4:
        raise ValueError(f"target_boxes: expected [sumT, 4]; got {list(target_boxes.shape)}")
    check_matched("boxes", boxes, query, sizes, target_boxes.shape[0])
    check_floats({"target_boxes": target_boxes})
    check_devices("boxes", boxes, {"target_boxes": target_boxes, "query": query})
    if boxes.shape[3] != 4:
        raise ValueError(f"boxes: expected [L, B, Q, 4]; got {list(boxes.shape)}")
