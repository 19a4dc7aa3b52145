"""Matching costs between every target and every query of its own image, all decoder layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.box_match_cost import cpu, cuda, reference, triton
from detr_fast.ops.box_match_cost.arguments import BoxCosts
from detr_fast.ops.checks import FLOATS, check_devices, check_floats
from detr_fast.ops.match_cost import check_packing, fake_costs
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import Registered

Classification = Literal["softmax", "focal"]

OPERATOR = Operator(
    "box_match_cost",
    Backend("cuda", cuda.BACKEND, on_cuda()),
    Backend("triton", triton, on_triton()),
    Backend("cpu", cpu, on_cpu()),
    Backend("reference", reference),
)


def box_match_cost(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    num_targets: Sequence[int],
    *,
    classification: Classification = "softmax",
    w_class: float = 1.0,
    w_l1: float = 5.0,
    w_giou: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """The cost of each pair of target and query of one image: `w_class * class + w_l1 * L1 - w_giou * GIoU`.

    The class term of a target with label k is, with classification
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
        num_targets: how many targets each image has, B ints that add up to sumT.
        classification: the class term.
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
    call = BoxCosts(
        logits,
        boxes,
        target_labels,
        target_boxes,
        num_targets,
        classification,
        w_class,
        w_l1,
        w_giou,
        alpha,
        gamma,
    )
    _check(call)
    return _CALL(call, backend)


_CALL = Registered(
    OPERATOR,
    "(Tensor logits, Tensor boxes, Tensor target_labels, Tensor target_boxes, SymInt[] num_targets, "
    "str classification, float w_class, float w_l1, float w_giou, float alpha, float gamma) -> Tensor",
    fake_costs,
    lambda implementation, call: implementation.forward(call),
    pack=BoxCosts._make,
    fold=(0, 0, None, None),
    fold_ndim=4,
)


def _check(call: BoxCosts) -> None:
    logits, boxes, target_labels, target_boxes, num_targets, *_ = call
    check_packing(logits, target_labels, num_targets)
    shape, targets = logits.shape, target_labels.shape[0]
    if boxes.shape != (*shape[:-1], 4):
        raise ValueError(
            f"boxes: expected {[*shape[:-1], 4]} ([..., B, Q, 4] as logits); got {list(boxes.shape)}"
        )
    if target_boxes.shape != (targets, 4):
        raise ValueError(f"target_boxes: expected [sumT, 4] = {[targets, 4]}; got {list(target_boxes.shape)}")
    device = logits.device
    if not (  # looked at one by one only to say what is wrong
        logits.dtype in FLOATS
        and boxes.dtype in FLOATS
        and target_boxes.dtype in FLOATS
        and device == boxes.device == target_labels.device == target_boxes.device
    ):
        check_floats({"logits": logits, "boxes": boxes, "target_boxes": target_boxes})
        others = {"boxes": boxes, "target_labels": target_labels, "target_boxes": target_boxes}
        check_devices("logits", logits, others)
    if call.classification != "softmax" and call.classification != "focal":
        raise ValueError(f"classification: expected 'softmax' or 'focal'; got {call.classification!r}")
    if not (abs(sum(call.numbers)) < math.inf and call.gamma >= 0):
        raise ValueError(
            "w_class, w_l1, w_giou, alpha, gamma: expected finite numbers with gamma >= 0; "
            f"got {', '.join(map(str, call.numbers))}"
        )
