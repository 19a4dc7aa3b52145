"""Matching costs between the mask of every target and of every query of its own image, all layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.checks import FLOATS, check_devices, check_floats
from detr_fast.ops.mask_match_cost import cpu, cuda, reference, triton
from detr_fast.ops.mask_match_cost.arguments import MaskCosts
from detr_fast.ops.match_cost import check_packing, fake_costs
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import Registered

MaskCost = Literal["bce", "focal"]

OPERATOR = Operator(
    "mask_match_cost",
    Backend("cuda", cuda.BACKEND, on_cuda()),
    Backend("triton", triton, on_triton()),
    Backend("cpu", cpu, on_cpu()),
    Backend("reference", reference),
)


def mask_match_cost(
    logits: Tensor,
    mask_values: Tensor,
    target_labels: Tensor,
    target_values: Tensor,
    num_targets: Sequence[int],
    *,
    mask_cost: MaskCost = "bce",
    w_class: float = 2.0,
    w_mask: float = 5.0,
    w_dice: float = 5.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """The cost `w_class * class + w_mask * mask + w_dice * dice` of each target and query of one image.

    With x a query's mask logits and t a target's values at the same X points, p = sigmoid(x):
    the class term is `-softmax(logits)[label]`;
    the mask term is the mean over the points of, with mask_cost
    "bce": the binary cross-entropy of x and t (Mask2Former, arXiv:2112.01527, at sampled points);
    "focal": `alpha t (1 - p)^gamma (-log p) + (1 - alpha) (1 - t) p^gamma (-log(1 - p))` (MaskFormer,
    arXiv:2107.06278, at all pixels); a negative alpha stands for no balancing, both factors 1;
    the dice term is `1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`.

    Losses where t = 0, and what they exceed those where t = 1 by, are computed once a query, and the latter
    multiplied with all targets. The difference of these two sums is exact to about 3e-7 of the mean of abs(x)
    ("bce"), whatever X is; where all points are right and sure of it, the term itself may be smaller.

    Non-finite costs (NaN or infinite inputs, overflow): within each block of one layer and image they are
    replaced by one finite number, larger than what any assignment over the block's finite costs could add
    up to; by 0 in a block without a finite cost. So a matching stays a permutation, and avoids such pairs.

    Not differentiable: the result never requires a gradient.

    Args:
        logits: [L, B, Q, K] or [B, Q, K] (one layer), "no object" included; float32, bfloat16, float16 or
            float64.
        mask_values: [L, B, Q, X] or [B, Q, X], mask logits at X >= 1 points; any of these dtypes.
        target_labels: [sumT] int64 in [0, K), image after image.
        target_values: [sumT, X], or [L, sumT, X] where each layer has points of its own; in 0..1 of any of
            these dtypes, or bool, or uint8 with 0 and 1.
        num_targets: how many targets each image has, B ints that add up to sumT.
        mask_cost: the mask term.
        w_class: weight of the class term.
        w_mask: weight of the mask term.
        w_dice: weight of the dice term.
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
    call = MaskCosts(
        logits,
        mask_values,
        target_labels,
        target_values,
        num_targets,
        mask_cost,
        w_class,
        w_mask,
        w_dice,
        alpha,
        gamma,
    )
    _check(call)
    return _CALL(call, backend)


_CALL = Registered(
    OPERATOR,
    "(Tensor logits, Tensor mask_values, Tensor target_labels, Tensor target_values, SymInt[] num_targets, "
    "str mask_cost, float w_class, float w_mask, float w_dice, float alpha, float gamma) -> Tensor",
    fake_costs,
    lambda implementation, call: implementation.forward(call),
    pack=MaskCosts._make,
)


def _check(call: MaskCosts) -> None:
    logits, mask_values, target_labels, target_values, num_targets, *_ = call
    check_packing(logits, target_labels, num_targets)
    shape, targets = logits.shape, target_labels.shape[0]
    if mask_values.ndim != len(shape) or mask_values.shape[:-1] != shape[:-1] or mask_values.shape[-1] < 1:
        raise ValueError(
            f"mask_values: expected {[*shape[:-1], 'X']} ([..., B, Q, X] as logits) with X >= 1; "
            f"got {list(mask_values.shape)}"
        )
    one = (targets, mask_values.shape[-1])
    if target_values.shape != one and target_values.shape != (*shape[:-3], *one):
        raise ValueError(
            f"target_values: expected [sumT, X] = {list(one)}"
            + (f" or [L, sumT, X] = {[shape[0], *one]}" if len(shape) == 4 else "")
            + f"; got {list(target_values.shape)}"
        )
    check_floats({"logits": logits, "mask_values": mask_values})
    if target_values.dtype not in (*FLOATS, torch.bool, torch.uint8):
        raise TypeError(
            "target_values: expected bool, uint8, float32, bfloat16, float16 or float64; "
            f"got {target_values.dtype}"
        )
    tensors = {"mask_values": mask_values, "target_labels": target_labels, "target_values": target_values}
    check_devices("logits", logits, tensors)
    if call.mask_cost != "bce" and call.mask_cost != "focal":
        raise ValueError(f"mask_cost: expected 'bce' or 'focal'; got {call.mask_cost!r}")
    if not (abs(sum(call.numbers)) < math.inf and call.gamma >= 0):
        raise ValueError(
            "w_class, w_mask, w_dice, alpha, gamma: expected finite numbers with gamma >= 0; "
            f"got {', '.join(map(str, call.numbers))}"
        )
