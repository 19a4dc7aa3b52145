"""Classification losses of all queries, matched or not, of all decoder layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from detr_fast.ops.checks import check_devices
from detr_fast.ops.class_loss import cpu, reference, triton
from detr_fast.ops.class_loss.terms import Terms
from detr_fast.ops.matched import check_matched
from detr_fast.ops.operator import Backend, Operator

OPERATOR = Operator(
    "class_loss",
    Backend("triton", triton, triton.why_not),
    Backend("cpu", cpu, cpu.why_not),
    Backend("reference", reference, lambda device, dtype: None),
)


def class_loss(
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    *,
    kind: Literal["softmax", "focal"] = "softmax",
    no_object: float = 0.1,
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    """The classification loss of each decoder layer, summed over its queries.

    A query that a target is matched to wants the target's class k, any other wants none.
    "softmax" (DETR, arXiv:2005.12872, eq. 2): `-log softmax(x)[k]`, and `-no_object * log softmax(x)[K]`
    where none is wanted: the last of the K + 1 classes is "no object".
    "focal" (arXiv:1708.02002, eq. 5): with p = sigmoid(x), summed over classes, `-alpha (1 - p)^gamma log p`
    for the wanted class and `-(1 - alpha) p^gamma log(1 - p)` for all others.

    Differentiable with respect to the logits, once. Same bits in every run and for any number of threads.
    Half inputs are widened before any arithmetic.

    Args:
        logits: [L, B, Q, K + 1] ("softmax") or [L, B, Q, K] ("focal"); any of the four float dtypes.
        labels: [sumT] int64 in [0, K), image after image.
        query: [L, sumT] int64, as `linear_assignment` gives: each target's query in its own image, or -1.
        sizes: how many targets each image has, B ints that add up to sumT.
        kind: which loss.
        no_object: weight of "no object" ("softmax").
        alpha: weight of the wanted class, others weigh 1 - alpha ("focal").
        gamma: focal exponent, >= 0.
        backend: pins a backend by name.

    Returns:
        [L], float64 where logits are, else float32.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device, option or, on the CPU, a label or query out of
            range. On a GPU, where looking would stall the queue, a bad label makes the loss NaN and a query
            out of range counts as none.
    """
    terms = Terms(kind, no_object, alpha, gamma)
    _check(logits, labels, query, sizes, terms)
    plain = type(logits) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if plain and OPERATOR.select(logits.device, logits.dtype, backend) is reference:
        return reference.forward(logits, labels, query, sizes, terms)
    return _op(logits, labels, query, sizes, *terms, backend)


@torch.library.custom_op("detr_fast::class_loss", mutates_args=())
def _op(
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    kind: str,
    no_object: float,
    alpha: float,
    gamma: float,
    backend: str | None = None,
) -> Tensor:
    terms = Terms(kind, no_object, alpha, gamma)
    implementation = OPERATOR.select(logits.device, logits.dtype, backend)
    return implementation.forward(logits, labels, query, sizes, terms)


@torch.library.custom_op("detr_fast::class_loss_backward", mutates_args=())
def _op_backward(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    kind: str,
    no_object: float,
    alpha: float,
    gamma: float,
    backend: str | None,
) -> Tensor:
    terms = Terms(kind, no_object, alpha, gamma)
    implementation = OPERATOR.select(logits.device, logits.dtype, backend)
    return implementation.backward(grad_loss, logits, labels, query, sizes, terms)


@_op.register_fake
def _(logits: Tensor, *unused: object) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))


@_op_backward.register_fake
def _(grad_loss: Tensor, logits: Tensor, *unused: object) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, labels, query, *ctx.rest = inputs
    ctx.save_for_backward(logits, labels, query)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    return _op_backward(grad_loss, *ctx.saved_tensors, *ctx.rest), *[None] * 8


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("class_loss cannot be differentiated twice by this backend; backend='reference' can")


_op.register_autograd(_backward, setup_context=_setup_context)
_op_backward.register_autograd(_refuse)


def _check(logits: Tensor, labels: Tensor, query: Tensor, sizes: Sequence[int], terms: Terms) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels: expected [sumT]; got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected int64; got {labels.dtype}")
    check_matched("logits", logits, query, sizes, labels.shape[0])
    check_devices("logits", logits, {"labels": labels, "query": query})
    if logits.shape[3] < 1:
        raise ValueError(f"logits: expected [L, B, Q, K] with K >= 1; got {list(logits.shape)}")
    if terms.kind not in ("softmax", "focal"):
        raise ValueError(f"kind: expected 'softmax' or 'focal'; got {terms.kind!r}")
    if not (abs(sum(terms[1:])) < math.inf and terms.gamma >= 0):
        raise ValueError(
            "no_object, alpha, gamma: expected finite numbers with gamma >= 0; "
            f"got {', '.join(map(str, terms[1:]))}"
        )
