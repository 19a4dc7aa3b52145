"""The Triton backend. Triton is imported by the first call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast.ops.memory import empty, ready
from detr_fast.ops.triton_launch import launch, target_starts

_BLOCK_T = 32


def forward(boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]) -> Tensor:
    """[2, L] sums over matched pairs; arguments as the public function's, already checked."""
    from detr_fast.ops.box_loss.triton_kernels import forward_kernel

    # every program its own numbers, added up in a fixed order
    sums = empty((2, *boxes.shape[:2]), boxes, torch.float32)
    if sums.numel():
        _launch(forward_kernel, (sums,), boxes, target_boxes, query, num_targets)
    return sums.sum(2)


def backward(
    grad_losses: Tensor, boxes: Tensor, target_boxes: Tensor, query: Tensor, num_targets: Sequence[int]
) -> Tensor:
    """The gradient of the boxes, in their dtype."""
    from detr_fast.ops.box_loss.triton_kernels import backward_kernel

    gradient = torch.zeros(boxes.shape, dtype=boxes.dtype, device=boxes.device)
    if gradient.numel():
        _launch(backward_kernel, (gradient, ready(grad_losses)), boxes, target_boxes, query, num_targets)
    return gradient


def _launch(
    kernel: object,
    pointers: tuple[Tensor, ...],
    boxes: Tensor,
    target_boxes: Tensor,
    query: Tensor,
    num_targets: Sequence[int],
) -> None:
    layers, images, queries, _ = boxes.shape
    inputs = (ready(boxes), ready(target_boxes, torch.float32), ready(query))
    first_target = target_starts(num_targets, boxes.device)
    numbers = (layers, images, queries, target_boxes.shape[0])
    launch(kernel, layers * images, 1, (*pointers, *inputs, first_target, *numbers, _BLOCK_T))
