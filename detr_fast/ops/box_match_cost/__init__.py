"""Matching costs between every target and every query of its own image, all decoder layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.box_match_cost import cpu, cuda, reference, triton
from detr_fast.ops.box_match_cost.terms import Terms
from detr_fast.ops.checks import check_devices, check_floats
from detr_fast.ops.match_cost import check_packing
from detr_fast.ops.operator import Backend, Operator

ClassCost = Literal["softmax", "focal"]

OPERATOR = Operator(
    "box_match_cost",
    Backend("cuda", cuda.BACKEND, cuda.BACKEND.why_not),
    Backend("triton", triton, triton.why_not),
    Backend("cpu", cpu, cpu.why_not),
    Backend("reference", reference, lambda device, dtype: None),
)


def box_match_cost(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    sizes: Sequence[int],
    *,
    class_cost: ClassCost = "softmax",
    w_class: float = 1.0,
    w_l1: float = 5.0,
    w_giou: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """The cost of each pair of target and query of one image: `w_class * class + w_l1 * L1 - w_giou * GIoU`.

    The class term of a target with label k is, with class_cost
    "softmax": `-softmax(logits)[k]` (DETR, arXiv:2005.12872, section 3.1);
    "focal": with p = sigmoid(logits)[k], `alpha (1 - p)^gamma (-log(p + 1e-8)) - (1 - alpha) p^gamma
    (-log(1 - p + 1e-8))` (Deformable DETR, arXiv:2010.04159).
    GIoU is that of arXiv:1902.09630.

    Degenerate boxes: in GIoU a negative width or height counts as zero and 0 / 0 as zero, so two points in
    one place have GIoU 0 and two apart -1.
    Non-finite costs (NaN or infinite inputs, overflow): within each block of one layer and image they are
    replaced by one finite number, larger than what any assignment over the block's finite costs could add
    up to; by 0 in a block without a finite cost. So a matching stays a permutation, and avoids such pairs.

    Not differentiable: the result never requires a gradient.

    Args:
        logits: [L, B, Q, K] or [B, Q, K] (one layer); float32, bfloat16, float16 or float64.
        boxes: [L, B, Q, 4] or [B, Q, 4], (cx, cy, w, h) in the targets' unit; any of these dtypes.
        target_labels: [sumT] int64 in [0, K), image after image.
        target_boxes: [sumT, 4] (cx, cy, w, h).
        sizes: how many targets each image has, B ints that add up to sumT.
        class_cost: the class term.
        w_class: weight of the class term.
        w_l1: weight of the L1 distance.
        w_giou: weight of the generalized IoU.
        alpha: focal balance.
        gamma: focal exponent, >= 0.
        backend: pins a backend by name.

    Returns:
        [L, sumT, Q] or [sumT, Q]: row t holds the costs of packed target t against the Q queries of its own
        image. float64 where logits are, else float32; half inputs are widened before any arithmetic.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device, option or, on the CPU, a label outside [0, K). On
            a GPU, where looking would stall the queue, such a label's costs count as non-finite.
    """
    terms = Terms(class_cost, w_class, w_l1, w_giou, alpha, gamma)
    _check(logits, boxes, target_labels, target_boxes, sizes, terms)
    if torch.compiler.is_compiling() or type(logits) is not Tensor:
        return _op(
            logits.detach(),
            boxes.detach(),
            target_labels,
            target_boxes.detach(),
            sizes,
            *terms,
            backend,
        )
    implementation = OPERATOR.select(logits.device, logits.dtype, backend)
    return implementation.box_match_cost(logits, boxes, target_labels, target_boxes, sizes, terms)


@torch.library.custom_op("detr_fast::box_match_cost", mutates_args=())
def _op(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    sizes: Sequence[int],
    class_cost: str,
    w_class: float,
    w_l1: float,
    w_giou: float,
    alpha: float,
    gamma: float,
    backend: str | None = None,
) -> Tensor:
    implementation = OPERATOR.select(logits.device, logits.dtype, backend)
    terms = Terms(class_cost, w_class, w_l1, w_giou, alpha, gamma)
    return implementation.box_match_cost(logits, boxes, target_labels, target_boxes, sizes, terms)


@_op.register_fake
def _(logits: Tensor, boxes: Tensor, target_labels: Tensor, *unused: object) -> Tensor:
    shape = (*logits.shape[:-3], target_labels.shape[0], logits.shape[-2])
    return logits.new_empty(shape, dtype=torch.promote_types(logits.dtype, torch.float32))


def _check(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    sizes: Sequence[int],
    terms: Terms,
) -> None:
    check_packing(logits, target_labels, sizes)
    shape, targets = logits.shape, target_labels.shape[0]
    if boxes.shape != (*shape[:-1], 4):
        raise ValueError(
            f"boxes: expected {[*shape[:-1], 4]} ([..., B, Q, 4] as logits); got {list(boxes.shape)}"
        )
    if target_boxes.shape != (targets, 4):
        raise ValueError(f"target_boxes: expected [sumT, 4] = {[targets, 4]}; got {list(target_boxes.shape)}")
    check_floats({"logits": logits, "boxes": boxes, "target_boxes": target_boxes})
    others = {"boxes": boxes, "target_labels": target_labels, "target_boxes": target_boxes}
    check_devices("logits", logits, others)
    class_cost, *numbers = terms
    if class_cost != "softmax" and class_cost != "focal":
        raise ValueError(f"class_cost: expected 'softmax' or 'focal'; got {class_cost!r}")
    if not (abs(sum(numbers)) < math.inf and terms.gamma >= 0):
        raise ValueError(
            "w_class, w_l1, w_giou, alpha, gamma: expected finite numbers with gamma >= 0; "
            f"got {', '.join(map(str, numbers))}"
        )
