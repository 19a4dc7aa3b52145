"""L1 and GIoU losses of matched boxes, of all decoder layers at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.box_loss import cpu, cuda, reference, triton
from detr_fast.ops.checks import check_devices, check_floats, widened
from detr_fast.ops.matched import check_matched
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import differentiable

OPERATOR = Operator(
    "box_loss",
    Backend("cuda", cuda.BACKEND, on_cuda()),
    Backend("triton", triton, on_triton()),
    Backend("cpu", cpu, on_cpu()),
    Backend("reference", reference),
)


def box_loss(
    boxes: Tensor,
    target_boxes: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
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
        num_targets: how many targets each image has, B ints that add up to sumT.
        backend: pins a backend by name.

    Returns:
        [2, L]: the sums of L1, and of 1 - GIoU; float64 where boxes are, else float32.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device or, on the CPU, a query out of range (on a GPU
            it counts as none).
    """
    _check(boxes, target_boxes, query, num_targets)
    return _CALL((boxes, target_boxes, query, num_targets), backend)


_CALL = differentiable(
    OPERATOR,
    "(Tensor boxes, Tensor target_boxes, Tensor query, SymInt[] num_targets) -> Tensor",
    lambda boxes, *_: boxes.new_empty(2, boxes.shape[0], dtype=widened(boxes.dtype)),
    lambda implementation, call: implementation.forward(*call),
    lambda implementation, grad_losses, call, needs: implementation.backward(grad_losses, *call),
    by=(0,),
    fold=(0, None, 0),
    fold_ndim=4,
    fold_out=1,
)


def _check(boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]) -> None:
    if target_boxes.ndim != 2 or target_boxes.shape[1] != 4:
        raise ValueError(f"target_boxes: expected [sumT, 4]; got {list(target_boxes.shape)}")
    check_matched("boxes", boxes, query, num_targets, target_boxes.shape[0])
    check_floats({"target_boxes": target_boxes})
    check_devices("boxes", boxes, {"target_boxes": target_boxes, "query": query})
    if boxes.shape[3] != 4:
        raise ValueError(f"boxes: expected [L, B, Q, 4]; got {list(boxes.shape)}")
