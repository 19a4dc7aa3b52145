"""The compiled CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.class_loss.reference import label_error
from detr_fast.ops.class_loss.terms import Terms
from detr_fast.ops.matched import query_error

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot take tensors of `device` and `dtype`, or None."""
    if device.type != "cpu":
        return f"runs on the CPU, not on {device.type}"
    if dtype not in _DTYPES:
        return f"computes in float32, not in {dtype}"
    return extension.why_not()


def forward(logits: Tensor, labels: Tensor, query: Tensor, sizes: Sequence[int], terms: Terms) -> Tensor:
    """[L] sums over queries; arguments as the public function's, already checked."""
    loss = torch.empty(logits.shape[0], dtype=torch.float32)
    _run(extension.extension().class_loss_cpu_fwd, logits, labels, query, sizes, terms, loss)
    return loss


def backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, query: Tensor, sizes: Sequence[int], terms: Terms
) -> Tensor:
    """The gradient of the logits, in their dtype."""
    gradient = torch.empty(logits.shape, dtype=logits.dtype)
    run = extension.extension().class_loss_cpu_bwd
    _run(run, logits, labels, query, sizes, terms, grad_loss.contiguous(), gradient)
    return gradient


def _run(
    function: Callable[..., int],
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    terms: Terms,
    *tensors: Tensor,
) -> None:
    layers, _, queries, classes = logits.shape
    bad = function(
        sizes,
        layers,
        queries,
        classes,
        logits.contiguous(),
        labels.contiguous(),
        query.contiguous(),
        terms.focal,
        *terms[1:],
        torch.get_num_threads(),
        *tensors,
    )
    if bad >= len(labels):
        raise query_error(query, bad - len(labels), queries)
    if bad >= 0:
        raise label_error(labels, bad, terms.objects(classes))
