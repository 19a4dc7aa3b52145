"""The compiled CPU backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.checks import label_error
from detr_fast.ops.class_loss.arguments import ClassLoss
from detr_fast.ops.matched import query_error
from detr_fast.ops.memory import empty, run


def forward(call: ClassLoss) -> Tensor:
    """[L] sums over queries, of checked arguments."""
    loss = torch.empty(call.logits.shape[0], dtype=torch.float32)
    _run(extension.extension().class_loss_cpu_fwd, call, loss)
    return loss


def backward(grad_loss: Tensor, call: ClassLoss) -> Tensor:
    """The gradient of the logits, in their dtype."""
    gradient = empty(call.logits.shape, call.logits)
    _run(extension.extension().class_loss_cpu_bwd, call, grad_loss, gradient)
    return gradient


def _run(function: Callable[..., int], call: ClassLoss, *tensors: Tensor) -> None:
    logits, labels, query, weights, num_targets, *_ = call
    layers, _, queries, classes = logits.shape
    bad = run(
        function,
        num_targets,
        layers,
        queries,
        classes,
        logits,
        labels,
        query,
        None if weights is None else weights.float(),
        call.focal,
        call.constant,
        *call.numbers,
        torch.get_num_threads(),
        *tensors,
    )
    if bad >= len(labels):
        raise query_error(query, bad - len(labels), queries)
    if bad >= 0:
        raise label_error("labels", labels, bad, call.objects)
