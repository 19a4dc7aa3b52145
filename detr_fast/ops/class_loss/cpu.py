"""The compiled CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.class_loss.options import ClassLossOptions
from detr_fast.ops.class_loss.reference import label_error
from detr_fast.ops.matched import query_error
from detr_fast.ops.memory import ready


def forward(
    logits: Tensor, labels: Tensor, query: Tensor, num_targets: Sequence[int], options: ClassLossOptions
) -> Tensor:
    """[L] sums over queries; arguments as the public function's, already checked."""
    loss = torch.empty(logits.shape[0], dtype=torch.float32)
    _run(extension.extension().class_loss_cpu_fwd, logits, labels, query, num_targets, options, loss)
    return loss


def backward(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
    options: ClassLossOptions,
) -> Tensor:
    """The gradient of the logits, in their dtype."""
    gradient = torch.empty(logits.shape, dtype=logits.dtype)
    run = extension.extension().class_loss_cpu_bwd
    _run(run, logits, labels, query, num_targets, options, ready(grad_loss), gradient)
    return gradient


def _run(
    function: Callable[..., int],
    logits: Tensor,
    labels: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
    options: ClassLossOptions,
    *tensors: Tensor,
) -> None:
    layers, _, queries, classes = logits.shape
    bad = function(
        num_targets,
        layers,
        queries,
        classes,
        ready(logits),
        ready(labels),
        ready(query),
        options.focal,
        *options[1:],
        torch.get_num_threads(),
        *tensors,
    )
    if bad >= len(labels):
        raise query_error(query, bad - len(labels), queries)
    if bad >= 0:
        raise label_error(labels, bad, options.objects(classes))
