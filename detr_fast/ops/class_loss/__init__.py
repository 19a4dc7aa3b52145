"""Classification losses of all queries, matched or not, of all decoder layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.available import on_cpu, on_cuda, on_triton
from detr_fast.ops.checks import check_devices, check_floats, widened
from detr_fast.ops.class_loss import cpu, cuda, reference, triton
from detr_fast.ops.class_loss.arguments import ClassLoss
from detr_fast.ops.matched import check_matched
from detr_fast.ops.operator import Backend, Operator
from detr_fast.ops.register import differentiable

OPERATOR = Operator(
    "class_loss",
    Backend("cuda", cuda.BACKEND, on_cuda()),
    Backend("triton", triton, on_triton()),
    Backend("cpu", cpu, on_cpu()),
    Backend("reference", reference),
)


def class_loss(
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
    *,
    classification: Literal["softmax", "focal", "varifocal"] = "softmax",
    target_weights: Tensor | None = None,
    eos_coef: float = 0.1,
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """The classification loss of each decoder layer, summed over its queries.

    A query that a target is matched to wants the target's class k, any other wants none.
    "softmax" (DETR, arXiv:2005.12872, eq. 2): `-log softmax(x)[k]`, and `-eos_coef * log softmax(x)[K]`
    where none is wanted: the last of the K + 1 classes is "no object".
    "focal" (arXiv:1708.02002, eq. 5): with p = sigmoid(x), summed over classes, `-alpha (1 - p)^gamma log p`
    for the wanted class and `-(1 - alpha) p^gamma log(1 - p)` for all others.
    "varifocal" (arXiv:2008.13367, eq. 2) is the same, but its gradient takes the others' p^gamma as constant.

    With `target_weights` (u, v) the wanted class costs `-u log p - v log(1 - p)` instead, so that its score
    learns the quality q of the target's box, such as the IoU:

    - RT-DETR and D-FINE: "varifocal", alpha 0.25, with u = q^2, v = q (1 - q);
    - DEIM (arXiv:2412.04234, eq. 6): "varifocal", alpha 0, with u = q^gamma, v = 1 - u;
    - LW-DETR and RF-DETR (arXiv:2406.03459): "focal", alpha 0, with u = p^0.25 q^0.75, v = 1 - u.

    Differentiable with respect to the logits, once. Same bits in every run and for any number of threads.
    Half inputs are widened before any arithmetic.

    Args:
        logits: [L, B, Q, K + 1] ("softmax") or [L, B, Q, K]; any of the four float dtypes.
        labels: [sumT] int64 in [0, K), image after image.
        query: [L, sumT] int64, as `linear_assignment` gives: each target's query in its own image, or -1.
        num_targets: how many targets each image has, B ints that add up to sumT.
        classification: which loss.
        target_weights: [L, sumT, 2] floats, (u, v) of each target; constants, of which no gradient is taken.
            "varifocal" needs them, "softmax" has none.
        eos_coef: weight of "no object" ("softmax").
        alpha: focal weight of the wanted class, others weigh 1 - alpha.
        gamma: focal exponent, >= 0.
        backend: pins a backend by name.

    Returns:
        [L], float64 where logits are, else float32.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device, option or, on the CPU, a label or query out of
            range. On a GPU, where looking would stall the queue, a bad label makes the loss NaN and a query
            out of range counts as none.
    """
    call = ClassLoss(
        logits, labels, query, target_weights, num_targets, classification, eos_coef, alpha, gamma
    )
    _check(call)
    return _CALL(call, backend)


_CALL = differentiable(
    OPERATOR,
    "(Tensor logits, Tensor labels, Tensor query, Tensor? target_weights, SymInt[] num_targets, "
    "str classification, float eos_coef, float alpha, float gamma) -> Tensor",
    lambda logits, *_: logits.new_empty(logits.shape[0], dtype=widened(logits.dtype)),
    lambda implementation, call: implementation.forward(call),
    lambda implementation, grad_loss, call, needs: implementation.backward(grad_loss, call),
    pack=ClassLoss._make,
    by=(0,),
    fold=(0, None, 0, 0),
    fold_ndim=4,
)


def _check(call: ClassLoss) -> None:
    logits, labels, query, weights, num_targets, *_ = call
    if labels.ndim != 1:
        raise ValueError(f"labels: expected [sumT]; got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected int64; got {labels.dtype}")
    check_matched("logits", logits, query, num_targets, labels.shape[0])
    check_devices("logits", logits, {"labels": labels, "query": query})
    if logits.shape[3] < 1:
        raise ValueError(f"logits: expected [L, B, Q, K] with K >= 1; got {list(logits.shape)}")
    if call.classification not in ("softmax", "focal", "varifocal"):
        raise ValueError(
            f"classification: expected 'softmax', 'focal' or 'varifocal'; got {call.classification!r}"
        )
    _check_weights(weights, call)
    if not (abs(sum(call.numbers)) < math.inf and call.gamma >= 0):
        raise ValueError(
            "eos_coef, alpha, gamma: expected finite numbers with gamma >= 0; "
            f"got {', '.join(map(str, call.numbers))}"
        )


def _check_weights(weights: Tensor | None, call: ClassLoss) -> None:
    shape = [*call.query.shape, 2]
    if weights is None:
        if call.constant:
            raise ValueError(f"target_weights: expected [L, sumT, 2] = {shape} for 'varifocal'; got None")
        return
    if not call.focal:
        raise ValueError(f"target_weights: expected None for 'softmax'; got {list(weights.shape)}")
    if list(weights.shape) != shape:
        raise ValueError(f"target_weights: expected [L, sumT, 2] = {shape}; got {list(weights.shape)}")
    check_floats({"target_weights": weights})
    check_devices("logits", call.logits, {"target_weights": weights})
