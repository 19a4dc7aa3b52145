"""The compiled CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.class_loss.reference import label_error
from detr_fast.ops.class_loss.terms import Terms
from detr_fast.ops.matched import query_error

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as enum FloatType in csrc


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
    _run(extension.extension().class_loss_fwd, logits, labels, query, sizes, terms, loss.data_ptr())
    return loss


def backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, query: Tensor, sizes: Sequence[int], terms: Terms
) -> Tensor:
    """The gradient of the logits, in their dtype."""
    grad_loss = grad_loss.contiguous()
    gradient = torch.empty(logits.shape, dtype=logits.dtype)
    pointers = (grad_loss.data_ptr(), gradient.data_ptr())
    _run(extension.extension().class_loss_bwd, logits, labels, query, sizes, terms, *pointers)
    return gradient


def _run(
    function: Callable[..., int],
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    sizes: Sequence[int],
    terms: Terms,
    *pointers: int,
) -> None:
    layers, _, queries, classes = logits.shape
    # named, so that copies outlive the call
    logits, labels, query = logits.contiguous(), labels.contiguous(), query.contiguous()
    bad = function(
        (layers, queries, classes),
        sizes,
        logits.data_ptr(),
        _DTYPES[logits.dtype],
        labels.data_ptr(),
        query.data_ptr(),
        terms.focal,
        terms[1:],
        torch.get_num_threads(),
        *pointers,
    )
    if bad >= len(labels):
        raise query_error(query, bad - len(labels), queries)
    if bad >= 0:
        raise label_error(labels, bad, terms.objects(classes))
