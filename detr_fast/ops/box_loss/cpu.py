"""The compiled CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detr_fast import extension
from detr_fast.ops.matched import query_error
from detr_fast.ops.memory import cast, run


def forward(boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]) -> Tensor:
    """[2, L] sums over matched pairs; arguments as the public function's, already checked."""
    losses = torch.empty(2, boxes.shape[0], dtype=torch.float32)
    _run(extension.extension().box_loss_cpu_fwd, boxes, target_boxes, query, num_targets, losses)
    return losses


def backward(
    grad_losses: Tensor, boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]
) -> Tensor:
    """The gradient of the boxes, in their dtype."""
    gradient = torch.zeros(boxes.shape, dtype=torch.float32)
    function = extension.extension().box_loss_cpu_bwd
    _run(function, boxes, target_boxes, query, num_targets, grad_losses, gradient)
    return gradient.to(boxes.dtype)


def _run(
    function: Callable[..., int],
    boxes: Tensor,
    target_boxes: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
    *tensors: Tensor,
) -> None:
    layers, _, queries, _ = boxes.shape
    boxes, target_boxes = cast(boxes, torch.float32), cast(target_boxes, torch.float32)
    bad = run(function, num_targets, layers, queries, boxes, target_boxes, query, *tensors)
    if bad >= 0:
        raise query_error(query, bad, queries)
